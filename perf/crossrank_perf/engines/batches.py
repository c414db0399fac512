"""Batches for an engine that is called directly: the pairs of a workload, sorted by padded length and cut."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from crossrank.engines.triton.buckets import split_by_bucket
from crossrank.errors import SetupError
from crossrank.packed import PairBatch, join_pairs, take_pairs
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Workload

# A bucket with a smaller share of the pairs tells little about a workload.
_MIN_SHARE = 0.05


def encode_workload(encoder: PairEncoder, workload: Workload) -> PairBatch:
    """Return all pairs of the workload, tokenized as the server does it."""
    return join_pairs([encoder.encode(each.query, list(each.documents)).batch for each in workload.requests])


def pairs_by_bucket(
    pairs: PairBatch, buckets: Sequence[int], wanted: Sequence[int] = (), seed: int = 0
) -> dict[int, PairBatch]:
    """Return the pairs of each bucket, shuffled, by the bucket's length in tokens.

    Args:
        pairs: Pairs of the workload.
        buckets: Padded lengths of the model, ascending, in tokens.
        wanted: Buckets to return; if empty, those with at least a twentieth of the pairs.
        seed: Seed of the order.

    Raises:
        SetupError: A wanted bucket is not one of the model's, or no pair falls into it.
    """
    parts = {part.length: part.rows for part in split_by_bucket(pairs.lengths, buckets, len(pairs))}
    for length in wanted:
        if length not in parts:
            filled = ", ".join(map(str, parts))
            raise SetupError(
                f"no pair of the workload falls into --bucket {length}, only into {filled}: give one of those"
            )
    chosen = sorted(set(wanted)) or [length for length, rows in parts.items() if len(rows) >= _MIN_SHARE * len(pairs)]
    rng = np.random.default_rng(seed)
    return {length: take_pairs(pairs, rng.permutation(parts[length])) for length in chosen}


def cut_batches(pairs: PairBatch, rows: int) -> list[PairBatch]:
    """Return batches of `rows` pairs each, in order; with fewer pairs than that, one batch that repeats them."""
    count = max(len(pairs) // rows, 1)
    order = np.arange(count * rows, dtype=np.int64).reshape(count, rows) % len(pairs)
    return [take_pairs(pairs, own) for own in order]
