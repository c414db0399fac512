"""Common interface of the compared systems, called in a process of their own or over HTTP."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Protocol

from crossrank_perf.base.processes import Usage

Setting = dict[str, int]
IN_PROCESS, OVER_HTTP = "in process", "over HTTP"


@dataclass(frozen=True)
class Turn:
    """Figures of a system in one turn.

    Attributes:
        documents_per_s: Documents scored, divided by the seconds until the last answer.
        latencies_s: Latency of each request.
        cpu_s_per_1000_documents: CPU seconds of its process and children; None where unknown.
        peak_rss_bytes: Resident memory of its process and children; None where unknown.
    """

    documents_per_s: float
    latencies_s: list[float]
    cpu_s_per_1000_documents: float | None
    peak_rss_bytes: int | None


class Contestant(Protocol):
    """A system that takes part in a comparison.

    Attributes:
        name: Name in reports.
        over: IN_PROCESS or OVER_HTTP.
        settings: Settings it can be called with, of which the fastest is used; known once it is open.
    """

    name: str
    over: str
    settings: list[Setting]

    def open(self) -> dict[str, Any]:
        """Load the system and return its versions and precision, as far as they are known."""
        ...

    def logits(self, request: int) -> list[float]:
        """Return the logits of the documents of one request, in their order."""
        ...

    def run(self, seconds: float, setting: Setting) -> Turn:
        """Score requests for so many seconds and return the figures."""
        ...

    def close(self) -> None:
        """End the processes of the system."""
        ...


def offline_environment() -> dict[str, str]:
    """Return environment variables with which no system asks a hub or sends statistics."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "true"}


def turn_of(documents: int, seconds: float, latencies_s: list[float], usage: Usage) -> Turn:
    """Return the figures of a turn: documents scored, its seconds, the latency of each request, what it used."""
    cpu_s = None if usage.cpu_s is None or not documents else usage.cpu_s / documents * 1000
    return Turn(documents / seconds, latencies_s, cpu_s, usage.peak_rss_bytes)
