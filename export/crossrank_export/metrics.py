"""Measure the agreement of two sets of logits for the same pairs, and NDCG where judgments are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray


def kendall_tau(first: NDArray[np.float32], second: NDArray[np.float32]) -> float:
    """Return Kendall's tau-b of two score lists, 1.0 where there is nothing to order.

    Source: https://en.wikipedia.org/wiki/Kendall_rank_correlation_coefficient#Tau-b
    """
    upper = np.triu_indices(len(first), 1)
    one = np.sign(first[:, None] - first[None, :])[upper]
    two = np.sign(second[:, None] - second[None, :])[upper]
    untied = float(np.sqrt(np.count_nonzero(one) * float(np.count_nonzero(two))))
    return float((one * two).sum()) / untied if untied else 1.0


def top_overlap(first: NDArray[np.float32], second: NDArray[np.float32], depth: int = 10) -> float:
    """Return the share of the first `depth` documents that both score lists have in common."""
    depth = min(depth, len(first))
    tops = [set(np.argsort(-scores, kind="stable")[:depth].tolist()) for scores in (first, second)]
    return len(tops[0] & tops[1]) / depth


def ndcg(scores: NDArray[np.float32], docids: Sequence[str], grades: Mapping[str, int], depth: int = 10) -> float:
    """Return NDCG at `depth` as trec_eval's ndcg_cut computes it: linear gain, ties by descending docid.

    Source: https://github.com/usnistgov/trec_eval (m_ndcg_cut.c, form_res_rels.c)
    """
    by_docid = sorted(range(len(docids)), key=lambda i: docids[i], reverse=True)
    ranking = sorted(by_docid, key=lambda i: -float(scores[i]))
    discounts = 1.0 / np.log2(np.arange(2, depth + 2))
    gains = [max(grades.get(docids[i], 0), 0) for i in ranking[:depth]]
    ideal = sorted((grade for grade in grades.values() if grade > 0), reverse=True)[:depth]
    best = float(np.dot(ideal, discounts[: len(ideal)]))
    return float(np.dot(gains, discounts[: len(gains)])) / best if best else 0.0
