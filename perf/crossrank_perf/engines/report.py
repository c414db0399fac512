"""Print the result of `bench engines`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from crossrank_perf.base.report import print_header, print_table


def print_engine_report(report: Mapping[str, Any]) -> None:
    """Print speed and CPU time of each engine, absolute and relative to the first."""
    from rich.table import Table

    print_header(report)
    table = Table()
    titles = ("engine", "pairs/s", "CPU us a pair", "time, of the first's", "CPU, of the first's", "max |delta logit|")
    for title in titles:
        table.add_column(title, justify="left" if title == "engine" else "right")
    for engine in report["engines"]:
        table.add_row(
            f"{engine['name']} {engine['precision']}",
            f"{engine['pairs_per_s']:,.0f}",
            f"{engine['cpu_us_per_pair']:,.0f}",
            f"{engine['wall_ratio']:.2f} x",
            f"{engine['cpu_ratio']:.2f} x",
            f"{engine['max_delta_logit']:.1e}",
        )
    print_table(table)
    click.echo(
        f"{report['pairs']} pairs of {report['mean_tokens']} tokens on average, one request at a time, "
        f"{report['threads']} threads, {report['rounds']} rounds"
    )
    if "buckets" in report:
        _print_bucket_rates(report["buckets"])


def _print_bucket_rates(rates: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table

    table = Table(title="full batches, nothing else")
    for title in ("engine", "tokens", "pairs a batch", "pairs/s", "CPU us a pair"):
        table.add_column(title, justify="left" if title == "engine" else "right")
    for rate in rates:
        table.add_row(
            f"{rate['engine']} {rate['precision']}",
            f"{rate['bucket']}",
            f"{rate['pairs_a_batch']:,}",
            f"{rate['pairs_per_s']:,.0f}",
            f"{rate['cpu_us_per_pair']:,.1f}",
        )
    print_table(table)
