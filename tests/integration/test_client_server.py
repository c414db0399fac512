"""Both clients against the real `crossrank serve` with the built-in model, in a process of its own."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import os
import signal

import pytest

from crossrank_client import (
    AsyncClient,
    BadRequest,
    Client,
    ConnectionFailed,
    NotFound,
    PartialFailure,
    RateLimited,
    TooLarge,
)
from tests.server_process import running_server

QUERY = "how many people live in berlin"
DOCUMENTS = [
    "Berlin is well known for its museums.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
    "The motorway was closed on Sunday.",
]


@pytest.fixture(scope="module")
def server():
    limits = ("--max-documents", "50", "--max-body-bytes", "100000")
    with running_server(*limits, "--precision", "fp32", "--grpc-port", "0") as running:
        yield running


@pytest.fixture(params=["http", "grpc"])
def url(request, server):
    """The address of the server, for each protocol in turn."""
    return server.base_url if request.param == "http" else server.grpc_url


@pytest.fixture(params=["sync", "async"])
def ask(request, url):
    """Call a method of a client by name, of each kind in turn."""
    if request.param == "sync":
        with Client(url) as client:
            yield lambda method, *args, **options: getattr(client, method)(*args, **options)
        return

    async def awaited(method, *args, **options):
        async with AsyncClient(url) as client:
            return await getattr(client, method)(*args, **options)

    yield lambda *args, **options: asyncio.run(awaited(*args, **options))


def test_the_document_that_answers_comes_first(ask):
    response = ask("rerank", QUERY, DOCUMENTS)
    assert response.results[0].index == 1
    assert sorted(result.index for result in response.results) == [0, 1, 2]
    assert response.model == "crossrank-mini"
    assert response.usage.total_tokens == response.usage.prompt_tokens > 3 * len(QUERY.split())
    assert response.id.startswith("rr-")
    assert response.truncated == 0


def test_top_n_is_a_prefix_and_documents_come_back_as_sent(ask):
    whole = ask("rerank", QUERY, DOCUMENTS)
    best = ask("rerank", QUERY, (text for text in DOCUMENTS), top_n=2, return_documents=True, model=whole.model)
    assert [(r.index, r.relevance_score) for r in best.results] == [
        (r.index, r.relevance_score) for r in whole.results[:2]
    ]
    assert [r.document for r in best.results] == [DOCUMENTS[r.index] for r in best.results]


def test_a_score_is_the_sigmoid_of_the_raw_score(ask):
    scores = ask("rerank", QUERY, DOCUMENTS)
    logits = ask("rerank", QUERY, DOCUMENTS, raw_scores=True)
    for score, logit in zip(scores.results, logits.results, strict=True):
        assert score.index == logit.index
        assert score.relevance_score == pytest.approx(1 / (1 + math.exp(-logit.relevance_score)), rel=1e-6)


def test_truncation_is_reported(ask):
    response = ask("rerank", "word " * 400, ["short", "word " * 2000, "word " * 3000])
    assert response.truncated_documents == (1, 2)
    assert response.truncated == 2
    assert response.query_truncated


def test_the_models_served_are_listed(ask):
    (model,) = ask("models")
    assert model.id == "crossrank-mini"
    assert model.details["max_length"] == 512


def test_a_ready_server_says_so(ask):
    assert ask("ready") is True


@pytest.mark.parametrize(
    ("documents", "options", "kind", "param"),
    [
        ([], {}, BadRequest, "documents"),
        (["d"] * 51, {}, BadRequest, "documents"),
        (["d", None], {}, BadRequest, "documents[1]"),
        (["d", "\ud800"], {}, BadRequest, "documents[1]"),
        (["d"], {"top_n": -1}, BadRequest, "top_n"),
        (["d"], {"model": "nowhere"}, NotFound, "model"),
        (["d" * 100_000], {}, TooLarge, "body"),
    ],
    ids=["no documents", "too many", "null", "surrogate", "top_n", "model", "body"],
)
def test_a_refusal_names_the_field_and_the_request(ask, documents, options, kind, param):
    with pytest.raises(kind) as raised:
        ask("rerank", QUERY, documents, **options)
    error = raised.value
    assert type(error) is kind
    assert error.param == param
    assert error.code
    assert str(error.status) in str(error)


def test_a_refusal_names_the_request_in_the_servers_log(ask):
    with pytest.raises(BadRequest) as raised:
        ask("rerank", " ", DOCUMENTS)
    assert raised.value.request_id
    assert raised.value.request_id in str(raised.value)


def test_what_a_message_cannot_hold_is_refused_in_the_words_of_http(server):
    def refusal(url, documents, **options):
        with Client(url) as client, pytest.raises(BadRequest) as raised:
            client.rerank(QUERY, documents, **options)
        return raised.value.param, raised.value.code, raised.value.message.split(";")[0]

    for documents, options in [(["d", "\ud800"], {}), (["d"], {"top_n": -1})]:
        assert refusal(server.grpc_url, documents, **options) == refusal(server.base_url, documents, **options)


def test_both_protocols_give_the_same_answer(server):
    documents = [*DOCUMENTS, "word " * 2000, "", "日本語 🙂"]
    for options in ({}, {"raw_scores": True}, {"top_n": 2, "return_documents": True}):
        with Client(server.base_url) as http, Client(server.grpc_url) as grpc:
            one, other = (client.rerank(QUERY, documents, **options) for client in (http, grpc))
            models = http.models(), grpc.models()
        # Scores to the last bit: the same batch, the same arithmetic, and doubles on the wire of both.
        assert dataclasses.replace(one, id="") == dataclasses.replace(other, id="")
        assert models[0] == models[1]


@pytest.mark.parametrize("raw_scores", [False, True])
@pytest.mark.parametrize("top_n", [None, 0, 7])
def test_many_documents_are_ranked_as_if_they_were_one_request(ask, url, raw_scores, top_n):
    texts = [f"{DOCUMENTS[i % 3]} {'and so on ' * (i % 11)} {i}" for i in range(137)]
    texts[40], texts[90] = texts[3], "word " * 1000
    progress = []
    merged = ask(
        "rerank_many",
        QUERY,
        (text for text in texts),
        batch_size=20,
        concurrency=3,
        on_progress=lambda *counts: progress.append(counts),
        raw_scores=raw_scores,
        top_n=top_n,
        return_documents=True,
    )
    with Client(url) as client:
        alone = [client.rerank(QUERY, [text], raw_scores=raw_scores).results[0].relevance_score for text in texts]
    assert len(merged.results) == (top_n or len(texts))
    assert [r.document for r in merged.results] == [texts[r.index] for r in merged.results]
    assert [r.relevance_score for r in merged.results] == pytest.approx(
        sorted(alone, reverse=True)[: top_n or None], abs=1e-5
    )
    assert [r.relevance_score for r in merged.results] == pytest.approx(
        [alone[r.index] for r in merged.results], abs=1e-5
    )
    assert merged.truncated_documents == (90,)
    assert progress[-1] == (137, 137)
    assert len(progress) == 7
    assert [done for done, _ in progress] == sorted(done for done, _ in progress)


def test_each_of_many_requests_gets_its_own_answer(ask):
    requests = [(f"{QUERY} {i}", [f"{text} {i}" for text in DOCUMENTS[: 1 + i % 3]]) for i in range(20)]
    answers = ask("rerank_each", requests, concurrency=5)
    assert [len(answer.results) for answer in answers] == [len(documents) for _, documents in requests]
    assert answers[4].results[0].relevance_score == pytest.approx(
        ask("rerank", *requests[4]).results[0].relevance_score, abs=1e-6
    )


def test_one_bad_request_of_many_leaves_the_answers_to_the_others(ask):
    requests = [(QUERY, DOCUMENTS), (" ", DOCUMENTS), (QUERY, DOCUMENTS[:2])]
    with pytest.raises(PartialFailure, match="of 3 requests 2 were answered, 1 failed and 0 were not begun") as raised:
        ask("rerank_each", requests, concurrency=1)
    assert sorted(raised.value.responses) == [0, 2]
    assert raised.value.failures[1].param == "query"


async def test_many_concurrent_calls_get_the_answers_that_serial_ones_got(url):
    requests = [(f"{QUERY} {i}", [f"{text} {i}" for text in DOCUMENTS[: 1 + i % 3]]) for i in range(200)]
    with Client(url) as client:
        serial = [client.rerank(query, documents, raw_scores=True) for query, documents in requests]
    async with AsyncClient(url) as client:
        calls = (client.rerank(query, documents, raw_scores=True) for query, documents in requests)
        concurrent = await asyncio.gather(*calls)
    for one, other in zip(serial, concurrent, strict=True):
        assert [r.index for r in one.results] == [r.index for r in other.results]
        assert [r.relevance_score for r in one.results] == pytest.approx(
            [r.relevance_score for r in other.results], abs=1e-5
        )


@pytest.mark.parametrize("protocol", ["http", "grpc"])
async def test_an_overloaded_server_turns_away_clients_and_serves_those_that_come_again(protocol):
    # Room for one request of 1000 documents; the others get 429 with Retry-After.
    with running_server("--max-waiting-documents", "1000", "--threads", "1", "--grpc-port", "0") as server:
        url = server.base_url if protocol == "http" else server.grpc_url
        documents = ["a document of some length " * 6] * 1000
        async with AsyncClient(url, max_retries=0) as client:
            answers = await asyncio.gather(*(client.rerank(QUERY, documents) for _ in range(4)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RateLimited)]
        assert 1 <= len(refused) < 4
        assert len(refused) == sum(isinstance(answer, Exception) for answer in answers)
        assert all(error.retry_after_s >= 1 for error in refused)
        async with AsyncClient(url, max_retries=50, max_retry_wait_s=60) as client:
            answers = await asyncio.gather(*(client.rerank(QUERY, documents) for _ in range(4)))
        assert [len(answer.results) for answer in answers] == [1000] * 4


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_ended_is_a_failed_connection(protocol):
    with running_server("--grpc-port", "0") as server:
        url = server.base_url if protocol == "http" else server.grpc_url
        with Client(url, max_retries=0) as client:
            assert client.ready()
            os.kill(server.pid, signal.SIGTERM)
            server.process.wait(30)
            with pytest.raises(ConnectionFailed, match=url):
                client.rerank(QUERY, DOCUMENTS)
