"""Run a plan on the GPU: the only module that touches TensorRT's untyped API for running, and GPU memory.

    LoadedPlan  a plan on the GPU, with the profiles that it says it has
    PlanLane    a stream, pinned buffers and one execution context for each profile

A lane runs one batch at a time, so that its contexts share buffers and workspace: tensors are bound once, to the same
addresses in all of them. TensorRT for RTX compiles kernels for each new shape, keeps them in its runtime cache, and
captures a CUDA graph of each shape by itself. TensorRT proper does neither.

No GPU was at hand: tests/fake_builder.py computes behind the recorded API of TensorRT 10.4, 11.4 and TensorRT for RTX.
Source: https://docs.nvidia.com/deeplearning/tensorrt-rtx/latest/inference-library/work-with-cuda-graphs.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.tensorrt.logger import new_logger
from crossrank.engines.tensorrt.memory import GpuMemory
from crossrank.engines.tensorrt.runtimes import RTX, Runtime
from crossrank.engines.tensorrt.validity import PlanRefused, check_validity
from crossrank.errors import SetupError

Feed = Mapping[str, NDArray[np.generic]]
_DTYPES = {"FLOAT": "float32", "INT32": "int32", "INT64": "int64"}
# The first run of a shape compiles its kernels, the next may capture its CUDA graph.
_RUNS_UNTIL_CAPTURED = 2


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
        self._config: Any | None = None
        self._cache: Any | None = None
        # It must outlive its engine.
        self._runtime = trt.Runtime(self._logger)
        if runtime is RTX:
            check_validity(trt, self._runtime, plan, f"{self.release} cannot load {name}", self._logger)
        with gate.run():
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

    def open_lane(self) -> PlanLane:
        """Return a lane, for one thread at a time.

        Raises:
            SetupError: The GPU has not enough memory, or TensorRT refuses a profile.
        """
        with self.gate.run():
            return PlanLane(self)

    def compiled_kernels(self) -> bytes:
        """Return TensorRT for RTX's runtime cache: what it compiled for this GPU. Empty for TensorRT proper."""
        return b"" if self._cache is None else bytes(self._cache.serialize())

    def close(self) -> None:
        """Free the plan's memory on the GPU; its lanes must be closed."""
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
        if compiled:
            cache.deserialize(compiled)
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
        """Return TensorRT's last error."""
        return str(self._logger.reason())

    def _dtype(self, name: str) -> str:
        return _DTYPES.get(self._engine.get_tensor_dtype(name).name, "of another type")

    def _columns(self, name: str) -> int | None:
        columns = int(tuple(self._engine.get_tensor_shape(name))[-1])
        return None if columns < 0 else columns

    def _profile(self, index: int) -> Profile:
        first = next(iter(self.inputs))
        rows, length = tuple(self._engine.get_tensor_profile_shape(first, index)[-1])
        return Profile(int(length), int(rows))


class PlanLane:
    """Run batches one at a time, on a stream of its own.

    Args:
        plan: The loaded plan.

    Raises:
        SetupError: The GPU has not enough memory, or TensorRT refuses a profile.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._memory = GpuMemory()
        self._contexts: list[Any] = []
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._runs: dict[tuple[int, ...], int] = {}
        try:
            self._bind()
        except BaseException:
            self.close()
            raise

    def run(self, feed: Feed) -> NDArray[np.float32]:
        """Return the logits, float32 [rows, labels], of inputs [rows, length] in the plan's dtypes.

        The profile of their length computes them.

        Raises:
            SetupError: The profile does not hold them, or they did not run.
        """
        rows, length = shape = next(iter(feed.values())).shape
        profile = self._profile_of(rows, length)
        runs = self._runs[shape] = self._runs.get(shape, 0) + 1
        with self._plan.gate.capture() if runs <= _RUNS_UNTIL_CAPTURED else self._plan.gate.run():
            return self._run(profile, shape, feed)

    def close(self) -> None:
        """Free the lane's memory. Calling it twice is harmless."""
        self._contexts = []
        self._host: dict[str, NDArray[np.uint8]] = {}
        self._memory.close()

    def _bind(self) -> None:
        plan, memory = self._plan, self._memory
        tokens = max(profile.rows * profile.length for profile in plan.profiles)
        most_rows = max(profile.rows for profile in plan.profiles)
        self._output, columns = next(iter(plan.outputs.items()))
        self._labels = columns or 1
        sizes = {name: tokens * np.dtype(dtype).itemsize for name, dtype in plan.inputs.items()}
        sizes[self._output] = most_rows * self._labels * np.dtype(np.float32).itemsize
        self._host = {name: memory.pinned(size) for name, size in sizes.items()}
        self._on_gpu = {name: memory.on_gpu(size, "batches") for name, size in sizes.items()}
        size = plan.workspace_bytes
        workspace = memory.on_gpu(size, f"batches of {tokens} tokens in {plan.name}") if size else 0
        for index in range(len(plan.profiles)):
            context = plan.new_context(index, memory)
            if size:
                context.set_device_memory(workspace, size)
            if not all(context.set_tensor_address(name, address) for name, address in self._on_gpu.items()):
                raise SetupError(f"{plan.name} refused its buffers: {plan.reason()}")
            self._contexts.append(context)
        memory.wait()

    def _profile_of(self, rows: int, length: int) -> int:
        for index, profile in enumerate(self._plan.profiles):
            if length <= profile.length:
                if rows <= profile.rows:
                    return index
                break
        raise SetupError(f"{self._plan.name} has no profile for {rows} rows of {length} tokens")

    def _run(self, profile: int, shape: tuple[int, ...], feed: Feed) -> NDArray[np.float32]:
        context, memory = self._contexts[profile], self._memory
        if self._shapes.get(profile) != shape:
            if not all(context.set_input_shape(name, shape) for name in feed):
                raise SetupError(f"{self._plan.name} refused a batch of {shape[0]}x{shape[1]}: {self._plan.reason()}")
            self._shapes[profile] = shape
        for name, array in feed.items():
            self._host[name][: array.nbytes].view(array.dtype)[:] = array.reshape(-1)
            memory.upload(self._on_gpu[name], self._host[name], array.nbytes)
        if not context.execute_async_v3(memory.stream):
            raise SetupError(
                f"profile {profile} of {self._plan.name} did not run a batch of {shape[0]}x{shape[1]}: "
                f"{self._plan.reason()}"
            )
        logits = self._host[self._output].view(np.float32)[: shape[0] * self._labels]
        memory.download(self._host[self._output], self._on_gpu[self._output], logits.nbytes)
        memory.wait()
        # The next batch overwrites them.
        return np.array(logits.reshape(shape[0], self._labels))
