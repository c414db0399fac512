"""GET /metrics: what was done is counted, under names that no caller can multiply."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from crossrank.bundles.bundle import Bundle
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.errors import Unauthorized
from crossrank.packed import PairBatch
from crossrank_server.accounts.base import Account, OpenAccounts
from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from crossrank_server.telemetry.base import Exchange, Observers, ScoredBatch
from crossrank_server.telemetry.metrics import Metrics

MODEL = "crossrank-mini"


class HeldEngine:
    """Scores nothing until it is told to."""

    name = "held"
    precision = "fp32"
    concurrency = 1
    batch_tokens = 64
    call_tokens = 0
    row_step = 4
    pads = True

    def __init__(self) -> None:
        self.go = asyncio.Event()

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        await self.go.wait()
        return np.zeros(len(batch), np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return True

    async def close(self) -> None: ...


class TwoKeys(OpenAccounts):
    """Knows a key that may rerank and one that may read metrics."""

    async def identify(self, token: str | None) -> Account | None:
        if token not in ("rerank", "metrics"):
            raise Unauthorized("no such key")
        return Account("k1", "test", frozenset({token}))


@contextlib.asynccontextmanager
async def client_of(builtin: Bundle, engine=None, accounts=None, strict_names=True) -> AsyncIterator[httpx.AsyncClient]:
    metrics = Metrics()
    observers = Observers([metrics])
    engine = engine or OnnxRuntimeEngine(builtin, threads=1)
    pool = ModelPool([ServedModel(builtin, engine, 100, observers=observers)], strict_names=strict_names)
    service = RerankService(pool, max_documents=50, timeout_s=5, accounts=accounts, observers=observers)
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=100_000, metrics=metrics))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await service.close()


async def samples(client: httpx.AsyncClient) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the value of every series by name and labels."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"crossrank_{name}", frozenset(labels.items())


async def test_scored_requests_are_counted_with_their_documents_tokens_and_truncations(builtin: Bundle):
    async with client_of(builtin) as client:
        answers = [
            (await client.post("/v1/rerank", json={"query": "q", "documents": ["short", "long " * 600]})).json(),
            (await client.post("/v1/rerank", json={"query": "ask " * 600, "documents": ["long " * 600]})).json(),
        ]
        got = await samples(client)
    work = {"model": MODEL, "tier": "realtime"}
    assert got[key("documents_total", **work)] == 3
    assert got[key("tokens_total", **work)] == sum(answer["usage"]["total_tokens"] for answer in answers)
    assert got[key("truncated_documents_total", **work)] == 2
    assert got[key("truncated_queries_total", **work)] == 1
    labels = {"protocol": "http", "route": "/v1/rerank"}
    assert got[key("requests_total", **labels, **work, status="200", code="ok")] == 2
    assert got[key("request_duration_seconds_count", **labels)] == 2
    for stage in ("parse", "tokenize", "queue", "inference", "respond"):
        assert got[key("stage_duration_seconds_count", stage=stage, model=MODEL)] == 2
    assert got[key("stage_duration_seconds_sum", stage="inference", model=MODEL)] > 0


async def test_padding_is_what_the_engine_computes_beyond_the_tokens(builtin: Bundle):
    async with client_of(builtin) as client:
        # One batch of 5 pairs of equal length: 8 rows of one multiple of 16 columns.
        await client.post("/v1/rerank", json={"query": "what", "documents": ["one"] * 5})
        got = await samples(client)
    tokens = got[key("engine_tokens_total", model=MODEL)]
    assert tokens == got[key("tokens_total", model=MODEL, tier="realtime")] == 5 * 5
    assert tokens + got[key("engine_padding_tokens_total", model=MODEL)] == 8 * 16
    assert got[key("batch_size_pairs_sum", model=MODEL)] == 5
    assert got[key("batch_size_tokens_sum", model=MODEL)] == tokens
    assert got[key("batch_duration_seconds_count", model=MODEL)] == 1


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "expected"),
    [
        ("POST", "/v1/rerank", b"{", {}, {"route": "/v1/rerank", "status": "400", "code": "invalid_json"}),
        ("POST", "/v1/rerank", b" " * 200_000, {}, {"status": "413", "code": "request_too_large"}),
        ("GET", "/v1/rerank", b"", {}, {"route": "/v1/rerank", "status": "405", "code": "method_not_allowed"}),
        ("GET", "/made/up", b"", {}, {"route": "other", "status": "404", "code": "route_not_found"}),
        ("POST", "/v1/rerank", b"{}", {"x-tier": "mine"}, {"status": "400", "tier": "", "code": "invalid_value"}),
    ],
)
async def test_refused_requests_are_counted_by_their_outcome(
    builtin: Bundle, method: str, path: str, body: bytes, headers: Mapping[str, str], expected: dict[str, str]
):
    async with client_of(builtin) as client:
        await client.request(method, path, content=body, headers=headers)
        got = await samples(client)
    (labels,) = [dict(labels) for name, labels in got if name == "crossrank_requests_total"]
    assert expected.items() <= labels.items()
    assert labels["model"] == ""
    assert not any(name == "crossrank_documents_total" for name, _ in got)


@pytest.mark.parametrize("strict_names", [True, False])
async def test_no_caller_can_make_new_series(builtin: Bundle, strict_names: bool):
    async with client_of(builtin, strict_names=strict_names) as client:
        for i in range(3):
            await client.post("/v1/rerank", json={"query": "q", "documents": ["d"], "model": f"made-up-{i}"})
            await client.post("/v1/rerank", json={"query": "q", "documents": ["d"]}, headers={"x-tier": f"made-up-{i}"})
            await client.get(f"/made-up-{i}")
            await client.request(f"MADE-UP-{i}", "/v1/rerank")
        text = (await client.get("/metrics")).text
    assert "made" not in text.lower()
    assert len(re.findall(r"^crossrank_requests_total\{", text, re.MULTILINE)) == 4


async def test_what_waits_and_what_is_held_is_read_when_asked(builtin: Bundle):
    engine = HeldEngine()
    async with client_of(builtin, engine) as client:
        body = {"query": "q", "documents": ["text of seven more words than before"] * 40}
        request = asyncio.create_task(client.post("/v1/rerank", json=body))
        for _ in range(100):
            got = await samples(client)
            if got[key("documents_waiting", model=MODEL)]:
                break
            await asyncio.sleep(0.01)
        engine.go.set()
        await request
        after = await samples(client)
    assert 0 < got[key("documents_waiting", model=MODEL)] < 40, "some are in the batches under way"
    assert got[key("request_bodies_held_bytes")] > 40 * 35
    assert after[key("documents_waiting", model=MODEL)] == after[key("request_bodies_held_bytes")] == 0
    assert after[key("ready")] == 1


async def test_engines_tell_what_they_are(builtin: Bundle):
    async with client_of(builtin) as client:
        got = await samples(client)
    (info,) = [dict(labels) for name, labels in got if name == "crossrank_engine_info"]
    assert info.pop("version")
    assert info == {"model": MODEL, "engine": "onnxruntime", "precision": "fp32", "max_length": "512"}
    assert got["process_resident_memory_bytes", frozenset()] > 1e6


@pytest.mark.parametrize(
    ("accept", "content_type", "parse"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", parse_text),
        (
            "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
            "application/openmetrics-text",
            parse_openmetrics,
        ),
    ],
)
async def test_openmetrics_is_given_to_who_asks_for_it(builtin: Bundle, accept: str, content_type: str, parse):
    async with client_of(builtin) as client:
        await client.post("/v1/rerank", json={"query": "q", "documents": ["d"]})
        response = await client.get("/metrics", headers={"accept": accept})
    assert response.headers["content-type"].startswith(content_type)
    names = {family.name for family in parse(response.text)}
    assert {"crossrank_requests", "crossrank_batch_size_pairs", "process_open_fds"} <= names
    assert "_created" not in response.text


async def test_where_keys_are_on_metrics_need_one_of_their_scope(builtin: Bundle):
    async with client_of(builtin, accounts=TwoKeys()) as client:
        for authorization, status in ((None, 401), ("Bearer rerank", 403), ("Bearer metrics", 200)):
            headers = {"authorization": authorization} if authorization else {}
            response = await client.get("/metrics", headers=headers)
            assert response.status_code == status
    assert "crossrank_ready" in response.text


async def test_scored_answers_say_where_their_time_went(builtin: Bundle):
    async with client_of(builtin) as client:
        scored = await client.post("/v1/rerank", json={"query": "q", "documents": ["d"]})
        refused = await client.post("/v1/rerank", json={"query": "q"})
    assert "server-timing" not in refused.headers
    durations = dict(
        re.fullmatch(r"(\w+);dur=(\d+\.\d\d)", part).groups() for part in scored.headers["server-timing"].split(", ")
    )
    assert list(durations) == ["parse", "tokenize", "queue", "inference", "respond", "total"]
    *stages, total = map(float, durations.values())
    assert 0 < sum(stages) <= total + 0.05


class FailingObserver:
    """Counts on a disk that is full."""

    def finished(self, exchange: Exchange) -> None:
        raise OSError(28, "No space left on device")

    def batch_scored(self, batch: ScoredBatch) -> None:
        raise OSError(28, "No space left on device")

    def close(self) -> None:
        raise OSError(28, "No space left on device")


async def test_an_observer_that_fails_neither_fails_the_request_nor_silences_the_others(
    builtin: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = Metrics()
    observers = Observers([FailingObserver(), metrics])
    served = ServedModel(builtin, OnnxRuntimeEngine(builtin), 100, observers=observers)
    service = RerankService(ModelPool([served]), max_documents=10, timeout_s=10, observers=observers)
    app = create_app(service, max_body_bytes=1_000_000, metrics=metrics)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server") as client:
        answer = await client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b"]})
        counted = (await client.get("/metrics")).text
    observers.close()
    await service.close()
    assert answer.status_code == 200
    assert "crossrank_batch_size_pairs_sum" in counted
    assert 'route="/v1/rerank"' in counted
    assert caplog.text.count("FailingObserver failed") == 4  # a batch, two requests, the end
