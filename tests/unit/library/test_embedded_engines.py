"""The engines in this process, apart from what they compute."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.base import BatchedEngine
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.openvino import OpenVinoEngine
from crossrank.packed import PairBatch, offsets_of


class Recording(OpenVinoEngine):
    """Notes the thread of each inference."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.threads: list[str] = []
        super().__init__(*args, **kwargs)

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        self.threads.append(threading.current_thread().name)
        return super()._infer(inputs)


def test_openvino_has_inferred_alone_before_two_threads_can_and_wait_for_each_other(builtin: Bundle) -> None:
    # Started at once, two first inferences hung one start of the server in eight.
    assert Recording(builtin, "fp32", threads=2).threads == [threading.current_thread().name]


@pytest.mark.parametrize(
    ("step", "rows"),
    [
        (4, {1: 1, 2: 2, 3: 4, 4: 4, 5: 8, 9: 12}),
        (8, {1: 1, 2: 2, 3: 4, 5: 8, 8: 8, 9: 16}),
        (6, {1: 1, 3: 4, 5: 6, 7: 12}),
        (2, {1: 1, 2: 2, 3: 4, 5: 6}),
        (1, {1: 1, 3: 3, 5: 5}),
    ],
)
def test_rows_are_padded_by_the_tuned_step_and_below_it_to_a_power_of_two(
    builtin: Bundle, step: int, rows: dict[int, int]
) -> None:
    engine = OnnxRuntimeEngine(builtin, threads=1)
    assert isinstance(engine, BatchedEngine)
    engine.row_step = step
    for pairs, padded in rows.items():
        ids = np.full(pairs * 20, 7, np.int32)
        batch = PairBatch(ids, np.zeros_like(ids), offsets_of([20] * pairs))
        assert engine.padded_shape(batch) == (padded, 32)
        assert engine.padded_tokens(batch) == padded * 32
