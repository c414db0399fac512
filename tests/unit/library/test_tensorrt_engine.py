"""Engine tensorrt behind stand-ins of a GPU and of TensorRT's running side, computed by ONNX Runtime on the CPU.

What is real: choosing and keeping plans, padding, profiles, shapes, threads, buffers and copies, comparison with fp32.
What is stood in for, as no plan loads without a GPU: TensorRT's runtime, whose API is that of the installed TensorRT
for RTX (tests/fake_tensorrt.py), and the CUDA runtime (tests/fake_builder.py). tests/gpu/test_tensorrt_engine.py is
for a machine that has both.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time

import numpy as np
import pytest

from crossrank import CrossEncoder
from crossrank.bundles.bundle import Bundle, load_bundle
from crossrank.cross_encoder.opening import engine_and_device
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.select import choose_engine, make_engine
from crossrank.engines.shaped import GATE
from crossrank.engines.tensorrt.choose import open_plan
from crossrank.engines.tensorrt.engine import TensorRtEngine, load_tensorrt
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.runtimes import TENSORRT
from crossrank.engines.tensorrt.spec import make_spec
from crossrank.errors import BundleError, EngineFailure, SetupError
from crossrank.packed import take_pairs
from crossrank_export.trt.build import build_engine
from tests.engine_bundle import write_fp16_bundle
from tests.fake_builder import WORKSPACE, FakeDriver, install, new_context
from tests.fake_tensorrt import RTX
from tests.shaped_engine import check_threads
from tests.unit.library.test_cuda_engine import pairs

pytest.importorskip("tensorrt_rtx", reason="pip install 'crossrank[tensorrt]'")

ROWS = (1, 2, 4)


@pytest.fixture(scope="module")
def bundle(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A short window, so that all shapes are prepared quickly."""
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("tensorrt") / "bundle", max_length=80)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver("NVIDIA L4", 89)
    install(monkeypatch, RTX, driver)
    return driver


def engine_of(bundle: Bundle, cache, threads: int = 2, rows: tuple[int, ...] = ROWS) -> TensorRtEngine:
    return TensorRtEngine(bundle, open_plan(bundle, GATE, cache).plan, threads, rows=rows)


