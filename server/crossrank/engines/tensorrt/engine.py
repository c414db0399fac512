"""Compute with a TensorRT plan on an NVIDIA GPU.

All shapes are run before the first request: TensorRT for RTX compiles kernels for each of them on the first run, in
seconds altogether, and keeps them for the next start.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.agreement import Expected, check_logits, expect_logits
from crossrank.engines.shaped import GATE, ShapedEngine, call_tokens_of, row_counts
from crossrank.engines.tensorrt.choose import open_plan
from crossrank.engines.tensorrt.lane import PlanLane
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.errors import BundleError, EngineFailure
from crossrank.packed import join_pairs

_log = logging.getLogger("crossrank")

# Of a logit between two shapes, relative to the largest one, or to 1 where that is larger: fp16 kernels add up in
# different orders. An input baked into a CUDA graph, or a wrong mask, gives more.
_MOST_DELTA = 2e-2
_PROBE_TOKENS = 24


class TensorRtEngine(ShapedEngine):
    """Run a plan with bound buffers; each thread has a stream, buffers and execution contexts of its own.

    Args:
        bundle: The model.
        plan: Its plan on the GPU, which the engine closes.
        threads: Batches under way at a time; defaults to two.
        rows: Rows to prepare at each length, ascending from 1; defaults to `row_counts` up to the profile's.
        expected: Logits on the CPU to compare its own with, if any.

    Raises:
        EngineFailure: A pair's score depends on the shape it is computed in, or logits are not those expected.
        SetupError: The GPU has not enough memory.
        BundleError: The plan does not fit the manifest.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle,
        plan: LoadedPlan,
        threads: int | None = None,
        *,
        rows: tuple[int, ...] | None = None,
        expected: Expected | None = None,
    ) -> None:
        self._plan = plan
        self._lanes: list[PlanLane] = []
        self._opening = threading.Lock()
        call_tokens = call_tokens_of(bundle.manifest)
        shapes = {
            profile.length: rows or row_counts(profile.length, profile.rows * profile.length, call_tokens)
            for profile in plan.profiles
        }
        super().__init__(bundle, bundle.manifest.graph("fp16"), "fp16", threads, shapes)
        self.file = plan.name
        self.batch_tokens = max(counts[-1] * length for length, counts in self._rows.items())
        try:
            if not self._lengths or self._lengths[-1] < self._max_length:
                raise BundleError(
                    f"{plan.name} takes up to {max(self._lengths, default=0)} tokens, the model's pairs have up to "
                    f"{self._max_length}: build it again with crossrank engine"
                )
            _log.info("%s: preparing %d shapes on %d streams", plan.name, len(self.shapes), self.concurrency)
            self._prepare_all()
            if expected is not None:
                check_logits(self, expected)
        except BaseException:
            self._pool.shutdown()
            self._free()
            raise

    async def close(self) -> None:
        """See Engine.close."""
        await super().close()
        await asyncio.get_running_loop().run_in_executor(None, self._free)

    def _free(self) -> None:
        with self._opening:
            lanes, self._lanes = self._lanes, []
            for lane in lanes:
                lane.close()
            self._plan.close()

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        lane: PlanLane = self._local.lane
        return lane.run(inputs)

    def _prepare(self) -> None:
        """Give this thread its lane, and run all shapes."""
        lane = PlanLane(self._plan)
        with self._opening:
            self._lanes.append(lane)
        self._local.lane = lane
        self._check_interface(self._plan.inputs, {**self._plan.outputs})
        random = np.random.default_rng(0)
        probe = self._random_pairs((1, min(_PROBE_TOKENS, self._lengths[0])), random)
        expected: float | None = None
        for shape in self.shapes:
            # What is in the buffers now must not be in the scores of the next batch.
            self._infer(self.tensors(self._random_pairs(shape, random), *shape))
            batch = (
                probe if shape[0] == 1 else join_pairs([probe, self._random_pairs((shape[0] - 1, shape[1]), random)])
            )
            logit = float(self._infer(self.tensors(batch, *shape))[0, self._label])
            expected = logit if expected is None else expected
            if not abs(logit - expected) <= _MOST_DELTA * max(1.0, abs(expected)):
                raise EngineFailure(
                    f"{self._plan.name} gives a pair the logit {logit:g} in a batch of {shape[0]}x{shape[1]}, and "
                    f"{expected:g} in one of {self.shapes[0][0]}x{self.shapes[0][1]}"
                )


def load_tensorrt(bundle: Bundle, threads: int | None = None, cache_dir: Path | None = None) -> TensorRtEngine:
    """Return engine tensorrt with the bundle's plan for the GPU at hand, which is built where there is none.

    Args:
        bundle: The model.
        threads: Batches under way at a time; defaults to two.
        cache_dir: Where plans are kept; defaults to `default_cache_dir()`.

    Raises:
        SetupError: See `open_plan`.
        BundleError, EngineFailure: See TensorRtEngine.
    """
    bundle.manifest.graph("fp16")  # raises before anything is loaded
    expected = expect_logits(bundle)  # first, as it takes a copy of the weights for a while
    served = open_plan(bundle, GATE, cache_dir)
    engine = TensorRtEngine(bundle, served.plan, threads, expected=expected)
    served.keep()
    return engine
