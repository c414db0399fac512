"""Which pairs are close enough in length to be padded together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


def first_similar(
    ascending: Sequence[int], stop: int, longest: int, share: float, spare_tokens: int
) -> tuple[int, int]:
    """Return from where on, up to `stop`, pairs should be padded to `longest`, and how many spare tokens are left.

    Shorter ones than the share join if all of them can, which saves the call that they would take.

    Args:
        ascending: Tokens of each pair.
        stop: None from here on is longer than `longest`.
        longest: Tokens that the batch is padded to.
        share: Pairs of this share of `longest` are always similar enough.
        spare_tokens: Padding that shorter ones may need, all together: what costs no more than another call.
    """
    start = bisect_left(ascending, int(longest * share), 0, stop)
    padding = start * longest - sum(ascending[:start])
    return (0, spare_tokens - padding) if padding <= spare_tokens else (start, spare_tokens)
