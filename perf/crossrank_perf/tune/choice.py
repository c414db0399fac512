"""Decide between configurations: which ones to try, whose logits are right, and which one is clearly faster."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.tuning import EngineConfig

# What --precision promises of the logits (README); a candidate beyond it is not chosen, however fast.
MAX_DELTA_LOGIT = {"fp32": 1e-3, "bf16": 0.05}
# Least ratio of the median round at which a candidate replaces the configuration before.
_MIN_GAIN = 1.03
# A candidate that was slower than this in both of the first two rounds is not timed again.
_HOPELESS = 0.8


def fault_of_logits(logits: NDArray[np.float32], expected: NDArray[np.float32], precision: str) -> str:
    """Return why a candidate must not serve; empty if its logits are within what its precision promises of fp32.

    Args:
        logits: Logits of the candidate, float32 [pairs].
        expected: Logits in fp32 of the same pairs.
        precision: Precision of the candidate.
    """
    delta = float(np.abs(logits - expected).max())
    limit = MAX_DELTA_LOGIT[precision]
    return "" if delta <= limit else f"its logits are up to {delta:.3g} off those of fp32, {precision} may be {limit:g}"


def fastest(ratios: Sequence[Sequence[float]]) -> int:
    """Return the index of the configuration to keep: the first, or the fastest of those that are clearly faster.

    Args:
        ratios: For each configuration, its speed relative to the first in each round.
    """
    medians = [statistics.median(own) for own in ratios]
    clear = [
        i
        for i, own in enumerate(ratios)
        if medians[i] >= _MIN_GAIN and sorted(own)[len(own) // 4] > 1  # in three rounds of four
    ]
    return max(clear, key=lambda i: medians[i], default=0)


def still_running(times_s: Sequence[Sequence[float]]) -> list[int]:
    """Return the indices of the configurations to time in the next round: all but those that lost two by far.

    Args:
        times_s: For each configuration, the seconds of its rounds so far; the first is the reference.
    """
    base = times_s[0]
    return [
        i
        for i, own in enumerate(times_s)
        if not (len(own) == 2 <= len(base) and all(b / a < _HOPELESS for a, b in zip(own, base, strict=False)))
    ]


def describe(config: EngineConfig) -> str:
    """Return a configuration as one line of text."""
    return (
        f"{config.engine} {config.precision}, {config.threads} threads, {config.batch_tokens} tokens a batch, "
        f"padded to {config.length_step} tokens and {config.row_step} rows"
    )


def other_threads(config: EngineConfig) -> list[EngineConfig]:
    """Return the configurations to try with fewer threads."""
    # A core less, as tokenization needs one too; and half of them, where two threads share a core.
    counts = {config.threads - 1, config.threads // 2} - {0, config.threads}
    return [config.model_copy(update={"threads": count}) for count in sorted(counts, reverse=True)]


def other_budgets(config: EngineConfig) -> list[EngineConfig]:
    """Return the configurations to try with other tokens of a batch."""
    # Not far from the engine's own: others wait longer for a larger batch, which this measurement does not see.
    return [
        config.model_copy(update={"batch_tokens": tokens})
        for tokens in (config.batch_tokens // 2, 2 * config.batch_tokens)
    ]


def other_paddings(config: EngineConfig, engine: EmbeddedEngine) -> list[EngineConfig]:
    """Return the configurations to try with coarser padding; none for an engine that does not pad."""
    # Only coarser ones: OpenVINO keeps 0.3 - 0.5 MB for each shape it meets, and finer steps make more of them.
    if not engine.pads:
        return []
    lengths, rows = (config.length_step, 2 * config.length_step), (config.row_step, 2 * config.row_step)
    made = [config.model_copy(update={"length_step": a, "row_step": b}) for a in lengths for b in rows]
    return [other for other in made if other != config]


def figures(config: EngineConfig, documents: int, own: Sequence[float], base: Sequence[float]) -> dict[str, Any]:
    """Return the figures of a configuration, ready for JSON.

    Args:
        config: The configuration.
        documents: Documents scored in a round.
        own: Seconds of its rounds.
        base: Seconds of the rounds of the reference.
    """
    ratios = [b / a for a, b in zip(own, base, strict=False)]
    return {
        "config": config.model_dump(),
        "documents_per_s": round(documents / statistics.median(own), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
