"""Engine cuda on a real GPU: fp16 logits of CUDA graphs against fp32 on the CPU, and `auto`."""

from __future__ import annotations

import asyncio
import logging

import numpy as np
import pytest

from crossrank.engines import select
from crossrank.engines.cuda import CudaEngine
from crossrank.engines.cuda_session import cuda_installed
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.tensorrt.device import find_device
from crossrank.text.encoding import PairEncoder
from tests.engine_bundle import write_fp16_bundle
from tests.shaped_engine import check_batches, check_streams

pytestmark = pytest.mark.gpu
# Largest difference of a logit from fp32 on the CPU.
LIMITS = {"fp32": 1e-4, "fp16": 2e-2}


@pytest.fixture(scope="module")
def bundle(builtin, tmp_path_factory):
    if not cuda_installed():
        pytest.skip("onnxruntime-gpu is not installed here (make cuda)")
    if find_device() is None:
        pytest.skip("no NVIDIA GPU is visible here")
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("cuda") / "bundle")


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engine(request, bundle):
    engine = CudaEngine(bundle, request.param)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def batch(bundle):
    texts = [f"{'Berlin has a museum of Faust. ' * (i % 60)} number {i}" for i in range(600)]
    return PairEncoder(bundle).encode("who wrote faust", texts).batch


def test_every_shape_has_a_cuda_graph(engine):
    lanes = [engine._pool.submit(lambda: engine._local.lane).result() for _ in range(8)]
    for lane in lanes:
        assert lane._captures
        assert set(lane._bound) == set(engine.shapes)


def test_logits_are_those_of_fp32_on_the_cpu(engine, bundle, batch):
    reference = OnnxRuntimeEngine(bundle, "fp32").infer(batch)
    assert np.abs(engine.infer(batch) - reference).max() <= LIMITS[engine.precision]


def test_a_score_does_not_depend_on_its_batch(engine, batch):
    check_batches(engine, batch, LIMITS[engine.precision])


def test_replays_are_bitwise_equal_between_shapes_and_lanes(engine, batch):
    check_streams(engine, batch)


def test_auto_takes_it_in_fp16_and_says_so_once(bundle, caplog):
    select._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "crossrank"):
        engines = [select.make_engine(bundle) for _ in range(2)]
    for engine in engines:
        assert (engine.name, engine.precision) == ("cuda", "fp16")
        asyncio.run(engine.close())
    assert caplog.text.count("engine cuda is used") == 1
