"""List the lengths that pairs are padded to where each shape costs something beforehand.

A profile of a TensorRT plan, a merged batch in Triton and a CUDA graph are each made for one length. More lengths pad
less; each of them makes plans larger, builds and starts longer, and leaves fewer pairs that share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from crossrank.errors import SetupError

# From 64 on each is a half or a third more than the one before. Pairs of MS MARCO have 41 to 268 tokens, 95 on average:
# padded to these they have 21% more, without 96, 192 and 384 48% more, and with 48 and 160 beside them still 16%.
BUCKET_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192)


def fit_lengths(lengths: Sequence[int], max_length: int) -> tuple[int, ...]:
    """Return the lengths below a model's window, then the window.

    Args:
        lengths: Lengths in tokens, ascending.
        max_length: Tokens of the longest pair.
    """
    return (*(length for length in lengths if length < max_length), max_length)


def check_lengths(lengths: Sequence[int] | None, max_length: int) -> tuple[int, ...]:
    """Return the lengths that a user gave in `--buckets`; by default `BUCKET_LENGTHS` up to the window.

    Args:
        lengths: Lengths in tokens.
        max_length: Tokens of the bundle's longest pair, which the last bucket must hold.

    Raises:
        SetupError: The lengths are not ascending, or do not end at `max_length`.
    """
    if lengths is None:
        return fit_lengths(BUCKET_LENGTHS, max_length)
    given = ",".join(map(str, lengths))
    if not lengths or lengths[0] < 1 or any(a >= b for a, b in pairwise(lengths)):
        raise SetupError(f"--buckets {given} are not ascending lengths: give them like 32,64,128,256,512")
    if lengths[-1] != max_length:
        raise SetupError(
            f"--buckets {given} end at {lengths[-1]} tokens, the bundle's pairs have up to {max_length}: "
            f"make {max_length} the last bucket, or export with --max-length {lengths[-1]}"
        )
    return tuple(lengths)
