"""Log lines: one for each request, as text or JSON, and never a word of what a caller sent."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.errors import EngineFailure
from crossrank_server.accounts.base import Account, OpenAccounts
from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from crossrank_server.telemetry.access_log import AccessLog
from crossrank_server.telemetry.base import Exchange, Observers
from crossrank_server.telemetry.logs import (
    JsonFormatter,
    TextFormatter,
    current_request,
    described_exception,
    log_loop_failure,
)

SECRET = "the merger is on friday"


class Lines(io.StringIO):
    """What was logged."""

    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    def requests(self) -> list[dict[str, Any]]:
        return [line for line in self.json() if line["logger"] == "crossrank.access"]


@pytest.fixture(params=[JsonFormatter, TextFormatter], ids=["json", "text"])
def both(request) -> Iterator[Lines]:
    yield from captured(request.param())


@pytest.fixture
def lines() -> Iterator[Lines]:
    yield from captured(JsonFormatter())


def captured(formatter: logging.Formatter) -> Iterator[Lines]:
    stream = Lines()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # the client's lines, which are not the server's
    yield stream
    logging.getLogger("httpx").setLevel(logging.NOTSET)
    root.removeHandler(handler)
    root.setLevel(level)


class OneKey(OpenAccounts):
    async def identify(self, token: str | None) -> Account | None:
        return Account("key-7", "test", frozenset({"rerank"})) if token else None


class QuotingEngine(OnnxRuntimeEngine):
    """Fails and quotes what it was given, as parsers do."""

    def __init__(self, bundle: Bundle, error: Exception | None) -> None:
        super().__init__(bundle, threads=1)
        self.error = error

    async def score(self, batch):
        if self.error:
            raise self.error
        return await super().score(batch)


async def send(builtin: Bundle, error: Exception | None = None, path="/v1/rerank", **request: Any) -> httpx.Response:
    observers = Observers([AccessLog()])
    pool = ModelPool([ServedModel(builtin, QuotingEngine(builtin, error), 100, observers=observers)])
    service = RerankService(pool, max_documents=10, timeout_s=5, accounts=OneKey(), observers=observers)
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=10_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.request(request.pop("method", "POST"), path, **request)
    await service.close()
    return response


async def test_a_scored_request_is_one_line_with_its_facts(builtin: Bundle, lines: Lines):
    headers = {"x-request-id": "r-1", "authorization": "Bearer secret-key", "x-tier": "batch"}
    answer = await send(builtin, json={"query": SECRET, "documents": [SECRET * 50, "x " * 600]}, headers=headers)
    (line,) = lines.requests()
    assert line["level"] == "INFO"
    assert line["message"] == "POST /v1/rerank 200"
    stages = line.pop("stages_ms")
    assert set(stages) == {"parse", "tokenize", "queue", "inference", "respond"}
    assert 0 < sum(stages.values()) <= line["duration_ms"] + 0.01
    expected = {
        "request_id": "r-1",
        "protocol": "http",
        "route": "/v1/rerank",
        "status": "200",
        "code": "ok",
        "key_id": "key-7",
        "model": "crossrank-mini",
        "tier": "batch",
        "documents": 2,
        "tokens": answer.json()["usage"]["total_tokens"],
        "truncated_documents": 1,
        "query_truncated": False,
    }
    assert expected.items() <= line.items()
    assert "secret-key" not in lines.getvalue()


LEAKS = [
    {"json": {"query": SECRET, "documents": [SECRET]}},
    {"json": {"query": SECRET, "documents": SECRET}},
    {"json": {"query": {"text": SECRET}, "documents": [SECRET, {"text": [SECRET]}]}},
    {"json": {"query": "q", "documents": ["d"], "model": SECRET}},
    {"json": {"query": "q", "documents": ["d"], "top_n": SECRET, SECRET: 1}},
    {"content": f'{{"query": "{SECRET}'},
    {"content": b'{"query": "' + SECRET.encode() + b'\xff"}'},
    {"path": f"/v1/rerank/{SECRET}", "params": {"query": SECRET}},
    {"path": "/v1/models", "method": "GET", "params": {"query": SECRET}},
    {"json": {}, "headers": {"x-tier": SECRET, "prefer": SECRET, "x-request-id": SECRET, "authorization": SECRET}},
    {"json": {"query": SECRET, "documents": ["d"]}, "error": ValueError(f"cannot read {SECRET!r}")},
    {"json": {"query": SECRET, "documents": ["d"]}, "error": KeyError(SECRET)},
    {"json": {"query": SECRET, "documents": ["d"]}, "error": RuntimeError(SECRET)},
]


@pytest.mark.parametrize("request_", LEAKS, ids=range(len(LEAKS)))
async def test_nothing_that_a_caller_sent_is_logged(builtin: Bundle, both: Lines, request_: dict[str, Any]):
    await send(builtin, **request_)
    assert "crossrank.access" in both.getvalue()
    for word in (SECRET, "merger", "friday"):
        assert word not in both.getvalue()


async def test_a_failure_is_logged_with_its_id_type_and_place(builtin: Bundle, lines: Lines):
    answer = await send(
        builtin, ValueError(SECRET), json={"query": "q", "documents": ["d"]}, headers={"x-request-id": "r-2"}
    )
    (failure,) = [line for line in lines.json() if "exception" in line]
    assert answer.json()["error"]["message"].rsplit(" ", 1)[1] in failure["message"]
    assert failure["request_id"] == "r-2"
    assert "builtins.ValueError" in failure["exception"]
    assert f'"{__file__}"' in failure["exception"]
    (line,) = lines.requests()
    assert (line["level"], line["status"], line["code"]) == ("ERROR", "500", "internal_error")


async def test_an_engines_own_message_is_kept(builtin: Bundle, lines: Lines):
    await send(builtin, EngineFailure("out of memory: 3 GB"), json={"query": "q", "documents": ["d"]})
    (failure,) = [line for line in lines.json() if "exception" in line]
    assert "EngineFailure: out of memory: 3 GB" in failure["exception"]


async def test_probes_are_for_debugging(builtin: Bundle, lines: Lines):
    for path in ("/health/live", "/health/ready", "/metrics"):
        await send(builtin, method="GET", path=path)
    assert [line["level"] for line in lines.requests()] == ["DEBUG"] * 3


@pytest.mark.parametrize(
    ("status", "level"),
    [
        ("200", "INFO"),
        ("404", "INFO"),
        ("503", "ERROR"),
        ("OK", "INFO"),
        ("NOT_FOUND", "INFO"),
        ("UNAVAILABLE", "ERROR"),
    ],
)
def test_failures_of_the_server_are_errors(lines: Lines, status: str, level: str):
    Observers([AccessLog()]).finished(Exchange("grpc", "/s/M", "r", route="/s/M", status=status))
    assert [line["level"] for line in lines.requests()] == [level]


def test_libraries_lines_have_the_same_form(lines: Lines):
    logging.getLogger("uvicorn.error").info("Started %s", "x", extra={"color_message": "Started"})
    (line,) = lines.json()
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "INFO", "logger": "uvicorn.error", "message": "Started x"}


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    try:
        raise error from cause
    except Exception as caught:
        return caught


def test_outside_of_requests_messages_are_kept():
    assert "ValueError: disk is full" in described_exception(raised(ValueError("disk is full")))


def test_inside_of_requests_causes_are_told_without_their_messages_too():
    token = current_request.set("r")
    try:
        text = described_exception(raised(OSError(28, "No space left on device"), raised(KeyError(SECRET))))
    finally:
        current_request.reset(token)
    assert SECRET not in text
    assert text.index("builtins.KeyError") < text.index("OSError: [Errno 28] No space left on device")


async def test_what_no_task_awaited_is_logged_without_its_message(lines: Lines):
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log_loop_failure)

    async def fail() -> None:
        raise ValueError(SECRET)

    task = loop.create_task(fail())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    del task
    failures = [line for line in lines.json() if "exception" in line]
    assert [line["message"] for line in failures] == ["Task exception was never retrieved"]
    assert "builtins.ValueError" in failures[0]["exception"]
    assert SECRET not in lines.getvalue()
