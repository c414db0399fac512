"""Judge a soak, and print it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from crossrank_perf.base.report import print_header, print_table
from lab.soak.run import Sample, Soaked

# Of the whole time; what follows is compared.
_WARM_UP_SHARE = 0.2
_PARTS = 8
_MOST_GROWTH = 0.02
# Other processes of a shared machine move the median by some percent.
_MOST_SLOWER = 0.1


def soak_figures(soaked: Soaked, seconds: float) -> dict[str, Any]:
    """Return memory, descriptors and latency by eighths of the time, and what was wrong, ready for JSON."""
    edges = np.linspace(0, seconds, _PARTS + 1)
    parts = [_part(soaked, float(start), float(stop)) for start, stop in pairwise(edges)]
    kept = [sample for sample in soaked.samples if sample.at_s >= _WARM_UP_SHARE * seconds]
    figures = {
        "seconds": seconds,
        "parts": parts,
        "memory_growth": _growth([sample.memory_mb for sample in kept]),
        "latency_growth": _growth([took for at, took in soaked.seen.probes if at >= _WARM_UP_SHARE * seconds]),
        "slept": any(sample.asleep for sample in kept) and not all(sample.asleep for sample in kept),
        "answers": dict(soaked.seen.answers),
        "busy": soaked.seen.busy,
        "wrong": soaked.seen.wrong,
        "errors": dict(soaked.seen.errors),
    }
    return figures | {"faults": list(_faults(figures))}


def _part(soaked: Soaked, start_s: float, stop_s: float) -> dict[str, Any]:
    samples: Sequence[Sample] = [sample for sample in soaked.samples if start_s <= sample.at_s < stop_s]
    seconds = [took for at, took in soaked.seen.probes if start_s <= at < stop_s]
    p50, p99 = (np.percentile(seconds, (50, 99)) * 1000).round(2).tolist() if seconds else (None, None)
    return {
        "from_s": round(start_s),
        "memory_mb": float(np.median([sample.memory_mb for sample in samples])) if samples else None,
        "descriptors": max((sample.descriptors for sample in samples), default=None),
        "probe_p50_ms": p50,
        "probe_p99_ms": p99,
    }


def _growth(values: Sequence[float]) -> float:
    """Return by how much the median of the last half is above that of the first, as a share."""
    half = len(values) // 2
    first, last = np.median(values[:half]), np.median(values[half:])
    return round(float(last / first - 1), 4)


def _faults(figures: Mapping[str, Any]) -> Iterator[str]:
    if figures["wrong"]:
        yield f"{len(figures['wrong'])} answers were wrong, the first: {figures['wrong'][0]}"
    for error, count in figures["errors"].items():
        yield f"{count} times: {error}"
    if figures["memory_growth"] > _MOST_GROWTH:
        yield f"memory grew by {figures['memory_growth']:.1%} after warm-up, more than {_MOST_GROWTH:.0%}"
    if figures["latency_growth"] > _MOST_SLOWER:
        yield f"small requests became slower by {figures['latency_growth']:.1%}, more than {_MOST_SLOWER:.0%}"
    if not figures["slept"]:
        yield "the second model did not both sleep and serve: soak for longer"


def print_soak_report(report: Mapping[str, Any]) -> None:
    """Print memory, descriptors and the probes' latency by part of the time, and the verdict."""
    import click
    from rich.table import Table

    print_header(report)
    figures = report["soak"]
    table = Table()
    for title in ("from, s", "memory, MB", "descriptors", "probe p50, ms", "p99, ms"):
        table.add_column(title, justify="right")
    for part in figures["parts"]:
        table.add_row(*("-" if value is None else f"{value:,.6g}" for value in part.values()))
    print_table(table)
    answers = ", ".join(f"{count:,} {kind}" for kind, count in figures["answers"].items())
    click.echo(f"right answers: {answers}; {figures['busy']} refused as busy")
    growth = f"memory {figures['memory_growth']:+.1%}, latency of small requests {figures['latency_growth']:+.1%}"
    click.echo(f"after warm-up, from the first half to the last: {growth}")
    for fault in figures["faults"]:
        click.secho(f"fault: {fault}", fg="red")
