"""Both clients against the real `crossrank serve` with the built-in model, in a process of its own."""

from __future__ import annotations

import asyncio
import math
import os
import signal

import pytest

from crossrank_client import AsyncClient, BadRequest, Client, ConnectionFailed, NotFound, RateLimited, TooLarge
from tests.server_process import running_server

QUERY = "how many people live in berlin"
DOCUMENTS = [
    "Berlin is well known for its museums.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
    "The motorway was closed on Sunday.",
]


@pytest.fixture(scope="module")
def server():
    with running_server("--max-documents", "50", "--max-body-bytes", "100000", "--precision", "fp32") as running:
        yield running


@pytest.fixture(params=["sync", "async"])
def ask(request, server):
    """Call a method of a client by name, of each kind in turn."""
    if request.param == "sync":
        with Client(server.base_url) as client:
            yield lambda method, *args, **options: getattr(client, method)(*args, **options)
        return

    async def awaited(method, *args, **options):
        async with AsyncClient(server.base_url) as client:
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
    assert error.request_id
    assert error.request_id in str(error)


async def test_many_concurrent_calls_get_the_answers_that_serial_ones_got(server):
    requests = [(f"{QUERY} {i}", [f"{text} {i}" for text in DOCUMENTS[: 1 + i % 3]]) for i in range(200)]
    with Client(server.base_url) as client:
        serial = [client.rerank(query, documents, raw_scores=True) for query, documents in requests]
    async with AsyncClient(server.base_url) as client:
        calls = (client.rerank(query, documents, raw_scores=True) for query, documents in requests)
        concurrent = await asyncio.gather(*calls)
    for one, other in zip(serial, concurrent, strict=True):
        assert [r.index for r in one.results] == [r.index for r in other.results]
        assert [r.relevance_score for r in one.results] == pytest.approx(
            [r.relevance_score for r in other.results], abs=1e-5
        )


async def test_an_overloaded_server_turns_away_clients_and_serves_those_that_come_again():
    # Room for one request of 1000 documents; the others get 429 with Retry-After.
    with running_server("--max-waiting-documents", "1000", "--threads", "1") as server:
        documents = ["a document of some length " * 6] * 1000
        async with AsyncClient(server.base_url, max_retries=0) as client:
            answers = await asyncio.gather(*(client.rerank(QUERY, documents) for _ in range(4)), return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, RateLimited)]
        assert 1 <= len(refused) < 4
        assert len(refused) == sum(isinstance(answer, Exception) for answer in answers)
        assert all(error.retry_after_s >= 1 for error in refused)
        async with AsyncClient(server.base_url, max_retries=50, max_retry_wait_s=60) as client:
            answers = await asyncio.gather(*(client.rerank(QUERY, documents) for _ in range(4)))
        assert [len(answer.results) for answer in answers] == [1000] * 4


def test_a_server_that_ended_is_a_failed_connection():
    with running_server() as server, Client(server.base_url, max_retries=0) as client:
        assert client.ready()
        os.kill(server.pid, signal.SIGTERM)
        server.process.wait(30)
        with pytest.raises(ConnectionFailed, match=server.base_url):
            client.rerank(QUERY, DOCUMENTS)
        assert "listening on" in server.log.read_text()
