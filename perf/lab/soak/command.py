"""`make bench-soak`: an hour of mixed load, and whether memory, latency and answers stay what they were."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import POSITIVE, check_installed

_SLEEPER = "ms-marco-MiniLM-L2-v2"


@click.command()
@click.option("--minutes", type=POSITIVE, default=60.0, show_default=True, help="How long.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the callers' choices.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the record here.")
def soak(minutes: float, seed: int, json_path: Path | None) -> None:
    """Send mixed load to a server with two models, one of which sleeps and wakes, and compare every answer.

    Callers connect anew for a few requests each, over HTTP and gRPC, of 1 to 1,000 documents; some hang up within
    20 ms, some send nonsense. A small request twice a second measures the latency.

    \b
    Examples:
      make bench-soak BENCH_ARGS="--json perf/results/soak.json"
      make bench-soak BENCH_ARGS="--minutes 10"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.bundles.catalog import MODELS
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from crossrank_perf.base.server import served_models, started_server
    from crossrank_perf.base.workload import load_workload
    from lab.random_models import random_bundle
    from lab.soak.report import print_soak_report, soak_figures
    from lab.soak.run import SLEEP_AFTER_S, soak

    check_installed()
    if json_path:
        check_writable(json_path)
    report: dict[str, Any] = {"kind": "soak", **describe_run("python -m lab")}
    report["workload"] = {"source": load_workload(None, 1).source}
    with tempfile.TemporaryDirectory(prefix="crossrank-soak-") as folder, Progress("soak") as progress:
        progress.say("a second model")
        sleeper = random_bundle(next(model for model in MODELS if model.short_name == _SLEEPER), Path(folder))
        models = ["builtin", str(sleeper)]
        arguments = [word for model in models for word in ("--model", model)]
        arguments += ["--idle-sleep-s", str(SLEEP_AFTER_S), "--log-level", "warning"]
        with started_server(arguments, grpc=True) as server:
            report["server"] = {"models": served_models(server.url)}
            soaked = soak(server, models, 60 * minutes, seed, progress.say)
    report["soak"] = soak_figures(soaked, 60 * minutes)
    print_soak_report(report)
    if json_path:
        write_json(json_path, report)
    if report["soak"]["faults"]:
        raise SetupError("the soak found faults")
