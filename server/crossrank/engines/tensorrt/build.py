"""Build plans with TensorRT's untyped Python API: of TensorRT 10.4 and 11.4, and TensorRT for RTX 1.7.

Network, parser, profiles and build are the same for all of them. What differs: TensorRT for RTX is told the compute
capabilities; TensorRT proper tunes on the GPU at hand, and keeps what it measured in a timing cache.

tests/fake_tensorrt.py checks this against the recorded API of the first two; TensorRT for RTX itself runs in the tests.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from crossrank.engines.tensorrt.gpus import sm_text
from crossrank.engines.tensorrt.logger import new_logger
from crossrank.engines.tensorrt.runtimes import RTX
from crossrank.engines.tensorrt.spec import OPTIMIZATION_LEVEL, EngineSpec
from crossrank.errors import SetupError


def build_plan(trt: Any, onnx_path: Path, spec: EngineSpec) -> bytes:
    """Parse the graph, compile kernels for every profile, and return the serialized plan.

    Takes seconds with TensorRT for RTX. TensorRT proper tunes on the GPU, for minutes; the timing cache, read before
    and written after, makes the next build shorter.

    Args:
        trt: The module of the runtime.
        onnx_path: The fp16 graph of standard operators.
        spec: Parameters of the build.

    Raises:
        SetupError: TensorRT refused the graph, a profile, a compute capability, or the build.
    """
    logger = new_logger(trt)
    builder = trt.Builder(logger)
    network = _parse(trt, builder, logger, onnx_path, spec.release)
    config = builder.create_builder_config()
    config.builder_optimization_level = OPTIMIZATION_LEVEL
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, spec.workspace_mib << 20)
    # TF32 is on by default and would cut the fp32 islands to 10 bits of mantissa on Ampere and later.
    config.clear_flag(trt.BuilderFlag.TF32)
    _add_profiles(builder, config, logger, spec)
    if spec.runtime is RTX:
        _name_capabilities(trt, config, logger, spec)
    if spec.timing_cache is not None:
        _load_timings(config, spec.timing_cache)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise SetupError(
            f"{spec.release} cannot build {spec.plan_name}: {logger.reason()}; where memory is short, try a smaller "
            f"--max-batch, or another --workspace-mib (now {spec.workspace_mib})"
        )
    if spec.timing_cache is not None:
        _save_timings(config, spec.timing_cache)
    return bytes(plan)


def _add_profiles(builder: Any, config: Any, logger: Any, spec: EngineSpec) -> None:
    for bucket in spec.buckets:
        profile = builder.create_optimization_profile()
        for name in spec.inputs:
            profile.set_shape(name, *bucket.shapes)
        if config.add_optimization_profile(profile) < 0:
            raise SetupError(
                f"{spec.release} refused the profile of the {bucket.length}-token bucket: {logger.reason()}"
            )


def _name_capabilities(trt: Any, config: Any, logger: Any, spec: EngineSpec) -> None:
    config.num_compute_capabilities = len(spec.sms)
    for index, sm in enumerate(spec.sms):
        capability = getattr(trt.ComputeCapability, f"SM{sm}", None)
        if capability is None or not config.set_compute_capability(capability, index):
            reason = "it does not know it" if capability is None else logger.reason()
            raise SetupError(
                f"{spec.release} refused compute capability {sm_text(sm)}: {reason}; a later release may have it "
                "(pip install --upgrade 'crossrank[tensorrt]')"
            )


def parse_graph(trt: Any, onnx_path: Path, release: str) -> None:
    """Parse a graph and build nothing.

    Args:
        trt: The module of the runtime.
        onnx_path: The graph.
        release: Name and version of the runtime, for messages.

    Raises:
        SetupError: The parser refused the graph.
    """
    logger = new_logger(trt)
    builder = trt.Builder(logger)
    _parse(trt, builder, logger, onnx_path, release)


def _parse(trt: Any, builder: Any, logger: Any, onnx_path: Path, release: str) -> Any:
    """Return the network of an ONNX file; the parser reads weights beside the file itself."""
    # The flag's number differs (1 in 10.4, 0 in 11.4). Types come from the graph alone: the precision flags
    # that weakly typed networks need are gone from TensorRT 11.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx_path)):
        first = parser.get_error(0) if parser.num_errors else None
        where = " ".join(filter(None, (first.node_operator(), first.node_name()))) if first else ""
        reason = first.desc() if first else logger.reason()
        more = f" (and {parser.num_errors - 1} more errors)" if parser.num_errors > 1 else ""
        raise SetupError(f"{release} cannot parse {onnx_path.name}: {where and f'{where}: '}{reason}{more}")
    if not network.num_inputs:
        raise SetupError(f"{release} cannot parse {onnx_path.name}: it holds no graph")
    return network


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
