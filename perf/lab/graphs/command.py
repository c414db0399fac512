"""`make bench-graphs`: compare an exported graph before and after the passes, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank_perf.commands.options import check_installed, chosen_workload, workload_facts, workload_options


@click.command()
@click.argument("model", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=7,
    show_default=True,
    help="Number of rounds; both graphs run in each.",
)
@click.option(
    "--requests",
    type=click.IntRange(min=1),
    default=10,
    show_default=True,
    help="Number of requests whose pairs are scored in a round.",
)
@workload_options
def graphs(model: Path, rounds: int, requests: int, json_path: Path | None, **options: Any) -> None:
    """Compare MODEL's graph as exported with the same graph after the passes, in ONNX Runtime, fp32.

    MODEL is a Hugging Face directory or an ONNX file beside its config.json. Both graphs score the same batches in
    turns, with one thread; texts are tokenized beforehand.

    \b
    Examples:
      make bench-graphs BENCH_ARGS=../shared/models/crossrank-mini
      make bench-graphs BENCH_ARGS="./my-model/onnx/model.onnx --rounds 15 --json graphs.json"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_export.sources import find_source
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from lab.graphs.compare import compare_graphs
    from lab.graphs.report import print_graph_report

    check_installed()
    if json_path:
        check_writable(json_path)
    workload = chosen_workload(options)
    files = find_source(model)
    report: dict[str, Any] = {"kind": "graphs", **describe_run("python -m lab"), "workload": workload_facts(workload)}
    with Progress(f"comparing the graphs of {files.source.name}") as progress:
        report |= compare_graphs(files, workload.requests[:requests], rounds, progress.say)
    print_graph_report(report)
    if json_path:
        write_json(json_path, report)
