"""Show a benchmark: progress on stderr while it runs, then tables on stdout and JSON in a file."""

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

# Seconds between lines where stderr is no terminal.
_LOG_EVERY_S = 5.0


class Progress:
    """A progress line on stderr: rewritten in place on a terminal, at most every five seconds in a log."""

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
        """Show what is running."""
        line = f"{self._label}: {text}"
        if self._live:
            click.echo("\r" + line.ljust(self._width), err=True, nl=False)
            self._width = max(self._width, len(line))
        elif time.monotonic() - self._last >= _LOG_EVERY_S:
            click.echo(line, err=True)
            self._last = time.monotonic()


def check_writable(path: Path) -> None:
    """Check that the directory of a result file exists, before minutes are spent measuring.

    Raises:
        SetupError: It does not.
    """
    if not path.parent.is_dir():
        raise SetupError(f"--json {path}: the directory {path.parent} does not exist; create it first")


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write a report as indented JSON.

    Raises:
        SetupError: The file cannot be written.
    """
    try:
        path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise SetupError(f"cannot write {path}: {error.strerror or error}") from None


def print_header(report: Mapping[str, Any]) -> None:
    """Print machine, models, source of the requests and date of a measurement."""
    hardware = report["hardware"]
    flags = [name for name in ("amx_bf16", "avx512_bf16") if hardware["flags"][name]]
    click.echo(f"{hardware['cpu']}, {hardware['cores']} cores, {' '.join(flags) or 'no bf16 instructions'}")
    for model in report.get("server", {}).get("models", ()):
        release = report["versions"].get("crossrank", "")
        click.echo(f"crossrank {release}: {model['id']}, {model['engine']} {model['precision']}")
    click.echo(f"{report['workload']['source']}, {report['date']}")


def print_table(table: Any) -> None:
    """Print a table on stdout, 120 columns wide where that is no terminal."""
    from rich.console import Console

    # Piped output has no width of its own; a table must not be cut to 80 columns then.
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def count_documents(count: int) -> str:
    """Return a number of documents as text, such as `1 document` or `20 documents`."""
    return "1 document" if count == 1 else f"{count} documents"


def show_errors(errors: Mapping[str, int]) -> str:
    """Return the number of failed requests by kind as text, `none` where all were answered."""
    return ", ".join(f"{count} x {kind}" for kind, count in errors.items()) or "none"
