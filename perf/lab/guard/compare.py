"""Compare the speed of this tree with a baseline: ratios of rounds in turn, with a warning below a limit.

The ratio is taken within each round. Its spread leaves out a fifth of the rounds at either end, so that a single
disturbance neither raises nor hides a warning: where the true ratio is exactly the limit, nine or more of eleven rounds
lie below it in one run of 30 (binomial, 67 / 2048).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from crossrank_perf.base.report import Progress, count_documents
from crossrank_perf.base.server import StartedServer
from crossrank_perf.base.workload import Workload
from lab.peers.contestants import Contestant, Setting
from lab.peers.over_http import HttpContestant
from lab.peers.rounds import Rounds, compare

LEAST_ROUNDS = 5
_LEFT_OUT = 5  # one round in five is left out at either end
# Ratios below which there is a warning: a slowdown beyond the noise of a run, and less than the usual lead over a peer.
COMMIT_LIMIT, PEER_LIMIT = 0.95, 3.0


@dataclass(frozen=True)
class Load:
    """Load that both get.

    Attributes:
        workload: The requests.
        concurrency: Requests under way at any time.
    """

    workload: Workload
    concurrency: int

    @property
    def name(self) -> str:
        """Return the name of the load in reports."""
        return f"{count_documents(self.workload.documents)} a request, {self.concurrency} under way"


def server_contestant(name: str, server: StartedServer, load: Load) -> Contestant:
    """Return a contestant for a server that runs already."""

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
        loads: Loads, measured one after the other.
        pair: Returns the contestants for a load: this tree and the baseline.
        rounds: Number and length of the rounds, at least LEAST_ROUNDS.
        limit: Ratio of documents/s below which there is a warning.
        progress: Shows what runs.

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
