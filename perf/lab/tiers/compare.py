"""Measure realtime requests alone, beside a flood of the tier `batch`, and beside the same flood as realtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from crossrank_perf.load.generator import run_load
from crossrank_perf.load.measure import summarize
from crossrank_perf.load.plan import LoadPlan

_WARM_UP_S = 2.0


@dataclass(frozen=True)
class Rounds:
    """Parameters of the rounds.

    Attributes:
        documents: Documents in each request.
        rate: Realtime requests/s.
        flood: Requests of the flood under way at any time.
        duration_s: Seconds measured in each round.
        seed: Seed of the arrival times, which are the same in each round.
    """

    documents: int
    rate: float
    flood: int
    duration_s: float
    seed: int


def compare_tiers(
    url: str, bodies: Sequence[bytes], rounds: Rounds, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return name and figures of each round, of `realtime` and of `flood`, ready for JSON.

    Args:
        url: Base URL of the server.
        bodies: JSON bodies, sent in order and then again.
        rounds: Parameters of the rounds.
        say: Called with the name of each round.

    Raises:
        SetupError: The server cannot be reached, refuses the first request, or stopped answering.
    """
    same: dict[str, Any] = {
        "documents": rounds.documents,
        "warm_up_s": min(_WARM_UP_S, rounds.duration_s),
        "duration_s": rounds.duration_s,
        "seed": rounds.seed,
    }
    realtime = LoadPlan(rate=rounds.rate, **same)
    as_batch = LoadPlan(concurrency=rounds.flood, tier="batch", timeout_s=600, **same)
    as_realtime = LoadPlan(concurrency=rounds.flood, **same)
    loads: dict[str, dict[str, LoadPlan]] = {
        "realtime alone": {"realtime": realtime},
        "batch flood alone": {"flood": as_batch},
        "flood as realtime, alone": {"flood": as_realtime},
        "beside a batch flood": {"realtime": realtime, "flood": as_batch},
        "beside the flood as realtime": {"realtime": realtime, "flood": as_realtime},
    }
    results = []
    for name, plans in loads.items():
        say(name)
        # Each in a thread with an event loop of its own.
        with ThreadPoolExecutor(len(plans)) as threads:
            futures = {who: threads.submit(_measure, url, bodies, plan) for who, plan in plans.items()}
            results.append({"name": name, "loads": {who: future.result() for who, future in futures.items()}})
    return results


def _measure(url: str, bodies: Sequence[bytes], plan: LoadPlan) -> dict[str, Any]:
    result = run_load(url, bodies, plan, on_tick=lambda _: None, on_start=lambda: None, on_end=lambda: None)
    return summarize(result, plan.documents)
