"""Many documents and many requests: merging, bounds, progress, and failures that lose nothing; over real HTTP."""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import threading

import pytest

from crossrank_client import AsyncClient, BadRequest, Client, InvalidResponse, PartialFailure, Unauthorized
from tests.scripted_server import Reply, Request, ScriptedServer, answer


def score_by_length(request: Request) -> Reply:
    """Rank documents by their length as logit, as the server does: by falling score, `top_n` of them."""
    body = json.loads(request.body)
    ranked = sorted(enumerate(body["documents"]), key=lambda pair: (-len(pair[1]), pair[0]))[
        : body.get("top_n") or None
    ]
    results = [{"index": i, "relevance_score": float(len(text))} for i, text in ranked]
    meta = {"truncated_documents": [i for i, text in ranked if len(text) > 30], "query_truncated": False}
    return answer(results=results, meta=meta, usage={"prompt_tokens": len(ranked), "total_tokens": len(ranked)})


def refuse(status: int, message: str) -> Reply:
    return Reply(status, json.dumps({"error": {"message": message, "code": "c"}}).encode())


@pytest.fixture(params=["sync", "async"])
def ask(request):
    """Call a method of a client by name, of each kind in turn."""

    def call(server, method, *args, **options):
        async def awaited():
            async with AsyncClient(server.base_url, max_retries=0) as client:
                return await getattr(client, method)(*args, **options)

        if request.param == "async":
            return asyncio.run(awaited())
        with Client(server.base_url, max_retries=0) as client:
            return getattr(client, method)(*args, **options)

    return call


TEXTS = ["x" * ((7 * i) % 40) for i in range(100)]


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
def test_batches_are_merged_by_logit_with_ties_by_index(ask, batch_size):
    with ScriptedServer([score_by_length]) as server:
        merged = ask(server, "rerank_many", "q", TEXTS, batch_size=batch_size, concurrency=3)
    order = sorted(range(100), key=lambda i: (-len(TEXTS[i]), i))
    assert [result.index for result in merged.results] == order
    scores = [result.relevance_score for result in merged.results]
    assert scores == pytest.approx([1 / (1 + math.exp(-len(TEXTS[i]))) for i in order], rel=1e-15)
    assert sorted(merged.truncated_documents) == [i for i, text in enumerate(TEXTS) if len(text) > 30]
    assert merged.usage.total_tokens == 100
    assert len(server.requests) == -(-100 // batch_size)
    assert all(json.loads(request.body)["raw_scores"] for request in server.requests)


def test_top_n_counts_over_all_batches(ask):
    with ScriptedServer([score_by_length]) as server:
        best = ask(server, "rerank_many", "q", TEXTS, batch_size=9, top_n=5, raw_scores=True)
    order = sorted(range(100), key=lambda i: (-len(TEXTS[i]), i))[:5]
    assert [(r.index, r.relevance_score) for r in best.results] == [(i, float(len(TEXTS[i]))) for i in order]


def test_no_more_requests_than_allowed_are_under_way(ask):
    under_way, most, lock = [0], [0], threading.Lock()

    def slow(request):
        with lock:
            under_way[0] += 1
            most[0] = max(most[0], under_way[0])
        threading.Event().wait(0.02)
        with lock:
            under_way[0] -= 1
        return score_by_length(request)

    with ScriptedServer([slow]) as server:
        ask(server, "rerank_many", "q", TEXTS, batch_size=5, concurrency=3)
    assert most == [3]


def test_progress_is_told_after_each_answer_and_its_exception_ends_the_run(ask):
    told = []

    def progress(done, total):
        told.append((done, total))
        if done > 40:
            raise KeyError("enough")

    with ScriptedServer([score_by_length]) as server, pytest.raises(KeyError, match="enough"):
        ask(server, "rerank_many", "q", TEXTS, batch_size=20, concurrency=1, on_progress=progress)
    assert told == [(20, 100), (40, 100), (60, 100)]


def test_a_failed_batch_ends_the_run_and_what_was_answered_is_not_lost(ask):
    replies = [score_by_length, score_by_length, refuse(500, "broken"), score_by_length]
    with ScriptedServer(replies) as server, pytest.raises(PartialFailure) as raised:
        ask(server, "rerank_many", "q", TEXTS, batch_size=10, concurrency=1)
    failure = raised.value
    assert sorted(failure.responses) == [0, 1]
    assert list(failure.failures) == [2]
    assert str(failure).startswith("of 10 requests 2 were answered, 1 failed and 7 were not begun; request 2: broken")
    assert sorted(result.index for result in failure.responses[1].results) == list(range(10, 20))
    assert len(server.requests) == 3


def test_a_fault_of_one_request_leaves_the_others_and_one_of_all_ends_the_run(ask):
    requests = [("q", ["a"])] * 6
    with ScriptedServer([refuse(400, "bad"), score_by_length]) as server, pytest.raises(PartialFailure) as raised:
        ask(server, "rerank_each", requests, concurrency=1)
    assert sorted(raised.value.responses) == [1, 2, 3, 4, 5]
    assert type(raised.value.failures[0]) is BadRequest
    with ScriptedServer([refuse(401, "no key"), score_by_length]) as server, pytest.raises(PartialFailure) as raised:
        ask(server, "rerank_each", requests, concurrency=1)
    assert type(raised.value.failures[0]) is Unauthorized
    assert len(server.requests) == 1


def test_batches_of_different_models_are_not_merged(ask):
    with (
        ScriptedServer([answer(1, model="a"), answer(1, model="b")]) as server,
        pytest.raises(InvalidResponse, match="a, b"),
    ):
        ask(server, "rerank_many", "q", ["x", "y"], batch_size=1)


def test_an_empty_list_is_refused_by_the_server_and_no_requests_are_no_answers(ask):
    with ScriptedServer([refuse(400, "documents is an empty list")]) as server:
        with pytest.raises(PartialFailure, match="empty list"):
            ask(server, "rerank_many", "q", [])
        assert ask(server, "rerank_each", []) == []


@pytest.mark.parametrize("option", ["batch_size", "concurrency"])
def test_a_bound_below_one_is_refused(ask, option):
    with ScriptedServer([score_by_length]) as server, pytest.raises(ValueError, match=f"{option} is 0; pass 1 or more"):
        ask(server, "rerank_many", "q", ["d"], **{option: 0})


def test_an_unknown_option_is_a_type_error(ask):
    with ScriptedServer([score_by_length]) as server, pytest.raises(TypeError, match="topn"):
        ask(server, "rerank_many", "q", ["d"], topn=3)


@pytest.mark.parametrize("method", ["rerank_many", "rerank_each"])
def test_both_clients_take_the_same_arguments(method):
    sync, asynchronous = (inspect.signature(getattr(kind, method)) for kind in (Client, AsyncClient))
    assert sync == asynchronous
