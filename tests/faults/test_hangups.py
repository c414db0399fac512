"""Clients that hang up cost others little: their work ends, and nobody gets another's scores."""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest

from tests.faults.outside import descriptors, memory_mb, others, watched
from tests.raw_http import request
from tests.server_process import RunningServer, running_server

_TEXT = "the flea is a small insect that lives on other animals and cannot fly but jumps far . "


def _body(documents: int, repeats: int = 1, seed: int = 0) -> bytes:
    texts = [f"{seed} {i} " + _TEXT * repeats for i in range(documents)]
    return json.dumps({"query": f"which insect jumps {seed}", "documents": texts}).encode()


def _hang_up(server: RunningServer, message: bytes, after_s: float) -> None:
    """Send a whole request and reset the connection without reading an answer."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.sendall(message)
        time.sleep(after_s)


def _message(body: bytes) -> bytes:
    return b"".join(request("/v1/rerank", body))


def _tokens(server: RunningServer) -> float:
    metrics = httpx.get(f"{server.base_url}/metrics", timeout=30).text
    return sum(map(float, re.findall(r"^crossrank_engine_tokens_total\{.*\} (\S+)$", metrics, re.MULTILINE)))


def test_the_work_of_clients_that_hung_up_ends_and_others_go_first() -> None:
    message = _message(_body(1000, 3))  # some 70,000 tokens
    tokens = 70_000
    ended = threading.Event()

    def attack(_: int) -> int:
        count = 0
        while not ended.is_set():
            _hang_up(server, message, 0.02)
            count += 1
        return count

    with running_server("--model", "builtin") as server, ThreadPoolExecutor(8) as threads:
        attacks = [threads.submit(attack, number) for number in range(8)]
        with watched(server) as watch, others(server) as seen:
            time.sleep(2.0)
        ended.set()
        hung_up = sum(each.result() for each in attacks)
        deadline = time.monotonic() + 10
        before = -1.0
        while before != (before := _tokens(server)):
            assert time.monotonic() < deadline, "the engine still works for clients that are gone"
            time.sleep(0.3)
    assert not seen.refusals
    assert len(seen.seconds) > 3
    assert median(seen.seconds) < 0.5
    assert watch.grown_mb < 200
    assert before < 0.2 * hung_up * tokens


@pytest.mark.slow
def test_64_clients_of_which_half_hang_up_get_the_scores_that_one_gets_alone() -> None:
    rng = random.Random(1)
    bodies = [_body(rng.choice([1, 2, 10, 60]), rng.choice([1, 3]), seed) for seed in range(24)]
    with running_server("--model", "builtin") as server:
        url = f"{server.base_url}/v1/rerank"
        headers = {"content-type": "application/json"}

        def results(body: bytes) -> object:
            answer = httpx.post(url, content=body, headers=headers, timeout=60)
            return answer.status_code, answer.json()["results"]

        alone = [results(body) for body in bodies]
        ended = threading.Event()

        def hang_up(number: int) -> None:
            own = random.Random(number)
            while not ended.is_set():
                _hang_up(server, _message(own.choice(bodies)), own.random() * 0.05)

        def ask(number: int) -> int:
            own = random.Random(number)
            for _ in range(12):
                which = own.randrange(len(bodies))
                assert results(bodies[which]) == alone[which]
            return 12

        before = memory_mb(server.pid), descriptors(server.pid)
        with ThreadPoolExecutor(64) as threads:
            leaving = [threads.submit(hang_up, number) for number in range(32)]
            try:
                assert sum(threads.map(ask, range(32))) == 32 * 12
            finally:
                ended.set()
            for left in leaving:
                left.result()
        time.sleep(1.0)
        assert memory_mb(server.pid) < before[0] + 150
        assert descriptors(server.pid) < before[1] + 20
