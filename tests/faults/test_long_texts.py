"""A body of nothing but one long text takes no more time and memory than the model's window needs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.faults.outside import MB, others, watched
from tests.server_process import RunningServer, running_server

SIZE = 9_600_000
_TIMEOUT_S = 2.0


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--model", "builtin", "--request-timeout-s", f"{_TIMEOUT_S:g}") as running:
        # What the first requests of a process cost does not count.
        _ask(running, {"query": "q", "documents": ["word " * 20_000] * 10})
        yield running


def _ask(server: RunningServer, body: dict[str, Any]) -> httpx.Response:
    content = json.dumps(body, ensure_ascii=False).encode()
    headers = {"content-type": "application/json"}
    return httpx.post(f"{server.base_url}/v1/rerank", content=content, headers=headers, timeout=120)


@pytest.mark.parametrize(
    ("text", "tokens", "truncated"),
    [
        ("[MASK]", 512, True),
        ("[SEP] 日本日本日本", 512, True),
        pytest.param("日本語", 512, True, marks=pytest.mark.slow),
        # A word too long for the tokenizer, unknown to it.
        pytest.param("é", 5, False, marks=pytest.mark.slow),
        pytest.param(" ", 4, False, marks=pytest.mark.slow),
        ("\U0001d15e", 5, False),
        pytest.param("the flea ", 512, True, marks=pytest.mark.slow),
    ],
    ids=["special tokens", "Chinese with one", "Chinese", "one word", "blank", "marks", "words"],
)
def test_one_text_of_ten_megabytes(server: RunningServer, text: str, tokens: int, truncated: bool) -> None:
    document = text * (SIZE // len(text.encode()))
    if text.startswith("[SEP]"):
        document = text + document.replace("[SEP]", "")
    with watched(server) as watch, others(server) as seen:
        answer = _ask(server, {"query": "q", "documents": [document]})
    assert answer.status_code == 200
    assert answer.json()["usage"]["total_tokens"] == tokens
    assert answer.json()["meta"]["truncated_documents"] == ([0] if truncated else [])
    assert watch.grown_mb < 12 * SIZE / MB
    assert not seen.refusals
    assert seen.slowest_s < 1.0


@pytest.mark.parametrize(
    "body",
    [
        {"query": "q", "documents": ["the flea " * (SIZE // 9)], "max_chunks_per_doc": 1 << 40},
        pytest.param(
            {"query": "q", "documents": ["日本[SEP]a " * (SIZE // 13_000)] * 1000, "max_chunks_per_doc": 10},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            {"query": "[SEP]日本" * (SIZE // 22), "documents": ["日本[SEP]" * (SIZE // 22)]}, marks=pytest.mark.slow
        ),
    ],
    ids=["chunks of one", "chunks of a thousand", "a query as long"],
)
def test_what_takes_too_long_is_given_up_on_time(server: RunningServer, body: dict[str, Any]) -> None:
    with watched(server) as watch, others(server) as seen:
        began = time.monotonic()
        answer = _ask(server, body)
        took_s = time.monotonic() - began
    # A quick machine may be done in time.
    assert answer.status_code in (200, 504)
    assert took_s < _TIMEOUT_S + 2.0
    assert watch.grown_mb < 20 * SIZE / MB
    assert not seen.refusals
    assert seen.slowest_s < 1.0


@pytest.mark.slow
def test_chunks_are_counted_before_they_are_made(server: RunningServer) -> None:
    # Each of the thousand would make 18 of them.
    body = {"query": "q", "documents": ["a " * 4800] * 1000, "max_chunks_per_doc": 18}
    with watched(server) as watch, others(server) as seen:
        answer = _ask(server, {**body, "max_tokens_per_doc": 1 << 40, "truncate_prompt_tokens": 260})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "too_many_chunks"
    assert watch.grown_mb < 20 * SIZE / MB
    assert not seen.refusals
    assert seen.slowest_s < 1.0
