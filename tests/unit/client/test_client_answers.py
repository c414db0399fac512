"""What the client sends and makes of the answers, against a real HTTP server on loopback that answers as scripted."""

from __future__ import annotations

import asyncio
import gzip
import inspect
import json
import pickle
import subprocess
import sys

import pytest

import crossrank_client as cc
from crossrank_client import AsyncClient, Client
from crossrank_client.endpoint import Endpoint
from crossrank_client.retries import RetryPolicy
from tests.scripted_server import ANSWER, Reply, ScriptedServer, answer


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch):
    for name in ("CROSSRANK_BASE_URL", "CROSSRANK_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def ask(reply: Reply, documents=("a", "b"), **options):
    """Return the answer to one request and the request as it arrived."""
    with ScriptedServer([reply]) as server, Client(server.base_url, max_retries=0) as client:
        return client.rerank("q", documents, **options), server.requests[0]


def test_fields_left_out_are_not_sent_but_for_top_n():
    _, request = ask(ANSWER)
    assert (request.method, request.path) == ("POST", "/v1/rerank")
    assert request.headers["content-type"] == "application/json"
    assert json.loads(request.body) == {"query": "q", "documents": ["a", "b"]}


def test_fields_given_are_sent():
    _, request = ask(ANSWER, top_n=0, return_documents=True, raw_scores=True, model="other")
    assert json.loads(request.body) == {
        "query": "q",
        "documents": ["a", "b"],
        "top_n": 0,
        "return_documents": True,
        "raw_scores": True,
        "model": "other",
    }


@pytest.mark.parametrize(
    "documents", [("a", "b"), iter(["a", "b"]), (letter for letter in "ab"), {"a": 1, "b": 2}.keys()]
)
def test_any_iterable_of_documents_is_accepted(documents):
    _, request = ask(ANSWER, documents)
    assert json.loads(request.body)["documents"] == ["a", "b"]


@pytest.mark.parametrize("documents", ["one text", b"bytes", {"text": "a"}, None, 3])
def test_documents_that_are_no_list_of_texts_are_a_type_error(documents):
    with Client() as client, pytest.raises(TypeError, match=r"documents is \w+; pass a list"):
        client.rerank("q", documents)


@pytest.mark.parametrize("text", ["żółw", "日本語", "🙂", "\x00\x1b", "\ud800", "e\u0301"])
def test_every_string_arrives_as_it_is(text):
    _, request = ask(ANSWER, [text])
    assert json.loads(request.body)["documents"] == [text]


def test_text_is_sent_as_utf8_not_escaped_to_twice_its_size():
    _, request = ask(ANSWER, ["日本語"])
    assert "日本語".encode() in request.body


def test_an_answer_becomes_typed_results():
    results = [
        {"index": 1, "relevance_score": 1, "document": {"text": "b"}},
        {"index": 0, "relevance_score": 0.25, "document": "a"},
    ]
    meta = {"truncated_documents": [0, 1], "query_truncated": True, "later": "field"}
    response, _ = ask(answer(results=results, meta=meta, later="field"))
    assert response == cc.RerankResponse(
        id="rr-1",
        model="m",
        results=(cc.RerankResult(1, 1.0, "b"), cc.RerankResult(0, 0.25, "a")),
        usage=cc.Usage(5, 5),
        truncated_documents=(0, 1),
        query_truncated=True,
    )
    assert response.truncated == 2
    assert type(response.results[0].relevance_score) is float
    assert hash(response) == hash(pickle.loads(pickle.dumps(response)))


def test_an_answer_without_meta_reports_no_truncation():
    response, _ = ask(answer(2))
    assert (response.truncated, response.query_truncated) == (0, False)
    assert response.results[0].document is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>sign in</html>",
        b"\xff",
        b"[" * 100_000,
        b"[]",
        b"null",
        b"{}",
        answer(results=None).body,
        answer(results=[None]).body,
        answer(results=[{"index": 0}]).body,
        answer(results=[{"index": "0", "relevance_score": 1.0}]).body,
        answer(results=[{"index": True, "relevance_score": 1.0}]).body,
        answer(results=[{"index": 2, "relevance_score": 1.0}]).body,
        answer(results=[{"index": -1, "relevance_score": 1.0}]).body,
        answer(results=[{"index": 0, "relevance_score": "high"}]).body,
        answer(results=[{"index": 0, "relevance_score": 1.0, "document": {"texts": []}}]).body,
        answer(usage=None).body,
        answer(usage={"prompt_tokens": 1}).body,
        answer(meta=[1]).body,
        answer(meta={"truncated_documents": 3}).body,
        answer(meta={"truncated_documents": ["a"], "query_truncated": False}).body,
    ],
    ids=lambda body: body[:40].decode("latin-1") + str(len(body)),
)
def test_an_answer_of_another_form_is_an_invalid_response(body):
    with pytest.raises(cc.InvalidResponse):
        ask(Reply(200, body))


