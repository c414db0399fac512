"""The GPU's engine on ONNX Runtime's CPU provider: bound buffers, shapes and padding are the real ones, graphs are not.

tests/gpu/test_cuda_engine.py runs it where there is a GPU.
"""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.engines import candidates, cuda, cuda_session, select
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.engines.cuda import CudaEngine
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.errors import EngineFailure, SetupError
from crossrank.packed import PairBatch, take_pairs
from crossrank.text.encoding import PairEncoder
from tests.engine_bundle import write_fp16_bundle
from tests.shaped_engine import check_threads

SMALL = {"lengths": (16, 32, 64), "rows": (1, 2, 4)}


@pytest.fixture(scope="module")
def bundle(builtin, tmp_path_factory):
    """fp32 and fp16, with a short window, so that all shapes are prepared quickly."""
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("cuda") / "bundle", max_length=80)


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def engine(request, bundle):
    engine = CudaEngine(bundle, request.param, threads=2, device="cpu", **SMALL)
    yield engine
    asyncio.run(engine.close())


def pairs(bundle, documents: int, seed: int = 3) -> PairBatch:
    random = np.random.default_rng(seed)
    texts = [
        " ".join(random.choice(["Berlin", "Faust", "wrote", "a", "museum"], random.integers(1, 70)))
        for _ in range(documents)
    ]
    return PairEncoder(bundle).encode("who wrote faust", texts).batch


def test_logits_are_those_of_the_plain_engine(engine, bundle):
    batch = pairs(bundle, 30)
    plain = OnnxRuntimeEngine(bundle, engine.precision, threads=1)
    # The optimizers differ by one: see OnnxRuntimeEngine. In fp16 so do the graphs.
    np.testing.assert_allclose(
        engine.infer(batch), plain.infer(batch), atol=1e-5 if engine.precision == "fp32" else 5e-3
    )


def test_fp16_is_the_graph_of_onnx_runtimes_operators_where_the_bundle_has_it(engine, bundle):
    fp16 = engine.precision == "fp16"
    assert engine._path.name == ("model.fp16.onnxruntime.onnx" if fp16 else "model.onnx")
    assert OnnxRuntimeEngine(bundle, engine.precision, threads=1)._path.name == (
        "model.fp16.onnx" if fp16 else "model.onnx"
    )


def test_fp16_is_the_standard_graph_where_the_bundle_has_no_other(bundle):
    graphs = [graph for graph in bundle.manifest.graphs if graph.operators == "onnx"]
    older = Bundle(bundle.path, bundle.manifest.model_copy(update={"graphs": graphs}))
    engine = CudaEngine(older, "fp16", threads=1, device="cpu", lengths=(16,), rows=(1, 2))
    assert engine._path.name == "model.fp16.onnx"
    assert np.isfinite(engine.infer(pairs(older, 3))).all()
    asyncio.run(engine.close())


def test_releases_whose_own_operators_added_up_in_fp16_get_the_standard_graph(monkeypatch):
    for version, exact in (("1.24.4", False), ("1.31.0", True), ("2.0.0", True)):
        monkeypatch.setattr("onnxruntime.__version__", version)
        assert cuda.fused_operators_are_exact() == exact


