"""Show a sweep as a table, as CSV and as a plot of latency against throughput."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.base.plots import new_figure, save_figure
from crossrank_perf.base.report import write_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME = "perf-analyzer"
_COLUMNS = (
    "model",
    "bucket",
    "documents_per_request",
    "concurrency",
    "requests",
    "documents_per_s",
    "p50_ms",
    "p90_ms",
    "p95_ms",
    "p99_ms",
    "queue_ms",
    "compute_ms",
    "executions",
    "documents_per_execution",
    "client_cpu_s",
    "triton_cpu_us_per_document",
)
# Distinguishable for most colour-blind readers (Okabe and Ito).
_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999999")


def check_directory(out: Path) -> None:
    """Check that the directory of the results exists, before minutes are spent measuring.

    Raises:
        SetupError: It does not.
    """
    if not out.is_dir():
        raise SetupError(f"--out {out}: there is no such directory; create it first")


def write_results(out: Path, report: Mapping[str, Any]) -> list[Path]:
    """Write report, points and plot into a directory and return the files.

    Raises:
        SetupError: A file cannot be written.
    """
    paths = [out / f"{NAME}.{suffix}" for suffix in ("json", "csv", "svg")]
    write_json(paths[0], report)
    try:
        paths[1].write_text(csv_from_report(report), encoding="utf-8")
        plot_report(report, paths[2])
    except OSError as error:
        raise SetupError(f"cannot write to {out}: {error.strerror or error}") from None
    return paths


def csv_from_report(report: Mapping[str, Any]) -> str:
    """Return the points of the sweep as CSV, a line for each."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_rows(report))
    return text.getvalue()


def _rows(report: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for series in report["series"]:
        for point in series["points"]:
            row = {**series, **point, **{f"{name}_ms": value for name, value in point["latency_ms"].items()}}
            yield {name: row[name] for name in _COLUMNS}


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Draw latency over throughput: a panel for each model, a colour for each bucket, p50 solid and p99 dashed."""
    models = list(dict.fromkeys(series["model"] for series in report["series"]))
    figure, axes = new_figure(len(models), row_height_in=3.8)
    for model, axis in zip(models, axes, strict=True):
        chosen = [series for series in report["series"] if series["model"] == model]
        for series, color in zip(chosen, _COLORS, strict=False):
            _draw(series, color, axis)
        axis.set_title(model, loc="left", fontsize=10)
        axis.set_yscale("log")
        axis.set_xlim(left=0)
        axis.set_xlabel("documents/s (numbers at the points: requests under way)")
        axis.set_ylabel("latency of a request, ms")
        axis.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    save_figure(figure, path)


def _draw(series: Mapping[str, Any], color: str, axis: Axes) -> None:
    speed = [point["documents_per_s"] for point in series["points"]]
    for name, style, marker in (("p50", "-", "o"), ("p99", "--", "^")):
        latency = [point["latency_ms"][name] for point in series["points"]]
        axis.plot(speed, latency, style, color=color, marker=marker, markersize=3.5, label=f"{_size(series)}, {name}")
    for point in series["points"]:
        place = (point["documents_per_s"], point["latency_ms"]["p50"])
        label = str(point["concurrency"])
        axis.annotate(label, place, xytext=(3, -9), textcoords="offset points", fontsize=7, color=color)


def print_report(report: Mapping[str, Any]) -> None:
    """Print a line for each series: its best point, and its ratios to the bare engine."""
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for title in ("model", "documents/s", "at", "p50, ms", "p99, ms", "of bare engine", "by CPU time"):
        table.add_column(title, justify="left" if title == "model" else "right")
    for series in report["series"]:
        best = max(series["points"], key=lambda point: float(point["documents_per_s"]))
        compared = series.get("bare_engine") or {}
        table.add_row(
            f"{series['model']} {_label(series)}",
            f"{best['documents_per_s']:,.0f}",
            f"{best['concurrency']} x {series['documents_per_request']}",
            f"{best['latency_ms']['p50']:,.1f}",
            f"{best['latency_ms']['p99']:,.1f}",
            _percent(compared.get("rate_ratio")),
            _percent(compared.get("cpu_ratio")),
        )
    # Piped output has no width of its own; a table must not be cut to 80 columns then.
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    ratios = report["bare_engine"]
    if ratios["rate_ratio"] is not None:
        click.echo(
            f"median of the buckets: {_percent(ratios['rate_ratio'])} of the bare engine's documents/s, "
            f"{_percent(ratios['cpu_ratio'])} of its documents per second of CPU time"
        )


def _label(series: Mapping[str, Any]) -> str:
    return "text" if series["bucket"] is None else f"bucket {series['bucket']}"


def _size(series: Mapping[str, Any]) -> str:
    return f"{_label(series)}, {series['documents_per_request']} documents a request"


def _percent(ratio: float | None) -> str:
    return "-" if ratio is None else f"{100 * ratio:.0f}%"


def summarize(series: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Return the medians over all buckets of the ratios to the bare engine; None where they were not measured."""
    compared = [each["bare_engine"] for each in series if "bare_engine" in each]
    ratios = {name: [each[name] for each in compared if each[name] is not None] for name in ("rate_ratio", "cpu_ratio")}
    return {name: round(median(values), 3) if values else None for name, values in ratios.items()}


def say(text: str) -> None:
    """Show a step on stderr while the measurement runs."""
    click.echo(text, err=True)
