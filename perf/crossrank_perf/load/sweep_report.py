"""Show the result of `crossrank bench load --sweep` as a table and as a plot."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank_perf.base.latency import known_percentiles
from crossrank_perf.base.plots import NEUTRAL, SHADES, new_figure, save_figure
from crossrank_perf.base.report import count_documents, print_table, show_errors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PERCENTILES = ("p50", "p90", "p99", "p99_9")
# Share of the capacity at which latency is quoted: a well used server with room for a busier hour.
_QUOTED_PERCENT = 70
_DRIFT = 0.1  # change of the capacity during the sweep from which there is a warning


def print_sweep_report(report: Mapping[str, Any]) -> None:
    """Print a line for the idle server and for each rate, p99 at 70% of the capacity, and the drift of the capacity."""
    from rich.table import Table

    table = Table()
    for title in ("", "requests/s", *(f"{_title(name)}, ms" for name in _PERCENTILES), "p99 by idle p50", "errors"):
        table.add_column(title, justify="right" if title else "left")
    for figures in report["idle"]:
        documents = count_documents(figures["documents_per_request"])
        table.add_row(f"idle, {documents}", *_cells(figures), end_section=figures is report["idle"][-1])
    for figures in report["rates"]:
        table.add_row(f"{figures['share_percent']}% of the capacity", *_cells(figures))
    print_table(table)
    if any(len(known_percentiles(figures)) < len(_PERCENTILES) for figures in report["rates"]):
        click.echo("-: too few answers for this percentile (p99 takes 100, p99.9 takes 1,000); raise --duration")
    for figures in report["rates"]:
        if figures["share_percent"] == _QUOTED_PERCENT and figures["p99_by_idle_p50"] is not None:
            click.echo(
                f"p99 at {_QUOTED_PERCENT}% of the capacity is {figures['p99_by_idle_p50']:.1f} times the idle p50"
            )
    before, after = report["load"]["requests_per_s"], report["load_after"]["requests_per_s"]
    click.echo(f"capacity: {before:,.1f} requests/s before, {after:,.1f} after")
    if abs(after / before - 1) > _DRIFT:
        click.echo("warning: the machine changed under way, so the shares are not what they say; measure again")


def plot_sweep(report: Mapping[str, Any], path: Path) -> None:
    """Draw the percentiles of latency over the offered rate, with the idle p50 and the capacity as lines."""
    from matplotlib.ticker import LogLocator

    figure, (axis,) = new_figure(row_height_in=4.2)
    for name, color in reversed(tuple(zip(_PERCENTILES, SHADES, strict=True))):
        _draw(axis, report, name, color)
    axis.legend(frameon=False, loc="upper left")
    idle_ms, capacity = report["idle"][-1]["latency_ms"]["p50"], report["load"]["requests_per_s"]
    axis.axhline(idle_ms, color=NEUTRAL, linestyle=":", linewidth=1)
    axis.annotate("idle p50", (0, idle_ms), xytext=(2, -10), textcoords="offset points", color=NEUTRAL, fontsize=8)
    axis.axvline(capacity, color=NEUTRAL, linestyle=":", linewidth=1)
    axis.annotate(
        "capacity (closed loop)",
        (capacity, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4, -4),
        textcoords="offset points",
        rotation=90,
        ha="right",
        va="top",
        color=NEUTRAL,
        fontsize=8,
    )
    axis.set_xlim(0, capacity * 1.05)
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.minorticks_off()
    axis.set_ylim(bottom=idle_ms / 2)
    documents = count_documents(report["load"]["documents_per_request"])
    axis.set_xlabel(f"requests/s of {documents}, arriving at random")
    axis.set_ylabel("latency from when a request was due, ms")
    to_percent, to_rate = partial(mul, 100 / capacity), partial(mul, capacity / 100)
    shares = axis.secondary_xaxis("top", functions=(to_percent, to_rate))
    shares.set_xlabel("% of the capacity")
    hardware = report["hardware"]
    figure.suptitle(f"{hardware['cpu']}, {hardware['cores']} cores, {report['date'][:10]}", x=0.01, ha="left")
    save_figure(figure, path)


def _draw(axis: Axes, report: Mapping[str, Any], name: str, color: str) -> None:
    """Draw one percentile, at the rates with enough answers for it."""
    points = [(each["rate_per_s"], known_percentiles(each).get(name)) for each in report["rates"]]
    known = [(rate, latency_ms) for rate, latency_ms in points if latency_ms is not None]
    if not known:
        return
    axis.plot(*zip(*known, strict=True), color=color, marker="o", markersize=3.5, label=_title(name))


def _cells(figures: Mapping[str, Any]) -> list[str]:
    known = known_percentiles(figures)
    ratio = figures.get("p99_by_idle_p50")
    return [
        f"{figures.get('rate_per_s', figures['requests_per_s']):,.1f}",
        *(f"{known[name]:,.2f}" if name in known else "-" for name in _PERCENTILES),
        "-" if ratio is None else f"{ratio:.1f} x",
        show_errors(figures["errors"]),
    ]


def _title(name: str) -> str:
    return name.replace("_", ".")
