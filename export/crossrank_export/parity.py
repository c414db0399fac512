"""Measure on pairs how far a variant's logits are from the source's, and judge that by one table of thresholds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Precision
from crossrank.checkpoints.tokens import PairTokens
from crossrank.errors import ModelSourceError, SetupError
from crossrank.packed import PairBatch, take_pairs
from crossrank_export.graphs import Scorer
from crossrank_export.metrics import kendall_tau, ndcg, top_overlap
from crossrank_export.samples import SampleGroup

# Largest difference of a logit from the source's, where these span up to _RANGE; it grows with a wider range, as the
# last bits of larger sums weigh more. fp32 has 24 bits: 1e-4 in 100 are 17 times 2^-24 of the range, the rounding of
# sums of some thousand terms in another order, over all layers. Rank agreement is reported but not judged: where
# documents are nearly tied, or copies of each other, differences without meaning change it.
THRESHOLDS: Mapping[Precision, float] = MappingProxyType(
    {
        "fp32": 1e-4,  # additions in another order
        "fp16": 2e-2,  # 11 bits of weights and activations
        "int8": 1.0,  # scaled by the rest of the batch, hence loose; never served unless asked for
    }
)
_RANGE = 100.0


def limit_of(precision: Precision, logit_range: float) -> float:
    """Return the largest allowed difference of a logit from the source's, where the source's logits span that range."""
    return THRESHOLDS[precision] * max(1.0, logit_range / _RANGE)


# Tokens that a pair is padded to: a scorer does not put two much longer pairs into one batch.
_PADDED_ROWS, _PADDED_TO_TOKENS = 4, 512


@dataclass(frozen=True)
class Agreement:
    """Agreement of a variant with the source, on the same pairs.

    Attributes:
        pairs: Number of pairs.
        max_abs_delta, mean_abs_delta: Largest and mean absolute difference of a logit.
        logit_range: Difference of the source's largest and smallest logit, to judge the deltas by.
        kendall_tau: Kendall's tau-b, mean over the queries.
        top10_overlap: Share of the first 10 documents in common, mean over the queries.
        ndcg10_source, ndcg10: Mean NDCG@10 over the judged queries, None where none is judged.
        longest_pair_tokens: Tokens of the longest pair; None where pairs were as long as the window.
    """

    pairs: int
    max_abs_delta: float
    mean_abs_delta: float
    logit_range: float
    kendall_tau: float
    top10_overlap: float
    ndcg10_source: float | None = None
    ndcg10: float | None = None
    longest_pair_tokens: int | None = None

    def within(self, precision: Precision) -> bool:
        """Return whether all logits are within the limit; NaN is not."""
        return self.max_abs_delta <= limit_of(precision, self.logit_range)

    def judged_as(self, precision: Precision) -> dict[str, Any]:
        """Return the manifest's record, with the limit."""
        return {**self.as_dict(), "limit": limit_of(precision, self.logit_range)}

    def as_dict(self) -> dict[str, Any]:
        """Return the manifest's record, without figures that were not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SampleSet:
    """Pairs with the source's logits.

    Attributes:
        name: `builtin`, or the name of the user's file.
        groups: Queries with their documents.
        batch: All pairs, group after group.
        reference: float32 [pairs], the source's logits.
        cut: Whether pairs were cut to fewer tokens than the window.
    """

    name: str
    groups: Sequence[SampleGroup]
    batch: PairBatch
    reference: NDArray[np.float32]
    cut: bool = False


def prepare(
    name: str,
    groups: Sequence[SampleGroup],
    tokens: PairTokens,
    reference: Scorer,
    num_labels: int,
    label: int,
    max_length: int | None = None,
) -> SampleSet:
    """Tokenize groups and score them with the source.

    Args:
        name: `builtin`, or the name of the user's file.
        groups: Queries with their documents.
        tokens: Tokenization of pairs.
        reference: Scorer of the source.
        num_labels: Logits of a pair.
        label: Index of the logit that is the score.
        max_length: Most tokens of a pair; defaults to the window.

    Raises:
        SetupError: The source returns another number of logits than its config states, or one that is not finite.
        ModelSourceError: The logits of a pair depend on the length that it is padded to.
    """
    pairs = [(group.query, document) for group in groups for document in group.documents]
    batch = tokens.encode(pairs, max_length)
    logits = reference(batch)
    if logits.shape[1] != num_labels:
        raise SetupError(
            f"the source gives {logits.shape[1]} numbers a pair where config.json promises {num_labels}: give the "
            "graph of the whole model, with its classification head, or the config.json that belongs to it"
        )
    if not np.isfinite(logits).all():
        raise SetupError("the source itself gives logits that are not finite: its weights are damaged")
    _refuse_padding_in_logits(batch, reference, float(np.ptp(logits)))
    cut = max_length is not None and max_length < tokens.max_length
    return SampleSet(name, groups, batch, logits[:, label], cut)


def _refuse_padding_in_logits(batch: PairBatch, reference: Scorer, logit_range: float) -> None:
    """Check that the logits of a pair do not change in a batch with a much longer pair.

    They do in ConvBERT, which convolves over padding, and in Nystromformer, whose landmarks depend on the length.
    """
    order = np.argsort(batch.lengths, kind="stable")
    together = order[batch.lengths[order] <= _PADDED_TO_TOKENS]
    if len(together) < 2:
        return
    *short, long = together[np.linspace(0, len(together) - 1, _PADDED_ROWS).astype(np.int64)].tolist()
    beside = reference(take_pairs(batch, np.array([*short, long])))[:-1]
    alone = np.concatenate([reference(take_pairs(batch, np.array([row]))) for row in short])
    deltas, limit = np.abs(alone - beside).max(axis=1), limit_of("fp32", logit_range)
    if not (deltas <= limit).all():
        raise ModelSourceError(
            f"the model's logits depend on padding: a pair of {batch.lengths[short[int(deltas.argmax())]]} tokens "
            f"scores {deltas.max():.3g} otherwise beside one of {batch.lengths[long]} tokens (limit {limit:g}), as "
            "parts of it do not heed attention_mask (convolutions over tokens do not); it has no score of its own, so "
            "it is not served"
        )


def agreeing(scorer: Scorer, other: Scorer, precision: Precision, where: str) -> Scorer:
    """Return a scorer that checks its logits against those of another scorer.

    Args:
        scorer: Scorer whose logits are returned.
        other: Scorer to compare with.
        precision: Precision that decides the largest difference.
        where: Name of the other scorer for messages.
    """

    def score(batch: PairBatch) -> NDArray[np.float32]:
        logits = scorer(batch)
        delta = float(np.abs(logits - other(batch)).max())
        limit = limit_of(precision, float(np.ptp(logits)))
        if not delta <= limit:
            raise SetupError(
                f"{where} made fp32 gives logits {delta:.3g} off its own in {precision} (limit {limit:g}): give the "
                "model's fp32 graph or its safetensors"
            )
        return logits

    return score


def compare(samples: SampleSet, logits: NDArray[np.float32]) -> Agreement:
    """Compare logits, float32 [pairs], with the source's."""
    delta = np.abs(logits.astype(np.float64) - samples.reference)
    taus, overlaps, before, after = [], [], [], []
    start = 0
    for group in samples.groups:
        span = slice(start, start + len(group.documents))
        start = span.stop
        source, variant = samples.reference[span], logits[span]
        taus.append(kendall_tau(source, variant))
        overlaps.append(top_overlap(source, variant))
        if group.grades:
            before.append(ndcg(source, group.docids, group.grades))
            after.append(ndcg(variant, group.docids, group.grades))
    return Agreement(
        pairs=len(logits),
        max_abs_delta=float(delta.max()),
        mean_abs_delta=float(delta.mean()),
        logit_range=float(np.ptp(samples.reference)),
        kendall_tau=float(np.mean(taus)),
        top10_overlap=float(np.mean(overlaps)),
        ndcg10_source=float(np.mean(before)) if before else None,
        ndcg10=float(np.mean(after)) if after else None,
        longest_pair_tokens=int(samples.batch.lengths.max()) if samples.cut else None,
    )


def check(agreement: Agreement, precision: Precision, where: str) -> None:
    """Check that a variant is within the threshold of its precision.

    Raises:
        SetupError: It is not; the message says by how much and on which pairs.
    """
    if not agreement.within(precision):
        limit = limit_of(precision, agreement.logit_range)
        remedy = (
            "which is a fault of crossrank that no option mends: report this model"
            if precision == "fp32"
            else f"export without {precision} or report this model"
        )
        raise SetupError(
            f"the {precision} graph is not the source model: on {where} its logits differ by up to "
            f"{agreement.max_abs_delta:.3g} in a range of {agreement.logit_range:.3g}, the limit is {limit:g}; nothing "
            f"was written, {remedy}",
            code="parity",
        )
