"""Measure a running server under load: throughput and latency, and the CPU time and memory of its process."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import Any

from crossrank_perf.base.latency import latency_ms
from crossrank_perf.base.processes import Usage
from crossrank_perf.load.generator import run_load
from crossrank_perf.load.plan import LoadPlan, LoadResult, OnTick, Tick
from crossrank_perf.load.senders import is_grpc


def measure_load(url: str, pid: int | None, bodies: Sequence[bytes], plan: LoadPlan, on_tick: OnTick) -> dict[str, Any]:
    """Put load on a server and return the figures, ready for JSON.

    Args:
        url: Base URL.
        pid: The server's process, or None to leave out its CPU and memory.
        bodies: From `Workload.bodies` for this URL, sent in order and then again.
        plan: Parameters of the load.
        on_tick: Called with the progress.

    Raises:
        SetupError: The server cannot be reached, refuses the first request, or stopped answering.
    """
    usage = Usage(pid)
    own_cpu = [0.0, 0.0]

    def tick(progress: Tick) -> None:
        usage.sample()
        on_tick(progress)

    def start() -> None:
        own_cpu[0] = _own_cpu_s()
        usage.start()

    def end() -> None:
        usage.end()
        own_cpu[1] = _own_cpu_s()

    result = run_load(url, bodies, plan, on_tick=tick, on_start=start, on_end=end)
    return {
        "over": "gRPC" if is_grpc(url) else "HTTP",
        **_plan_facts(plan),
        **summarize(result, plan.documents),
        "server_cpu_s": _rounded(usage.cpu_s, 2),
        "server_peak_rss_mb": None if usage.peak_rss_bytes is None else round(usage.peak_rss_bytes / 1e6, 1),
        "generator_cpu_s": round(own_cpu[1] - own_cpu[0], 2),
    }


def summarize(result: LoadResult, documents: int) -> dict[str, Any]:
    """Return throughput, latency percentiles and errors of a run.

    Args:
        result: Outcome of a load.
        documents: Documents in each request.
    """
    good = len(result.latencies_s)
    window_s = result.window_s
    per_second = good / window_s if window_s else 0.0
    facts: dict[str, Any] = {
        "window_s": round(window_s, 3),
        "requests": good,
        "requests_per_s": round(per_second, 2),
        "documents_per_s": round(per_second * documents, 1),
        "latency_ms": latency_ms(result.latencies_s),
        "errors": dict(result.errors),
        "error_examples": result.examples,
    }
    if result.lags_s:
        facts["generator_lag_ms"] = latency_ms(result.lags_s)
    return facts


def _plan_facts(plan: LoadPlan) -> dict[str, Any]:
    facts: dict[str, Any] = {"documents_per_request": plan.documents, "warm_up_s": plan.warm_up_s}
    if plan.rate is None:
        return {"loop": "closed", "concurrency": plan.concurrency, **facts}
    return {"loop": "open", "rate_per_s": plan.rate, **facts}


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
