"""Clients that retry find the Retry-After of a full queue and come back when it has passed."""

from __future__ import annotations

import threading
import time

import httpx
import pytest

from tests.clients.conftest import forward_to
from tests.clients.environment import Refused
from tests.clients.ways import DOCUMENTS, MODEL, QUERY
from tests.scripted_server import Reply, Request, ScriptedServer
from tests.server_process import RunningServer, running_server

_RETRYING = [
    ("clients", "cohere_sdk", "v2"),
    ("clients", "cohere_sdk", "v1"),
    ("clients-older", "cohere_sdk", "v2"),
    ("clients", "openai_sdk", "post"),
    ("clients", "voyage_sdk", "rerank"),
]
# Rounding of the clocks on both sides.
_RETRY_AFTER_S = 0.99


class BusyServer:
    """A server whose queue, for one document, is full when the first request comes, and free again afterwards.

    Another caller keeps it full until then. In the moments when it is not, the recorder in front of the server sends the
    request once more instead of passing the answer on, so that the first answer is always the server's refusal.

    Attributes:
        recorder: In front of the server; has the requests.
        statuses: What they were answered, in order.
        answered_at_s: When, in seconds since the epoch.
    """

    def __init__(self, server: RunningServer) -> None:
        self.statuses: list[int] = []
        self.answered_at_s: list[float] = []
        self._refused = threading.Event()
        self._forward = forward_to(server)
        self._url = f"{server.base_url}/v1/rerank"
        self._other = threading.Thread(target=self._keep_busy)
        self.recorder = ScriptedServer([self._answer])

    def __enter__(self) -> BusyServer:
        self._other.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._refused.set()
        self._other.join()
        self.recorder.__exit__()

    def _answer(self, request: Request) -> Reply:
        reply = self._forward(request)
        while reply.status != 429 and not self._refused.is_set():
            reply = self._forward(request)
        self._refused.set()
        self.statuses.append(reply.status)
        self.answered_at_s.append(time.time())
        return reply

    def _keep_busy(self) -> None:
        documents = ["another caller's document " * 40] * 100
        while not self._refused.is_set():
            httpx.post(self._url, json={"query": QUERY, "documents": documents}, timeout=120)


@pytest.fixture(scope="module")
def narrow_server():
    with running_server("--max-waiting-documents", "1", "--threads", "1", "--precision", "fp32") as server:
        yield server


@pytest.mark.parametrize(("environment", "name", "call"), _RETRYING, ids=lambda value: value)
def test_a_client_turned_away_comes_back_and_is_served(environment, name, call, program, narrow_server, reference):
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL, "max_retries": 10}
    with BusyServer(narrow_server) as busy:
        hits = program(environment, name).ask(call, base_url=busy.recorder.base_url, key="any", **asked)
    assert [index for index, _, _ in hits] == reference.order
    assert busy.statuses == [429] * (len(busy.statuses) - 1) + [200]
    assert busy.statuses[0] == 429
    if name != "voyage_sdk":  # which waits as long as it likes
        came = [request.at_s for request in busy.recorder.requests[1:]]
        waited = [at - refused for at, refused in zip(came, busy.answered_at_s, strict=False)]
        assert min(waited) >= _RETRY_AFTER_S


@pytest.mark.parametrize(
    ("environment", "name", "call", "kind"),
    [
        ("clients", "cohere_sdk", "v2", "cohere.errors.too_many_requests_error.TooManyRequestsError"),
        ("clients", "cohere_sdk", "v1", "cohere.errors.too_many_requests_error.TooManyRequestsError"),
        ("clients-older", "cohere_sdk", "v2", "cohere.errors.too_many_requests_error.TooManyRequestsError"),
        ("clients", "litellm_sdk", "rerank", "litellm.exceptions.RateLimitError"),
        ("clients", "openai_sdk", "post", "openai.RateLimitError"),
        ("clients", "voyage_sdk", "rerank", "voyageai.error.RateLimitError"),
    ],
)
def test_one_that_does_not_retry_tells_that_the_queue_is_full(environment, name, call, kind, program, narrow_server):
    asked = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL}
    if name == "litellm_sdk":
        asked["provider"] = "cohere"
    with (
        BusyServer(narrow_server) as busy,
        pytest.raises(Refused, match="the queue of tier realtime holds 1") as raised,
    ):
        program(environment, name).ask(call, base_url=busy.recorder.base_url, key="any", **asked)
    assert raised.value.classes[0] == kind
    assert busy.statuses == [429]
