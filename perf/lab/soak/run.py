"""Run all callers of a soak against one server, and sample its memory, descriptors and loaded models meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

import httpx
import psutil

from crossrank.errors import SetupError
from crossrank_perf.base.server import StartedServer, served_models
from crossrank_perf.base.workload import load_workload
from lab.soak.callers import (
    Known,
    Seen,
    ask_until,
    hang_up_until,
    probe_until,
    right_answers,
    send_nonsense_until,
)

_PROBE_EVERY_S = 0.5
# Requests and documents in each, of every kind of caller.
_SIZES = ((40, 1), (40, 10), (20, 100), (4, 1000))
# Requests of more documents are of the tier `batch`.
_REALTIME_DOCUMENTS = 100
# The second model is asked for in the first third of each period, and sleeps in the rest.
_PERIOD_S = 180.0
SLEEP_AFTER_S = 45


@dataclass(frozen=True)
class Sample:
    """The state of the server at a moment.

    Attributes:
        at_s: Seconds since the start.
        memory_mb: Resident memory of the server.
        descriptors: Open files and sockets.
        asleep: Models that sleep.
    """

    at_s: float
    memory_mb: float
    descriptors: int
    asleep: tuple[str, ...]


@dataclass(frozen=True)
class Soaked:
    """What a soak gave."""

    seen: Seen
    samples: list[Sample]


def soak(server: StartedServer, models: Sequence[str], seconds: float, seed: int, say: Callable[[str], None]) -> Soaked:
    """Send mixed load for some seconds.

    Args:
        server: With gRPC.
        models: Two models as `crossrank serve --model` takes them; the second one sleeps between its bursts.
        seconds: How long.
        seed: Of the callers' choices.
        say: Called with the progress.

    Raises:
        CrossrankError: A model cannot be opened, or the server ended.
    """
    names = [entry["id"] for entry in served_models(server.url)]
    say("what the right answers are")
    always = _known(models[0], names[0], seed)
    sometimes = [known for known in _known(models[1], names[1], seed) if len(known.logits) <= 10]
    return asyncio.run(_soak(server, always, sometimes, seconds, seed, say))


def _known(model: str, name: str, seed: int) -> list[Known]:
    requests = [
        request for count, documents in _SIZES for request in load_workload(None, documents, seed=seed).requests[:count]
    ]
    return right_answers(model, name, requests)


async def _soak(
    server: StartedServer,
    always: Sequence[Known],
    sometimes: Sequence[Known],
    seconds: float,
    seed: int,
    say: Callable[[str], None],
) -> Soaked:
    seen, samples = Seen(), list[Sample]()
    began = time.monotonic()
    end = began + seconds
    choices = iter(random.Random(f"{seed} {number}") for number in range(100))
    realtime = [known for known in always if len(known.logits) <= _REALTIME_DOCUMENTS]
    bulk = [replace(known, tier="batch") for known in always if len(known.logits) > _REALTIME_DOCUMENTS]
    small = next(known for known in realtime if len(known.logits) == 1)
    work: list[Awaitable[None]] = [
        probe_until(end, server.url, small, seen, _PROBE_EVERY_S),
        *(ask_until(end, server.url, realtime, seen, next(choices)) for _ in range(2)),
        ask_until(end, server.grpc_url, realtime, seen, next(choices)),
        ask_until(end, server.url, bulk, seen, next(choices)),
        hang_up_until(end, server.url, realtime, seen, next(choices)),
        send_nonsense_until(end, server.url, seen, next(choices)),
        _in_bursts(end, server.url, sometimes, seen, next(choices)),
        _sample_until(end, began, server, seen, samples, say),
    ]
    await asyncio.gather(*work)
    return Soaked(seen, samples)


async def _in_bursts(end_s: float, url: str, known: Sequence[Known], seen: Seen, choice: random.Random) -> None:
    while time.monotonic() < end_s:
        burst_ends = time.monotonic() + _PERIOD_S / 3
        await ask_until(min(burst_ends, end_s), url, known, seen, choice)
        await asyncio.sleep(max(min(burst_ends + 2 * _PERIOD_S / 3, end_s) - time.monotonic(), 0))


async def _sample_until(
    end_s: float, began: float, server: StartedServer, seen: Seen, samples: list[Sample], say: Callable[[str], None]
) -> None:
    every_s = min(10.0, (end_s - began) / 30)
    async with httpx.AsyncClient(base_url=server.url, timeout=60) as client:
        while time.monotonic() < end_s:
            await asyncio.sleep(every_s)
            try:
                process = psutil.Process(server.pid)
                memory, descriptors = process.memory_info().rss / 1e6, process.num_fds()
            except psutil.NoSuchProcess:
                raise SetupError(f"the server (process {server.pid}) ended during the soak") from None
            entries = (await client.get("/v1/models")).json()["data"]
            asleep = tuple(entry["id"] for entry in entries if entry["status"] == "asleep")
            samples.append(Sample(round(time.monotonic() - began, 1), round(memory, 1), descriptors, asleep))
            say(f"{samples[-1].at_s:.0f} s, {memory:.0f} MB, {seen.answers.total()} right, {len(seen.wrong)} wrong")
