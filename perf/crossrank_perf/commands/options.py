"""Options that the benchmarks share, and what they stand for."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from crossrank.errors import SetupError
from crossrank_perf.base.workload import Workload, load_workload

Function = TypeVar("Function", bound=Callable[..., Any])

# Settings of the server that a benchmark may choose.
SERVER_OPTIONS = {"engine", "precision", "threads"}
POSITIVE = click.FloatRange(min=0, min_open=True)
_NEEDED = ("aiohttp", "psutil")


def check_installed() -> None:
    """Check that the packages are installed which only benchmarks need.

    Raises:
        SetupError: One is missing.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise SetupError(f"crossrank bench needs {' and '.join(missing)}: pip install 'crossrank[perf]'")


def parse_numbers(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Return the numbers of an option like 1,2,4,8, in rising order; none where it was not given.

    Raises:
        click.BadParameter: The text is not a list of whole numbers of at least 1.
    """
    if value is None:
        return ()
    try:
        numbers = tuple(sorted({int(part) for part in value.split(",")}))
    except ValueError:
        numbers = ()
    if not numbers or numbers[0] < 1:
        raise click.BadParameter(f"{value!r} is no list of positive numbers: give it like 1,2,4,8")
    return numbers


def rate_option(text: str, default: float | None = None) -> Callable[[Function], Function]:
    """Return the option --rate with this help text."""
    return click.option("--rate", type=POSITIVE, default=default, show_default=default is not None, help=text)


def plot_option(text: str) -> Callable[[Function], Function]:
    """Return the option --plot; `text` says what is drawn."""
    path = click.Path(dir_okay=False, path_type=Path)
    return click.option("--plot", type=path, help=f"{text} (.svg or .png).")


def workload_options(function: Function) -> Function:
    """Add the options for the requests that are sent and for the report."""
    options = (
        click.option(
            "--candidates",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Queries with their candidates, JSONL or .jsonl.gz. Default: the DL 2019 file under ../shared or "
            "CROSSRANK_SHARED, else synthetic text with the same lengths.",
        ),
        click.option("--synthetic", is_flag=True, help="Take synthetic text even where the DL 2019 file is present."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of text, order and arrival times."),
        click.option(
            "--documents", "-d", type=click.IntRange(min=1), default=100, show_default=True, help="In each request."
        ),
        click.option(
            "--json",
            "json_path",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write every figure, with hardware and versions, to this file.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def chosen_workload(options: dict[str, Any]) -> Workload:
    """Return the requests chosen by the options of `workload_options`."""
    return load_workload(
        options["candidates"], options["documents"], synthetic=options["synthetic"], seed=options["seed"]
    )


def server_arguments(model: str | None, options: dict[str, Any]) -> list[str]:
    """Return the arguments of `crossrank serve` for a model and the options of SERVER_OPTIONS."""
    arguments = ["--model", model or "builtin", "--log-level", "warning"]
    for name in sorted(SERVER_OPTIONS):
        if options[name] is not None:
            arguments += [f"--{name}", str(options[name])]
    return arguments


def workload_facts(workload: Workload) -> dict[str, Any]:
    """Return the description of the requests for the report."""
    return {
        "source": workload.source,
        "documents_per_request": workload.documents,
        "distinct_requests": len(workload.requests),
    }
