"""Choose between TensorRT and TensorRT for RTX: which of them builds a plan for which GPUs, and where.

TensorRT tunes kernels on the GPU that will serve; its last release for Volta is 10.4. TensorRT for RTX compiles for
GPUs that need not be there, on any x86-64 CPU, and finishes on the GPU when the plan is loaded.
Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crossrank.engines.tensorrt.gpus import GPUS, Gpu, sm_text
from crossrank.errors import SetupError

RuntimeName = Literal["tensorrt-rtx", "tensorrt"]


@dataclass(frozen=True)
class Runtime:
    """A TensorRT that builds and runs plans.

    Attributes:
        name: Name for `--runtime` and the manifest.
        label: Name by NVIDIA.
        tag: Its name in the file names of plans.
    """

    name: RuntimeName
    label: str
    tag: str


TENSORRT = Runtime("tensorrt", "TensorRT", "trt")
RTX = Runtime("tensorrt-rtx", "TensorRT for RTX", "rtx")
RUNTIMES: dict[str, Runtime] = {runtime.name: runtime for runtime in (RTX, TENSORRT)}

# The release that the tests have built plans with.
RTX_RELEASE = "1.7.1.116"
# Members of its ComputeCapability. Hopper (9.0) and data-centre Blackwell (10.0) are not in its support matrix.
RTX_SMS = frozenset({75, 80, 86, 89, 120, 121})


def load_runtime(runtime: Runtime) -> Any | None:
    """Return the Python module of a runtime, or None where it or its libraries are not installed."""
    try:
        if runtime is RTX:
            import tensorrt_rtx as module
        else:
            import tensorrt as module
    except (ImportError, OSError):
        return None
    return module


def choose_runtime(gpus: Sequence[Gpu], wanted: str | None = None) -> tuple[Runtime, str]:
    """Return the runtime for a plan that all of the GPUs load, and why it is that one.

    Args:
        gpus: GPUs of the plan, one or more.
        wanted: The user's `--runtime`; None takes TensorRT for RTX where it serves all of the GPUs.

    Raises:
        SetupError: No runtime, or not the wanted one, makes one plan for these GPUs.
    """
    left_out = [gpu for gpu in gpus if gpu.sm not in RTX_SMS]
    if wanted == TENSORRT.name or (wanted is None and left_out):
        if len({gpu.sm for gpu in gpus}) > 1:
            raise SetupError(_no_common_plan(gpus, left_out))
        return TENSORRT, "asked for" if wanted else f"{RTX.label} does not serve the {left_out[0].label}"
    if left_out:
        served = ", ".join(gpu.name for gpu in GPUS.values() if gpu.sm in RTX_SMS)
        raise SetupError(
            f"{RTX.label} does not serve {_named(left_out)}, it serves {served}: leave --runtime out, or name "
            f"--runtime {TENSORRT.name}"
        )
    return RTX, "asked for" if wanted else "it serves every GPU named and builds without one"


def _no_common_plan(gpus: Sequence[Gpu], left_out: Sequence[Gpu]) -> str:
    if not left_out:
        return (
            f"{TENSORRT.label} makes a plan for one compute capability, not for {_named(gpus)}: give one --gpu, or "
            f"leave --runtime out for a plan of {RTX.label}, which they share"
        )
    others = [gpu for gpu in gpus if gpu not in left_out]
    with_rtx = f"; {_named(others)} can share a plan without it" if others else ""
    return f"no plan runs on {_named(left_out)} and on another GPU too: build it with one --gpu{with_rtx}"


def _named(gpus: Sequence[Gpu]) -> str:
    return " and ".join(f"the {gpu.label} (SM {sm_text(gpu.sm)})" for gpu in gpus)
