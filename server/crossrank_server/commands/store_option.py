"""Options and output that `crossrank keys` and `crossrank usage` share: store, dollars, tables, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click

from crossrank.errors import AccountsUnavailable, SetupError
from crossrank_server.accounts.store import Store

_MAX_USD = 1e6

store_option = click.option(
    "--store",
    "store_url",
    envvar="CROSSRANK_STORE",
    help="The store of the gateways, as for crossrank serve.  [CROSSRANK_STORE]",
)


@contextmanager
def opened_store(url: str | None) -> Iterator[Store]:
    """Open the store that was named.

    Raises:
        SetupError: None was named, or it does not answer.
    """
    if not url:
        raise SetupError("no store of keys was named: give --store or CROSSRANK_STORE, as for crossrank serve")
    store = Store(url)
    try:
        yield store
    except AccountsUnavailable as error:
        raise SetupError(f"the store does not answer: {error.reason}; try again") from None
    finally:
        store.close()


def nano_usd(value: str) -> int:
    """Convert a sum in USD to nano-dollars.

    Raises:
        click.BadParameter: It is no number, or beyond a million.
    """
    from crossrank_server.accounts.prices import NANO_PER_USD

    try:
        usd = float(value)
    except ValueError:
        usd = math.nan
    if not abs(usd) <= _MAX_USD:
        raise click.BadParameter(f"{value!r} is no sum: give USD such as 5.00, at most a million")
    return round(usd * NANO_PER_USD)


def print_rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], how: str) -> None:
    """Print rows as `table`, `csv` or `json`."""
    if how == "json":
        click.echo(json.dumps([dict(row) for row in rows], indent=1, default=str))
    elif how == "csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        # No 1.6e-05: not every spreadsheet reads it.
        writer.writerows({c: f"{row[c]:.9f}" if isinstance(row[c], float) else row[c] for c in columns} for row in rows)
        click.echo(text.getvalue(), nl=False)
    else:
        _print_table(rows, columns)


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> None:
    # rich takes minutes for 100,000 rows.
    cells = [[column.replace("_", " ") for column in columns]]
    cells += [[_shown(column, row[column]) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numeric = [bool(rows) and all(isinstance(row[column], int | float | None) for row in rows) for column in columns]
    aligned = [str.rjust if right else str.ljust for right in numeric]
    for line in cells:
        parts = (align(cell, width) for align, cell, width in zip(aligned, line, widths, strict=True))
        click.echo("  ".join(parts).rstrip())


def _shown(column: str, value: Any) -> str:
    if value is None:
        return "-"
    if column.endswith("_usd"):
        return f"{value:,.6f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
