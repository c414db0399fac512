"""What crossrank tune keeps: right logits, and clearly faster than what it had."""

from __future__ import annotations

import numpy as np
import pytest

from crossrank_perf.tune.choice import fastest, fault_of_logits, still_running


@pytest.mark.parametrize(
    ("ratios", "kept"),
    [
        ([[1, 1, 1]], 0),
        ([[1, 1, 1], [1.02, 1.02, 1.02]], 0),
        ([[1, 1, 1], [1.2, 1.1, 1.3], [1.3, 1.4, 1.5]], 2),
        # Faster in the median, but not in three rounds of four.
        ([[1, 1, 1, 1], [0.7, 0.9, 1.2, 1.3]], 0),
        ([[1, 1, 1, 1], [0.9, 1.2, 1.2, 1.3]], 1),
    ],
)
def test_only_a_clearly_faster_configuration_replaces_the_one_before(ratios: list[list[float]], kept: int) -> None:
    assert fastest(ratios) == kept


def test_logits_decide_whether_a_candidate_may_serve() -> None:
    expected = np.array([1.0, -2.0], np.float32)
    assert fault_of_logits(expected + np.float32(0.04), expected, "bf16") == ""
    assert "0.06 off" in fault_of_logits(expected + np.float32(0.06), expected, "bf16")
    assert "0.04 off" in fault_of_logits(expected + np.float32(0.04), expected, "fp32")
    assert fault_of_logits(np.array([np.nan, 1.0], np.float32), expected, "bf16")


def test_a_configuration_that_lost_two_rounds_by_far_is_not_timed_again() -> None:
    base, close, slow = [1.0, 1.0], [1.2, 1.2], [1.3, 1.3]
    assert still_running([base, close, slow]) == [0, 1]
    assert still_running([base[:1], close[:1], slow[:1]]) == [0, 1, 2]
    assert still_running([[1.0, 1.6], close, slow]) == [0, 1, 2]  # only one of them by far
