"""`make bench-tokenizer`: compare the tokenizer with the tokenizers library, on one core."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank_perf.commands.options import check_installed, chosen_workload, workload_facts, workload_options


@click.command()
@click.option("--model", "-m", default="builtin", show_default=True, help="As for crossrank serve.")
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=7,
    show_default=True,
    help="Number of rounds; all tokenizers run in each.",
)
@workload_options
def tokenizer(model: str, rounds: int, json_path: Path | None, **options: Any) -> None:
    """Compare crossrank's tokenizer with the Rust one on one core, after checking that all their ids are equal.

    \b
    Examples:
      make bench-tokenizer
      make bench-tokenizer BENCH_ARGS="--documents 1 --synthetic"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank.bundles.cache import default_cache_dir
    from crossrank.resolve import resolve_model
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import Progress, check_writable, write_json
    from lab.tokenizer.compare import compare_tokenizers
    from lab.tokenizer.report import print_tokenizer_report

    check_installed()
    if json_path:
        check_writable(json_path)
    workload = chosen_workload(options)
    bundle = resolve_model(model, cache_dir=default_cache_dir(), offline=False)
    report: dict[str, Any] = {
        "kind": "tokenizer",
        **describe_run("python -m lab"),
        "workload": workload_facts(workload),
    }
    with Progress(f"tokenizing with {bundle.manifest.model_id}") as progress:
        report |= compare_tokenizers(bundle, workload.requests, rounds, progress.say)
    print_tokenizer_report(report)
    if json_path:
        write_json(json_path, report)
