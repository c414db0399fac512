"""Whether padding leaves a model's logits alone: else a pair's score would depend on what shares its batch."""

from __future__ import annotations

import numpy as np

from crossrank_export.graphs import Scorer, most_tokens
from crossrank_export.parity import limit_of
from crossrank_server.engines.base import PairBatch
from crossrank_server.engines.buckets import take_pairs
from crossrank_server.errors import ModelSourceError

# Shorter pairs that are scored alone, at most.
_PAIRS = 4


def refuse_padded_otherwise(batch: PairBatch, scorer: Scorer, where: str) -> None:
    """Score pairs of several lengths alone, and padded beside a long one, and refuse a model that tells them apart.

    Args:
        batch: Pairs of all lengths.
        scorer: The model; pairs that it gets together are padded to the longest.
        where: What the scorer is, for the message.

    Raises:
        ModelSourceError: The logits differ by more than fp32 explains.
    """
    order = np.argsort(batch.lengths, kind="stable")
    # Of a longer one the scorer would make a batch by itself.
    long = [row for row in order if 2 * batch.lengths[row] <= most_tokens(batch.lengths[row])][-1:]
    if not long:
        return
    longest = int(batch.lengths[long[0]])
    count = min(_PAIRS, most_tokens(longest) // longest - 1)
    short = order[np.linspace(0, len(order) // 2, count).astype(np.int64)]
    padded = scorer(take_pairs(batch, np.concatenate([short, long])))[:-1]
    alone = np.concatenate([scorer(take_pairs(batch, short[i : i + 1])) for i in range(count)])
    delta, limit = float(np.abs(padded - alone).max()), limit_of("fp32", float(np.ptp(alone)))
    if not delta <= limit:
        raise ModelSourceError(
            f"{where}: padding changes this model's logits, by up to {delta:.3g} (limit {limit:g}), as parts of it do "
            "not heed attention_mask (convolutions and pooling over tokens do not): a pair's score would depend on "
            "what it is scored with, so it is not served"
        )
