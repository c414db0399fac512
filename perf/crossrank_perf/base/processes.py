"""Processes under measurement: which one listens on a port, and the CPU time and memory it uses."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    import psutil


_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


def find_pid(url: str) -> int | None:
    """Return the process that listens on a URL's port, or None: another machine, or another user's process."""
    import psutil

    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK:
        return None
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        connections = psutil.net_connections("tcp")
    except psutil.AccessDenied:
        return None
    listening = {c.pid for c in connections if c.status == psutil.CONN_LISTEN and c.laddr.port == port and c.pid}
    # Of workers that share the port or its socket, the process that started them.
    parents = {psutil.Process(pid).ppid() for pid in listening}
    if len(listening) > 1 and len(parents) == 1:
        return int(parents.pop())
    return min(listening, key=lambda pid: psutil.Process(pid).create_time(), default=None)


@dataclass
class Usage:
    """CPU time and memory of a process and its children.

    Attributes:
        pid: Process id; with None nothing is measured.
        cpu_s: CPU seconds between `start` and `end`, user and system time.
        peak_rss_bytes: Largest resident memory that was sampled; pages shared by several processes count for each.
    """

    pid: int | None
    cpu_s: float | None = None
    peak_rss_bytes: int | None = None
    _cpu_at_start: float | None = field(default=None, repr=False)

    def sample(self) -> None:
        """Sample the resident memory."""
        rss = self._sum(lambda process: process.memory_info().rss)
        if rss:
            self.peak_rss_bytes = max(int(rss), self.peak_rss_bytes or 0)

    def start(self) -> None:
        """Begin to count CPU time."""
        self._cpu_at_start = self._sum(_cpu_s)
        self.sample()

    def end(self) -> None:
        """End counting CPU time, and set `cpu_s`."""
        now = self._sum(_cpu_s)
        if now is not None and self._cpu_at_start is not None:
            self.cpu_s = now - self._cpu_at_start
        self.sample()

    def _sum(self, measure: Callable[[psutil.Process], float]) -> float | None:
        """Return the sum of a figure over the process and its children, None if the process is gone."""
        import psutil

        if self.pid is None:
            return None
        try:
            parent = psutil.Process(self.pid)
            return sum(measure(process) for process in (parent, *parent.children(recursive=True)))
        except psutil.Error:  # it has just ended, which the load generator reports
            return None


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def end_children_on_sigterm() -> None:
    """Make SIGTERM end the servers and peers that this process started, which would outlive it, and then itself."""
    signal.signal(signal.SIGTERM, _end_with_children)


def _end_with_children(number: int, _: FrameType | None) -> None:
    """End all child processes, then this one.

    No exception is raised: a callback of the event loop that the signal happens to interrupt might swallow it.
    """
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.terminate()
    os._exit(128 + number)