def test_an_answer_that_cannot_be_unpacked_is_an_invalid_response():
    with pytest.raises(cc.InvalidResponse, match="cannot be decoded"):
        ask(Reply(200, b"not gzip", {"Content-Encoding": "gzip"}))
    response, _ = ask(Reply(200, gzip.compress(ANSWER.body), {"Content-Encoding": "gzip"}))
    assert response.model == "m"


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, cc.BadRequest),
        (401, cc.Unauthorized),
        (402, cc.PaymentRequired),
        (403, cc.Forbidden),
        (404, cc.NotFound),
        (413, cc.TooLarge),
        (422, cc.BadRequest),
        (429, cc.RateLimited),
        (500, cc.ServerError),
        (502, cc.ServerError),
        (503, cc.Unavailable),
        (504, cc.Timeout),
    ],
)
def test_each_status_raises_its_error(status, kind):
    detail = {"message": "m is 3", "type": "t", "param": "p", "code": "c", "retry_after_s": 2}
    with pytest.raises(cc.APIError, match=rf"m is 3 \(status {status}, request r-1\)") as raised:
        ask(Reply(status, json.dumps({"error": detail}).encode(), {"X-Request-Id": "r-1"}))
    error = raised.value
    assert type(error) is kind
    assert (error.status, error.message, error.type, error.param, error.code) == (status, "m is 3", "t", "p", "c")
    assert (error.request_id, error.retry_after_s) == ("r-1", 2.0)


def test_errors_survive_pickling_between_processes():
    with pytest.raises(cc.RateLimited) as raised:
        ask(Reply(429, b'{"error": {"message": "full", "code": "overloaded"}}', {"Retry-After": "7"}))
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (type(copy), str(copy), copy.code, copy.retry_after_s) == (
        cc.RateLimited,
        str(raised.value),
        "overloaded",
        7.0,
    )


@pytest.mark.parametrize(
    "body", [b"", b"<h1>Bad\n gateway</h1>", b"[1]", b'{"error": "x"}', b'{"error": {"message": 1}}']
)
def test_an_error_with_a_foreign_body_quotes_it(body):
    with pytest.raises(cc.ServerError, match="502 without saying why") as raised:
        ask(Reply(502, body))
    assert " ".join(body.decode().split()) in raised.value.message
    assert raised.value.code is None


def test_a_long_foreign_body_is_quoted_in_part():
    with pytest.raises(cc.ServerError) as raised:
        ask(Reply(502, b"x" * 100_000))
    assert len(str(raised.value)) < 300


def test_a_redirect_is_named_and_not_followed():
    with ScriptedServer([ANSWER]) as other:
        moved = Reply(308, b"", {"Location": f"{other.base_url}/v1/rerank"})
        with pytest.raises(cc.InvalidResponse, match=f"redirects to {other.base_url}"):
            ask(moved)
    assert other.requests == []


def test_models_are_listed_with_their_details():
    data = [{"id": "one", "object": "model", "max_length": 512}, {"id": "two", "object": "model"}]
    reply = Reply(200, json.dumps({"object": "list", "data": data}).encode())
    with ScriptedServer([reply]) as server, Client(server.base_url) as client:
        models = client.models()
    assert models == (cc.Model("one", {"max_length": 512}), cc.Model("two", {}))
    assert server.requests[0].path == "/v1/models"


