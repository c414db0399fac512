"""Find the pairs that are close enough in length to be padded together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def first_similar(
    ascending: Sequence[int], stop: int, longest: int, share: float, spare_tokens: int
) -> tuple[int, int]:
    """Return the first of the pairs, up to `stop`, that should be padded to `longest`, and the spare tokens left.

    Pairs of at least `share` of `longest` are similar enough. All shorter ones join too if their padding is within
    `spare_tokens`: that saves another call.

    Args:
        ascending: Tokens of each pair, shortest first.
        stop: Number of pairs that are not longer than `longest`.
        longest: Tokens that the batch is padded to.
        share: Part of `longest`, 0 to 1.
        spare_tokens: Padding that costs no more than another call.
    """
    start = bisect_left(ascending, int(longest * share), 0, stop)
    padding = start * longest - sum(ascending[:start])
    return (0, spare_tokens - padding) if padding <= spare_tokens else (start, spare_tokens)
