"""`make bench-tiers`: measure realtime latency beside a flood of requests with X-Tier: batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import (
    POSITIVE,
    SERVER_OPTIONS,
    check_installed,
    chosen_workload,
    rate_option,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.commands.options import options_from_settings
from crossrank_server.settings import ServeSettings


@click.command()
@click.option("--model", "-m", help="Model, as for crossrank serve.  [default: builtin]")
@rate_option("Realtime requests/s.", default=10.0)
@click.option(
    "--flood",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests of the flood that are under way at any time.",
)
@click.option(
    "--duration",
    type=POSITIVE,
    default=15.0,
    show_default=True,
    help="Seconds measured in each round.",
)
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def tiers(model: str | None, rate: float, flood: int, duration: float, json_path: Path | None, **options: Any) -> None:
    """Measure realtime requests alone, beside a flood of the tier batch, and beside the same flood as realtime.

    The realtime requests come at random times (open loop); the flood is a closed loop of the same requests.

    \b
    Examples:
      make bench-tiers BENCH_ARGS="--rate 10 --json tiers.json"
      make bench-tiers BENCH_ARGS="--documents 10 --rate 50 --flood 16"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from crossrank_perf.base.server import served_models, started_server
    from lab.tiers.compare import Rounds, compare_tiers
    from lab.tiers.report import print_tier_report

    check_installed()
    if json_path:
        check_writable(json_path)
    workload = chosen_workload(options)
    report: dict[str, Any] = {"kind": "tiers", **describe_run("python -m lab"), "workload": workload_facts(workload)}
    rounds = Rounds(workload.documents, rate, flood, duration, options["seed"])
    with (
        started_server(server_arguments(model, options)) as server,
        Progress("realtime and batch") as progress,
    ):
        report["server"] = {"url": server.url, "models": served_models(server.url)}
        report["rounds"] = compare_tiers(server.url, workload.bodies(), rounds, progress.say)
    print_tier_report(report)
    if json_path:
        write_json(json_path, report)
    failed = sum(sum(load["errors"].values()) for each in report["rounds"] for load in each["loads"].values())
    if failed:
        raise SetupError(f"{failed} requests failed; --json shows how")
