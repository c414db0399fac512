"""The native engine's scores on TREC DL 2019: PyTorch's, and so its ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.native import NativeEngine
from crossrank.native.library import usable_kernels
from crossrank.packed import PairBatch, join_pairs
from crossrank.text.encoding import PairEncoder
from crossrank_export.convert import checkpoint_scorer, load_checkpoint
from crossrank_export.metrics import ndcg
from tests.conftest import Topic
from tests.native_models import each_kernel

Qrels = dict[str, dict[str, int]]


@pytest.fixture(scope="module")
def batches(dl19: list[Topic], builtin: Bundle) -> list[PairBatch]:
    encoder = PairEncoder(builtin)
    return [encoder.encode(topic.query, topic.passages).batch for topic in dl19]


@pytest.fixture(scope="module")
def pytorch(batches: list[PairBatch], mini_dir: Path) -> NDArray[np.float32]:
    """float32 [4300]: the reference."""
    return checkpoint_scorer(load_checkpoint(mini_dir))(join_pairs(batches))[:, 0]


def mean_ndcg(logits: NDArray[np.float32], topics: list[Topic], qrels: Qrels) -> float:
    lists = np.split(logits, np.cumsum([len(topic.pids) for topic in topics])[:-1])
    values = [
        ndcg(own, topic.pids, qrels[topic.qid]) for own, topic in zip(lists, topics, strict=True) if topic.qid in qrels
    ]
    assert len(values) == 43
    return float(np.mean(values))


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kernel", each_kernel(amx_emulated=pytest.mark.slow))  # tiles in C++ take a minute
def test_all_pairs_score_and_rank_as_in_pytorch(
    kernel: str,
    batches: list[PairBatch],
    pytorch: NDArray[np.float32],
    builtin: Bundle,
    dl19: list[Topic],
    dl19_qrels: Qrels,
) -> None:
    engine = NativeEngine(builtin, kernel, threads=1)
    logits = engine.infer(join_pairs(batches))
    assert len(logits) == 4300
    limit = 0.03 if engine.precision == "bf16" else 1e-4
    assert np.abs(logits - pytorch).max() < limit
    own, reference = (mean_ndcg(scores, dl19, dl19_qrels) for scores in (logits, pytorch))
    print(f"{kernel}: max |delta logit| {np.abs(logits - pytorch).max():.2g}, NDCG@10 {own:.4f} ({reference:.4f})")
    assert reference > 0.6
    assert abs(own - reference) <= 0.002


@pytest.mark.skipif("amx_emulated" not in usable_kernels(), reason="the native encoder was not built: no C++ compiler")
def test_some_pairs_score_in_bf16_as_in_pytorch(
    batches: list[PairBatch], pytorch: NDArray[np.float32], builtin: Bundle
) -> None:
    logits = NativeEngine(builtin, "amx_emulated", threads=1).infer(batches[0])
    assert np.abs(logits - pytorch[: len(logits)]).max() < 0.03
