"""Rank agreement and NDCG against the libraries that define them."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ir_measures import nDCG
from scipy.stats import kendalltau

from crossrank_export.metrics import kendall_tau, ndcg, top_overlap

SCORES = st.lists(st.integers(-5, 5), min_size=2, max_size=30)


@given(st.data())
def test_kendall_tau_is_scipys_tau_b(data):
    first = np.array(data.draw(SCORES), np.float32)
    second = np.array(data.draw(st.permutations(first.tolist())), np.float32)
    expected = kendalltau(first, second).statistic
    if np.isnan(expected):
        assert kendall_tau(first, second) == 1.0
    else:
        assert kendall_tau(first, second) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=25))
def test_ndcg_is_trec_evals_ties_included(rows):
    docids = [f"d{i:02}" for i in range(len(rows))]
    scores = np.array([score for score, _ in rows], np.float32)
    grades = {docid: grade for docid, (_, grade) in zip(docids, rows, strict=True)}
    run = [ir_measures.ScoredDoc("q", docid, float(score)) for docid, score in zip(docids, scores, strict=True)]
    qrels = [ir_measures.Qrel("q", docid, grade) for docid, grade in grades.items()]
    expected = ir_measures.pytrec_eval.calc_aggregate([nDCG @ 10], qrels, run)[nDCG @ 10]
    assert ndcg(scores, docids, grades) == pytest.approx(expected)


def test_judged_documents_that_are_not_candidates_count_in_the_ideal_ranking():
    assert ndcg(np.array([1.0], np.float32), ["a"], {"a": 1, "absent": 1}) == pytest.approx(1 / (1 + 1 / np.log2(3)))


def test_top_overlap_counts_common_documents_whatever_their_order():
    first = np.arange(20, dtype=np.float32)
    assert top_overlap(first, first + 1) == 1.0
    swapped = first.copy()
    swapped[[9, 10]] = swapped[[10, 9]]
    assert top_overlap(first, swapped) == pytest.approx(0.9)
    assert top_overlap(first[:4], -first[:4]) == 1.0
