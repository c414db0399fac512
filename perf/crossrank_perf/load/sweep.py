"""Measure latency against the request rate: one request at a time, then random arrivals at shares of the capacity."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.latency import known_percentiles
from crossrank_perf.base.workload import Workload, single_documents
from crossrank_perf.load.plan import LoadPlan

_ALONE_SHARE = 0.25  # of the duration
_ALONE_WARM_UP_S = 1.0

PutLoad = Callable[[Workload, LoadPlan], dict[str, Any]]


def check_shares(shares: Sequence[int]) -> None:
    """Check that all shares of the capacity, in percent, are below 100.

    Raises:
        SetupError: One is not.
    """
    if shares and max(shares) >= 100:
        raise SetupError(
            f"--sweep {max(shares)}: at 100% of the capacity and beyond the queue only grows, and latency says how "
            "long was measured; give percentages below 100"
        )


def alone_plan(plan: LoadPlan, documents: int) -> LoadPlan:
    """Return a plan that sends one request at a time, for a quarter of the duration."""
    return replace(
        plan,
        documents=documents,
        concurrency=1,
        rate=None,
        requests=None,
        warm_up_s=min(_ALONE_WARM_UP_S, plan.warm_up_s),
        duration_s=max(1.0, plan.duration_s * _ALONE_SHARE),
    )


def sweep_rates(
    put_load: PutLoad, workload: Workload, plan: LoadPlan, capacity_per_s: float, shares: Sequence[int]
) -> dict[str, Any]:
    """Return latency at each share of the capacity, ready for JSON.

    Args:
        put_load: Measures a plan; see `measure_load`.
        workload: The requests.
        plan: The closed loop that found the capacity; each rate is measured for as long.
        capacity_per_s: Requests/s of that closed loop.
        shares: Rates to measure, in percent of the capacity, below 100.

    Returns:
        `idle`: one request at a time, of a single document and of the plan's number of documents. `rates`: an entry for
        each share, with `p99_by_idle_p50`, its p99 as a multiple of the idle p50. `load_after`: the closed loop again,
        which shows whether the machine changed meanwhile.

    Raises:
        SetupError: A closed loop answered nothing, or see `measure_load`.
    """
    idle = [
        put_load(single_documents(workload), alone_plan(plan, 1)),
        put_load(workload, alone_plan(plan, plan.documents)),
    ]
    if not capacity_per_s or not all(each["requests"] for each in idle):
        raise SetupError(
            f"hardly any request was answered within {plan.duration_s:g} s, so there is nothing to hold the rates of "
            "--sweep against; raise --duration"
        )
    idle_p50_ms = idle[-1]["latency_ms"]["p50"]
    rates = []
    for share in shares:
        figures = put_load(workload, replace(plan, rate=round(capacity_per_s * share / 100, 3)))
        p99_ms = known_percentiles(figures).get("p99")
        ratio = round(p99_ms / idle_p50_ms, 2) if p99_ms else None
        rates.append({"share_percent": share, **figures, "p99_by_idle_p50": ratio})
    return {"idle": idle, "rates": rates, "load_after": put_load(workload, plan)}
