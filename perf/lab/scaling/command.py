"""`make bench-scaling`: measure throughput by cores, documents, tokens, concurrency and models."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import (
    SERVER_OPTIONS,
    check_installed,
    chosen_workload,
    plot_option,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.commands.options import options_from_settings
from crossrank_server.settings import ServeSettings
from lab.scaling.points import SERIES

if TYPE_CHECKING:
    from crossrank_perf.base.workload import Workload
    from lab.scaling.points import Point


@click.command()
@click.option("--model", "-m", default="builtin", show_default=True, help="Model of all series but `models`.")
@click.option(
    "--series",
    multiple=True,
    type=click.Choice(SERIES),
    default=SERIES,
    help="Series to measure; repeat it.  [default: all]",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Number of rounds; every point runs in each.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.2),
    default=3.0,
    show_default=True,
    help="Seconds for each point in each round.",
)
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests under way in the other series.",
)
@click.option(
    "--random-models",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".run/random-models"),
    show_default=True,
    help="Where the nine shapes with random weights are kept; made there on first use, 1.3 GB.",
)
@click.option(
    "--usd-per-machine-hour",
    type=click.FloatRange(min=0, min_open=True),
    help="Price of this machine: adds what 1,000 documents cost at each point.",
)
@click.option("--resume", is_flag=True, help="Go on with an interrupted run: keep the points that --json holds.")
@plot_option("Draw all series")
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def scaling(model: str, resume: bool, json_path: Path | None, plot: Path | None, **options: Any) -> None:
    """Vary one thing at a time and measure documents/s and latency over HTTP, closed loop.

    Cores (1, 2, .. all), documents a request (1 - 1,000), tokens a pair (16 - 512), requests under way (1 - 64), and
    the shapes of the nine models with random weights. What does not vary is --documents, --concurrency, all cores and
    text of the usual lengths; the models get 20 documents a request, 4 under way. --json is written after every point.

    With the defaults it takes about 15 minutes on 2 cores, and 5 more to make the models on first use.

    \b
    Examples:
      make bench-scaling BENCH_ARGS="--json perf/results/scaling.json --plot perf/results/scaling.svg"
      make bench-scaling BENCH_ARGS="--series documents --series concurrency --rounds 1"
      make bench-scaling BENCH_ARGS="--resume --json perf/results/scaling.json"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.engines.cpu import available_cores
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import check_writable, write_json
    from lab.scaling.points import Point, make_points, summarize_points
    from lab.scaling.report import plot_scaling, print_scaling_report

    check_installed()
    for path in (json_path, plot):
        if path:
            check_writable(path)
    workload = chosen_workload(options)
    base = Point("", 0, model, available_cores(), options["documents"], None, options["concurrency"])
    report: dict[str, Any] = {
        "kind": "scaling",
        **describe_run("python -m lab"),
        "workload": workload_facts(workload),
        "usd_per_machine_hour": options["usd_per_machine_hour"],
        "plan": _plan(model, options),
    }
    known = _known(json_path, report) if resume else {}
    models = _random_models(options["random_models"]) if "models" in options["series"] else {}
    points = make_points(base, options["series"], models)

    def keep(rounds: dict[Point, list[dict[str, Any]]]) -> None:
        report["series"] = summarize_points(points, rounds)
        if json_path:
            write_json(json_path, report)

    _measure(points, known, options, keep)
    print_scaling_report(report)
    if plot:
        plot_scaling(report, plot)


def _plan(model: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that points of two runs must share to be in one report."""
    names = ("seconds", "documents", "concurrency", "seed", *sorted(SERVER_OPTIONS))
    return {"model": model, **{name: options[name] for name in names}}


def _known(json_path: Path | None, report: dict[str, Any]) -> dict[str, Any]:
    """Return the report to go on with.

    Raises:
        SetupError: The file cannot be read, or is of another plan, machine or version.
    """
    if json_path is None:
        raise SetupError("--resume goes on with the points in a file: name it with --json")
    try:
        known: dict[str, Any] = json.loads(json_path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise SetupError(f"--resume cannot read {json_path} ({error}): leave --resume out to begin anew") from None
    for name in ("kind", "plan", "versions", "workload"):
        if known.get(name) != report[name]:
            raise SetupError(
                f"--resume: {json_path} was measured with other {name} ({known.get(name)}, now {report[name]}): leave "
                "--resume out to begin anew"
            )
    if any(known["hardware"][name] != report["hardware"][name] for name in ("cpu", "cores")):
        raise SetupError(f"--resume: {json_path} was measured on another machine: leave --resume out to begin anew")
    return known


def _random_models(directory: Path) -> dict[str, str]:
    """Return the nine models' bundles by name."""
    from crossrank.bundles.catalog import BUILTIN, MODELS
    from crossrank_perf.base.report import Progress
    from lab.random_models import random_bundle

    made = {}
    with Progress("models of random weights") as progress:
        for model in MODELS:
            if model is not BUILTIN:
                progress.say(model.short_name)
                made[model.short_name] = str(random_bundle(model, directory).resolve())
    return made


def _measure(points: list[Point], known: dict[str, Any], options: dict[str, Any], keep: Any) -> None:
    """Measure round by round the points that are not known yet; `keep` gets all figures after each point."""
    from crossrank_perf.base.report import Progress
    from lab.scaling.points import measure_points, rounds_from_report

    rounds = rounds_from_report(points, known)
    keep(rounds)
    with Progress("scaling") as progress:
        for number in range(1, options["rounds"] + 1):
            missing = [point for point in points if len(rounds.get(point, ())) < number]
            for point, figures in measure_points(
                missing,
                options["seconds"],
                lambda model: server_arguments(model, options),
                _workloads(options),
                lambda text, number=number: progress.say(f"round {number}, {text}"),  # type: ignore[misc]
            ):
                rounds.setdefault(point, []).append(figures)
                keep(rounds)


def _workloads(options: dict[str, Any]) -> Any:
    """Return a function that returns the requests of a point; text is made once for each size."""
    from crossrank_perf.base.workload import fixed_length_workload

    @lru_cache
    def made(documents: int, tokens: int | None) -> Workload:
        if tokens is not None:
            return fixed_length_workload(tokens, documents, options["seed"])
        return chosen_workload(options | {"documents": documents})

    return lambda point: made(point.documents, point.tokens)
