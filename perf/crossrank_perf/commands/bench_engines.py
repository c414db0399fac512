"""`crossrank bench engines`: compare the embedded engines on the same pairs, in one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank.engines.names import CPU_ENGINES, EMBEDDED_ENGINES, PRECISIONS, EngineName
from crossrank_perf.commands.options import check_installed, chosen_workload, workload_facts, workload_options

_NAMES = [name for name in EMBEDDED_ENGINES if name != "auto"]


@click.command()
@click.option("--model", "-m", default="builtin", show_default=True, help="As for crossrank serve.")
@click.option(
    "--engine",
    "names",
    multiple=True,
    type=click.Choice(_NAMES),
    help="Engine to measure; repeat it. The first is the reference.  [default: all CPU engines]",
)
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="Inferences at a time.")
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=7,
    show_default=True,
    help="Number of rounds; all engines run in each.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of requests whose pairs are scored in a round.",
)
@click.option(
    "--bucket-s",
    type=click.FloatRange(min=0.1),
    help="Also measure the most pairs/s of each engine at each padded length, for this many seconds each.",
)
@workload_options
def engines(
    model: str,
    names: tuple[EngineName, ...],
    precision: Any,
    threads: int,
    rounds: int,
    requests: int,
    bucket_s: float | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Compare the embedded engines: they score the same requests in turns; texts are tokenized beforehand.

    \b
    Examples:
      crossrank bench engines                            one core, fp32
      crossrank bench engines --threads 2 --engine native --engine openvino
      crossrank bench engines --model bundle --engine onnxruntime --engine cuda --precision auto --bucket-s 2
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.bundles.cache import default_cache_dir
    from crossrank.resolve import resolve_model
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from crossrank_perf.engines.bucket_rates import rates_by_bucket
    from crossrank_perf.engines.compare import compare_engines
    from crossrank_perf.engines.report import print_engine_report

    check_installed()
    if json_path:
        check_writable(json_path)
    workload = chosen_workload(options)
    bundle = resolve_model(model, cache_dir=default_cache_dir(), offline=False)
    report: dict[str, Any] = {"kind": "engines", **describe_run(), "workload": workload_facts(workload)}
    with Progress(f"comparing engines with {bundle.manifest.model_id}") as progress:
        report |= compare_engines(
            bundle, names or CPU_ENGINES, precision, threads, workload.requests[:requests], rounds, progress.say
        )
        if bucket_s:
            report["buckets"] = rates_by_bucket(
                bundle, names or CPU_ENGINES, precision, threads, workload, bucket_s, progress.say
            )
    print_engine_report(report)
    if json_path:
        write_json(json_path, report)
