"""Show the result of `make bench-scaling` as a table and as plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossrank_perf.base.plots import BETTER, WORSE, new_figure, save_figure
from crossrank_perf.base.report import print_header, print_table
from crossrank_perf.plan.capacity import PUBLISHED_USD, usd_per_1000_documents

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_AXES = {
    "documents": "documents a request",
    "tokens": "tokens a pair (query, document and 3 special tokens)",
    "concurrency": "requests under way",
    "cores": "cores of the server (the load generator runs on the same machine)",
    "models": "shape (random weights)",
}


def print_scaling_report(report: Mapping[str, Any]) -> None:
    """Print a table with a line for each point."""
    from rich.table import Table

    print_header(report)
    usd_per_hour = report["usd_per_machine_hour"]
    table = Table()
    titles = ["series", "", "documents/s (min - max)", "p50, ms", "p99, ms"]
    titles += [] if usd_per_hour is None else [f"USD/1,000 documents (published: {PUBLISHED_USD})"]
    for title in titles:
        table.add_column(title, justify="left" if title == "series" else "right")
    for name, points in report["series"].items():
        for number, point in enumerate(points):
            speed = point["documents_per_s"]
            cells = [
                name if number == 0 else "",
                str(point["x"]),
                f"{speed['median']:,.0f} ({speed['min']:,.0f} - {speed['max']:,.0f})",
                f"{point['p50_ms']:,.1f}",
                f"{point['p99_ms']:,.1f}",
            ]
            if usd_per_hour is not None:
                cells.append(f"{usd_per_1000_documents(1, usd_per_hour, speed['median']):.6f}")
            table.add_row(*cells, end_section=number == len(points) - 1)
    print_table(table)


def plot_scaling(report: Mapping[str, Any], path: Path) -> None:
    """Draw documents/s and the median latency of every series, one below the other."""
    series = report["series"]
    figure, axes = new_figure(len(series), row_height_in=2.6)
    for axis, (name, points) in zip(axes, series.items(), strict=True):
        (_draw_bars if name == "models" else _draw_line)(axis, points)
        axis.set_xlabel(_AXES[name] if name != "models" else "documents/s")
        axis.set_title(_conditions(name, points[0]), loc="left", fontsize=8)
    hardware = report["hardware"]
    figure.suptitle(f"{hardware['cpu']}, {hardware['cores']} cores, {report['date'][:10]}", x=0.01, ha="left")
    save_figure(figure, path)


def _draw_line(axis: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    x = [point["x"] for point in points]
    speed = [point["documents_per_s"]["median"] for point in points]
    low = [point["documents_per_s"]["median"] - point["documents_per_s"]["min"] for point in points]
    high = [point["documents_per_s"]["max"] - point["documents_per_s"]["median"] for point in points]
    axis.errorbar(x, speed, yerr=[low, high], color=BETTER, marker="o", markersize=3.5, capsize=2)
    axis.set_xscale("log", base=2)
    axis.set_xticks(x, [str(value) for value in x])
    axis.minorticks_off()
    axis.set_ylim(bottom=0)
    axis.set_ylabel("documents/s", color=BETTER)
    latency = axis.twinx()
    latency.plot(x, [point["p50_ms"] for point in points], color=WORSE, marker="^", markersize=3.5, linestyle="--")
    latency.set_yscale("log")
    latency.grid(visible=False)
    latency.set_ylabel("latency p50, ms", color=WORSE)


def _draw_bars(axis: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    for place, point in enumerate(points[::-1]):
        speed = point["documents_per_s"]["median"]
        axis.barh(place, speed, color=BETTER)
        axis.annotate(
            f"{speed:,.0f}/s, p50 {point['p50_ms']:,.0f} ms",
            (speed, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
        )
    axis.set_yticks(range(len(points)), [str(point["x"]) for point in points[::-1]], fontsize=7)
    axis.set_xscale("log")
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.2)


def _conditions(name: str, point: Mapping[str, Any]) -> str:
    """Return the title of a series: what varies, and the values of what does not."""
    parts = {
        "documents": f"{point['documents']} documents a request",
        "concurrency": f"{point['concurrency']} requests under way",
        "cores": f"{point['cores']} cores",
        "tokens": "TREC DL 2019's lengths" if point["tokens"] is None else f"{point['tokens']} tokens a pair",
    }
    return "by " + _AXES[name].partition(" (")[0] + "; " + ", ".join(text for key, text in parts.items() if key != name)
