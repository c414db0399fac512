"""Small requests stay quick beside any number of large ones, and what would wait too long is refused at once."""

from __future__ import annotations

import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

import httpx
import pytest

from tests.faults.outside import others
from tests.server_process import RunningServer, running_server

_TEXT = "the flea is a small insect that lives on other animals and cannot fly but jumps far . "
_HEADERS = {"content-type": "application/json"}


def _body(documents: int, repeats: int) -> bytes:
    return json.dumps({"query": "which insect jumps", "documents": [_TEXT * repeats] * documents}).encode()


def _load(server: RunningServer, body: bytes, ended: threading.Event) -> list[int]:
    statuses = []
    with httpx.Client(timeout=60, headers=_HEADERS) as client:
        while not ended.is_set():
            statuses.append(client.post(f"{server.base_url}/v1/rerank", content=body).status_code)
    return statuses


def test_a_small_request_does_not_wait_for_large_ones() -> None:
    ended = threading.Event()
    with running_server("--model", "builtin") as server, ThreadPoolExecutor(8) as threads:
        body = _body(300, 20)  # over 100,000 tokens
        heavy = [threads.submit(_load, server, body, ended) for _ in range(8)]
        try:
            time.sleep(0.5)
            with others(server) as seen:
                time.sleep(2.0)
        finally:
            ended.set()
        statuses = [status for load in heavy for status in load.result()]
    assert not seen.refusals
    assert len(seen.seconds) >= 4
    assert seen.slowest_s < 1.0
    # All of them finish meanwhile, or are told when to come again.
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) >= 8


@pytest.mark.slow
def test_overload_of_small_requests_is_refused_instead_of_waiting() -> None:
    ended = threading.Event()
    with running_server("--model", "builtin", "--threads", "1", "--max-queue-s", "0.2") as server:
        body = _body(4, 25)  # some 2,000 tokens: the engine is what they wait for
        answers: list[tuple[int, float, str]] = []

        def ask() -> None:
            with httpx.Client(timeout=60, headers=_HEADERS) as client:
                while not ended.is_set():
                    began = time.monotonic()
                    answer = client.post(f"{server.base_url}/v1/rerank", content=body)
                    answers.append((answer.status_code, time.monotonic() - began, answer.text))

        with ThreadPoolExecutor(64) as threads:
            asked = [threads.submit(ask) for _ in range(64)]
            time.sleep(6.0)
            ended.set()
            for each in asked:
                each.result()
    served = [seconds for status, seconds, _ in answers if status == 200]
    refused = [text for status, _, text in answers if status == 429]
    assert len(served) + len(refused) == len(answers)
    assert len(served) > 100
    assert median(served) < 1.0
    assert refused
    error = json.loads(refused[0])["error"]
    assert error["code"] == "overloaded"
    # Twenty times as long as it takes itself, where the machine needs more than 10 ms.
    assert re.search(r"and this one may wait \d\.\d s: try again in \d+ s, or raise --max-queue-s", error["message"])
    assert error["retry_after_s"] >= 1.0
