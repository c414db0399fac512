"""Print the result of `make bench-graphs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from crossrank_perf.base.report import print_header, print_table


def print_graph_report(report: Mapping[str, Any]) -> None:
    """Print cost and speed of both graphs, and how many times as fast the passes make it."""
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
