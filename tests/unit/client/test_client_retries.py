"""When the client tries again, against a real HTTP server on loopback that answers as each test scripts it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from email.utils import formatdate

import pytest

from crossrank_client import (
    AsyncClient,
    Client,
    ConnectionFailed,
    CrossrankClientError,
    RateLimited,
    ServerError,
    TimedOut,
    Unavailable,
)
from tests.scripted_server import ANSWER, Reply, ScriptedServer

BUSY = b'{"error": {"message": "the queue is full", "type": "rate_limit_error", "param": null, "code": "overloaded"}}'


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    """Pauses without a Retry-After are shortened; those the server asks for stay as long as it says."""
    monkeypatch.setattr("crossrank_client.retries._BACKOFF_FACTOR_S", 0.005)


def call(mode: str, server: ScriptedServer | str, **options):
    """Rerank once, with the client of the mode."""
    base_url = server if isinstance(server, str) else server.base_url

    async def awaited():
        async with AsyncClient(base_url, **options) as client:
            return await client.rerank("q", ["d"])

    if mode == "async":
        return asyncio.run(awaited())
    with Client(base_url, **options) as client:
        return client.rerank("q", ["d"])


both = pytest.mark.parametrize("mode", ["sync", "async"])


@both
@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_server_is_asked_again_with_the_same_body(mode, status):
    with ScriptedServer([Reply(status, BUSY), Reply(status, BUSY), ANSWER]) as server:
        assert call(mode, server).results[0].index == 0
    assert [request.body for request in server.requests] == [b'{"query":"q","documents":["d"]}'] * 3


@both
@pytest.mark.parametrize("status", [400, 401, 402, 404, 408, 413, 422, 500, 502, 504])
def test_other_errors_are_raised_at_once(mode, status):
    with ScriptedServer([Reply(status, BUSY), ANSWER]) as server, pytest.raises(CrossrankClientError) as raised:
        call(mode, server)
    assert raised.value.status == status
    assert len(server.requests) == 1


@both
@pytest.mark.parametrize(("status", "kind"), [(429, RateLimited), (503, Unavailable)])
def test_the_last_error_is_raised_when_the_retries_are_used_up(mode, status, kind):
    with ScriptedServer([Reply(status, BUSY)] * 9) as server, pytest.raises(kind, match="the queue is full"):
        call(mode, server, max_retries=2)
    assert len(server.requests) == 3


@both
def test_no_retries_means_one_attempt(mode):
    with ScriptedServer([Reply(503, BUSY), ANSWER]) as server, pytest.raises(Unavailable):
        call(mode, server, max_retries=0)
    assert len(server.requests) == 1


@both
def test_retry_after_in_seconds_is_waited_for(mode):
    with ScriptedServer([Reply(503, BUSY, {"Retry-After": "1"}), ANSWER]) as server:
        call(mode, server)
    first, second = server.requests
    assert second.at_s - first.at_s >= 0.99


@both
def test_retry_after_as_a_date_is_waited_for(mode):
    open_at_s = int(time.time()) + 2
    busy = Reply(429, BUSY, {"Retry-After": formatdate(open_at_s, usegmt=True)})
    with ScriptedServer([busy, ANSWER]) as server:
        call(mode, server)
    _, second = server.requests
    assert second.at_s >= open_at_s - 0.01


@both
@pytest.mark.parametrize("value", ["soon", "-1", "0", "Thu, 01 Jan 1970 00:00:00 GMT", ""])
def test_a_retry_after_that_names_no_time_to_come_leaves_the_usual_pause(mode, value):
    with ScriptedServer([Reply(503, BUSY, {"Retry-After": value}), ANSWER]) as server:
        call(mode, server)
    assert len(server.requests) == 2


@both
@pytest.mark.parametrize("value", ["3600", formatdate(4_000_000_000, usegmt=True), "9" * 400])
def test_a_server_that_asks_for_more_patience_than_allowed_is_not_asked_again(mode, value):
    busy = Reply(503, BUSY, {"Retry-After": value})
    with ScriptedServer([busy, ANSWER]) as server, pytest.raises(Unavailable, match="the queue is full") as raised:
        call(mode, server, max_retry_wait_s=5)
    assert len(server.requests) == 1
    assert raised.value.retry_after_s > 3000


@both
def test_retrying_ends_when_its_time_is_up_however_many_retries_are_left(mode):
    with ScriptedServer([Reply(503, BUSY, {"Retry-After": "1"})] * 50) as server, pytest.raises(Unavailable):
        call(mode, server, max_retries=1000, max_retry_wait_s=2.5)
    assert len(server.requests) in (2, 3)  # 3, unless the machine stalls


@both
def test_ready_reports_503_as_it_is(mode):
    async def awaited(base_url):
        async with AsyncClient(base_url) as client:
            return await client.ready()

    with ScriptedServer([Reply(503), Reply(200)]) as server, Client(server.base_url) as client:
        answers = [client.ready() if mode == "sync" else asyncio.run(awaited(server.base_url)) for _ in range(2)]
    assert answers == [False, True]
    assert [request.path for request in server.requests] == ["/health/ready"] * 2


@both
def test_a_server_that_comes_up_while_the_client_retries_is_reached(mode):
    # The port stays bound, so nobody else takes it, and refuses connections until listen() is called.
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = ScriptedServer([ANSWER], listener=listener, listening=False)
    with server, counted_connections(then={3: server.start}) as attempts:
        assert call(mode, server).model == "m"
    assert len(attempts) == 3


@both
def test_a_refused_connection_names_the_address_after_the_retries(mode, free_port):
    address = f"http://127.0.0.1:{free_port()}"
    refused = pytest.raises(ConnectionFailed, match=f"no answer from {address}.*is the server running")
    with counted_connections() as attempts, refused:
        call(mode, address, max_retries=2)
    assert len(attempts) == 3


@both
def test_a_slow_answer_times_out_and_is_not_asked_for_twice(mode):
    with ScriptedServer([Reply(200, delay_s=5), ANSWER]) as server:
        with pytest.raises(TimedOut, match=r"timeout 0.5 s\)"):
            call(mode, server, timeout=0.5)
        server.release()
    assert len(server.requests) == 1


@both
def test_a_server_that_hangs_up_midway_is_not_asked_twice(mode):
    with ScriptedServer([Reply(200, hang_up=True), ANSWER]) as server, pytest.raises(ConnectionFailed):
        call(mode, server)
    assert len(server.requests) == 1


def test_a_timeout_of_one_call_is_that_calls_only():
    with ScriptedServer([Reply(200, delay_s=5), ANSWER]) as server, Client(server.base_url) as client:
        with pytest.raises(TimedOut):
            client.rerank("q", ["d"], timeout=0.5)
        server.release()
        assert client.rerank("q", ["d"]).model == "m"


def test_pauses_grow_and_vary(monkeypatch):
    pauses = []
    monkeypatch.setattr("crossrank_client.retries._BACKOFF_FACTOR_S", 0.25)
    monkeypatch.setattr("httpx_retries.retry.time.sleep", pauses.append)
    with ScriptedServer([Reply(503, BUSY)] * 8) as server, Client(server.base_url) as client:
        for _ in range(2):
            with pytest.raises(ServerError):
                client.rerank("q", ["d"])
    for pause, longest in zip(pauses, [0.5, 1.0, 2.0] * 2, strict=True):
        assert longest / 2 <= pause <= longest
    assert len(set(pauses)) == 6


@contextlib.contextmanager
def counted_connections(then=None):
    """List the attempts to connect, which httpcore logs; before the n-th goes out, run then[n]."""
    attempts = []

    class Handler(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("connect_tcp.started"):
                attempts.append(record)
                (then or {}).get(len(attempts), lambda: None)()

    logger, handler = logging.getLogger("httpcore.connection"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        yield attempts
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