def test_the_key_is_sent_as_a_bearer_token_and_shown_nowhere(monkeypatch):
    monkeypatch.setenv("CROSSRANK_API_KEY", "from-environment")
    with ScriptedServer([ANSWER]) as server:
        for key in (None, " given\n", ""):
            with Client(server.base_url, api_key=key) as client:
                client.rerank("q", ["d"])
                assert "given" not in repr(client)
    tokens = [request.headers.get("authorization") for request in server.requests]
    assert tokens == ["Bearer from-environment", "Bearer given", None]
    assert "given" not in repr(Endpoint("http://host", "given", 1.0, RetryPolicy(0, 1.0)))


def test_the_address_comes_from_the_argument_then_the_environment_then_the_default(monkeypatch):
    with Client() as client:
        assert repr(client) == "Client('http://127.0.0.1:8000')"
    monkeypatch.setenv("CROSSRANK_BASE_URL", "https://rerank.example/v1/")
    with Client() as client:
        assert repr(client) == "Client('https://rerank.example')"
    with Client("http://10.0.0.1:9/prefix/") as client:
        assert repr(client) == "Client('http://10.0.0.1:9/prefix')"


def test_an_address_with_a_path_keeps_it():
    with ScriptedServer([ANSWER]) as server, Client(f"{server.base_url}/prefix/v1") as client:
        client.rerank("q", ["d"])
    assert server.requests[0].path == "/prefix/v1/rerank"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_url": "127.0.0.1:8000"}, "base_url is '127.0.0.1:8000'; start it with http://"),
        ({"api_key": "two\nlines"}, "api_key has characters"),
        ({"api_key": "schlüssel"}, "api_key has characters"),
        ({"timeout": 0}, "timeout is 0"),
        ({"timeout": float("nan")}, "timeout is nan"),
        ({"max_retries": -1}, "max_retries is -1"),
        ({"max_retry_wait_s": 0}, "max_retry_wait_s is 0"),
    ],
)
@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_an_option_out_of_range_is_refused_with_its_value(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_a_proxy_of_the_environment_is_used_except_for_loopback(monkeypatch):
    with ScriptedServer([ANSWER]) as proxy, ScriptedServer([ANSWER]) as server:
        monkeypatch.setenv("http_proxy", proxy.base_url.removeprefix("http://"))
        monkeypatch.setenv("no_proxy", "inside.example")
        for address in ("http://rerank.example", server.base_url):
            with Client(address) as client:
                client.rerank("q", ["d"])
    assert [request.path for request in proxy.requests] == ["http://rerank.example/v1/rerank"]
    assert [request.path for request in server.requests] == ["/v1/rerank"]


def test_calls_one_after_the_other_share_a_connection():
    with ScriptedServer([ANSWER, Reply(500), ANSWER]) as server, Client(server.base_url) as client:
        client.rerank("q", ["d"])
        with pytest.raises(cc.ServerError):
            client.rerank("q", ["d"])
        client.rerank("q", ["d"])
    assert len({request.client_port for request in server.requests}) == 1


async def test_many_concurrent_calls_get_their_own_answers_over_bounded_connections():
    def answer_to(request):
        return answer(len(json.loads(request.body)["documents"]))

    with ScriptedServer([answer_to]) as server:
        async with AsyncClient(server.base_url) as client:
            responses = await asyncio.gather(*(client.rerank("q", ["d"] * (1 + i % 7)) for i in range(150)))
    assert [len(response.results) for response in responses] == [1 + i % 7 for i in range(150)]
    assert len({request.client_port for request in server.requests}) <= 100


def test_the_client_imports_nothing_but_its_declared_packages_and_the_standard_library():
    code = (
        "import sys, httpx, httpx_retries\n"
        "before = set(sys.modules)\n"
        "import crossrank_client\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*new - sys.stdlib_module_names)"
    )
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert {"crossrank_client"} <= set(run.stdout.split()) <= {"crossrank_client", "typing_extensions"}


@pytest.mark.parametrize("method", ["__init__", "rerank", "models", "account", "ready"])
def test_both_clients_take_the_same_arguments(method):
    sync, asynchronous = (inspect.signature(getattr(kind, method)) for kind in (Client, AsyncClient))
    assert sync == asynchronous
