"""Bodies that were made to cost more than they weigh, and callers that hold more than their share."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.faults.outside import MB, others, watched
from tests.raw_http import RawConnection, connected
from tests.server_process import RunningServer, running_server

_LARGEST = 10_000_000


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--model", "builtin") as server:
        yield server


def filled(item: str, size: int) -> bytes:
    """A request whose documents are one item again and again."""
    items = ",".join([item] * (size // (len(item) + 1)))
    return f'{{"query": "q", "documents": [{items}]}}'.encode()


def surrogate_beside_a_list() -> bytes:
    items = ",".join(['"x"'] * 32_000)
    return f'{{"{"k" * 130_000}": [{items}, "\\ud800"], "query": "q", "documents": ["a"]}}'.encode()


def surrogate_at_the_end(size: int) -> bytes:
    return b'{"query": "' + b"a" * size + b'\\ud800", "documents": ["a"]}'


# What is sent, the status, and words of the answer.
REFUSED: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "a surrogate beside a long key and a long list": (surrogate_beside_a_list, 400, "lone surrogate \\\\ud800"),
    "a surrogate behind 9 MB": (lambda: surrogate_at_the_end(9_000_000), 400, "lone surrogate"),
    "3 million empty lists": (lambda: filled("[]", 9_900_000), 400, "JSON values"),
    "3 million empty objects": (lambda: filled("{}", 9_900_000), 400, "JSON values"),
    "5 million numbers": (lambda: filled("1", 9_900_000), 400, "JSON values"),
    "3 million empty strings": (lambda: filled('""', 9_900_000), 400, "JSON values"),
    "2 million short strings": (lambda: filled('"ab"', 9_900_000), 400, "JSON values"),
    "lists 200 deep": (lambda: filled("[" * 200 + "]" * 200, 9_900_000), 400, "JSON values"),
    "a million names": (
        lambda: json.dumps({f"{i:x}": 0 for i in range(800_000)}).encode(),
        400,
        "JSON values",
    ),
    "a name again and again": (lambda: b"{" + b'"a":0,' * 1_600_000 + b'"b":0}', 400, "JSON values"),
    "a number of 9 million digits": (lambda: filled("9" * 9_000_000, 9_000_001), 400, "not JSON"),
    "quotes behind backslashes": (lambda: b'{"query": "' + b'\\",' * 3_000_000 + b'"}', 400, "documents is missing"),
    "9 million opening brackets": (lambda: b"[" * 9_000_000, 400, "JSON values"),
    "not UTF-8 at the end": (lambda: b'{"query": "' + b"a" * 9_000_000 + b'\xff"}', 400, "not UTF-8"),
    "no object": (lambda: b'"' + b"a" * 9_000_000 + b'"', 400, "send a JSON object"),
    "a long name of a model": (
        lambda: json.dumps({"query": "q", "documents": ["a"], "model": "m" * 9_000_000}).encode(),
        400,
        "model has 9000000 characters, the limit is 1000",
    ),
    "100,000 pairs": (
        lambda: json.dumps({"queries": ["q"] * 40_000, "documents": ["a"] * 40_000}).encode(),
        400,
        "40000 documents, the limit is 1000",
    ),
    "100,000 rank_fields": (
        lambda: json.dumps(
            {"query": "q", "rank_fields": [str(i) for i in range(95_000)], "documents": [{"text": "a"}] * 1000}
        ).encode(),
        400,
        "rank_fields has 95000 names, the limit is 100",
    ),
}
_PATHS = {"100,000 pairs": "/v1/score"}


# One of each kind of cost in every run: places, values, names.
_QUICK = ("a surrogate beside a long key and a long list", "3 million empty lists", "100,000 rank_fields")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in _QUICK else pytest.mark.slow) for name in REFUSED]
)
def test_a_refused_body_costs_little_memory_and_no_other_caller_a_second(server: RunningServer, name: str) -> None:
    make, status, words = REFUSED[name]
    body = make()
    with watched(server) as watch, others(server) as seen:
        for _ in range(3):
            answer = httpx.post(f"{server.base_url}{_PATHS.get(name, '/v1/rerank')}", content=body, timeout=60)
            assert answer.status_code == status
            assert words in answer.text
            assert len(answer.content) < 5000
    assert watch.grown_mb < max(10 * len(body) / MB, 20)
    assert not seen.refusals
    assert seen.slowest_s < 1


@pytest.mark.slow
def test_what_refused_bodies_took_is_given_back(server: RunningServer) -> None:
    bodies = [REFUSED[name][0]() for name in ("a surrogate behind 9 MB", "5 million numbers", "a long name of a model")]
    for body in bodies:
        httpx.post(f"{server.base_url}/v1/rerank", content=body, timeout=60)
    with watched(server) as watch:
        for body in bodies * 5:
            httpx.post(f"{server.base_url}/v1/rerank", content=body, timeout=60)
    assert watch.end_mb - watch.start_mb < 20
    assert held_bytes(server) == 0


def test_a_text_full_of_commas_and_brackets_is_no_list(server: RunningServer) -> None:
    body = json.dumps({"query": "q", "documents": ['{"a": [1, 2, "\\\\"], "b": "c\\""}, ' * 60_000]})
    assert body.count(",") > 100_000
    assert httpx.post(f"{server.base_url}/v1/rerank", content=body, timeout=60).status_code == 200


def held_bytes(server: RunningServer) -> float:
    """The bytes of bodies and answers that the server says it holds."""
    lines = httpx.get(f"{server.base_url}/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("crossrank_request_bodies_held_bytes "))


def unfinished(connection: RawConnection, size: int, path: str = "/v1/rerank") -> None:
    """Send all of a body but its last byte."""
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n".encode()
    # A body over its share is refused while it is sent.
    with contextlib.suppress(OSError):
        connection.send(head + b" " * (size - 1))


def test_bodies_that_never_end_leave_room_for_others(server: RunningServer) -> None:
    medium = {"query": "q", "documents": ["some words of a text " * 50] * 400}
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(server.port)) for _ in range(8)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda connection: unfinished(connection, _LARGEST - 10_000), connections))
        with others(server) as seen:
            time.sleep(1)
            assert httpx.post(f"{server.base_url}/v1/rerank", json=medium, timeout=60).status_code == 200
        assert held_bytes(server) > _LARGEST
    assert not seen.refusals
    assert seen.slowest_s < 1


def test_answers_larger_than_their_requests_leave_room_for_others(server: RunningServer) -> None:
    """Voyage's answers hold their documents twice, and a document of fields its text beside them."""
    document = {"a": "y" * 9900, "more": [1]}
    options = {"top_k": 1000, "return_documents": True, "rank_fields": ["a"]}
    body = json.dumps({"query": "q", "documents": [document] * 900, **options}).encode()
    medium = {"query": "q", "documents": ["some words of a text " * 50] * 60}
    head = f"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    answer = httpx.post(f"{server.base_url}/v1/rerank", content=body, timeout=60)
    assert len(answer.content) > 3.9 * len(body)
    with contextlib.ExitStack() as stack, watched(server) as watch, others(server) as seen:
        callers = [stack.enter_context(connected(server.port)) for _ in range(8)]

        def send(caller: RawConnection) -> None:
            with contextlib.suppress(OSError):  # Over the caller's share it is refused.
                caller.send(head + body)

        with ThreadPoolExecutor(8) as threads:
            list(threads.map(send, callers))
        for _ in range(10):
            time.sleep(0.2)
            assert httpx.post(f"{server.base_url}/v1/rerank", json=medium, timeout=60).status_code == 200
        assert held_bytes(server) < 8 * _LARGEST
    assert watch.grown_mb < 200
    assert not seen.refusals
    assert seen.slowest_s < 1


@pytest.mark.slow
def test_answers_that_nobody_reads_count_as_held(server: RunningServer) -> None:
    """Each answer repeats its document; the callers do not read it, and the system takes only a part from the server."""
    body = json.dumps({"query": "q", "documents": ["w " * 4_500_000], "return_documents": True}).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack, watched(server) as watch:
        with others(server) as seen:
            for _ in range(20):
                caller = stack.enter_context(socket.socket())
                caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
                caller.settimeout(20)
                caller.connect(("127.0.0.1", server.port))
                # A body over the caller's share is refused while it is sent.
                with contextlib.suppress(OSError):
                    caller.sendall(head + body)
            time.sleep(1)
        held = held_bytes(server)
    assert 3 * len(body) < held < 8 * _LARGEST
    assert watch.grown_mb < 200
    assert not seen.refusals
