"""This tree's speed beside a baseline's, in turn in one run: ratios only, and told, not judged.

A ratio is taken within a round. Its spread leaves out a fifth of the rounds at either end, so that single disturbances
neither raise a warning nor hide what deserves one: of eleven rounds at a true ratio of just the limit, nine or more lie
below it in one run of 30 (binomial, 67 / 2048).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from crossrank_perf.base.report import Progress, count_documents
from crossrank_perf.base.server import StartedServer
from crossrank_perf.base.workload import Workload
from lab.peers.contestants import Contestant, HttpContestant, Setting
from lab.peers.rounds import Rounds, compare

LEAST_ROUNDS = 5
_LEFT_OUT = 5  # one round in so many, at either end
# What a warning is given below: a slowdown that is more than this run's noise, and less than a peer's usual distance.
COMMIT_LIMIT, PEER_LIMIT = 0.95, 3.0


@dataclass(frozen=True)
class Load:
    """What is put on both.

    Attributes:
        workload: The requests.
        concurrency: Requests under way.
    """

    workload: Workload
    concurrency: int

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{count_documents(self.workload.documents)} a request, {self.concurrency} under way"


def server_contestant(name: str, server: StartedServer, load: Load) -> Contestant:
    """Return a server that runs already as a contestant."""

    def start(_: Setting) -> AbstractContextManager[tuple[str, int]]:
        return nullcontext((server.url, server.pid))

    return HttpContestant(name, start, [{}], load.concurrency, load.workload, {})


def compare_loads(
    loads: Sequence[Load],
    pair: Callable[[Load], tuple[Contestant, Contestant]],
    rounds: Rounds,
    limit: float,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Return, for each load, both speeds, their ratio with its spread and whether that lies below the limit.

    Args:
        loads: One after the other.
        pair: Gives this tree and the baseline for a load.
        rounds: How long, at least LEAST_ROUNDS.
        limit: Ratio of documents/s.
        progress: Told what runs.

    Raises:
        SetupError: One of the two failed, or their scores differ.
    """
    found = []
    for load in loads:
        own, baseline = pair(load)
        systems = compare([own], [baseline], rounds, progress, lambda _: None)["systems"]
        found.append({"load": load.name, **_comparison(systems[own.name], systems[baseline.name], own.name, limit)})
    return found


def _comparison(own: dict[str, Any], baseline: dict[str, Any], own_name: str, limit: float) -> dict[str, Any]:
    each = sorted(baseline["crossrank_ratio"][own_name]["rounds"])
    beyond = len(each) // _LEFT_OUT
    low, high = each[beyond], each[-1 - beyond]
    cpu = [system["cpu_s_per_1000_documents"] for system in (own, baseline)]
    return {
        "documents_per_s": own["documents_per_s"]["median"],
        "baseline_documents_per_s": baseline["documents_per_s"]["median"],
        "ratio": baseline["crossrank_ratio"][own_name]["median"],
        "spread": [low, high],
        "rounds": baseline["crossrank_ratio"][own_name]["rounds"],
        "cpu_ratio": round(cpu[0] / cpu[1], 3) if all(cpu) else None,
        "below_limit": high < limit,
    }
