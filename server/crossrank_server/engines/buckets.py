"""Pairs of similar length together, and padded tensors for Triton, split into few shapes and read back from them.

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

from crossrank_server.engines.base import PairBatch


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


def _check_lengths(lengths: NDArray[np.int64], buckets: Sequence[int]) -> None:
    if len(lengths) and lengths.max() > buckets[-1]:
        raise ValueError(f"a pair has {lengths.max()} tokens, the longest bucket {buckets[-1]}")


def take_pairs(batch: PairBatch, rows: NDArray[np.int64]) -> PairBatch:
    """Return some pairs of a batch, in the order of `rows`."""
    lengths = batch.lengths[rows]
    offsets = np.zeros(len(rows) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    tokens = np.repeat(batch.offsets[rows] - offsets[:-1], lengths) + np.arange(offsets[-1])
    return PairBatch(batch.input_ids[tokens], batch.token_type_ids[tokens], offsets)


def join_pairs(batches: Sequence[PairBatch]) -> PairBatch:
    """Return the pairs of all batches, one batch after the other."""
    lengths = np.concatenate([batch.lengths for batch in batches])
    return PairBatch(
        np.concatenate([batch.input_ids for batch in batches]),
        np.concatenate([batch.token_type_ids for batch in batches]),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )


def pairs_from_padded(
    input_ids: NDArray[np.int32],
    token_type_ids: NDArray[np.int32] | None,
    attention_mask: NDArray[np.int32],
    vocab_size: int,
) -> PairBatch:
    """Return the packed pairs of padded tensors: the inverse of `PairBatch.padded`.

    A row that attends to nothing is read as one token: warm-up requests are all zeros, and an empty row has no
    softmax.

    Args:
        input_ids: int32 [rows, length].
        token_type_ids: int32 [rows, length], or None where the model has no segments.
        attention_mask: int32 [rows, length], ones and then zeros.
        vocab_size: Ids are below it.

    Raises:
        ValueError: The tensors do not describe right-padded pairs of known tokens.
    """
    types = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    if input_ids.ndim != 2 or not input_ids.shape == types.shape == attention_mask.shape or 0 in input_ids.shape:
        shapes = ", ".join(str(list(tensor.shape)) for tensor in (input_ids, types, attention_mask))
        raise ValueError(f"input_ids, token_type_ids and attention_mask must be equal [rows, length], not {shapes}")
    attended = attention_mask.astype(np.bool_)
    attended[~attended.any(axis=1), 0] = True
    lengths = attended.sum(axis=1)
    if not np.array_equal(attended, np.arange(attended.shape[1]) < lengths[:, None]):
        raise ValueError("attention_mask must be ones followed by zeros in every row: pad on the right")
    ids = input_ids[attended]
    if ids.min() < 0 or ids.max() >= vocab_size:
        raise ValueError(f"input_ids must be 0 to {vocab_size - 1}, not {ids.min()} to {ids.max()}")
    return PairBatch(
        ids.astype(np.int32, copy=False),
        types[attended].astype(np.int32, copy=False),
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
    )
