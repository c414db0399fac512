"""`make bench-install`: packages, megabytes and import times of each way to install this project."""

from __future__ import annotations

import click


@click.command()
def install() -> None:
    """Install the last commit in fresh virtual environments, with the newest packages of the index, and measure them.

    \b
    Examples:
      make bench-install
    """  # noqa: D301 - click reads the backspace itself
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from crossrank_perf.base.report import Progress
    from lab.install.measure import measure_installations

    with Progress("building wheels") as progress:
        measured = list(measure_installations(progress.say))
    table = Table(box=None)
    for title in ("pip install", "packages", "MB", "statement", "CPU ms"):
        table.add_column(title, no_wrap=True)
    for found in measured:
        row = (str(found.packages), f"{found.bytes / 1e6:.0f}", found.statement, f"{found.import_s * 1000:.0f}")
        table.add_row(escape(found.requirement), *row)
    Console(width=100).print(table)
