"""How a benchmark shows itself: progress on stderr while it runs, then tables on stdout and JSON in a file."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from crossrank.errors import SetupError
from crossrank_perf.load import Tick

# The measurements of `bench load` that a report may hold.
LOADS = ("load", "grpc_load", "single_document", "grpc_single_document")
# A log wants a line now and then, a terminal one that moves.
_LOG_EVERY_S = 5.0


class Progress:
    """One line on stderr that says what is running: rewritten on a terminal, every five seconds in a log."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._live = sys.stderr.isatty()
        self._last = time.monotonic()
        self._width = 0

    def __enter__(self) -> Progress:
        if not self._live:
            click.echo(self._label, err=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)

    def say(self, text: str) -> None:
        """Show a state."""
        line = f"{self._label}: {text}"
        if self._live:
            click.echo("\r" + line.ljust(self._width), err=True, nl=False)
            self._width = max(self._width, len(line))
        elif time.monotonic() - self._last >= _LOG_EVERY_S:
            click.echo(line, err=True)
            self._last = time.monotonic()

    def load_tick(self, documents: int, tick: Tick) -> None:
        """Show the progress of the load generator."""
        if not tick.measuring:
            self.say(f"warming up, {tick.elapsed_s:.0f} s")
            return
        speed = tick.answered * documents / tick.elapsed_s if tick.elapsed_s > 0 else 0.0
        failed = f", {tick.failed} failed" if tick.failed else ""
        self.say(f"{tick.elapsed_s:.0f} s, {tick.answered} requests, {speed:,.0f} documents/s{failed}")


def check_writable(path: Path) -> None:
    """Raise SetupError now, not after minutes of measuring, where a result could not be written."""
    if not path.parent.is_dir():
        raise SetupError(f"--json {path}: the directory {path.parent} does not exist; create it first")


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report, readable by people too.

    Raises:
        SetupError: The file cannot be written.
    """
    try:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from None


def print_load_report(report: Mapping[str, Any]) -> None:
    """Print the result of `bench load` as a table, one column for each measurement."""
    from rich.table import Table

    print_header(report)
    columns = [report[name] for name in LOADS if name in report]
    table = Table()
    table.add_column("")
    for column in columns:
        table.add_column(_load_title(column), justify="right")
    table.add_row("documents/s", *(f"{column['documents_per_s']:,.0f}" for column in columns))
    table.add_row("requests/s", *(f"{column['requests_per_s']:,.1f}" for column in columns))
    for name in ("p50", "p90", "p99", "p99_9", "max"):
        shown = (column["latency_ms"].get(name) for column in columns)
        label = name.replace("_", ".")
        table.add_row(f"latency {label}, ms", *("-" if value is None else f"{value:,.2f}" for value in shown))
    table.add_row("errors", *(show_errors(column["errors"]) for column in columns))
    table.add_row("server CPU, s/s", *(_cores(column, "server_cpu_s") for column in columns))
    table.add_row("generator CPU, s/s", *(_cores(column, "generator_cpu_s") for column in columns))
    table.add_row("server memory, peak MB", *(_number(column["server_peak_rss_mb"]) for column in columns))
    print_table(table)
    start = report["server"].get("start_to_ready_s")
    if start is not None:
        click.echo(f"from start to ready: {start:.2f} s, then {report['server']['rss_at_ready_mb']:,.0f} MB resident")


def print_graph_report(report: Mapping[str, Any]) -> None:
    """Print the result of `bench graphs`: both graphs, and how many times faster the optimized one was."""
    from rich.table import Table

    print_header(report)
    table = Table()
    for title in ("graph", "nodes", "MFLOP a 96-token pair", "pairs/s"):
        table.add_column(title, justify="left" if title == "graph" else "right")
    for graph in report["graphs"]:
        mflop = graph["mflop_per_96_token_pair"]
        table.add_row(
            graph["name"],
            str(graph["nodes"]),
            "?" if mflop is None else f"{mflop:,.1f}",
            f"{graph['pairs_per_s']:,.0f}",
        )
    print_table(table)
    ratios = report["ratios"]
    click.echo(
        f"{report['pairs']} pairs of {report['mean_tokens']} tokens on average, onnxruntime "
        f"{report['versions'].get('onnxruntime', '')} fp32: the passes make it {report['ratio']:.2f} times as fast "
        f"({min(ratios):.2f} - {max(ratios):.2f} in {len(ratios)} rounds), max |delta logit| "
        f"{report['max_delta_logit']:.1e}"
    )


def print_tier_report(report: Mapping[str, Any]) -> None:
    """Print the result of `bench tiers`: latency of the realtime requests and speed of the flood in each round."""
    from rich.table import Table

    print_header(report)
    table = Table()
    for title in ("round", "realtime p50, ms", "p99, ms", "max, ms", "realtime documents/s", "flood documents/s"):
        table.add_column(title, justify="left" if title == "round" else "right")
    for each in report["rounds"]:
        realtime, flood = each["loads"].get("realtime"), each["loads"].get("flood")
        latency = [f"{realtime['latency_ms'][name]:,.1f}" for name in ("p50", "p99", "max")] if realtime else ["-"] * 3
        speeds = [f"{figures['documents_per_s']:,.0f}" if figures else "-" for figures in (realtime, flood)]
        table.add_row(each["name"], *latency, *speeds)
    print_table(table)


def print_header(report: Mapping[str, Any]) -> None:
    """Print the machine, the models, the text and the day of a measurement."""
    hardware = report["hardware"]
    flags = [name for name in ("amx_bf16", "avx512_bf16") if hardware["flags"][name]]
    click.echo(f"{hardware['cpu']}, {hardware['cores']} cores, {' '.join(flags) or 'no bf16 instructions'}")
    for model in report.get("server", {}).get("models", ()):
        release = report["versions"].get("crossrank", "")
        click.echo(f"crossrank {release}: {model['id']}, {model['engine']} {model['precision']}")
    click.echo(f"{report['workload']['source']}, {report['date']}")


def print_table(table: Any) -> None:
    """Print a table on stdout, whole also where that is a file."""
    from rich.console import Console

    # Piped output has no width of its own; a table must not be cut to 80 columns then.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def count_documents(count: int) -> str:
    """Return a number of documents in words."""
    return "1 document" if count == 1 else f"{count} documents"


def _load_title(column: Mapping[str, Any]) -> str:
    documents = count_documents(column["documents_per_request"])
    if column["loop"] == "closed":
        return f"{column['over']}, {documents},\nconcurrency {column['concurrency']}"
    return f"{column['over']}, {documents},\n{column['rate_per_s']:g} requests/s"


def show_errors(errors: Mapping[str, int]) -> str:
    """Return how many requests failed in which way, `none` where all were answered."""
    return ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "none"


def _cores(column: Mapping[str, Any], name: str) -> str:
    used, window_s = column[name], column["window_s"]
    return "-" if used is None or not window_s else f"{used / window_s:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"
