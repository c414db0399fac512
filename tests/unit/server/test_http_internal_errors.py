"""What breaks inside is a 500 with an error id: never a score, never a trace of the inside."""

from __future__ import annotations

import asyncio
import logging

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.errors import BackendUnavailable, CrossrankError
from crossrank.packed import PairBatch
from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from tests.unit.server.test_errors import answered


class FailingEngine:
    """Answers with whatever it was given: a number for every pair, or an exception."""

    name = "failing"
    precision = "fp32"
    concurrency = 1
    batch_tokens = 4096
    call_tokens = 0
    row_step = 4
    pads = True

    def __init__(self, outcome: float | Exception) -> None:
        self.outcome = outcome

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        await asyncio.sleep(0)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return np.full(len(batch), self.outcome, np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return not isinstance(self.outcome, Exception)

    async def close(self) -> None: ...


async def call(builtin: Bundle, outcome: float | Exception, path: str = "/v1/rerank") -> httpx.Response:
    service = RerankService(
        ModelPool([ServedModel(builtin, FailingEngine(outcome), 100)]), max_documents=10, timeout_s=5
    )
    app = create_app(service, max_body_bytes=10_000)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        if path == "/v1/rerank":
            return await client.post(path, json={"query": "q", "documents": ["a", "b"]})
        return await client.get(path)


@pytest.mark.parametrize("outcome", [float("nan"), float("inf"), RuntimeError("secret path"), KeyError("secret")])
async def test_a_broken_engine_is_a_500_with_an_error_id_that_the_log_explains(
    builtin: Bundle, outcome: float | Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        response = await call(builtin, outcome)
    assert response.status_code == 500
    message = response.json()["error"]["message"]
    assert "secret" not in response.text
    assert len(response.headers.get_list("x-request-id")) == 1
    error_id = message.rsplit(" ", 1)[1]
    assert error_id in caplog.text


@pytest.mark.parametrize("error", list(answered()), ids=lambda error: error.__name__)
async def test_every_error_of_the_table_is_answered_with_its_status_and_the_one_body(
    builtin: Bundle, error: type[CrossrankError]
) -> None:
    response = await call(builtin, error("what happened", retry_after_s=3.0))
    assert response.status_code == error.http_status
    body = response.json()
    assert set(body) == {"error", "error_type", "message", "detail"}
    assert body["error"]["code"] == error.default_code
    assert body["error"]["type"] == error.error_type
    assert body["message"] == body["detail"] == body["error"]["message"]
    if error.http_status == 500:
        assert "what happened" not in response.text
    else:
        assert body["message"] == "what happened"
        assert response.headers["retry-after"] == "3"
    words = {429: "Overloaded", 503: "Unhealthy", 500: "Backend", 502: "Backend", 504: "Backend"}
    assert body["error_type"] == words.get(error.http_status, "Validation")


async def test_an_engine_that_is_away_is_a_503_with_retry_after(builtin: Bundle) -> None:
    response = await call(builtin, BackendUnavailable("all engines are down; try again shortly", retry_after_s=2.4))
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert response.json()["error"]["retry_after_s"] == 2.4


async def test_readiness_follows_the_engine(builtin: Bundle) -> None:
    assert (await call(builtin, 1.0, "/health/ready")).status_code == 200
    assert (await call(builtin, RuntimeError(), "/health/ready")).status_code == 503
