"""Measure a server from outside while it is attacked: its memory, its descriptors, and what other callers notice."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import httpx
import psutil

from tests.server_process import RunningServer

MB = 1_000_000
_SAMPLE_S = 0.02
SMALL = {"query": "capital of france", "documents": ["Paris is the capital of France.", "Bread is baked."]}


@dataclass
class Watch:
    """What a process and its children needed while they were watched.

    Attributes:
        start_mb: Resident memory at first, in MB.
        peak_mb: The most that was seen.
        end_mb: Resident memory when the watch ended.
        start_descriptors: Open files and sockets at first.
        end_descriptors: The same when the watch ended.
    """

    start_mb: float
    peak_mb: float
    start_descriptors: int
    end_mb: float = 0.0
    end_descriptors: int = 0

    @property
    def grown_mb(self) -> float:
        """How far the peak was above the start, in MB."""
        return self.peak_mb - self.start_mb


@dataclass
class Others:
    """What a well-behaved caller noticed, who sent one small request after the other.

    Attributes:
        seconds: Of each request that was answered with 200, from connecting to the whole answer.
        refusals: Statuses and errors of the others.
    """

    seconds: list[float] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    @property
    def slowest_s(self) -> float:
        """Seconds of the slowest answer."""
        return max(self.seconds, default=float("inf"))


@contextlib.contextmanager
def watched(server: RunningServer) -> Iterator[Watch]:
    """Sample the memory of a server, workers included, until the block ends."""
    watch = Watch(memory_mb(server.pid), 0.0, descriptors(server.pid))
    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            watch.peak_mb = max(watch.peak_mb, memory_mb(server.pid))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        watch.end_mb = memory_mb(server.pid)
        watch.end_descriptors = descriptors(server.pid)
        watch.peak_mb = max(watch.peak_mb, watch.end_mb)


@contextlib.contextmanager
def others(
    server: RunningServer, *, pause_s: float = 0.02, headers: Mapping[str, str] | None = None
) -> Iterator[Others]:
    """Send small requests, each on a connection of its own, until the block ends."""
    seen = Others()
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            began = time.monotonic()
            try:
                answer = httpx.post(f"{server.base_url}/v1/rerank", json=SMALL, headers=headers, timeout=60)
            except httpx.HTTPError as error:
                seen.refusals.append(repr(error))
            else:
                if answer.status_code == 200:
                    seen.seconds.append(time.monotonic() - began)
                else:
                    seen.refusals.append(f"{answer.status_code} {answer.text[:200]}")
            ended.wait(pause_s)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def memory_mb(pid: int) -> float:
    """Return the resident memory of a process and its children, in MB."""
    return sum(process.memory_info().rss for process in _family(pid)) / MB


def descriptors(pid: int) -> int:
    """Return the number of open files and sockets of a process and its children."""
    return sum(process.num_fds() for process in _family(pid))


def _family(pid: int) -> list[psutil.Process]:
    parent = psutil.Process(pid)
    return [parent, *parent.children(recursive=True)]