@pytest.fixture(scope="module")
def engine(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        install(patch, RTX, FakeDriver("NVIDIA L4", 89))
        engine = engine_of(bundle, tmp_path_factory.mktemp("cache"))
        yield engine
        asyncio.run(engine.close())


def test_logits_are_those_of_the_graph_that_the_plan_was_built_from(engine, bundle):
    batch = pairs(bundle, 30)
    assert (engine.name, engine.precision) == ("tensorrt", "fp16")
    np.testing.assert_allclose(
        engine.infer(batch), OnnxRuntimeEngine(bundle, "fp16", threads=1).infer(batch), atol=5e-3
    )


def test_a_score_does_not_depend_on_its_batch_or_on_what_stood_in_the_buffers(engine, bundle):
    batch = pairs(bundle, 11)
    together = engine.infer(batch)
    order = np.random.default_rng(0).permutation(len(batch))
    alone = np.concatenate([engine.infer(take_pairs(batch, np.array([i]))) for i in range(len(batch))])
    np.testing.assert_allclose(together, alone, atol=2e-3)
    np.testing.assert_allclose(engine.infer(take_pairs(batch, order)), together[order], atol=2e-3)
    np.testing.assert_array_equal(engine.infer(batch), together)
    assert len(np.unique(together.round(4))) > 5, "the documents differ"


def test_only_prepared_shapes_of_the_profile_of_their_length_are_run(engine, bundle):
    assert engine.shapes == [(4, 80), (4, 64), (2, 80), (2, 64), (4, 32), (1, 80), (1, 64), (2, 32), (1, 32)]
    engine.infer(pairs(bundle, 30))
    for lane in engine._lanes:
        assert set(lane._runs) == set(engine.shapes)
        assert [context._profile for context in lane._contexts] == [0, 1, 2]
    (lane, other) = engine._lanes
    assert lane._memory.stream != other._memory.stream
    assert lane._contexts[0]._addresses != other._contexts[0]._addresses
    assert lane._contexts[0]._addresses == lane._contexts[2]._addresses, "a lane's contexts share its buffers"


def test_any_thread_may_call_and_all_get_their_own_scores(engine, bundle):
    check_threads(engine, [pairs(bundle, 7, seed) for seed in range(8)])


def test_all_memory_of_the_gpu_is_given_back(gpu, bundle, tmp_path):
    engine = engine_of(bundle, tmp_path)
    assert len(gpu.streams) == 2
    asyncio.run(engine.close())
    asyncio.run(engine.close())
    assert (gpu.memory, gpu.pinned, gpu.streams) == ({}, {}, set())


def test_memory_is_freed_only_while_no_graph_is_captured(gpu, bundle, tmp_path):
    engine = engine_of(bundle, tmp_path, threads=1)
    closing = threading.Thread(target=lambda: asyncio.run(engine.close()))
    with GATE.capture():  # of a model that is loaded while this one is unloaded
        closing.start()
        closing.join(0.3)
        assert gpu.memory
        assert gpu.streams
    closing.join(10)
    assert (gpu.memory, gpu.pinned, gpu.streams) == ({}, {}, set())


def test_too_little_memory_is_told_with_the_remedy_and_what_was_taken_is_given_back(gpu, bundle, tmp_path):
    gpu.left = 2 * WORKSPACE
    left = gpu.left
    with pytest.raises(SetupError, match=r"the GPU has \d of 16384 MiB left, batches .* take \d+ MiB: .*--threads 1"):
        engine_of(bundle, tmp_path)
    assert (gpu.memory, gpu.pinned, gpu.streams, gpu.left) == ({}, {}, set(), left)


@pytest.mark.parametrize("row", [0, 1], ids=["first input", "own input"])
def test_a_shape_that_scores_something_else_is_found_before_the_first_request(monkeypatch, gpu, bundle, tmp_path, row):
    class Baked(TensorRtEngine):
        """Answers as a CUDA graph would that was captured with a copy of its first input."""

        def _infer(self, inputs):
            seen = vars(self._local).setdefault("seen", {})
            shape = inputs["input_ids"].shape
            return super()._infer(seen.setdefault(shape, inputs) if row == 0 or shape == (2, 64) else inputs)

    with pytest.raises(EngineFailure, match=r"gives a pair the logit .* in a batch of \d+x\d+, and .* in one of 4x80"):
        Baked(bundle, open_plan(bundle, GATE, tmp_path).plan, 1, rows=ROWS)
    assert gpu.memory == {}


def test_scores_are_compared_with_the_cpus_before_it_serves(monkeypatch, bundle, tmp_path):
    gpu = FakeDriver("NVIDIA L4", 89)
    install(monkeypatch, RTX, gpu, skew=0.2)
    monkeypatch.setattr("crossrank.engines.tensorrt.engine.row_counts", lambda *_: (1, 8))
    with pytest.raises(
        EngineFailure, match=r"model\.sm89.*plan on engine tensorrt gives logits 0\.2\d* off those of the"
    ):
        make_engine(bundle, "tensorrt", cache_dir=tmp_path)
    assert (gpu.memory, gpu.pinned, gpu.streams) == ({}, {}, set())


def test_it_is_loaded_by_name_and_never_by_auto(monkeypatch, gpu, bundle, tmp_path):
    monkeypatch.setattr("crossrank.engines.tensorrt.engine.row_counts", lambda *_: (1, 8))
    engine = make_engine(bundle, "tensorrt", cache_dir=tmp_path)
    assert isinstance(engine, TensorRtEngine)
    assert engine.batch_tokens == 8 * 80
    asyncio.run(engine.close())
    choice = choose_engine(bundle, "auto", "fp32", 1, cache_dir=tmp_path)
    asyncio.run(choice.engine.close())
    (verdict,) = [verdict for verdict in choice.verdicts if verdict.candidate.engine == "tensorrt"]
    assert (verdict.state, choice.engine.name == "tensorrt") == ("not asked", False)
    assert "it has not been measured on any GPU" in verdict.reason
    with pytest.raises(SetupError, match="engine tensorrt serves fp16, not fp32"):
        make_engine(bundle, "tensorrt", "fp32", cache_dir=tmp_path)


def test_what_was_compiled_is_kept_and_given_back_at_the_next_start(monkeypatch, gpu, bundle, tmp_path):
    monkeypatch.setattr("crossrank.engines.tensorrt.engine.row_counts", lambda *_: (1, 2))
    asyncio.run(load_tensorrt(bundle, 1, tmp_path).close())
    (kernels,) = tmp_path.glob("tensorrt/*/nvidia-l4.kernels")
    assert b"(2, 80)" in kernels.read_bytes()
    plan = open_plan(bundle, GATE, tmp_path).plan
    assert plan.compiled_kernels() == kernels.read_bytes(), "before anything has run"
    plan.close()
    kernels.write_bytes(b"damaged")
    asyncio.run(load_tensorrt(bundle, 1, tmp_path).close())
    assert b"(2, 80)" in kernels.read_bytes()


def test_contexts_capture_cuda_graphs_and_compile_each_shape_at_once(engine):
    config = engine._lanes[0]._contexts[0]._config
    assert config.cuda_graph_strategy.name == "WHOLE_GRAPH_CAPTURE"
    assert config.dynamic_shapes_kernel_specialization_strategy.name == "EAGER"


@pytest.mark.parametrize("version", ["10.4.0", "11.4.0"])
def test_a_plan_of_tensorrt_itself_in_the_bundle_is_served(monkeypatch, builtin, tmp_path, version):
    bundle = write_fp16_bundle(builtin, tmp_path / "bundle", max_length=80)
    trt = install(monkeypatch, version, FakeDriver("Tesla T4", 75))
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["t4"]], TENSORRT, version, max_batch=4)
    build_engine(trt, FakeDriver("Tesla T4", 75).device(), bundle, spec)
    bundle = load_bundle(bundle.path)
    engine = engine_of(bundle, tmp_path / "cache", rows=(1, 4))
    batch = pairs(bundle, 6)
    expected = OnnxRuntimeEngine(bundle, "fp16", threads=1).infer(batch)
    np.testing.assert_allclose(engine.infer(batch), expected, atol=5e-3)
    assert engine.file == f"model.sm75.trt{version}.fp16.plan"
    asyncio.run(engine.close())
    assert not list(tmp_path.glob("cache/**/*")), "nothing was built"


