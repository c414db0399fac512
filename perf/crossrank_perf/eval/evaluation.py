"""Build the result of `crossrank eval` from rankings and judgments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from crossrank.bundles.catalog import catalog_model
from crossrank.errors import SetupError
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.quality import (
    NDCG,
    Comparison,
    Protocol,
    Quality,
    best_possible_run,
    compare,
    first_stage_run,
    make_protocol,
    measure,
)
from crossrank_perf.eval.scoring import Reranked
from crossrank_perf.eval.trec import Qrels, Run

FIRST_STAGE = "first stage"
BEST_POSSIBLE = "best possible"
_TOP = 10


@dataclass(frozen=True)
class Inputs:
    """Inputs of an evaluation.

    Attributes:
        source: Origin of the candidates, for the report.
        topics: The queries with their candidates.
        is_ranked: Whether the candidates' order is a ranking, and so a baseline.
        qrels: The judgments, if there are any.
        relevant_grade: See `make_protocol`.
        other_name: File name of a run to compare with; empty where there is none.
        other: That run.
    """

    source: str
    topics: Sequence[Topic]
    is_ranked: bool = True
    qrels: Qrels | None = None
    relevant_grade: int | None = None
    other_name: str = ""
    other: Run | None = None


@dataclass(frozen=True)
class PrecisionRow:
    """One precision compared with the reference precision.

    Attributes:
        precision: The arithmetic.
        engine: Engine that computed it.
        ndcg: Mean NDCG@10; None without judgments.
        ndcg_delta: Difference from the NDCG@10 of the reference.
        max_delta_logit: Largest absolute difference of a pair's logit from the reference.
        mean_delta_logit: Mean absolute difference.
        top_10_overlap: Mean share of the first 10 documents that both rankings have in common.
    """

    precision: str
    engine: str
    ndcg: float | None
    ndcg_delta: float | None
    max_delta_logit: float
    mean_delta_logit: float
    top_10_overlap: float


@dataclass(frozen=True)
class Published:
    """Published figure of a model, from the catalog.

    Attributes:
        model: Id of the model.
        ndcg: NDCG@10, as a fraction.
        protocol: How it was measured.
    """

    model: str
    ndcg: float
    protocol: str


@dataclass(frozen=True)
class Evaluation:
    """The result of `crossrank eval`.

    Attributes:
        source: Origin of the candidates.
        queries: Queries re-ranked.
        documents: Pairs scored by each system.
        longest_list: Candidates of the query that has most.
        protocol: Measures and measured queries; None without judgments.
        qualities: Measures by name of the ranking: first stage, other run, each system, the best possible order.
        comparisons: Each re-ranked system against each baseline.
        precisions: Each precision compared with the reference; empty where there is only one.
        reference_precision: The reference: fp32 if it is among them, else the first.
        published: Published figures of the models.
        notes: Remarks on the figures, for the report.
    """

    source: str
    queries: int
    documents: int
    longest_list: int
    protocol: Protocol | None
    qualities: dict[str, Quality]
    comparisons: list[Comparison]
    precisions: list[PrecisionRow]
    reference_precision: str
    published: list[Published]
    notes: list[str]


def evaluate_rankings(inputs: Inputs, systems: Sequence[Reranked]) -> Evaluation:
    """Return the measures of all systems, compared with the baselines and with each other.

    Raises:
        SetupError: The judgments, or the other run, have no query in common with the candidates.
    """
    protocol = None
    qualities: dict[str, Quality] = {}
    comparisons: list[Comparison] = []
    if inputs.qrels is not None:
        protocol = make_protocol(inputs.topics, inputs.qrels, inputs.relevant_grade)
        qualities = _measure_all(inputs, systems, protocol)
        baselines = [name for name in (FIRST_STAGE, inputs.other_name) if name in qualities]
        comparisons = [
            compare(system.name, baseline, qualities[system.name], qualities[baseline])
            for system in systems
            for baseline in baselines
        ]
    reference = next((system for system in systems if system.precision == "fp32"), systems[0])
    return Evaluation(
        source=inputs.source,
        queries=len(inputs.topics),
        documents=sum(len(topic.docids) for topic in inputs.topics),
        longest_list=max(len(topic.docids) for topic in inputs.topics),
        protocol=protocol,
        qualities=qualities,
        comparisons=comparisons,
        precisions=[_precision_row(s, reference, qualities) for s in systems] if len(systems) > 1 else [],
        reference_precision=reference.precision,
        published=_published(systems),
        notes=_notes(inputs, systems, protocol),
    )


def check_inputs(inputs: Inputs) -> None:
    """Check the inputs before anything is scored.

    Raises:
        SetupError: `evaluate_rankings` would raise it.
    """
    protocol = None if inputs.qrels is None else make_protocol(inputs.topics, inputs.qrels, inputs.relevant_grade)
    if inputs.other is not None:
        measured = [topic.qid for topic in inputs.topics] if protocol is None else list(protocol.qrels)
        if not any(qid in inputs.other for qid in measured):
            raise SetupError(
                f"--compare {inputs.other_name} has none of the {len(measured)} queries (first: {measured[0]}): "
                "give a run of the same queries"
            )


def _measure_all(inputs: Inputs, systems: Sequence[Reranked], protocol: Protocol) -> dict[str, Quality]:
    runs: dict[str, Run] = {}
    if inputs.is_ranked:
        runs[FIRST_STAGE] = first_stage_run(inputs.topics)
    if inputs.other is not None:
        runs[inputs.other_name] = inputs.other
    runs |= {system.name: system.run for system in systems}
    runs[BEST_POSSIBLE] = best_possible_run(inputs.topics, protocol.qrels)
    return {name: measure(run, protocol) for name, run in runs.items()}


def _precision_row(system: Reranked, reference: Reranked, qualities: dict[str, Quality]) -> PrecisionRow:
    deltas = np.concatenate([np.abs(system.logits[qid] - reference.logits[qid]) for qid in reference.logits])
    overlaps = [
        len(set(list(ours)[:_TOP]) & set(list(theirs)[:_TOP])) / min(_TOP, len(theirs))
        for ours, theirs in ((system.run[qid], reference.run[qid]) for qid in reference.run)
    ]
    ndcg = qualities[system.name].means[NDCG] if qualities else None
    reference_ndcg = qualities[reference.name].means[NDCG] if qualities else None
    return PrecisionRow(
        system.precision,
        system.engine,
        ndcg,
        None if ndcg is None or reference_ndcg is None else ndcg - reference_ndcg,
        float(deltas.max()),
        float(deltas.mean()),
        float(np.mean(overlaps)),
    )


def _published(systems: Sequence[Reranked]) -> list[Published]:
    entries = [catalog_model(model) for model in dict.fromkeys(system.model for system in systems)]
    return [Published(e.model_id, round(e.ndcg_at_10 / 100, 4), e.protocol) for e in entries if e is not None]


def _notes(inputs: Inputs, systems: Sequence[Reranked], protocol: Protocol | None) -> list[str]:
    notes = []
    for system in systems:
        if system.truncated:
            notes.append(f"{system.name}: {system.truncated} pair(s) were longer than the model's window, truncated")
    if protocol is None:
        return [*notes, "no judgments were given (--qrels): the run was written, nothing was measured"]
    judged = inputs.qrels or {}
    queries = {topic.qid for topic in inputs.topics}
    notes.append(
        f"{len(protocol.qrels)} judged queries; NDCG uses the grades (trec_eval's ndcg_cut_10), "
        f"MRR, MAP and recall count grade >= {protocol.relevant_grade} as relevant; unjudged counts as not relevant"
    )
    if unjudged := len(queries) - len(protocol.qrels):
        notes.append(f"{unjudged} queries of the candidates have no judgments and are in no mean")
    if absent := sum(qid not in queries for qid in judged):
        notes.append(f"{absent} judged queries have no candidates and are in no mean")
    if not inputs.is_ranked:
        notes.append("these candidates come in no order, so there is no first stage to compare with")
    if max(len(topic.docids) for topic in inputs.topics) <= protocol.recall_depth:
        notes.append(f"R@{protocol.recall_depth} covers the whole lists: re-ranking cannot change it")
    if inputs.other is not None and (missing := sum(qid not in inputs.other for qid in protocol.qrels)):
        notes.append(f"{missing} measured queries are not in {inputs.other_name} and count there as 0 (trec_eval -c)")
    return notes
