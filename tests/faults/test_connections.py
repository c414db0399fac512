"""What a client cannot do with its connections: fill memory, use up descriptors, hold others up, outstay its time."""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from tests.faults.outside import SMALL, Others, descriptors, others, watched
from tests.raw_http import RawConnection, connected, request
from tests.server_process import RunningServer, running_server

CLIENT_TIMEOUT_S = 1
IDLE_TIMEOUT_S = 2
MAX_CONNECTIONS = 60
MAX_BODY_BYTES = 1_000_000
# A sweep of each second may come just before the time is over; the rest is for a busy machine.
SOON_S = CLIENT_TIMEOUT_S + 6
BODY = json.dumps(SMALL).encode()
HELD = "crossrank_request_bodies_held_bytes"


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    settings = {
        "CROSSRANK_CLIENT_TIMEOUT_S": str(CLIENT_TIMEOUT_S),
        "CROSSRANK_IDLE_TIMEOUT_S": str(IDLE_TIMEOUT_S),
        "CROSSRANK_MAX_CONNECTIONS": str(MAX_CONNECTIONS),
        "CROSSRANK_MAX_BODY_BYTES": str(MAX_BODY_BYTES),
    }
    with running_server("--log-format", "json", env=settings) as running:
        yield running
        assert "Traceback" not in running.log.read_text()


@contextlib.contextmanager
def many(count: int, connect: Callable[[], socket.socket]) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(connect()) for _ in range(count)]


def seconds_until_closed(connection: RawConnection) -> float:
    began = time.monotonic()
    assert connection.closed()
    return time.monotonic() - began


def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain: {what}"
        time.sleep(0.05)


def held_bytes(server: RunningServer) -> float:
    lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
    return float(next(line for line in lines if line.startswith(f"{HELD} ")).split()[1])


def assert_unharmed(seen: Others) -> None:
    assert seen.refusals == []
    assert seen.slowest_s < 1


ENDLESS = {
    "header": (request("/v1/rerank", BODY)[0].removesuffix(b"\r\n") + b"X: ", b"a" * 1_000_000),
    "headers": (request("/v1/rerank", BODY)[0].removesuffix(b"\r\n"), b"x: 1\r\n" * 160_000),
    "target": (b"GET /", b"a" * 1_000_000),
    "empty lines": (b"", b"\r\n" * 500_000),
    "requests": (b"", request("/health")[0] * 30_000),
    "offers to upgrade": (b"", request("/health", None, "Connection: Upgrade", "Upgrade: h2c")[0] * 10_000),
    "chunks of a byte": (request("/v1/rerank", BODY, chunked=True)[0], b"1\r\na\r\n" * 160_000),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_what_has_no_end_takes_neither_memory_nor_the_time_of_others(server, kind):
    begin, more = ENDLESS[kind]
    ends_at = time.monotonic() + 0.7

    def attack() -> None:
        while time.monotonic() < ends_at:
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", server.port), 10) as connection,
            ):
                connection.sendall(begin)
                while time.monotonic() < ends_at:
                    connection.sendall(more)

    with watched(server) as watch, others(server) as seen, ThreadPoolExecutor() as pool:
        for done in [pool.submit(attack) for _ in range(4)]:
            done.result()
    assert_unharmed(seen)
    assert watch.grown_mb < 50


def drip(connection: RawConnection, whole: bytes) -> None:
    """Send a byte at a time, for longer than the server waits."""
    for byte in whole[:12]:
        connection.send(bytes([byte]))
        time.sleep(0.25)


def test_heads_and_bodies_that_stop_or_drip_are_given_up(server):
    head, body = request("/v1/rerank", BODY, "X-Request-Id: dripping")
    with ThreadPoolExecutor() as pool, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(server.port)) for _ in range(5)]
        began = time.monotonic()
        stopped, _ = request("/v1/rerank", BODY)
        for connection, sent in zip(connections, (stopped[:40], b"G", stopped + body[:-1], b"", head), strict=True):
            connection.send(sent)
        for done in [pool.submit(drip, connections[3], stopped), pool.submit(drip, connections[4], body)]:
            with contextlib.suppress(ConnectionError):
                done.result()
        answers = [connection.answer() for connection in connections]
        assert time.monotonic() - began < SOON_S
    assert [answer.status for answer in answers] == 5 * [408]
    assert {answer.json()["error"]["code"] for answer in answers} == {"request_timeout"}
    assert all("--client-timeout-s" in answer.json()["message"] for answer in answers)
    line = server.access_line("dripping")
    assert (line["status"], line["code"]) == ("408", "request_timeout")


def test_a_body_that_is_slow_and_comes_is_taken(server):
    body = BODY + 40_000 * b" "
    head, _ = request("/v1/rerank", body)
    with connected(server.port) as connection:
        connection.send(head)
        for i in range(0, len(body), 4000):
            connection.send(body[i : i + 4000])
            time.sleep(0.2)
        assert connection.answer().status == 200


