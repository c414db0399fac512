"""The only module that touches TensorRT's Python API, which is untyped; it keeps to what 10.4 and 11.4 share.

tests/fake_tensorrt.py checks it against the recorded API of both releases.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import SetupError
from crossrank_export.trt.spec import OPTIMIZATION_LEVEL, EngineSpec

Feed = Mapping[str, NDArray[Any]]


def load_tensorrt() -> Any | None:
    """Return the `tensorrt` module, or None where it or its libraries are not installed."""
    try:
        import tensorrt
    except (ImportError, OSError):
        return None
    return tensorrt


def build_plan(trt: Any, onnx_path: Path, spec: EngineSpec) -> bytes:
    """Parse the graph, tune kernels for every profile, and return the serialized plan.

    Takes minutes on a GPU; the timing cache, read before and written after, makes the next build shorter.

    Raises:
        SetupError: TensorRT refused the graph, a profile, or the build.
    """
    from polygraphy.backend.trt import Profile

    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    # The flag's number differs (1 in 10.4, 0 in 11.4). Types come from the graph alone: the precision flags
    # that weakly typed networks need are gone from TensorRT 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(trt, network, logger, onnx_path)
    config = builder.create_builder_config()
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib << 20)
    # TF32 is on by default and would cut the fp32 islands to 10 bits of mantissa on Ampere and later.
    config.clear_flag(trt.BuilderFlag.TF32)
    for bucket in spec.buckets:
        profile = Profile()
        for name in spec.inputs:
            profile.add(name, *bucket.shapes)
        with _told(f"TensorRT {spec.tensorrt} refused the profile of the {bucket.length}-token bucket"):
            index = config.add_optimization_profile(profile.to_trt(builder, network))
        if index < 0:
            raise SetupError(f"TensorRT {spec.tensorrt} refused the profile of the {bucket.length}-token bucket")
    _load_timings(config, spec.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SetupError(
            f"TensorRT {spec.tensorrt} could not build {spec.plan_name}: its own messages above say why; "
            f"where memory is short, try a smaller --workspace-mib (now {spec.workspace_mib}) or --max-batch"
        )
    _save_timings(config, spec.timing_cache)
    return bytes(plan)


@contextmanager
def plan_runner(trt: Any, plan: bytes, spec: EngineSpec) -> Iterator[Any]:
    """Load a plan onto the GPU, and yield a runner for `run_plan` until the context ends.

    Raises:
        SetupError: TensorRT cannot load the plan.
    """
    from polygraphy.backend.trt import TrtRunner

    # The runtime must outlive its engine: this frame holds it.
    runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise SetupError(f"TensorRT {spec.tensorrt} cannot load the plan it has just built, {spec.plan_name}")
    if engine.num_optimization_profiles != len(spec.buckets):
        raise SetupError(
            f"{spec.plan_name} has {engine.num_optimization_profiles} profiles, {len(spec.buckets)} were asked for"
        )
    with TrtRunner(engine, optimization_profile=0) as runner:
        yield runner


def run_plan(runner: Any, profile: int, feed: Feed, output: str) -> NDArray[np.float32]:
    """Run one batch on a profile.

    Args:
        runner: Runner from `plan_runner`.
        profile: Index of the bucket.
        feed: Inputs by name, int32 or int64 [pairs, tokens].
        output: Name of the logits.

    Returns:
        float32, in the shape of the output.

    Raises:
        SetupError: The batch did not run.
    """
    shape = "x".join(map(str, next(iter(feed.values())).shape))
    with _told(f"the plan's profile {profile} did not run a batch of {shape}"):
        runner.set_profile(profile)
        # The runner returns a buffer that the next call overwrites.
        return np.array(runner.infer(dict(feed))[output], dtype=np.float32)


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Turn Polygraphy's errors into SetupError."""
    from polygraphy.exception import PolygraphyException

    try:
        yield
    except PolygraphyException as error:
        raise SetupError(f"{what}: {error}") from error


def _parse(trt: Any, network: Any, logger: Any, onnx_path: Path) -> None:
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        reasons = "; ".join(f"{error.node_operator()} {error.node_name()}: {error.desc()}" for error in errors)
        raise SetupError(f"TensorRT cannot parse {onnx_path.name}: {reasons or 'it gives no reason'}")


def _load_timings(config: Any, path: Path) -> None:
    # A cache of another device or release is refused (False), and an empty one begun: only time is lost.
    saved = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(saved)
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timings(config: Any, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial.write_bytes(bytes(config.get_timing_cache().serialize()))
    partial.replace(path)
