"""Bad, odd and hostile requests against the real server: a clear answer each, and the server lives on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.server_process import RunningServer, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--max-documents", "50", "--max-body-bytes", "2000000") as process:
        yield process
        assert_answers(process)


def assert_answers(server: RunningServer) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "q", "documents": ["a", "b"]})
    assert response.status_code == 200


def error_of(response: httpx.Response) -> dict[str, Any]:
    body = response.json()
    assert set(body) == {"error", "error_type", "message", "detail"}
    assert body["message"] == body["detail"] == body["error"]["message"]
    assert set(body["error"]) >= {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return dict(body["error"])


def post(server: RunningServer, content: bytes) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/rerank", content=content, timeout=30)


@pytest.mark.parametrize(
    ("content", "param"),
    [
        (b"{", None),
        (b"[" * 100_000, None),
        (b'{"query":"\xff"}', None),
        (b'{"query":"q"}', "documents"),
        (b'{"query":"q","documents":["a",null]}', "documents[1]"),
        (b'{"query":"q","documents":["\\ud800"]}', "documents[0]"),
        (b'{"query":"q","documents":["a"],"top_n":-3}', "top_n"),
    ],
)
def test_a_bad_body_is_a_400_in_the_openai_form(server: RunningServer, content: bytes, param: str | None) -> None:
    response = post(server, content)
    assert response.status_code == 400
    error = error_of(response)
    assert error["type"] == "invalid_request_error"
    assert error["param"] == param


def test_more_documents_than_the_limit_are_refused_naming_both(server: RunningServer) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "q", "documents": ["a"] * 51})
    assert response.status_code == 400
    error = error_of(response)
    assert error["code"] == "too_many_documents"
    assert "51 documents, the limit is 50" in error["message"]


def test_an_unknown_model_is_a_404_naming_those_served(server: RunningServer) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "q", "documents": ["a"], "model": "gpt-9"})
    assert response.status_code == 404
    error = error_of(response)
    assert error["param"] == "model"
    assert "'gpt-9' is not served here; served: crossrank-mini" in error["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nowhere", 404), ("GET", "/v1/rerank", 405)])
def test_unknown_routes_and_methods_have_the_same_error_body(
    server: RunningServer, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, server.base_url + path)
    assert response.status_code == status
    assert path in error_of(response)["message"]


def test_a_body_declared_over_the_limit_is_refused_before_it_is_sent(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3000000000\r\n\r\n{")
        answer = b""
        while not answer.endswith(b'"}'):
            received = connection.recv(65536)
            assert received, "the connection was closed before the whole answer"
            answer += received
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"3000000000 bytes, the limit is 2000000" in answer


def test_a_large_upload_sees_its_refusal_and_not_a_reset(server: RunningServer) -> None:
    response = post(server, b" " * 12_000_000)
    assert response.status_code == 413
    assert error_of(response)["code"] == "request_too_large"


def test_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit(server: RunningServer) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", content=(b" " * 100_000 for _ in range(40)), timeout=30)
    assert response.status_code == 413


@pytest.mark.parametrize(
    "document",
    ["\x00", "\x01\x02\x7f\x85", "", " \t\n", "\u202eabc", "\ufffe\uffff", "😀" * 2000, "[SEP] [CLS] [MASK]"],
)
def test_odd_but_legal_documents_are_scored(server: RunningServer, document: str) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "\x00q", "documents": [document, "plain"]})
    assert response.status_code == 200
    assert len(response.json()["results"]) == 2


@pytest.mark.parametrize("document", ["word " * 200_000, "x" * 1_000_000, "  " * 500_000])
def test_a_document_of_a_megabyte_is_scored_and_its_truncation_reported(server: RunningServer, document: str) -> None:
    response = httpx.post(f"{server.base_url}/v1/rerank", json={"query": "q", "documents": ["a", document]}, timeout=30)
    assert response.status_code == 200
    truncated = [1] if document.startswith("word") else []
    assert response.json()["meta"]["truncated_documents"] == truncated


def test_a_request_id_is_taken_over_and_one_that_cannot_be_a_header_is_replaced(server: RunningServer) -> None:
    body = {"query": "q", "documents": ["a"]}
    given = httpx.post(f"{server.base_url}/v1/rerank", json=body, headers={"x-request-id": "trace-42"})
    assert given.headers["x-request-id"] == "trace-42"
    assert given.json()["id"] == "rr-trace-42"
    odd = httpx.post(f"{server.base_url}/v1/rerank", json=body, headers={"x-request-id": "a b<c>" * 99})
    assert odd.headers["x-request-id"] not in ("", "a b<c>" * 99)


def test_health_models_openapi_and_docs_answer(server: RunningServer) -> None:
    assert httpx.get(f"{server.base_url}/health/live").json()["status"] == "live"
    assert httpx.get(f"{server.base_url}/health/ready").json()["status"] == "ready"
    models = httpx.get(f"{server.base_url}/v1/models").json()
    assert models["object"] == "list"
    assert models["data"][0]["id"] == "crossrank-mini"
    openapi = httpx.get(f"{server.base_url}/openapi.json").json()
    operation = openapi["paths"]["/v1/rerank"]["post"]
    bodies = operation["requestBody"]["content"]["application/json"]["schema"]["anyOf"]
    assert bodies == [{"$ref": "#/components/schemas/RerankBody"}, {"$ref": "#/components/schemas/TextsBody"}]
    properties = openapi["components"]["schemas"]["RerankBody"]["properties"]
    assert set(properties) >= {"query", "documents", "model", "top_n", "return_documents", "raw_scores"}
    assert set(operation["responses"]) >= {"200", "400", "404", "413", "429", "500", "503", "504"}
    docs = httpx.get(f"{server.base_url}/docs")
    assert docs.status_code == 200
    assert "http://" not in docs.text.replace("http://www.w3.org", "")
    assert "https://" not in docs.text


async def test_the_work_of_a_client_that_disconnects_is_dropped() -> None:
    documents = [f"passage {i} " + "some words of text " * 100 for i in range(1000)]
    body = json.dumps({"query": "q", "documents": documents}).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with running_server("--threads", "1", "--precision", "fp32", "--log-level", "info") as server:
        async with httpx.AsyncClient(timeout=60) as client:
            small = {"query": "q", "documents": ["a"]}
            for _ in range(6):
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(head + body)
                await writer.drain()
                await asyncio.sleep(0.3)
                writer.close()
            deadline = time.monotonic() + 30
            while server.log.read_text().count("code=client_closed_request") < 6:
                assert time.monotonic() < deadline, "a disconnected request went on"
                await asyncio.sleep(0.1)
            response = await client.post(f"{server.base_url}/v1/rerank", json=small)
            assert response.status_code == 200


def test_a_full_queue_is_a_429_with_retry_after() -> None:
    body = {"query": "q", "documents": ["some words of text " * 100] * 300}

    async def flood(base_url: str) -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=16)) as client:
            return list(await asyncio.gather(*(client.post(f"{base_url}/v1/rerank", json=body) for _ in range(16))))

    with running_server("--threads", "1", "--max-waiting-documents", "500", "--precision", "fp32") as server:
        responses = asyncio.run(flood(server.base_url))
        refused = [response for response in responses if response.status_code == 429]
        assert {response.status_code for response in responses} == {200, 429}
        assert error_of(refused[0])["code"] == "overloaded"
        assert refused[0].headers["retry-after"] == "1"
        assert_answers(server)


def test_bodies_held_at_a_time_are_limited_and_the_ones_over_it_may_come_again() -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000\r\n\r\n"
    with running_server("--max-body-bytes", "100000") as server, contextlib.ExitStack() as connections:
        for _ in range(8):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            connection.sendall(head + b" " * 99_999)
        deadline = time.monotonic() + 20
        while (response := post(server, b" " * 60_000)).status_code != 429:
            assert time.monotonic() < deadline, "nothing limits what is held"
        assert "requests under way hold" in error_of(response)["message"]
        assert response.headers["retry-after"] == "1"
        connections.close()
        while httpx.post(f"{server.base_url}/v1/rerank", json={"query": "q", "documents": ["a"]}).status_code == 429:
            assert time.monotonic() < deadline, "what was held is not released"
        assert_answers(server)


def test_a_request_over_its_time_is_a_504() -> None:
    body = {"query": "q", "documents": ["some words of text " * 100] * 500}
    with running_server("--threads", "1", "--request-timeout-s", "0.05", "--precision", "fp32") as server:
        response = httpx.post(f"{server.base_url}/v1/rerank", json=body, timeout=60)
        assert response.status_code == 504
        assert "longer than 0.05 s" in error_of(response)["message"]
