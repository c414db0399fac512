"""sentence-transformers' evaluator and miner, MTEB and BEIR, as their packages are, take crossrank's CrossEncoder.

Scores are compared with the model's graph run one pair at a time, metrics with their formulas (tests/acceptance/scores.py).
"""

from __future__ import annotations

import pytest

from tests.acceptance.examples import AUTO, EXAMPLES, constants, scored_lines
from tests.acceptance.scores import average_precision, ndcg, reciprocal_rank
from tests.clients.environment import Refused
from tests.clients.ways import DOCUMENTS, QUERY
from tests.conftest import ROOT

_TEXTS = list(dict.fromkeys(DOCUMENTS))
# Query -> indices of relevant texts. Some are wrong on purpose: perfect rankings would not tell one measure from another.
_RELEVANT = {QUERY: [2, 0], "museums in berlin": [3], "the longest motorway": [4, 2]}


def relevant_in_order(expected, query, texts, relevant):
    """Return which texts of the expected ranking are relevant."""
    return [index in relevant for index, _ in expected.rank(query, texts)]


def mean_metrics(rankings):
    """Return mean average precision, MRR@10 and NDCG@10."""
    each = [(average_precision(r), reciprocal_rank(r, 10), ndcg(r, 10)) for r in rankings]
    return [sum(values) / len(each) for values in zip(*each, strict=True)]


def test_beir_example_prints_all_texts_best_first(evaluators, expected):
    given = constants("beir_rerank")
    scores, texts = scored_lines(evaluators.ask("run_example", path=str(EXAMPLES / "beir_rerank.py")))
    ranked = expected.rank(given["query"], given["texts"])
    assert texts == [given["texts"][index] for index, _ in ranked]
    assert scores == pytest.approx([score for _, score in ranked], abs=AUTO)


def test_beir_reranks_each_querys_first_results(evaluators, expected):
    corpus = {f"d{i}": {"title": "Berlin" if i % 2 else "", "text": text} for i, text in enumerate(_TEXTS)}
    queries = {f"q{i}": query for i, query in enumerate(_RELEVANT)}
    # The retriever's best three of five for the first, of all others fewer than are asked for.
    retrieved = {"q0": {f"d{i}": float(i) for i in range(5)}, "q1": {"d1": 1.0, "d0": 0.5}, "q2": {}}
    reranked = evaluators.ask("rerank", corpus=corpus, queries=queries, results=retrieved, top_k=3)
    assert {qid: set(found) for qid, found in reranked.items()} == {
        "q0": {"d4", "d3", "d2"},
        "q1": {"d0", "d1"},
        "q2": set(),
    }
    for qid, found in reranked.items():
        for number, score in found.items():
            text = " ".join(filter(None, corpus[number].values()))
            assert score == pytest.approx(expected.score(queries[qid], text), abs=1e-4)


def test_evaluator_example_prints_the_metrics(evaluators, expected):
    given = constants("sentence_transformers_evaluator")
    printed = evaluators.ask("run_example", path=str(EXAMPLES / "sentence_transformers_evaluator.py"))
    values, names = scored_lines(printed)
    assert names == ["map", "mrr@10", "ndcg@10"]
    assert values == pytest.approx(
        mean_metrics([relevant_in_order(expected, given["query"], given["texts"], [2])]), abs=1e-4
    )


@pytest.mark.parametrize("form", ["negative", "documents"])
def test_evaluator_measures_the_ranking(form, evaluators, expected, tmp_path):
    samples, rankings = [], []
    for query, relevant in _RELEVANT.items():
        others = [text for index, text in enumerate(_TEXTS) if index not in relevant]
        sample = {"query": query, "positive": [_TEXTS[index] for index in relevant]}
        samples.append({**sample, form: others if form == "negative" else _TEXTS})
        rankings.append(relevant_in_order(expected, query, _TEXTS, relevant))
    metrics = evaluators.ask("evaluate", samples=samples, name="berlin")
    found = [metrics[f"berlin_{measure}"] for measure in ("map", "mrr@10", "ndcg@10")]
    assert found == pytest.approx(mean_metrics(rankings), abs=1e-6)
    assert max(found) < 1  # else a wrong order could have been missed
    if form == "documents":  # with what the order given would have been worth
        base = [[index in relevant for index in range(len(_TEXTS))] for relevant in _RELEVANT.values()]
        found = [metrics[f"berlin_base_{measure}"] for measure in ("map", "mrr@10", "ndcg@10")]
        assert found == pytest.approx(mean_metrics(base), abs=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_hard_negatives_are_the_best_texts_below_the_positives_score(margin, evaluators, expected):
    queries = {QUERY: _TEXTS[2], "museums in berlin": _TEXTS[0]}
    mined = evaluators.ask(
        "mine",
        queries=list(queries),
        positives=list(queries.values()),
        corpus=_TEXTS,
        tokenizer=str(ROOT / "server" / "crossrank" / "bundles" / "builtin" / "tokenizer.json"),
        absolute_margin=margin,
        num_negatives=2,
        range_max=len(_TEXTS),
        sampling_strategy="top",
        output_format="n-tuple",
        output_scores=True,
    )
    rows = []
    for query, positive in queries.items():
        best = expected.score(query, positive)
        below = [(i, s) for i, s in expected.rank(query, _TEXTS) if _TEXTS[i] != positive and s <= best - margin][:2]
        if len(below) == 2:  # a query with fewer is left out
            rows.append((query, positive, [_TEXTS[i] for i, _ in below], [best, *(s for _, s in below)]))
    assert rows
    assert [(r["query"], r["answer"], [r["negative_1"], r["negative_2"]]) for r in mined] == [row[:3] for row in rows]
    for found, (*_, scores) in zip(mined, rows, strict=True):
        assert found["scores"] == pytest.approx(scores, abs=1e-4)


def test_mteb_takes_the_adapter_for_a_cross_encoder(evaluators):
    assert evaluators.ask("protocol") == [True, "crossrank/crossrank-mini", 512]


def test_mteb_example_prints_the_metrics(evaluators, expected):
    given = constants("mteb_evaluate")
    values, names = scored_lines(evaluators.ask("run_example", path=str(EXAMPLES / "mteb_evaluate.py")))
    assert names == ["map_at_10", "mrr_at_10", "ndcg_at_10"]
    rankings = [
        relevant_in_order(expected, query, given["texts"], [index]) for query, index in given["relevant"].items()
    ]
    assert values == pytest.approx(mean_metrics(rankings), abs=1e-4)
    assert max(values) < 1


def test_mteb_gets_a_score_for_each_pair_of_its_batches(evaluators, expected):
    queries = [query for query in _RELEVANT for _ in _TEXTS]
    dtype, scores = evaluators.ask("score", queries=queries, documents=_TEXTS * len(_RELEVANT), batch_size=4)
    assert dtype == "float32"
    assert scores == pytest.approx([expected.score(*pair) for pair in zip(queries, _TEXTS * 3, strict=True)], abs=1e-4)
    assert evaluators.ask("score", queries=[], documents=[], batch_size=4) == ["float32", []]


def test_mteb_is_refused_when_documents_are_missing(evaluators):
    with pytest.raises(Refused, match="argument 2 is shorter than argument 1"):
        evaluators.ask("score", queries=[QUERY] * 3, documents=_TEXTS[:2], batch_size=2)
