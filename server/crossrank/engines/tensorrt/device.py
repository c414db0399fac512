"""Find the GPU of this machine through NVIDIA's CUDA runtime, without torch or nvidia-smi.

The runtime comes with the package cuda-bindings; nothing here takes memory on the GPU.
Source: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__DEVICE.html
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from crossrank.errors import SetupError


@dataclass(frozen=True)
class Device:
    """The first GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES is respected).

    Attributes:
        name: Name by the driver, such as `Tesla V100-SXM2-16GB`.
        sm: Compute capability times ten.
    """

    name: str
    sm: int


def cuda_runtime() -> Any | None:
    """Return the module of the CUDA runtime's functions, or None where it is not installed."""
    try:
        from cuda.bindings import runtime
    except ImportError:
        return None
    return runtime


def device_fault() -> str:
    """Return why no GPU can be used here, with the remedy; empty if one can."""
    runtime = cuda_runtime()
    if runtime is None:
        return "cuda-bindings is not installed: pip install 'crossrank[tensorrt]'"
    _, driver = runtime.cudaDriverGetVersion()
    if driver == 0:
        return "no NVIDIA driver is installed here (libcuda.so.1): install it until nvidia-smi lists the GPU"
    error, count = runtime.cudaGetDeviceCount()
    if error == runtime.cudaError_t.cudaErrorInsufficientDriver:
        wanted = runtime.cudaRuntimeGetVersion()[1] // 1000
        return (
            f"the NVIDIA driver serves CUDA {driver // 1000}.{driver % 1000 // 10} and is too old for CUDA {wanted}: "
            "update it"
        )
    if error != runtime.cudaError_t.cudaSuccess or not count:
        return (
            f"the NVIDIA driver shows this process no GPU ({error.name}): see nvidia-smi, and CUDA_VISIBLE_DEVICES if "
            "it is set"
        )
    return ""


def find_device() -> Device | None:
    """Return the first GPU, or None on a machine without a usable one, for which `device_fault` has the reason."""
    runtime = cuda_runtime()
    if runtime is None or device_fault():
        return None
    properties = checked(runtime.cudaGetDeviceProperties, 0)
    return Device(properties.name.decode(errors="replace"), 10 * properties.major + properties.minor)


def use_device() -> None:
    """Make the first GPU's context the calling thread's: TensorRT for RTX reads kept kernels only where there is one.

    Raises:
        SetupError: The GPU gives none.
    """
    runtime = cuda_runtime()
    if runtime is not None:
        checked(runtime.cudaSetDevice, 0)


def checked(function: Callable[..., tuple[Any, ...]], *arguments: Any) -> Any:
    """Call a function of the CUDA runtime and return its value, or None where it has none.

    Raises:
        SetupError: It failed; the message holds its own name and CUDA's for the error.
    """
    error, *values = function(*arguments)
    if int(error):
        raise SetupError(f"the GPU failed in {function.__name__} with {error.name}: nvidia-smi and dmesg may say why")
    return values[0] if values else None