def test_a_plan_that_does_not_hold_the_longest_pair_is_refused(gpu, bundle, tmp_path):
    plan = open_plan(bundle, GATE, tmp_path).plan
    longer = Bundle(bundle.path, bundle.manifest.model_copy(update={"max_length": 100}))
    with pytest.raises(BundleError, match=r"takes up to 80 tokens, the model's pairs have up to 100: build it again"):
        TensorRtEngine(longer, plan, 1, rows=ROWS)
    assert gpu.memory == {}


def test_lanes_are_opened_one_at_a_time(monkeypatch, bundle, tmp_path):
    inside, most = 0, 0

    def create(engine, strategy):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.02)
        inside -= 1
        return new_context(trt, engine, strategy)

    trt = install(
        monkeypatch,
        RTX,
        FakeDriver("NVIDIA L4", 89),
        overrides={"ICudaEngine.create_execution_context": create},
    )
    asyncio.run(engine_of(bundle, tmp_path).close())
    assert most == 1


@pytest.mark.parametrize(("dtype", "columns"), [("HALF", 1), ("FLOAT", -1)])
def test_a_plan_whose_output_is_not_float32_of_known_width_is_refused(monkeypatch, bundle, tmp_path, dtype, columns):
    trt = install(
        monkeypatch,
        RTX,
        FakeDriver("NVIDIA L4", 89),
        overrides={
            "ICudaEngine.get_tensor_dtype": lambda e, name: getattr(
                trt.DataType, dtype if name in e._state.outputs else e._state.types[name]
            ),
            "ICudaEngine.get_tensor_shape": lambda e, name: (-1, columns),
        },
    )
    with pytest.raises(SetupError, match=rf"gives logits as .* with {columns} columns.*build it again"):
        open_plan(bundle, GATE, tmp_path)


def test_each_failure_is_told_with_its_own_reason(gpu, bundle, tmp_path):
    plan = open_plan(bundle, GATE, tmp_path).plan
    for reason in ("out of memory", "an illegal address"):
        plan._logger.log(plan._trt.ILogger.ERROR, reason)
        assert plan.reason() == reason


def test_a_batch_beyond_the_profile_is_refused_by_the_lane(engine):
    lane = engine._lanes[0]
    with pytest.raises(SetupError, match=r"has no profile for 1 rows of 96 tokens"):
        lane.run({"input_ids": np.zeros((1, 96), np.int64)})


def test_a_batch_that_does_not_run_fails_alone(monkeypatch, bundle, tmp_path):
    broken = threading.Event()
    install(monkeypatch, RTX, FakeDriver("NVIDIA L4", 89), fails=broken.is_set)
    engine = engine_of(bundle, tmp_path)
    batch = pairs(bundle, 3)
    expected = engine.infer(batch)
    broken.set()
    with pytest.raises(EngineFailure, match=r"tensorrt failed: .*did not run a batch of 4x\d+"):
        engine.infer(batch)
    broken.clear()
    np.testing.assert_array_equal(engine.infer(batch), expected)
    asyncio.run(engine.close())


def test_the_log_says_what_is_built_and_prepared(gpu, bundle, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "crossrank"):
        asyncio.run(engine_of(bundle, tmp_path, threads=1).close())
    assert "builds a plan for L4 (SM 8.9) from model.fp16.onnx, for lengths of 32, 64, 80 tokens" in caplog.text
    assert "preparing 9 shapes on 1 streams" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "engine"),
    [(("auto", "cuda"), "cuda"), (("tensorrt", "cuda"), "tensorrt"), (("tensorrt", None), "tensorrt")],
)
def test_a_device_leaves_the_engine_that_was_asked_for(arguments, engine):
    assert engine_and_device(*arguments, "torch")[0] == engine


def test_an_encoder_computes_on_it_and_names_its_device(monkeypatch, gpu, bundle, tmp_path):
    monkeypatch.setattr("crossrank.engines.tensorrt.engine.row_counts", lambda *_: (1, 4))
    with CrossEncoder(str(bundle.path), engine="tensorrt", cache_folder=str(tmp_path)) as encoder:
        assert (encoder.engine, encoder.precision, encoder.device) == ("tensorrt", "fp16", "cuda")
        scores = encoder.predict([("who wrote faust", "Goethe wrote Faust."), ("who wrote faust", "Berlin is a city.")])
    assert scores[0] > scores[1]
    assert list(tmp_path.glob("tensorrt/*/model.plan")), "in the folder that was asked for"
