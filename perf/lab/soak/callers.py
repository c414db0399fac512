"""Callers of a soak: well-behaved ones over HTTP and gRPC, ones that hang up, and ones that send nonsense.

Each connects anew for a few requests. The well-behaved compare every score with what the library computes in this
process for the same texts, before the load begins.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import orjson

from crossrank import CrossEncoder
from crossrank_client import APIError, AsyncClient, CrossrankClientError
from crossrank_perf.base.workload import Request

# Engines that do not mix rows give the same bits; sums in another order may differ by this much.
_TOLERANCE = 1e-5
_CALL_TIMEOUT_S = 120.0
# Refusals that a server under load may give; the caller tries again.
_BUSY = frozenset({429, 503})
_NONSENSE = (
    b"{",
    b'{"query": "q"}',
    b'{"query": "q", "documents": []}',
    b'{"query": 1, "documents": ["a"]}',
    b'{"query": "\\ud800", "documents": ["a"]}',
    b'{"query": "q", "documents": ["a"], "top_n": -1}',
)


@dataclass(frozen=True)
class Known:
    """A request and its right answer.

    Attributes:
        model: Id of the model.
        request: Query and documents.
        logits: Of each document, as the library computes them.
        tier: The tier of the request.
    """

    model: str
    request: Request
    logits: Sequence[float]
    tier: Literal["realtime", "batch"] = "realtime"


@dataclass
class Seen:
    """What all callers saw.

    Attributes:
        answers: Right answers by kind of caller.
        wrong: Descriptions of wrong answers, the first hundred.
        busy: Refusals with 429 and 503.
        errors: Other failures by their description.
        probes: Seconds since the start, and seconds of the answer, of each probe.
    """

    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    busy: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    probes: list[tuple[float, float]] = field(default_factory=list)


def right_answers(model: str, name: str, requests: Sequence[Request]) -> list[Known]:
    """Return requests with the logits that the library computes for them.

    Args:
        model: Model as CrossEncoder takes it.
        name: Its id on the server.
        requests: Queries with their documents.

    Raises:
        CrossrankError: The model cannot be opened.
    """
    with CrossEncoder(model) as encoder:
        found = []
        for request in requests:
            pairs = [(request.query, document) for document in request.documents]
            found.append(Known(name, request, encoder.predict(pairs, activation_fn="identity").tolist()))
        return found


async def ask_until(end_s: float, url: str, known: Sequence[Known], seen: Seen, choice: random.Random) -> None:
    """Send known requests, each connection for one to eight of them, and compare the answers."""
    kind = urlsplit(url).scheme
    while time.monotonic() < end_s:
        async with AsyncClient(url, timeout=_CALL_TIMEOUT_S) as client:
            for _ in range(choice.randint(1, 8)):
                await _ask(client, choice.choice(known), kind, seen)


async def probe_until(end_s: float, url: str, known: Known, seen: Seen, every_s: float) -> None:
    """Send one small request at fixed times, whether or not the one before was answered, and note the seconds."""
    began = time.monotonic()
    running: set[asyncio.Task[None]] = set()
    async with AsyncClient(url, timeout=_CALL_TIMEOUT_S) as client:

        async def probe(due: float) -> None:
            if await _ask(client, known, "probe", seen):
                seen.probes.append((due - began, time.monotonic() - due))

        due = began
        while due < end_s:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            task = asyncio.create_task(probe(due))
            running.add(task)
            task.add_done_callback(running.discard)
            due += every_s
        await asyncio.gather(*running)


async def hang_up_until(end_s: float, url: str, known: Sequence[Known], seen: Seen, choice: random.Random) -> None:
    """Send requests and close the connection within 20 ms, some of them before the body is whole."""
    parts = urlsplit(url)
    while time.monotonic() < end_s:
        body = _body(choice.choice(known))
        if choice.random() < 0.2:
            head, body = _head(len(body)), body[: len(body) // 2]
        else:
            head = _head(len(body))
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(head + body)
            await asyncio.sleep(choice.uniform(0, 0.02))
            writer.close()
            seen.answers["hang-up"] += 1
        await asyncio.sleep(choice.uniform(0, 0.2))


async def send_nonsense_until(end_s: float, url: str, seen: Seen, choice: random.Random) -> None:
    """Send bodies that are refused, and check that they are, with 400 or 422."""
    parts = urlsplit(url)
    while time.monotonic() < end_s:
        body = choice.choice(_NONSENSE)
        try:
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
            writer.write(_head(len(body), "connection: close") + body)
            answer = await asyncio.wait_for(reader.read(), _CALL_TIMEOUT_S)
            writer.close()
        except (OSError, asyncio.TimeoutError) as error:
            seen.errors[f"nonsense: {type(error).__name__}"] += 1
        else:
            status = answer[9:12].decode()
            if status in ("400", "422"):
                seen.answers["nonsense"] += 1
            else:
                seen.errors[f"nonsense: status {status}"] += 1
        await asyncio.sleep(choice.uniform(0, 0.2))


async def _ask(client: AsyncClient, known: Known, kind: str, seen: Seen) -> bool:
    """Send one request and compare the answer; tell whether it was right."""
    try:
        answer = await client.rerank(
            known.request.query,
            list(known.request.documents),
            model=known.model,
            raw_scores=True,
            tier=known.tier,
            wait_s=60.0,
        )
    except APIError as error:
        if error.status in _BUSY:
            seen.busy += 1
        else:
            seen.errors[f"{kind}: {error}"[:200]] += 1
        return False
    except CrossrankClientError as error:
        seen.errors[f"{kind}: {type(error).__name__}"] += 1
        return False
    scores = {result.index: result.relevance_score for result in answer.results}
    deltas = [abs(scores[i] - logit) if i in scores else float("inf") for i, logit in enumerate(known.logits)]
    if len(scores) != len(known.logits) or max(deltas) > _TOLERANCE:
        if len(seen.wrong) < 100:
            seen.wrong.append(f"{kind} {known.model}: {len(scores)} of {len(deltas)} scores, off by {max(deltas):g}")
        return False
    seen.answers[kind] += 1
    return True


def _body(known: Known) -> bytes:
    fields: dict[str, Any] = {"model": known.model, "query": known.request.query, "documents": known.request.documents}
    return orjson.dumps(fields)


def _head(length: int, *lines: str) -> bytes:
    fields = ("host: localhost", "content-type: application/json", f"content-length: {length}", *lines)
    return ("POST /v1/rerank HTTP/1.1\r\n" + "".join(f"{line}\r\n" for line in fields) + "\r\n").encode()
