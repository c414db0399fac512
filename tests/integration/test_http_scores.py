"""The real server's scores are the reference's, whoever else is asking."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import ir_measures
import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.engines.cpu import cpu_flags
from tests.conftest import Topic
from tests.server_process import RunningServer, running_server

QUERIES = [
    f"what is the {word}"
    for word in ("capital of france", "boiling point of water", "speed of light", "flea life cycle")
]


@pytest.fixture(scope="module")
def fp32() -> Iterator[RunningServer]:
    with running_server("--engine", "onnxruntime", "--precision", "fp32") as server:
        yield server


@pytest.fixture(scope="module")
def openvino_fp32() -> Iterator[RunningServer]:
    with running_server("--engine", "openvino", "--precision", "fp32") as server:
        yield server


@pytest.fixture(scope="module")
def bf16() -> Iterator[RunningServer]:
    if cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"}):
        pytest.skip("this CPU has no bf16 arithmetic")
    with running_server("--engine", "openvino", "--precision", "bf16") as server:
        yield server


def rerank(base_url: str, **body: Any) -> dict[str, Any]:
    response = httpx.post(f"{base_url}/v1/rerank", json=body, timeout=60)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def logits(answer: dict[str, Any]) -> NDArray[np.float64]:
    scores = np.full(len(answer["results"]), np.nan)
    for result in answer["results"]:
        scores[result["index"]] = result["relevance_score"]
    return scores


def rank_all(base_url: str, topics: list[Topic]) -> list[NDArray[np.float64]]:
    return [logits(rerank(base_url, query=t.query, documents=t.passages, raw_scores=True)) for t in topics]


def ndcg_at_10(topics: list[Topic], scores: list[NDArray[np.float64]], qrels: dict[str, dict[str, int]]) -> float:
    run = {t.qid: dict(zip(t.pids, map(float, s), strict=True)) for t, s in zip(topics, scores, strict=True)}
    return float(ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10])


@pytest.fixture(scope="module")
def pytorch(mini_dir: Path, dl19: list[Topic]) -> list[NDArray[np.float64]]:
    """Logits of PyTorch in fp32 with the weights that the built-in model was made of."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(mini_dir)
    model = AutoModelForSequenceClassification.from_pretrained(mini_dir).eval()
    scores = []
    with torch.inference_mode():
        for topic in dl19:
            order = np.argsort([len(passage) for passage in topic.passages])
            row = np.empty(len(order))
            for part in np.array_split(order, 4):
                batch = tokenizer(
                    [topic.query] * len(part),
                    [topic.passages[i] for i in part],
                    padding=True,
                    truncation=True,
                    max_length=512,
                    return_tensors="pt",
                )
                row[part] = model(**batch).logits[:, 0].double().numpy()
            scores.append(row)
    return scores


@pytest.mark.parametrize("engine", ["fp32", "openvino_fp32"])
def test_fp32_logits_over_http_are_those_of_pytorch_on_every_dl19_pair(
    engine: str,
    request: pytest.FixtureRequest,
    dl19: list[Topic],
    dl19_qrels: dict[str, dict[str, int]],
    pytorch: list[NDArray[np.float64]],
) -> None:
    served = rank_all(request.getfixturevalue(engine).base_url, dl19)
    assert sum(map(len, served)) == 4300
    difference = max(float(np.abs(a - b).max()) for a, b in zip(served, pytorch, strict=True))
    assert difference <= 1e-4
    # The figure of the model's card.
    assert ndcg_at_10(dl19, served, dl19_qrels) == pytest.approx(0.6093, abs=0.001)


def test_bf16_logits_over_http_stay_near_fp32(
    bf16: RunningServer, dl19: list[Topic], dl19_qrels: dict[str, dict[str, int]], pytorch: list[NDArray[np.float64]]
) -> None:
    served = rank_all(bf16.base_url, dl19)
    assert max(float(np.abs(a - b).max()) for a, b in zip(served, pytorch, strict=True)) <= 0.05
    exact = ndcg_at_10(dl19, pytorch, dl19_qrels)
    assert ndcg_at_10(dl19, served, dl19_qrels) == pytest.approx(exact, abs=0.003)


def corpus(count: int) -> list[str]:
    rng = np.random.default_rng(7)
    words = [
        "water",
        "boils",
        "Paris",
        "is",
        "the",
        "capital",
        "flea",
        "light",
        "299,792",
        "km/s",
        "économie",
        "日本",
        "of",
        "a",
    ]
    return [" ".join(rng.choice(words, int(rng.integers(1, 160)))) for _ in range(count)]