def unread_answers(server: RunningServer, stack: contextlib.ExitStack, count: int, size: int) -> None:
    """Ask for answers of a size, and return once they are computed, with none of them read."""
    texts = {"query": "q", "documents": ["a" * (size - 200)], "return_documents": True}
    whole = b"".join(request("/v1/rerank", json.dumps(texts).encode(), "X-Request-Id: does-not-read"))
    for _ in range(count):
        connection = stack.enter_context(socket.socket())
        # As small as can be, so that what is not read stays with the server.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        connection.sendall(whole)
    until(lambda: server.log.read_text().count("does-not-read") >= count, "the answers are computed")


def test_clients_that_do_not_read_their_answers_are_cut(server):
    before = descriptors(server.pid)
    with others(server) as seen, contextlib.ExitStack() as stack:
        unread_answers(server, stack, 20, MAX_BODY_BYTES)
        until(lambda: descriptors(server.pid) < before + 10, "they are cut")
    assert_unharmed(seen)


@pytest.mark.slow
def test_answers_that_nobody_reads_fill_no_memory():
    with (
        running_server("--log-format", "json", env={"CROSSRANK_CLIENT_TIMEOUT_S": "600"}) as server,
        watched(server) as watch,
        others(server) as seen,
        contextlib.ExitStack() as stack,
    ):
        unread_answers(server, stack, 120, 10_000_000)
        time.sleep(2)
    assert watch.grown_mb < 300
    assert seen.refusals == []


def test_a_client_that_has_closed_its_side_gets_its_answers(server):
    with connected(server.port) as connection:
        connection.send(b"".join(part for _ in range(3) for part in request("/v1/rerank", BODY)))
        connection.end()
        answers = []
        while len(answers) < 3:
            answer = connection.answer()
            if answer.status != 100:
                answers.append(answer)
        assert [answer.status for answer in answers] == [200, 200, 200]
        assert connection.closed()


def test_a_client_that_is_gone_is_noticed(server):
    long = json.dumps({"query": "q", "documents": ["some words of a text " * 20] * 300}).encode()
    with connected(server.port) as connection:
        connection.send(b"".join(request("/v1/rerank", long, "X-Request-Id: gone")))
    assert server.access_line("gone")["code"] == "client_closed_request"


def test_idle_connections_make_room_and_those_of_others_stay(server):
    with connected(server.port, source="127.0.0.2") as loyal:
        for _ in range(3):
            loyal.send(request("/health")[0])
            assert loyal.answer().status == 200
            with (
                others(server) as seen,
                many(2 * MAX_CONNECTIONS, lambda: socket.create_connection(("127.0.0.1", server.port), 10)),
            ):
                time.sleep(0.3)
            assert_unharmed(seen)
        loyal.send(request("/health")[0])
        assert loyal.answer().status == 200
    assert f"{MAX_CONNECTIONS} connections are open" in server.log.read_text()


def test_where_all_connections_are_in_use_new_ones_are_told(server):
    head, _ = request("/v1/rerank", b"x" * 1000)
    with many(MAX_CONNECTIONS, lambda: socket.create_connection(("127.0.0.1", server.port), 10)) as attackers:
        for attacker in attackers:
            attacker.sendall(head)
        time.sleep(0.3)
        with connected(server.port) as connection:
            answer = connection.answer()
    assert answer.status == 503
    assert answer.headers["retry-after"] == "1"
    assert "--max-connections" in answer.json()["message"]
    until(lambda: held_bytes(server) == 0, "they are given up")


def test_a_lack_of_descriptors_is_logged_and_passes(server):
    process = psutil.Process(server.pid)
    before = process.rlimit(resource.RLIMIT_NOFILE)
    limit = descriptors(server.pid) + 20
    process.rlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(50):
                with contextlib.suppress(OSError):
                    stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            until(lambda: "Too many open files" in server.log.read_text(), "it is logged")
        until(lambda: descriptors(server.pid) < limit - 10, "they are closed")
        assert httpx.post(f"{server.base_url}/v1/rerank", json=SMALL).status_code == 200
        assert server.log.read_text().count("Too many open files") < 4
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, before)


def test_clients_that_have_stopped_do_not_hold_the_shutdown():
    with (
        running_server("--shutdown-grace-s", "60", env={"CROSSRANK_CLIENT_TIMEOUT_S": "2"}) as server,
        contextlib.ExitStack() as stack,
    ):
        unread_answers(server, stack, 1, 5_000_000)
        half_body, half_head = (stack.enter_context(connected(server.port)) for _ in range(2))
        half_body.send(request("/v1/rerank", b"x" * 100)[0], b"x")
        half_head.send(b"GET /hea")
        server.process.send_signal(signal.SIGTERM)
        assert half_body.answer().status == 503
        began = time.monotonic()
        assert server.process.wait(60) == 0
        assert time.monotonic() - began < 20


def test_no_answer_names_the_web_server(server):
    assert "server" not in httpx.get(f"{server.base_url}/health").headers
