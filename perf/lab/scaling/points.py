"""Measure throughput and latency with one thing varied at a time: cores, documents, tokens, concurrency, model."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.latency import latency_ms
from crossrank_perf.base.server import StartedServer, started_server
from crossrank_perf.base.workload import Workload
from crossrank_perf.load.generator import run_load
from crossrank_perf.load.plan import LoadPlan, LoadResult

DOCUMENTS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TOKENS = (16, 32, 64, 128, 256, 512)
CONCURRENCIES = (1, 2, 4, 8, 16, 32, 64)
SERIES = ("documents", "tokens", "concurrency", "cores", "models")

# The largest of the nine does a few dozen documents/s: smaller requests keep every model's measurement short.
_MODEL_DOCUMENTS, _MODEL_CONCURRENCY = 20, 4
_WARM_UP_S = 0.5
_PROBED_REQUESTS = 2
# Answers come in waves of `concurrency`; over fewer waves than this the count depends on where the window ends.
_WAVES = 3
_LONGEST_S = 60.0


@dataclass(frozen=True)
class Point:
    """Conditions of one measurement.

    Attributes:
        series: Name of what varies, one of SERIES.
        x: Value of what varies.
        model: Model as --model takes it.
        cores: Cores that the server may use.
        documents: Documents in each request.
        tokens: Tokens of every pair; None takes text of the workload's lengths.
        concurrency: Requests under way at any time.
    """

    series: str
    x: int | str
    model: str
    cores: int
    documents: int
    tokens: int | None
    concurrency: int


def make_points(base: Point, series: Sequence[str], models: Mapping[str, str]) -> list[Point]:
    """Return the points of the series; neighbours share a server where they can.

    Args:
        base: Conditions that do not vary.
        series: Names of SERIES.
        models: Path of a bundle by the name of its shape.
    """
    made: dict[str, list[Point]] = {
        "documents": [replace(base, x=n, documents=n) for n in DOCUMENTS],
        "tokens": [replace(base, x=n, tokens=n) for n in TOKENS],
        "concurrency": [replace(base, x=n, concurrency=n) for n in CONCURRENCIES],
        "cores": [replace(base, x=n, cores=n) for n in _core_counts(base.cores)],
        "models": [
            replace(base, x=name, model=path, documents=_MODEL_DOCUMENTS, concurrency=_MODEL_CONCURRENCY)
            for name, path in models.items()
        ],
    }
    return [replace(point, series=name) for name in SERIES if name in series for point in made[name]]


def measure_points(
    points: Sequence[Point],
    seconds: float,
    serve_arguments: Callable[[str], list[str]],
    workload_of: Callable[[Point], Workload],
    say: Callable[[str], None],
) -> Iterator[tuple[Point, dict[str, Any]]]:
    """Yield each point with its figures, as soon as they are known.

    Args:
        points: Points to measure.
        seconds: Seconds for each; up to a minute where few requests would be answered in that time.
        serve_arguments: Arguments of `crossrank serve` for a model.
        workload_of: The requests of a point.
        say: Called with what runs.

    Raises:
        SetupError: The server cannot be started, or requests failed.
    """
    for (model, cores), group in groupby(points, key=lambda point: (point.model, point.cores)):
        say(f"starting {model} on {cores} {'core' if cores == 1 else 'cores'}")
        with _server_on(cores, serve_arguments(model)) as server:
            for point in group:
                say(f"{point.series} {point.x}")
                yield point, _measure(server, point, workload_of(point).bodies(), seconds)


def summarize_points(points: Sequence[Point], rounds: Mapping[Point, Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Return the series, ready for JSON: conditions of each point, its rounds and their medians."""
    series: dict[str, Any] = {}
    for point in points:
        if not rounds.get(point):
            continue
        speeds = [each["documents_per_s"] for each in rounds[point]]
        facts = {name: value for name, value in vars(point).items() if name not in ("series", "model")}
        series.setdefault(point.series, []).append(
            {
                **facts,
                "documents_per_s": {"median": round(median(speeds), 1), "min": min(speeds), "max": max(speeds)},
                **{
                    f"{name}_ms": round(median(each["latency_ms"][name] for each in rounds[point]), 3)
                    for name in ("p50", "p99")
                },
                "rounds": list(rounds[point]),
            }
        )
    return series


def rounds_from_report(points: Sequence[Point], report: Mapping[str, Any]) -> dict[Point, list[dict[str, Any]]]:
    """Return the rounds that an interrupted run had measured, by point."""
    known: dict[Point, list[dict[str, Any]]] = {}
    for point in points:
        for each in report.get("series", {}).get(point.series, ()):
            if all(each[name] == getattr(point, name) for name in ("x", "cores", "documents", "tokens", "concurrency")):
                known[point] = list(each["rounds"])
    return known


def _core_counts(most: int) -> list[int]:
    """Return the powers of two up to `most`, and `most`."""
    return sorted({*(2**power for power in range(most.bit_length()) if 2**power <= most), most})


@contextmanager
def _server_on(cores: int, arguments: list[str]) -> Iterator[StartedServer]:
    """Run a server that may use only so many cores; this process may use all."""
    allowed = os.sched_getaffinity(0)
    with ExitStack() as stack:
        os.sched_setaffinity(0, sorted(allowed)[:cores])  # A child inherits its parent's affinity.
        try:
            server = stack.enter_context(started_server(arguments))
        finally:
            os.sched_setaffinity(0, allowed)
        yield server


def _measure(server: StartedServer, point: Point, bodies: list[bytes], seconds: float) -> dict[str, Any]:
    plan = LoadPlan(documents=point.documents, concurrency=1, warm_up_s=0, requests=_PROBED_REQUESTS)
    alone_s = min(_run(server.url, bodies, plan).latencies_s)
    needed_s = _WAVES * point.concurrency * alone_s
    plan = replace(
        plan,
        concurrency=point.concurrency,
        warm_up_s=max(_WARM_UP_S, min(needed_s / _WAVES, seconds)),
        duration_s=max(seconds, min(needed_s, _LONGEST_S)),
        requests=None,
    )
    result = _run(server.url, bodies, plan)
    if not result.latencies_s:
        raise SetupError(f"{point.series} {point.x}: no answer within {plan.duration_s:.0f} s; give more --seconds")
    latency = latency_ms(result.latencies_s)
    return {
        "documents_per_s": round(len(result.latencies_s) * point.documents / result.window_s, 1),
        "latency_ms": {name: latency[name] for name in ("p50", "p90", "p99")},
        "requests": len(result.latencies_s),
    }


def _run(url: str, bodies: list[bytes], plan: LoadPlan) -> LoadResult:
    result = run_load(url, bodies, plan, on_tick=lambda _: None, on_start=lambda: None, on_end=lambda: None)
    if result.errors:
        raise SetupError(f"{sum(result.errors.values())} requests failed: {result.examples}")
    return result