@pytest.mark.parametrize("engine", ["fp32", "openvino_fp32"])
def test_a_score_does_not_depend_on_the_rest_of_the_batch(engine: str, request: pytest.FixtureRequest) -> None:
    base_url = request.getfixturevalue(engine).base_url
    documents = corpus(60)
    together = logits(rerank(base_url, query=QUERIES[0], documents=documents, raw_scores=True))
    alone = [logits(rerank(base_url, query=QUERIES[0], documents=[text], raw_scores=True))[0] for text in documents]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    permutation = np.random.default_rng(3).permutation(len(documents))
    permuted = logits(
        rerank(base_url, query=QUERIES[0], documents=[documents[i] for i in permutation], raw_scores=True)
    )
    np.testing.assert_allclose(permuted, together[permutation], rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", ["fp32", "bf16"])
async def test_32_clients_at_once_get_exactly_their_own_results(engine: str, request: pytest.FixtureRequest) -> None:
    base_url = request.getfixturevalue(engine).base_url
    tolerance = 1e-5 if engine == "fp32" else 0.05
    bodies = [
        {"query": f"{QUERIES[i % 4]} {i}", "documents": corpus(40 + i)[i:], "raw_scores": True} for i in range(32)
    ]
    serial = [logits(rerank(base_url, **body)) for body in bodies]
    limits = httpx.Limits(max_connections=32)
    async with httpx.AsyncClient(timeout=60, limits=limits) as client:
        for _ in range(3):
            answers = await asyncio.gather(*(client.post(f"{base_url}/v1/rerank", json=body) for body in bodies))
            for expected, answer in zip(serial, answers, strict=True):
                np.testing.assert_allclose(logits(answer.json()), expected, rtol=0, atol=tolerance)


def test_results_are_sorted_by_logit_and_the_score_is_its_sigmoid(fp32: RunningServer) -> None:
    documents = corpus(30)
    raw = rerank(fp32.base_url, query=QUERIES[1], documents=documents, raw_scores=True)["results"]
    cooked = rerank(fp32.base_url, query=QUERIES[1], documents=documents)["results"]
    assert [r["index"] for r in raw] == [r["index"] for r in cooked]
    assert all(a["relevance_score"] >= b["relevance_score"] for a, b in pairwise(raw))
    for a, b in zip(raw, cooked, strict=True):
        assert b["relevance_score"] == pytest.approx(1 / (1 + math.exp(-a["relevance_score"])), abs=1e-5)


def test_duplicate_documents_are_all_scored_and_ranked_by_index(fp32: RunningServer) -> None:
    answer = rerank(fp32.base_url, query="q", documents=["same text"] * 20)
    assert [r["index"] for r in answer["results"]] == list(range(20))
    assert len({r["relevance_score"] for r in answer["results"]}) == 1


@pytest.mark.parametrize(("top_n", "returned"), [(0, 12), (None, 12), (1, 1), (5, 5), (12, 12), (500, 12)])
def test_top_n_is_a_prefix_of_the_whole_ranking(fp32: RunningServer, top_n: int | None, returned: int) -> None:
    documents = corpus(12)
    whole = rerank(fp32.base_url, query="water", documents=documents)["results"]
    some = rerank(fp32.base_url, query="water", documents=documents, top_n=top_n)["results"]
    assert len(some) == returned
    assert [r["index"] for r in some] == [r["index"] for r in whole[:returned]]


def test_documents_are_returned_as_objects_only_when_asked_for(fp32: RunningServer) -> None:
    documents: list[Any] = ["first", {"text": "second", "title": "kept"}]
    answer = rerank(fp32.base_url, query="second", documents=documents, return_documents=True)
    assert {r["index"]: r["document"] for r in answer["results"]} == {
        0: {"text": "first"},
        1: {"text": "second", "title": "kept"},
    }
    assert all("document" not in r for r in rerank(fp32.base_url, query="second", documents=documents)["results"])


def test_usage_counts_every_token_scored(fp32: RunningServer) -> None:
    answer = rerank(fp32.base_url, query="two words", documents=["one", "and three more", ""])
    assert answer["usage"] == {"prompt_tokens": 3 * 5 + 1 + 3, "total_tokens": 3 * 5 + 1 + 3, "search_units": 1}
