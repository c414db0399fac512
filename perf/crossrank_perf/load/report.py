"""Print the result of `bench load`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from crossrank_perf.base.report import Progress, count_documents, print_header, print_table, show_errors
from crossrank_perf.load.plan import Tick

# The measurements of `bench load` that a report may hold.
LOADS = ("load", "grpc_load", "single_document", "grpc_single_document")


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


def _load_title(column: Mapping[str, Any]) -> str:
    documents = count_documents(column["documents_per_request"])
    if column["loop"] == "closed":
        return f"{column['over']}, {documents},\nconcurrency {column['concurrency']}"
    return f"{column['over']}, {documents},\n{column['rate_per_s']:g} requests/s"


def _cores(column: Mapping[str, Any], name: str) -> str:
    used, window_s = column[name], column["window_s"]
    return "-" if used is None or not window_s else f"{used / window_s:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def show_tick(progress: Progress, documents: int, tick: Tick) -> None:
    """Show how far the load generator is.

    Args:
        progress: Where it is shown.
        documents: Documents in each request.
        tick: State of the load generator.
    """
    if not tick.measuring:
        progress.say(f"warming up, {tick.elapsed_s:.0f} s")
        return
    speed = tick.answered * documents / tick.elapsed_s if tick.elapsed_s > 0 else 0.0
    failed = f", {tick.failed} failed" if tick.failed else ""
    progress.say(f"{tick.elapsed_s:.0f} s, {tick.answered} requests, {speed:,.0f} documents/s{failed}")
