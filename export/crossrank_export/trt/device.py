"""Find the GPU of this machine through the CUDA driver, without torch or nvidia-smi."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from crossrank.errors import SetupError
from crossrank_export.trt.gpus import Gpu, sm_text

# CUdevice_attribute in cuda.h
_CAPABILITY_MAJOR = 75
_CAPABILITY_MINOR = 76


@dataclass(frozen=True)
class Device:
    """The first GPU that CUDA shows to this process (CUDA_VISIBLE_DEVICES is respected).

    Attributes:
        name: Name by the driver, such as `Tesla V100-SXM2-16GB`.
        sm: Compute capability times ten.
    """

    name: str
    sm: int


def find_device() -> Device | None:
    """Return the first GPU, or None on a machine without a usable one.

    Source: https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__DEVICE.html
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(256)
    failed = (
        driver.cuInit(0)
        or driver.cuDeviceGet(ctypes.byref(handle), 0)
        or driver.cuDeviceGetName(name, len(name), handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, handle)
        or driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, handle)
    )
    if failed:
        return None
    return Device(name.value.decode(errors="replace"), 10 * major.value + minor.value)


def check_device(gpu: Gpu, device: Device) -> None:
    """Check that kernels are tuned on the GPU that they are for.

    Raises:
        SetupError: The GPU asked for is not the one present.
    """
    if device.sm != gpu.sm:
        raise SetupError(
            f"--gpu {gpu.name} asks for a {gpu.label} (SM {sm_text(gpu.sm)}), this machine has a {device.name} "
            f"(SM {sm_text(device.sm)}): plans run only on the SM they were tuned on, so build on a {gpu.label} "
            "or name the GPU that is here"
        )
