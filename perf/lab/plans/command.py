"""`make bench-plans`: build the TensorRT plans of every architecture for each GPU, on this CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.runtimes import RTX_SMS

# One GPU of each compute capability.
ONE_OF_EACH = ("t4", "a100", "a10", "l4", "rtx-50", "gb10")


@click.command()
@click.option(
    "--gpu",
    "gpus",
    multiple=True,
    default=ONE_OF_EACH,
    show_default=True,
    type=click.Choice([name for name, gpu in GPUS.items() if gpu.sm in RTX_SMS]),
    help="A GPU to build plans for; several also get a plan that they share.",
)
@click.option("--only", metavar="TEXT", default="", help="Build for models whose names contain TEXT only.")
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write the figures here, too."
)
def plans(gpus: tuple[str, ...], only: str, json_path: Path | None) -> None:
    """Build plans of TensorRT for RTX for the catalog's architectures, with random weights, and print a Markdown table.

    It needs no GPU: a plan is compiled for one here and finished where it is loaded. Nothing is scored. Seconds are
    of CPU time, which other programs on the machine change little.

    \b
    Examples:
      make bench-plans
      make bench-plans BENCH_ARGS="--only MiniLM --gpu l4 --gpu t4"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.errors import SetupError
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from lab.plans.build import measure_plans, shapes_of_catalog

    if json_path:
        check_writable(json_path)
    models = {name: model for name, model in shapes_of_catalog().items() if only in name}
    if not models:
        raise SetupError(f"--only {only}: no model has it in its name; they are {'; '.join(shapes_of_catalog())}")
    each = [[GPUS[name]] for name in dict.fromkeys(gpus)]
    shared = [[gpu for (gpu,) in each]] if len({gpu.sm for (gpu,) in each}) > 1 else []
    report: dict[str, Any] = {"kind": "plans", **describe_run("python -m lab")}
    with Progress("building plans") as progress:
        report |= measure_plans(models, [*each, *shared], progress.say)
    click.echo(markdown_from_report(report))
    if json_path:
        write_json(json_path, report)


def markdown_from_report(report: dict[str, Any]) -> str:
    """Return the table of seconds and megabytes, a row for each architecture."""
    titles = [GPUS[names[0]].label if len(names) == 1 else f"one plan for all {len(names)}" for names in report["gpus"]]
    rows = [
        [row["models"], *(f"{plan['cpu_s']:.1f} s, {plan['bytes'] / 1e6:.0f} MB" for plan in row["plans"])]
        for row in report["rows"]
    ]
    profiles = f"profiles of {', '.join(map(str, report['lengths']))} tokens for up to {report['max_batch']} pairs"
    lines = ["| " + " | ".join(cells) + " |" for cells in (["model", *titles], *rows)]
    lines.insert(1, "|---" * (len(titles) + 1) + "|")
    return "\n".join([f"{report['release']}, {profiles}:", "", *lines])
