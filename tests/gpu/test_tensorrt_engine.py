"""Engine tensorrt on a real GPU: a plan is built, kept, loaded and run; its fp16 logits against fp32 on the CPU."""

from __future__ import annotations

import asyncio
import logging
import time

import numpy as np
import pytest

from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.select import make_engine
from crossrank.engines.tensorrt.choose import plan_fault, tensorrt_installed
from crossrank.engines.tensorrt.device import device_fault
from crossrank.text.encoding import PairEncoder
from tests.engine_bundle import write_fp16_bundle
from tests.shaped_engine import check_batches, check_streams

pytestmark = pytest.mark.gpu
LIMIT = 2e-2


@pytest.fixture(scope="module")
def bundle(builtin, tmp_path_factory):
    if not tensorrt_installed():
        pytest.skip("no TensorRT is installed here: pip install 'crossrank[tensorrt]'")
    if fault := device_fault():
        pytest.skip(f"no NVIDIA GPU can be used here: {fault}")
    bundle = write_fp16_bundle(builtin, tmp_path_factory.mktemp("tensorrt") / "bundle")
    if fault := plan_fault(bundle):
        pytest.skip(fault)
    return bundle


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def engine(bundle, cache):
    engine = make_engine(bundle, "tensorrt", cache_dir=cache)
    yield engine
    asyncio.run(engine.close())


@pytest.fixture(scope="module")
def batch(bundle):
    texts = [f"{'Berlin has a museum of Faust. ' * (i % 60)} number {i}" for i in range(600)]
    return PairEncoder(bundle).encode("who wrote faust", texts).batch


def test_logits_are_those_of_fp32_on_the_cpu(engine, bundle, batch):
    assert (engine.name, engine.precision) == ("tensorrt", "fp16")
    assert np.abs(engine.infer(batch) - OnnxRuntimeEngine(bundle, "fp32").infer(batch)).max() <= LIMIT


def test_a_score_does_not_depend_on_its_batch(engine, batch):
    check_batches(engine, batch, LIMIT)


def test_runs_are_bitwise_equal_between_streams(engine, batch):
    check_streams(engine, batch)


def test_the_next_start_builds_nothing_and_compiles_nothing(engine, bundle, cache, batch, caplog):
    (kernels,) = cache.glob("tensorrt/*/*.kernels")
    before = kernels.read_bytes()
    expected = engine.infer(batch)
    begin = time.monotonic()
    with caplog.at_level(logging.INFO, "crossrank"):
        again = make_engine(bundle, "tensorrt", cache_dir=cache)
    print(f"second start: {time.monotonic() - begin:.1f} s, {len(before) / 1e6:.1f} MB of kernels")
    assert "builds a plan" not in caplog.text
    assert kernels.read_bytes() == before
    np.testing.assert_allclose(again.infer(batch), expected, atol=LIMIT)
    asyncio.run(again.close())
