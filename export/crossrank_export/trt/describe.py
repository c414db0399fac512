"""Print the parameters of a build: `--dry-run` shows exactly what is built."""

from __future__ import annotations

import shlex
from pathlib import Path

from crossrank.engines.tensorrt.gpus import release_of
from crossrank.engines.tensorrt.runtimes import TENSORRT
from crossrank.engines.tensorrt.spec import OPTIMIZATION_LEVEL, EngineSpec


def trtexec_command(spec: EngineSpec, bundle_path: Path) -> str:
    """Return the trtexec command that builds the same plan of TensorRT proper.

    Source: https://docs.nvidia.com/deeplearning/tensorrt/latest/reference/command-line-programs.html
    """
    words = [
        "trtexec",
        f"--onnx={bundle_path / spec.graph.file}",
        f"--saveEngine={bundle_path / spec.plan_name}",
        f"--builderOptimizationLevel={OPTIMIZATION_LEVEL}",
        f"--memPoolSize=workspace:{spec.workspace_mib}",
        f"--timingCacheFile={spec.timing_cache}",
        "--noTF32",
        "--skipInference",
    ]
    if release_of(spec.tensorrt) < (11, 0):  # TensorRT 11 has no other networks
        words.insert(3, "--stronglyTyped")
    lines = [" ".join(map(shlex.quote, words))]
    for index, bucket in enumerate(spec.buckets):
        shapes = [
            f"--{point}Shapes=" + ",".join(f"{name}:{batch}x{length}" for name in spec.inputs)
            for point, (batch, length) in zip(("min", "opt", "max"), bucket.shapes, strict=True)
        ]
        lines.append(" ".join([f"  --profile={index}", *shapes]))
    return " \\\n".join(lines)


# Triton's TensorRT backend deserializes with TensorRT itself.
# Source: https://github.com/triton-inference-server/tensorrt_backend
_SERVED_BY = {
    "tensorrt-rtx": "crossrank serve --engine tensorrt; not Triton, which needs --runtime tensorrt here, or no plan "
    "and crossrank repository --target onnxruntime-gpu",
    "tensorrt": "Triton: crossrank repository --target tensorrt",
}


def describe(spec: EngineSpec, bundle_path: Path, why: str = "asked for") -> str:
    """Return all parameters of the build as text, one a line.

    Args:
        spec: Parameters of the build.
        bundle_path: Directory of the bundle.
        why: Why the runtime is the one chosen.
    """
    lines = [
        f"plan       {bundle_path / spec.plan_name}",
        f"for        {spec.targets}",
        f"by         {spec.release}: {why}",
        f"from       {spec.graph.file}, a strongly typed network ({spec.graph.precision} with fp32 islands)",
        f"flags      STRONGLY_TYPED, TF32 off, builder optimization level {OPTIMIZATION_LEVEL}, "
        f"workspace {spec.workspace_mib} MiB",
        f"served by  {_SERVED_BY[spec.runtime.name]}",
        *([f"timings    {spec.timing_cache}"] if spec.timing_cache else []),
        "",
        f"inputs     {', '.join(spec.inputs)}, each pairs x tokens:",
        f"{'profile':<11}{'min':>12}{'opt':>12}{'max':>12}",
    ]
    for index, bucket in enumerate(spec.buckets):
        lines.append(f"{index:<11}" + "".join(f"{f'{batch}x{length}':>12}" for batch, length in bucket.shapes))
    if spec.runtime is TENSORRT:
        lines += ["", trtexec_command(spec, bundle_path)]
    return "\n".join(lines)
