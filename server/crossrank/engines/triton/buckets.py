"""Split pairs by length into the few shapes that Triton can merge.

Triton's dynamic batcher merges only requests of equal shape, so that sequence lengths are padded to a short list of
buckets. Where the engine model takes ragged batches (our Python model on CPUs), it merges requests of all lengths and
fewer of them cost less. Used by the gateway's Triton engine and by the models inside Triton.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class BucketPart:
    """Pairs that travel in one inference request.

    Attributes:
        rows: int64 [rows], which pairs of the batch.
        length: Tokens that they are padded to.
    """

    rows: NDArray[np.int64]
    length: int


def split_by_bucket(lengths: NDArray[np.int64], buckets: Sequence[int], max_rows: int) -> list[BucketPart]:
    """Group pairs by the shortest bucket that holds them.

    Args:
        lengths: int64 [pairs], tokens of each pair.
        buckets: Ascending lengths in tokens; the last one holds every pair.
        max_rows: Rows of a request at most (the model's max_batch_size).

    Raises:
        ValueError: A pair is longer than the last bucket.
    """
    _check_lengths(lengths, buckets)
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    parts: list[BucketPart] = []
    start = 0
    while start < len(order):
        bucket = buckets[bisect_left(buckets, lengths[order[start]])]
        stop = int(np.searchsorted(lengths, bucket, side="right", sorter=order))
        for first in range(start, stop, max_rows):
            parts.append(BucketPart(order[first : min(first + max_rows, stop)], bucket))
        start = stop
    return parts


def split_by_rows(lengths: NDArray[np.int64], buckets: Sequence[int], max_rows: int) -> list[BucketPart]:
    """Group pairs of similar length, for an engine model that merges requests of all lengths.

    Args:
        lengths: int64 [pairs], tokens of each pair.
        buckets: Ascending lengths in tokens; the last one holds every pair.
        max_rows: Rows of a request at most; fewer than the model's max_batch_size spread a request over its instances.

    Raises:
        ValueError: A pair is longer than the last bucket.
    """
    _check_lengths(lengths, buckets)
    order = np.argsort(lengths, kind="stable").astype(np.int64)
    parts = [order[first : first + max_rows] for first in range(0, len(order), max_rows)]
    return [BucketPart(rows, buckets[bisect_left(buckets, lengths[rows[-1]])]) for rows in parts]


def _check_lengths(lengths: NDArray[np.int64], buckets: Sequence[int]) -> None:
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(f"a pair has {lengths.max()} tokens, the longest bucket {buckets[-1]}")
