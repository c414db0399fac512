"""Whether a variant still gives the source's answers: measured on pairs, judged by one table of thresholds."""

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

# How far any logit of a variant may be from its source's, where these span up to _RANGE: wider ones are sums of larger
# numbers, whose last bits weigh more. fp32 has 24 bits: 1e-4 in 100 are 17 times 2^-24 of the range, which sums of some
# thousand terms come to in another order, layer after layer. Rank agreement is reported and not judged: where documents
# are all but tied, exact copies among them, it falls with a difference that means nothing.
THRESHOLDS: Mapping[Precision, float] = MappingProxyType(
    {
        "fp32": 1e-4,  # another order of additions, no more
        "fp16": 2e-2,  # weights and activations of 11 bits
        "int8": 1.0,  # scaled by whatever else is in the batch: loose, and never what is served unasked
    }
)
_RANGE = 100.0


def limit_of(precision: Precision, logit_range: float) -> float:
    """Return how far a logit may be from its source's, where the source's logits span that range."""
    return THRESHOLDS[precision] * max(1.0, logit_range / _RANGE)


# Of a pair that another is padded to: a scorer would not take two much longer ones together.
_PADDED_ROWS, _PADDED_TO_TOKENS = 4, 512


@dataclass(frozen=True)
class Agreement:
    """How two scorings of the same pairs compare.

    Attributes:
        pairs: How many pairs.
        max_abs_delta, mean_abs_delta: Of the logits.
        logit_range: Between the source's smallest and largest logit; a delta means nothing without it.
        kendall_tau: Mean over the queries of tau-b.
        top10_overlap: Mean over the queries.
        ndcg10_source, ndcg10: Mean NDCG@10 over the judged queries, None where none is judged.
        longest_pair_tokens: Of the longest pair, None where pairs went up to the window.
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
        """Tell whether no logit is beyond the limit; NaN always is."""
        return self.max_abs_delta <= limit_of(precision, self.logit_range)

    def judged_as(self, precision: Precision) -> dict[str, Any]:
        """Return what the manifest records, with the limit."""
        return {**self.as_dict(), "limit": limit_of(precision, self.logit_range)}

    def as_dict(self) -> dict[str, Any]:
        """Return what the manifest records, without what was not measured."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class SampleSet:
    """Tokenized groups and the source's logits for them.

    Attributes:
        name: `builtin` or the user's file.
        groups: The queries.
        batch: All pairs, group after group.
        reference: float32 [pairs], the source's logits.
        cut: Whether the pairs were kept shorter than the window.
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
        name: `builtin` or the user's file.
        groups: The queries.
        tokens: How pairs are tokenized.
        reference: The source.
        num_labels: Logits that it gives a pair.
        label: Which of them is the score.
        max_length: Tokens of a pair at most, the window's if None.

    Raises:
        SetupError: The source gives another number of logits than its config says, or one that is not finite.
        ModelSourceError: A pair's logits depend on what it is padded to.
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
    """Refuse a model whose logits of some pair change beside a much longer one.

    ConvBERT convolves over padding, and Nystromformer's landmarks move with the length.
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
    """Return a scorer that refuses to score what another one scores otherwise.

    Args:
        scorer: Whose logits are given.
        other: Whose logits they have to agree with.
        precision: Decides how far they may be apart.
        where: What the other one is, for the message.
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
    """Refuse a variant beyond its threshold.

    Raises:
        SetupError: Says by how much and on which pairs.
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
