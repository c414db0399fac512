"""Hold a CUDA stream with memory on the GPU, and pinned memory of the host that is copied to and from it.

Source: https://docs.nvidia.com/cuda/cuda-runtime-api/group__CUDART__MEMORY.html
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.tensorrt.device import checked, cuda_runtime
from crossrank.errors import SetupError


class GpuMemory:
    """Own one stream and all memory that is used on it; `close`, or the end of the object, frees them.

    Raises:
        SetupError: The CUDA runtime is not installed, or the GPU gives no stream.
    """

    def __init__(self) -> None:
        runtime = cuda_runtime()
        if runtime is None:
            raise SetupError("cuda-bindings is not installed: pip install 'crossrank[tensorrt]'")
        self._runtime: Any = runtime
        self._on_gpu: list[int] = []
        self._pinned: list[int] = []
        # The default stream would wait for those of the other lanes.
        stream = checked(runtime.cudaStreamCreateWithFlags, runtime.cudaStreamNonBlocking)
        self.stream = int(stream)
        # An engine that is refused after it was loaded is not closed by anybody.
        self._free = weakref.finalize(self, _free, runtime, self._on_gpu, self._pinned, self.stream)
        self._free.atexit = False

    def on_gpu(self, nbytes: int, use: str) -> int:
        """Return the address of new memory on the GPU.

        Args:
            nbytes: Its size.
            use: What it is for, named where there is not enough.

        Raises:
            SetupError: The GPU has not enough left.
        """
        error, address = self._runtime.cudaMalloc(nbytes)
        if error == self._runtime.cudaError_t.cudaErrorMemoryAllocation:
            free, total = self._left()
            raise SetupError(
                f"the GPU has {free >> 20} of {total >> 20} MiB left, {use} take {nbytes >> 20} MiB: free memory there "
                "(nvidia-smi shows who has it), or give --threads 1 and fewer --workers"
            )
        if int(error):
            raise SetupError(f"the GPU failed in cudaMalloc with {error.name}: nvidia-smi and dmesg may say why")
        self._on_gpu.append(int(address))
        return int(address)

    def pinned(self, nbytes: int) -> NDArray[np.uint8]:
        """Return new memory of the host, uint8 [nbytes], which is copied without a detour.

        Raises:
            SetupError: There is not enough.
        """
        address = int(checked(self._runtime.cudaHostAlloc, nbytes, self._runtime.cudaHostAllocDefault))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))

    def upload(self, target: int, source: NDArray[np.uint8], nbytes: int) -> None:
        """Queue a copy of pinned memory to the GPU."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyHostToDevice
        checked(self._runtime.cudaMemcpyAsync, target, source.ctypes.data, nbytes, kind, self.stream)

    def download(self, target: NDArray[np.uint8], source: int, nbytes: int) -> None:
        """Queue a copy from the GPU to pinned memory."""
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        checked(self._runtime.cudaMemcpyAsync, target.ctypes.data, source, nbytes, kind, self.stream)

    def wait(self) -> None:
        """Return when all that was queued is done.

        Raises:
            SetupError: The GPU failed.
        """
        checked(self._runtime.cudaStreamSynchronize, self.stream)

    def close(self) -> None:
        """Free everything; no array of `pinned` may be used any more. Calling it twice is harmless."""
        self._free()

    def _left(self) -> tuple[int, int]:
        error, *values = self._runtime.cudaMemGetInfo()
        return (0, 0) if int(error) else (int(values[0]), int(values[1]))


def _free(runtime: Any, on_gpu: list[int], pinned: list[int], stream: int) -> None:
    # Errors of a GPU that is lost already would only hide the first one.
    for address in on_gpu:
        runtime.cudaFree(address)
    for address in pinned:
        runtime.cudaFreeHost(address)
    runtime.cudaStreamDestroy(stream)