class Wrong(CudaEngine):
    """As on a GPU whose kernels compute something else for the fused operators."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options, device="cpu", lengths=(16, 128), rows=(1, 8))

    def infer(self, batch):
        return super().infer(batch) + (0.1 if self._graph.operators == "onnxruntime" else 0.0)


def test_a_graph_that_the_gpu_computes_wrongly_is_replaced_by_the_standard_one_and_named(bundle, monkeypatch, caplog):
    with pytest.raises(EngineFailure, match=r"model.fp16.onnxruntime.onnx on engine cuda gives logits 0\.\d+ off"):
        Wrong(bundle, "fp16")
    select._say_once.cache_clear()
    monkeypatch.setattr(candidates, "CudaEngine", Wrong)
    monkeypatch.setattr(candidates, "cuda_installed", lambda: True)
    with caplog.at_level(logging.INFO, "crossrank"):
        engine = select.make_engine(bundle, "cuda")
    asyncio.run(engine.close())
    assert engine._path.name == "model.fp16.onnx"
    (said,) = [message for message in caplog.messages if "is not used" in message]
    assert said.startswith(
        "engine cuda in fp16 with fused operators is not used: model.fp16.onnxruntime.onnx on engine"
    )


@pytest.mark.parametrize("hidden", [128, 384, 1024])
def test_rows_of_a_length_grow_by_a_part_of_a_call_or_of_the_batch_up_to_a_full_one(hidden):
    batch_tokens, call_tokens = 98_304 * 128 // hidden, 16_384 * 128 // hidden
    for length in fit_lengths(BUCKET_LENGTHS, 512):
        counts = cuda.row_counts(length, batch_tokens, call_tokens)
        assert counts[0] == 1
        assert batch_tokens - 8 * length < counts[-1] * length <= batch_tokens
        assert len(counts) <= 12
        for fewer, more in pairwise(counts):
            assert fewer < more <= max(fewer + call_tokens / (4 * length), fewer * 4 / 3) + 8


def test_bound_buffers_give_bitwise_what_a_plain_run_of_the_session_gives(engine, bundle):
    def compare(shape: tuple[int, int], seed: int) -> None:
        lane = engine._local.lane
        tensors = engine.tensors(pairs_of_length(shape, seed), *shape)
        np.testing.assert_array_equal(lane.run(tensors), lane.run_plainly(tensors))

    # Back and forth between shapes: each keeps buffers of its own.
    for seed, shape in enumerate([(4, 64), (1, 16), (4, 64), (2, 80), (1, 16), (4, 16), (4, 64)]):
        engine._pool.submit(compare, shape, seed).result()


def pairs_of_length(shape: tuple[int, int], seed: int) -> PairBatch:
    random = np.random.default_rng(seed)
    rows = random.integers(1, shape[0], endpoint=True)
    lengths = random.integers(1, shape[1], rows, endpoint=True)
    tokens = int(lengths.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return PairBatch(random.integers(0, 30_000, tokens, np.int32), np.zeros(tokens, np.int32), offsets)


def test_a_score_does_not_depend_on_its_batch(engine, bundle):
    batch = pairs(bundle, 11)
    together = engine.infer(batch)
    order = np.random.default_rng(0).permutation(len(batch))
    alone = np.concatenate([engine.infer(take_pairs(batch, np.array([i]))) for i in range(len(batch))])
    atol = 1e-5 if engine.precision == "fp32" else 2e-3
    np.testing.assert_allclose(together, alone, atol=atol)
    np.testing.assert_allclose(engine.infer(take_pairs(batch, order)), together[order], atol=atol)
    assert len(np.unique(together.round(4))) > 5, "the documents differ"


@pytest.mark.parametrize("kind", ["longer", "more rows"])
def test_what_stood_in_a_buffer_before_changes_nothing(engine, bundle, kind):
    batch = pairs(bundle, 4)
    short = take_pairs(batch, np.argsort(batch.lengths, kind="stable")[:2])
    before = engine.infer(short)
    if kind == "longer":
        engine.infer(take_pairs(batch, np.argsort(batch.lengths, kind="stable")[-2:]))
    else:
        engine.infer(pairs(bundle, 9, seed=8))
    np.testing.assert_array_equal(engine.infer(short), before)


def test_any_thread_may_call_and_all_get_their_own_scores(engine, bundle):
    check_threads(engine, [pairs(bundle, 7, seed) for seed in range(12)])


def test_the_seam_scores_on_several_lanes_at_once(engine, bundle):
    async def score():
        return await asyncio.gather(*[engine.score(pairs(bundle, 5, seed)) for seed in range(8)])

    for seed, logits in enumerate(asyncio.run(score())):
        np.testing.assert_array_equal(logits, engine.infer(pairs(bundle, 5, seed)))


def test_only_prepared_shapes_are_computed(engine, bundle):
    assert all(shape in engine.shapes for shape in [(1, 16), (4, 64), (4, 80)])
    for documents in (1, 2, 3, 4, 5, 30):
        rows, length = engine.padded_shape(pairs(bundle, documents))
        full, rest = divmod(rows, 4)
        assert length in (16, 32, 64, 80)
        assert rows >= documents
        assert rest in (0, 1, 2)
        assert 4 * full + rest == rows
    engine.infer(pairs(bundle, 30))
    bound = engine._pool.submit(lambda: set(engine._local.lane._bound)).result()
    assert bound == set(engine.shapes)


class Baked(CudaEngine):
    """Answers as a CUDA graph would that was captured with a copy of its first input."""

    def _infer(self, inputs):
        seen = vars(self._local).setdefault("seen", {})
        return super()._infer(seen.setdefault(inputs["input_ids"].shape, inputs))


def test_a_graph_that_bakes_an_input_in_is_found_before_the_first_request(bundle):
    with pytest.raises(EngineFailure, match=r"engine cuda differs by .* between a CUDA graph and the plain run"):
        Baked(bundle, "fp32", threads=2, device="cpu", **SMALL)


def test_without_the_provider_it_is_refused_with_the_remedy(bundle):
    if cuda_session.cuda_installed():
        pytest.skip("onnxruntime-gpu is installed here")
    with pytest.raises(SetupError, match=r"needs ONNX Runtime's CUDA provider.*make cuda"):
        select.make_engine(bundle, "cuda")


def test_auto_says_nothing_of_gpus_without_the_provider(bundle, caplog):
    if cuda_session.cuda_installed():
        pytest.skip("onnxruntime-gpu is installed here")
    select._say_once.cache_clear()
    with caplog.at_level(logging.INFO, "crossrank"):
        engine = select.make_engine(bundle, "auto", "fp32", threads=1)
    asyncio.run(engine.close())
    assert engine.name != "cuda"
    assert "cuda" not in caplog.text


def test_auto_looks_for_the_provider_without_loading_onnx_runtime():
    code = (
        "import sys; from crossrank.engines.candidates import device_of; device_of('auto'); "
        "assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_provider_that_cannot_be_used_leaves_auto_on_the_cpu_and_is_named_once(builtin, tmp_path):
    """The real ONNX Runtime, beside whose libraries lies a file by the name of the CUDA provider's."""
    import onnxruntime

    if cuda_session.cuda_installed():
        pytest.skip("onnxruntime-gpu is installed here")
    real, copy = Path(onnxruntime.__file__).parent, tmp_path / "onnxruntime"
    (copy / "capi").mkdir(parents=True)
    for folder in ("", "capi"):
        for file in (real / folder).iterdir():
            if file.name != "capi":
                (copy / folder / file.name).symlink_to(file)
    (copy / cuda_session.LIBRARY).touch()
    code = (
        "import logging; from crossrank.bundles.bundle import load_bundle; from pathlib import Path; "
        "from crossrank.engines.select import make_engine; logging.basicConfig(level='INFO'); "
        f"names = [make_engine(load_bundle(Path({str(builtin.path)!r})), 'auto', 'fp32', 1).name for _ in range(2)]; "
        "assert 'cuda' not in names, names"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(
            "engine cuda in fp32 with standard operators is not used: engine cuda needs ONNX Runtime's CUDA provider"
        )
        == 1
    )


@pytest.mark.parametrize("precision", ["bf16", "int8"])
def test_precisions_that_it_has_not_are_refused(bundle, precision):
    with pytest.raises(SetupError, match=f"engine cuda serves fp32 and fp16, not {precision}"):
        select.make_engine(bundle, "cuda", precision)
