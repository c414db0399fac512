"""Print the result of `make bench-tokenizer`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from crossrank_perf.base.report import print_header, print_table


def print_tokenizer_report(report: Mapping[str, Any]) -> None:
    """Print passages/s of each tokenizer on one core."""
    from rich.table import Table

    print_header(report)
    table = Table()
    for title in ("way", "passages/s", "passages a CPU second"):
        table.add_column(title, justify="left" if title == "way" else "right")
    for way in report["tokenizers"]:
        table.add_row(way["name"], f"{way['passages_per_s']:,}", f"{way['passages_per_cpu_s']:,}")
    print_table(table)
    how = "" if report["native"] else "; the native tokenizer is not built here"
    click.echo(f"{report['passages']:,} passages with equal ids, one core, {report['rounds']} rounds{how}")
