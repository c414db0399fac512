"""Measure rankings as trec_eval does, through ir-measures, and test whether two rankings differ significantly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import SetupError
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.trec import Qrels, Run, strictly_falling

NDCG = "NDCG@10"
_MRR = "MRR@10"
_MAP = "MAP"
_RECALL_DEPTH = 100
_RESAMPLES = 10_000
_RESAMPLES_AT_A_TIME = 500  # keeps the memory small for the 6,980 queries of MS MARCO dev


@dataclass(frozen=True)
class Protocol:
    """Measures and queries of an evaluation, the same for all its systems.

    Attributes:
        qrels: Judgments of the measured queries only, qid -> docid -> grade.
        relevant_grade: Lowest grade that counts as relevant in MRR, MAP and recall.
        recall_depth: Depth at which recall is measured: 100, or the longest candidate list if that is shorter.
    """

    qrels: Qrels
    relevant_grade: int
    recall_depth: int

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the measures, in the order of the report."""
        return NDCG, _MRR, _MAP, f"R@{self.recall_depth}"


@dataclass(frozen=True)
class Quality:
    """Measures of one ranking.

    Attributes:
        means: Mean over the measured queries, by measure.
        per_query: Value by measure and query id.
    """

    means: Mapping[str, float]
    per_query: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Comparison:
    """Two rankings of the same queries, compared query by query in one measure.

    Attributes:
        system: Name of the ranking.
        baseline: Name of the ranking it is compared with.
        measure: Name of the measure.
        deltas: System minus baseline, by query id.
        mean_delta: Mean of the deltas.
        wins: Number of queries where the system is better.
        losses: Number of queries where it is worse.
        ties: Number of queries where both are equal.
        p_ttest: Two-sided p of the paired t-test; None where it is undefined (one query, or equal deltas).
        p_randomisation: Two-sided p of the paired randomisation test (signs of the deltas flipped at random).
    """

    system: str
    baseline: str
    measure: str
    deltas: Mapping[str, float]
    mean_delta: float
    wins: int
    losses: int
    ties: int
    p_ttest: float | None
    p_randomisation: float


def make_protocol(topics: Sequence[Topic], qrels: Qrels, relevant_grade: int | None = None) -> Protocol:
    """Return the protocol for the queries that have both candidates and judgments.

    Args:
        topics: The queries with their candidates.
        qrels: Judgments.
        relevant_grade: See `Protocol`. Defaults to 2 where grades above 1 occur, as in TREC DL, else to 1.

    Raises:
        SetupError: No query of the candidates is judged, or none of its judged documents reaches the grade.
    """
    measured = {topic.qid: qrels[topic.qid] for topic in topics if topic.qid in qrels}
    if not measured:
        raise SetupError(
            f"none of the {len(topics)} queries (first: {topics[0].qid}) is among the {len(qrels)} judged ones "
            f"(first: {next(iter(qrels))}): give the qrels that belong to the candidates"
        )
    best = max(max(grades.values()) for grades in measured.values())
    relevant_grade = relevant_grade or (2 if best > 1 else 1)
    if best < relevant_grade:
        raise SetupError(
            f"the highest grade in the judgments is {best}, so none reaches {relevant_grade}: "
            "lower --relevant-grade, or check the qrels"
        )
    depth = min(_RECALL_DEPTH, max(len(topic.docids) for topic in topics))
    return Protocol(measured, relevant_grade, depth)


def measure(run: Run, protocol: Protocol) -> Quality:
    """Return the measures of a ranking; a measured query that the run lacks counts as 0 (`trec_eval -c`).

    NDCG uses all grades, with the grade itself as gain (ndcg_cut_10); unjudged documents count as not relevant.

    Source: https://ir-measur.es/en/latest/measures.html
    """
    import ir_measures
    from ir_measures import AP, RR, R, nDCG

    grade = protocol.relevant_grade
    measures = (nDCG @ 10, RR(rel=grade) @ 10, AP(rel=grade), R(rel=grade) @ protocol.recall_depth)
    names = dict(zip(measures, protocol.names, strict=True))
    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(protocol.qrels, 0.0) for name in protocol.names}
    scored = {qid: dict(run[qid]) for qid in protocol.qrels if qid in run}
    qrels = {qid: dict(grades) for qid, grades in protocol.qrels.items()}
    # ir-measures takes trec_eval's own code (pytrec_eval) where it supports a measure; it has no cutoff of MRR.
    for metric in ir_measures.evaluator(measures, qrels).iter_calc(scored):
        per_query[names[metric.measure]][metric.query_id] = float(metric.value)
    means = {name: float(np.mean(list(values.values()))) for name, values in per_query.items()}
    return Quality(means, per_query)


def first_stage_run(topics: Sequence[Topic]) -> Run:
    """Return the candidates in first-stage order, as a run."""
    return {topic.qid: strictly_falling(topic.docids, range(len(topic.docids), 0, -1)) for topic in topics}


def best_possible_run(topics: Sequence[Topic], qrels: Qrels) -> Run:
    """Return the candidates by falling grade: the best possible re-ranking."""
    return {
        topic.qid: strictly_falling(topic.docids, [qrels.get(topic.qid, {}).get(docid, 0) for docid in topic.docids])
        for topic in topics
    }


def compare(system: str, baseline: str, ours: Quality, theirs: Quality, name: str = NDCG) -> Comparison:
    """Compare two rankings in one measure, over the queries measured in both."""
    shared = [qid for qid in ours.per_query[name] if qid in theirs.per_query[name]]
    deltas = {qid: ours.per_query[name][qid] - theirs.per_query[name][qid] for qid in shared}
    values = np.array(list(deltas.values()))
    return Comparison(
        system,
        baseline,
        name,
        deltas,
        float(values.mean()),
        wins=int((values > 0).sum()),
        losses=int((values < 0).sum()),
        ties=int((values == 0).sum()),
        p_ttest=_paired_t_test(values),
        p_randomisation=_randomisation_test(values),
    )


def _paired_t_test(deltas: NDArray[np.float64]) -> float | None:
    """Return the two-sided p of Student's t; scipy.stats has it too, but takes a second to import."""
    from scipy.special import stdtr

    if len(deltas) < 2 or np.ptp(deltas) < 1e-12:
        return None
    t = deltas.mean() / (deltas.std(ddof=1) / np.sqrt(len(deltas)))
    return float(2 * stdtr(len(deltas) - 1, -abs(t)))


def _randomisation_test(deltas: NDArray[np.float64]) -> float:
    """Return the share of random sign flips whose mean is as far from 0 as the observed one.

    Source: Smucker, Allan, Carterette 2007, https://doi.org/10.1145/1321440.1321528
    """
    random = np.random.default_rng(0)
    as_far = 1  # the observed signs are one of the draws
    for _ in range(_RESAMPLES // _RESAMPLES_AT_A_TIME):
        signs = random.choice((-1.0, 1.0), size=(_RESAMPLES_AT_A_TIME, len(deltas)))
        as_far += int((np.abs(signs @ deltas) >= abs(deltas.sum()) - 1e-12).sum())
    return as_far / (1 + _RESAMPLES)
