"""Run batches with a loaded plan: a stream, pinned buffers and one execution context for each profile.

A lane runs one batch at a time, so that its contexts share buffers and workspace: tensors are bound once, to the same
addresses in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.tensorrt.memory import GpuMemory
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.errors import SetupError

Feed = Mapping[str, NDArray[np.generic]]
# The first run of a shape compiles its kernels, the next may capture its CUDA graph.
_RUNS_UNTIL_CAPTURED = 2


class PlanLane:
    """Run batches one at a time, on a stream of its own; each is used by one thread at a time.

    Args:
        plan: The loaded plan.

    Raises:
        SetupError: The GPU has not enough memory, or TensorRT refuses a profile.
    """

    def __init__(self, plan: LoadedPlan) -> None:
        self._plan = plan
        self._contexts: list[Any] = []
        self._shapes: dict[int, tuple[int, ...]] = {}
        self._runs: dict[tuple[int, ...], int] = {}
        with plan.opening, plan.gate.run():
            self._memory = GpuMemory()
            try:
                self._bind()
            except BaseException:
                self._free()
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
        """Free the lane's memory, which would break a capture under way. Calling it twice is harmless."""
        with self._plan.gate.run():
            self._free()

    def _free(self) -> None:
        self._contexts = []
        self._host: dict[str, NDArray[np.uint8]] = {}
        self._memory.close()

    def _bind(self) -> None:
        plan, memory = self._plan, self._memory
        tokens = max(profile.rows * profile.length for profile in plan.profiles)
        most_rows = max(profile.rows for profile in plan.profiles)
        self._output, self._labels = next(iter(plan.outputs.items()))
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
