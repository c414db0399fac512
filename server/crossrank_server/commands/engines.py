"""`crossrank engines`: what computes a model's scores on this machine, and why nothing before it does."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import click

from crossrank_server.commands.options import options_from_settings, settings_from_options
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank.engines.select import Choice

_PIPE_WIDTH = 100
_FORWARDED = {"engine", "precision", "label", "offline", "cache_dir"}


@click.command()
@click.argument("model", default="builtin")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@options_from_settings(ServeSettings, only=_FORWARDED)
def engines(model: str, as_json: bool, **options: Any) -> None:
    """Show what computes a model's scores here, and why.

    Every engine, precision and kernel has a line, with the reason where it is not taken. They are tried in order, as by
    crossrank serve, and the first that can serve is loaded. Below stand the native libraries, with the reason where one
    was not built or cannot be used.

    \b
    Examples:
      crossrank engines
      crossrank engines cross-encoder/ms-marco-MiniLM-L6-v2
      crossrank engines --engine native --json | jq .taken
    """  # noqa: D301
    from crossrank.engines.select import choose_engine
    from crossrank.resolve import resolve_model

    settings = settings_from_options(ServeSettings, options)
    bundle = resolve_model(model, cache_dir=settings.cache_dir, offline=settings.offline, label=settings.label)
    choice = choose_engine(bundle, settings.engine, settings.precision, threads=1, cache_dir=settings.cache_dir)
    report = {"model": bundle.manifest.model_id, **_machine(), **_lines(choice), "libraries": _libraries()}
    if as_json:
        click.echo(json.dumps(report, indent=1))
    else:
        _print(report)


def _machine() -> dict[str, Any]:
    from crossrank.engines.cpu import available_cores, cpu_name

    return {"cpu": cpu_name(), "cores": available_cores(), "system": f"{platform.system()} {platform.machine()}"}


def _lines(choice: Choice) -> dict[str, Any]:
    lines = [
        {
            "engine": verdict.candidate.engine,
            "precision": verdict.candidate.precision,
            "kernel": verdict.candidate.kernel,
            "state": verdict.state,
            "reason": verdict.reason,
            "why_here": verdict.candidate.why,
        }
        for verdict in choice.verdicts
    ]
    return {"taken": next((line for line in lines if line["state"] == "taken"), None), "candidates": lines}


def _libraries() -> list[dict[str, Any]]:
    """Return each native library with the reason why it cannot be used, empty if it can."""
    from crossrank.native.library import (
        HELPERS,
        KERNELS,
        TEST_KERNELS,
        NativeError,
        kernel_fault,
        library_path,
        open_library,
    )

    faults: dict[str, str] = {kernel: kernel_fault(kernel) for kernel in KERNELS if kernel not in TEST_KERNELS}
    for name in HELPERS:
        try:
            open_library(name)
            faults[name] = ""
        except NativeError as error:
            faults[name] = str(error)
    return [{"name": name, "built": library_path(name) is not None, "reason": fault} for name, fault in faults.items()]


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    facts = f"{report['model']} on {report['cpu']}, {report['cores']} cores, {report['system']}"
    console.print(facts, markup=False, highlight=False)
    lines = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("engine", "precision", "kernel", ""):
        lines.add_column(title, overflow="fold")
    for line in report["candidates"]:
        said = f"{line['state']}: {line['reason'] or line['why_here']}"
        lines.add_row(*(Text(cell) for cell in (line["engine"], line["precision"], line["kernel"], said)))
    libraries = Table(box=None, padding=(0, 2, 0, 0))
    for title in ("native library", "built", ""):
        libraries.add_column(title, overflow="fold")
    for library in report["libraries"]:
        built = "yes" if library["built"] else "no"
        libraries.add_row(*(Text(cell) for cell in (library["name"], built, library["reason"] or "usable")))
    console.print()
    console.print(lines)
    console.print()
    console.print(libraries)
