"""Print the result of `make bench-tiers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from crossrank_perf.base.report import print_header, print_table


def print_tier_report(report: Mapping[str, Any]) -> None:
    """Print the latency of the realtime requests and the speed of the flood in each round."""
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
