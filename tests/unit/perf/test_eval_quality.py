"""Measures against values computed by hand, significance against closed forms, and what a report says."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import EngineFailure, SetupError
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.evaluation import Inputs, check_inputs, evaluate_rankings
from crossrank_perf.eval.quality import (
    NDCG,
    Quality,
    best_possible_run,
    compare,
    first_stage_run,
    make_protocol,
    measure,
)
from crossrank_perf.eval.report import evaluation_as_json, plot_deltas
from crossrank_perf.eval.scoring import Reranked, Scores, rerank_topics
from crossrank_perf.eval.trec import strictly_falling

LOG3 = math.log2(3)
QRELS = {"1": {"a": 0, "b": 3, "c": 1}, "2": {"x": 2, "z": 2}, "absent": {"a": 1}}
TOPICS = [
    Topic("1", "one", ("a", "b", "c"), ("text a", "text b", "text c")),
    Topic("2", "two", ("y", "x"), ("text y", "text x")),
    Topic("unjudged", "three", ("a",), ("text a",)),
]
TIED = {f"text {name}": 0.5 for name in "abcxy"}


class TableScorer:
    """Gives each document the score that a table has for it."""

    model = "crossrank-mini"
    engine = "table"
    precision = "fp32"

    def __init__(self, table: dict[str, float]) -> None:
        self.table = table

    async def score(self, query: str, documents: object) -> Scores:
        return Scores(np.array([self.table[text] for text in documents]), truncated=0)

    async def close(self) -> None:
        pass


def reranked(precision: str, logits: dict[str, list[float]]) -> Reranked:
    run = {topic.qid: strictly_falling(topic.docids, logits[topic.qid]) for topic in TOPICS}
    arrays = {qid: np.array(values) for qid, values in logits.items()}
    return Reranked(f"mini {precision}", "crossrank-mini", "engine", precision, arrays, run, truncated=0)


def test_measures_are_those_computed_by_hand() -> None:
    # Query 1: grades 0, 3, 1 in first-stage order. Query 2: unjudged, 2; the other relevant document is no candidate.
    protocol = make_protocol(TOPICS, QRELS)
    quality = measure(first_stage_run(TOPICS), protocol)
    assert protocol.relevant_grade == 2
    assert protocol.names == ("NDCG@10", "MRR@10", "MAP", "R@3")
    expected = {
        "NDCG@10": ((3 / LOG3 + 1 / 2) / (3 + 1 / LOG3), (2 / LOG3) / (2 + 2 / LOG3)),
        "MRR@10": (1 / 2, 1 / 2),
        "MAP": (1 / 2, 1 / 4),
        "R@3": (1.0, 1 / 2),
    }
    for name, (first, second) in expected.items():
        assert quality.per_query[name] == pytest.approx({"1": first, "2": second}, abs=1e-9), name
        assert quality.means[name] == pytest.approx((first + second) / 2, abs=1e-9), name


def test_the_grade_that_counts_as_relevant_can_be_chosen_and_defaults_to_one_for_binary_judgments() -> None:
    assert make_protocol(TOPICS, {"1": {"a": 1}}).relevant_grade == 1
    lenient = measure(first_stage_run(TOPICS), make_protocol(TOPICS, QRELS, relevant_grade=1))
    assert lenient.per_query["MAP"]["1"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    with pytest.raises(SetupError, match="highest grade in the judgments is 3, so none reaches 4"):
        make_protocol(TOPICS, QRELS, relevant_grade=4)


def test_mrr_stops_at_rank_ten() -> None:
    docids = tuple(f"d{i:02}" for i in range(12))
    topics = [Topic("1", "q", docids, docids)]
    for rank, expected in ((10, 0.1), (11, 0.0)):
        quality = measure(first_stage_run(topics), make_protocol(topics, {"1": {docids[rank - 1]: 2}}))
        assert quality.means["MRR@10"] == pytest.approx(expected)


def test_a_query_that_a_run_lacks_counts_as_zero() -> None:
    quality = measure({"1": {"b": 1.0}}, make_protocol(TOPICS, QRELS))
    assert quality.per_query[NDCG]["2"] == 0.0
    assert quality.means["MRR@10"] == pytest.approx(0.5)


def test_the_best_possible_ranking_is_by_falling_grade_and_no_ranking_beats_it() -> None:
    protocol = make_protocol(TOPICS, QRELS)
    best = best_possible_run(TOPICS, QRELS)
    assert list(best["1"]) == ["b", "c", "a"]
    assert measure(best, protocol).per_query[NDCG]["1"] == pytest.approx(1.0)
    assert measure(best, protocol).per_query[NDCG]["2"] == pytest.approx(2 / (2 + 2 / LOG3))


def test_no_common_query_is_refused_with_both_sides_named() -> None:
    with pytest.raises(SetupError, match=r"none of the 3 queries \(first: 1\) is among the 1 judged ones \(first: 9\)"):
        make_protocol(TOPICS, {"9": {"a": 1}})
    with pytest.raises(SetupError, match=r"--compare old.run has none of the 2 queries \(first: 1\)"):
        check_inputs(Inputs("c", TOPICS, qrels=QRELS, other_name="old.run", other={"9": {"a": 1.0}}))


def quality_of(values: list[float]) -> Quality:
    return Quality({NDCG: float(np.mean(values))}, {NDCG: {str(i): value for i, value in enumerate(values)}})


def test_significance_is_that_of_closed_forms() -> None:
    comparison = compare("new", "old", quality_of([0.6, 0.3, 0.8]), quality_of([0.5, 0.5, 0.5]))
    assert (comparison.wins, comparison.losses, comparison.ties) == (2, 1, 0)
    assert comparison.mean_delta == pytest.approx(0.2 / 3)
    t = (0.2 / 3) / (math.sqrt((1 / 30) ** 2 / 2 + (0.8 / 3) ** 2 / 2 + (0.7 / 3) ** 2 / 2) / math.sqrt(3))
    assert comparison.p_ttest == pytest.approx(1 - t / math.sqrt(t * t + 2))  # two degrees of freedom
    assert comparison.p_randomisation == pytest.approx(6 / 8, abs=0.02)  # of the 8 sign patterns, 6 are as far from 0


def test_equal_rankings_differ_with_probability_one_and_the_same_data_give_the_same_p() -> None:
    same = compare("new", "old", quality_of([0.5, 0.7]), quality_of([0.5, 0.7]))
    assert (same.p_ttest, same.p_randomisation, same.ties) == (None, 1.0, 2)
    values = np.random.default_rng(3).normal(0.4, 0.1, 40).tolist()
    assert compare("a", "b", quality_of(values), quality_of([0.37] * 40)) == compare(
        "a", "b", quality_of(values), quality_of([0.37] * 40)
    )


async def test_permuting_the_candidates_leaves_the_ranking_as_it_is() -> None:
    table = {"text a": 0.1, "text b": -3.0, "text c": 2.0, "text y": 0.0, "text x": 1.0}
    permuted = [Topic(t.qid, t.query, t.docids[::-1], t.documents[::-1]) for t in TOPICS]
    counted: list[int] = []
    straight = await rerank_topics(TableScorer(table), TOPICS, counted.append)
    turned = await rerank_topics(TableScorer(table), permuted, counted.append)
    assert straight.run == turned.run
    assert list(straight.run["1"]) == ["c", "a", "b"]
    assert sum(counted) == 2 * sum(len(topic.docids) for topic in TOPICS)
    assert straight.logits["1"].tolist() == turned.logits["1"].tolist()[::-1] == [0.1, -3.0, 2.0]


async def test_equal_scores_keep_the_first_stage_and_its_measures() -> None:
    # trec_eval itself would order equal scores by falling id: c, b, a.
    tied = await rerank_topics(TableScorer(TIED), TOPICS, lambda _: None)
    protocol = make_protocol(TOPICS, QRELS)
    assert measure(tied.run, protocol) == measure(first_stage_run(TOPICS), protocol)


async def test_a_score_that_is_no_number_names_query_and_document() -> None:
    with pytest.raises(EngineFailure, match="document c of query 1 got no finite score"):
        await rerank_topics(TableScorer(TIED | {"text c": math.nan}), TOPICS, lambda _: None)


async def test_a_scorer_that_fails_ends_the_evaluation_with_its_error() -> None:
    with pytest.raises(KeyError, match="text x"):
        await rerank_topics(TableScorer({k: v for k, v in TIED.items() if k != "text x"}), TOPICS, lambda _: None)


FP32 = {"1": [0.0, 2.0, 1.0], "2": [1.0, 2.0], "unjudged": [0.0]}
INT8 = {"1": [0.25, 2.0, 1.0], "2": [2.0, 1.5], "unjudged": [0.0]}


def test_precisions_are_compared_with_fp32_wherever_it_is_listed() -> None:
    systems = [reranked("int8", INT8), reranked("fp32", FP32)]
    evaluation = evaluate_rankings(Inputs("c", TOPICS, qrels=QRELS), systems)
    int8, fp32 = evaluation.precisions
    assert evaluation.reference_precision == "fp32"
    assert (fp32.ndcg_delta, fp32.max_delta_logit, fp32.top_10_overlap) == (0.0, 0.0, 1.0)
    assert int8.max_delta_logit == 1.0
    assert int8.mean_delta_logit == pytest.approx(1.75 / 6)
    assert int8.ndcg_delta == pytest.approx(((2 / LOG3) - 2) / (2 + 2 / LOG3) / 2)


def test_top_10_overlap_is_the_share_of_common_documents() -> None:
    docids = tuple(f"d{i}" for i in range(20))
    topics = [Topic("1", "q", docids, docids)]
    falling = np.arange(20.0)[::-1]
    shifted = np.where(np.arange(20) < 3, -1.0, falling)  # the best three fall out of the top ten
    systems = [
        Reranked(name, "m", "e", name, {"1": scores}, {"1": strictly_falling(docids, scores.tolist())}, 0)
        for name, scores in (("fp32", falling), ("int8", shifted))
    ]
    assert evaluate_rankings(Inputs("c", topics), systems).precisions[1].top_10_overlap == pytest.approx(0.7)


def test_the_report_holds_first_stage_other_run_and_best_beside_the_model() -> None:
    inputs = Inputs("c.jsonl", TOPICS, qrels=QRELS, other_name="old.run", other={"1": {"b": 2.0, "a": 1.0}})
    evaluation = evaluate_rankings(inputs, [reranked("fp32", FP32)])
    assert list(evaluation.qualities) == ["first stage", "old.run", "mini fp32", "best possible"]
    assert [(c.system, c.baseline) for c in evaluation.comparisons] == [
        ("mini fp32", "first stage"),
        ("mini fp32", "old.run"),
    ]
    assert evaluation.published[0].ndcg == 0.6093
    notes = " | ".join(evaluation.notes)
    assert "2 judged queries; NDCG uses the grades" in notes
    assert "count grade >= 2 as relevant" in notes
    assert "1 queries of the candidates have no judgments" in notes
    assert "1 judged queries have no candidates" in notes
    assert "1 measured queries are not in old.run and count there as 0" in notes
    assert "R@3 covers the whole lists" in notes


def test_candidates_without_an_order_have_no_first_stage() -> None:
    evaluation = evaluate_rankings(Inputs("s", TOPICS, is_ranked=False, qrels=QRELS), [reranked("fp32", FP32)])
    assert "first stage" not in evaluation.qualities
    assert evaluation.comparisons == []
    assert any("come in no order" in note for note in evaluation.notes)


def test_without_judgments_nothing_is_measured_and_the_report_says_so() -> None:
    evaluation = evaluate_rankings(Inputs("c", TOPICS), [reranked("fp32", FP32)])
    assert evaluation.qualities == {}
    assert any("--qrels" in note for note in evaluation.notes)


def test_the_json_report_holds_every_query_and_survives_json() -> None:
    evaluation = evaluate_rankings(Inputs("c", TOPICS, qrels=QRELS), [reranked("fp32", FP32), reranked("int8", INT8)])
    report = json.loads(json.dumps(evaluation_as_json(evaluation), allow_nan=False))
    assert report["candidates"] == {"source": "c", "queries": 3, "documents": 6, "longest_list": 3}
    assert report["rankings"]["mini fp32"]["means"]["NDCG@10"] == evaluation.qualities["mini fp32"].means[NDCG]
    assert set(report["comparisons"][0]["deltas"]) == {"1", "2"}
    assert [row["precision"] for row in report["precisions"]] == ["fp32", "int8"]


def test_the_plot_shows_every_query_and_is_the_same_each_time(tmp_path: Path) -> None:
    evaluation = evaluate_rankings(Inputs("c", TOPICS, qrels=QRELS), [reranked("fp32", FP32), reranked("int8", INT8)])
    plot_deltas(evaluation.comparisons, tmp_path / "one.svg")
    plot_deltas(evaluation.comparisons, tmp_path / "two.svg")
    plot_deltas(evaluation.comparisons, tmp_path / "one.png")
    svg = (tmp_path / "one.svg").read_text()
    assert svg == (tmp_path / "two.svg").read_text()
    for shown in ("mini fp32 against first stage: 2 better", "mini int8 against first stage", "delta NDCG@10"):
        assert shown in svg
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
