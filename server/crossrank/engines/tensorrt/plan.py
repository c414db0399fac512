"""Load a plan onto the GPU; with lane.py the only module that touches TensorRT's untyped API for running.

TensorRT for RTX compiles kernels for each new shape, keeps them in its runtime cache, and captures a CUDA graph of each
shape by itself. TensorRT proper does neither.

No GPU was at hand: tests/fake_builder.py computes behind the recorded API of TensorRT 10.4, 11.4 and TensorRT for RTX.
Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.tensorrt.device import use_device
from crossrank.engines.tensorrt.logger import new_logger
from crossrank.engines.tensorrt.memory import GpuMemory
from crossrank.engines.tensorrt.runtimes import RTX, Runtime
from crossrank.engines.tensorrt.validity import PlanRefused, check_validity
from crossrank.errors import SetupError

_log = logging.getLogger("crossrank")

_DTYPES = {"FLOAT": "float32", "INT32": "int32", "INT64": "int64"}


@dataclass(frozen=True)
class Profile:
    """Sizes of the batches that one of a plan's profiles takes.

    Attributes:
        length: Most tokens of a row.
        rows: Most rows of a batch.
    """

    length: int
    rows: int


class LoadedPlan:
    """Load a plan onto the GPU.

    Args:
        trt: The module of the runtime that built it.
        runtime: That runtime.
        plan: The serialized plan.
        name: The plan's name in messages.
        gate: Keeps other GPU work of the process away while CUDA graphs are captured.
        compiled: What `compiled_kernels` returned earlier; one of another GPU, driver or release is not used.

    Raises:
        PlanRefused: TensorRT does not load it; another plan may do.
        SetupError: TensorRT loads no plan here: the driver is too old, or the GPU has too little memory.
    """

    def __init__(
        self, trt: Any, runtime: Runtime, plan: bytes, name: str, gate: CaptureGate, compiled: bytes = b""
    ) -> None:
        self.release = f"{runtime.label} {trt.__version__}"
        self.name = name
        self._trt = trt
        self.gate = gate
        self._logger = new_logger(trt)
        # Held by who creates contexts: TensorRT makes no promise that two threads may at a time.
        self.opening = threading.Lock()
        self._config: Any | None = None
        self._cache: Any | None = None
        # It must outlive its engine.
        self._runtime = trt.Runtime(self._logger)
        with gate.run():
            use_device()
            if runtime is RTX:
                check_validity(trt, self._runtime, plan, f"{self.release} cannot load {name}", self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                raise PlanRefused(f"{self.release} cannot load {name}: {self._logger.reason()}")
            if runtime is RTX:
                self._config, self._cache = self._rtx_config(compiled)
        names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
        read = trt.TensorIOMode.INPUT
        self.inputs = {each: self._dtype(each) for each in names if self._engine.get_tensor_mode(each) == read}
        self.outputs = {each: self._columns(each) for each in names if each not in self.inputs}
        self.profiles = tuple(self._profile(index) for index in range(self._engine.num_optimization_profiles))

    def compiled_kernels(self) -> bytes:
        """Return TensorRT for RTX's runtime cache: what it compiled for this GPU. Empty for TensorRT proper."""
        return b"" if self._cache is None else bytes(self._cache.serialize())

    def close(self) -> None:
        """Free the plan's memory on the GPU; its lanes must be closed."""
        with self.gate.run():
            self._config = self._cache = self._engine = self._runtime = None

    def _rtx_config(self, compiled: bytes) -> tuple[Any, Any]:
        """Return the configuration of execution contexts, and their cache of compiled kernels."""
        trt = self._trt
        config = self._engine.create_runtime_config()
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        # All shapes are run before the first request, which then neither waits for kernels nor gets those of fallbacks.
        config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        cache = config.create_runtime_cache()
        if compiled and not cache.deserialize(compiled):
            _log.info("%s: kernels kept of another driver, GPU or release are compiled again", self.name)
        if not config.set_runtime_cache(cache):
            raise SetupError(f"{self.release} refused its runtime cache: {self._logger.reason()}")
        return config, cache

    def new_context(self, profile: int, memory: GpuMemory) -> Any:
        """Return an execution context on a profile, which has no workspace yet.

        Raises:
            SetupError: TensorRT gives none.
        """
        self._logger.forget()
        if self._config is None:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        else:
            context = self._engine.create_execution_context(self._config)
        if context is None or not context.set_optimization_profile_async(profile, memory.stream):
            raise SetupError(f"{self.release} cannot run profile {profile} of {self.name}: {self._logger.reason()}")
        return context

    @property
    def workspace_bytes(self) -> int:
        """Return the GPU memory that a context on any of the profiles works in."""
        return int(self._engine.device_memory_size_v2)

    def reason(self) -> str:
        """Return the first error that TensorRT logged since the last call."""
        reason = str(self._logger.reason())
        self._logger.forget()
        return reason

    def _dtype(self, name: str) -> str:
        return _DTYPES.get(self._engine.get_tensor_dtype(name).name, "of another type")

    def _columns(self, name: str) -> int:
        """Return the columns of an output, whose buffers are float32 [rows, columns]."""
        dtype, columns = self._dtype(name), int(tuple(self._engine.get_tensor_shape(name))[-1])
        if dtype != "float32" or columns < 1:
            raise PlanRefused(
                f"{self.name} gives {name} as {dtype} with {columns} columns, not as float32 with a fixed number: "
                "build it again with crossrank engine"
            )
        return columns

    def _profile(self, index: int) -> Profile:
        first = next(iter(self.inputs))
        rows, length = tuple(self._engine.get_tensor_profile_shape(first, index)[-1])
        return Profile(int(length), int(rows))
