"""`crossrank tune`: measure which configuration serves a bundle fastest here, and keep it for `crossrank serve`."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from crossrank_perf.tune.search import Found


@click.command()
@click.argument("model", metavar="BUNDLE", default="builtin")
@click.option(
    "--seconds", type=click.FloatRange(min=5), default=50.0, show_default=True, help="To measure, loading included."
)
@click.option(
    "--candidates",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Your queries with their candidates, JSONL or .jsonl.gz, as the best choice depends on their lengths. "
    "Default: DL 2019, or synthetic text with its lengths.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the choice is kept, the one of crossrank serve.  [default: CROSSRANK_CACHE_DIR, or crossrank in the "
    "user's cache directory]",
)
@click.option("--offline", is_flag=True, help="Never touch the network: only a cached or local BUNDLE is found.")
def tune(model: str, seconds: float, candidates: Path | None, cache_dir: Path | None, offline: bool) -> None:
    """Find the fastest engine configuration for BUNDLE on this machine and keep it for `crossrank serve`.

    BUNDLE is what serve's --model takes. Engines, precisions, threads, tokens of a batch and padding are measured in
    turns with what serve would take by itself; only what is at least 3% faster replaces that. bf16 is tried where
    --precision auto may take it, and kept only if its logits are within 0.05 of fp32.

    serve uses the choice for the same bundle, CPU, cores and versions; its flags win over it. Run this again after an
    upgrade, on an otherwise idle machine.

    \b
    Examples:
      crossrank tune
      crossrank tune ms-marco-MiniLM-L6-v2
      crossrank tune ./my-bundle --candidates my-queries.jsonl
    """  # noqa: D301 - click reads the backspace itself
    from datetime import datetime, timezone

    from crossrank.engines.tuning import new_tuning, write_tuning
    from crossrank.resolve import resolve_model
    from crossrank_perf.base.report import Progress
    from crossrank_perf.tune.search import tune_bundle

    bundle = resolve_model(model, cache_dir=cache_dir, offline=offline)
    with Progress(f"tuning {bundle.manifest.model_id}") as progress:
        found = tune_bundle(bundle, seconds, candidates, progress.say)
    _print(found)
    figures = {key: value for key, value in asdict(found).items() if key != "config"}
    figures["before"] = found.before.model_dump()
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path = write_tuning(bundle, new_tuning(bundle, found.config, date, figures), cache_dir)
    click.echo(f"written to {path}: crossrank serve takes it unless --engine or --precision says otherwise")


def _print(found: Found) -> None:
    from rich.console import Console
    from rich.table import Table

    from crossrank.engines.tuning import EngineConfig
    from crossrank_perf.tune.choice import describe

    table = Table()
    table.add_column("step")
    table.add_column("configuration")
    table.add_column("documents/s", justify="right")
    table.add_column("times as fast", justify="right")
    for step in found.steps:
        for figures in step.figures:
            shown = describe(EngineConfig.model_validate(figures["config"]))
            table.add_row(step.name, shown, f"{figures['documents_per_s']:,.0f}", f"{figures['ratio']:.2f}")
        table.add_section()
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    for name, reason in found.left_out.items():
        click.echo(f"not tried: {name}: {reason}")
    if found.skipped:
        click.echo(f"no time left for: {', '.join(found.skipped)}; give more --seconds")
    same = " (as without tuning)" if found.config == found.before else ""
    click.echo(f"fastest{same}: {describe(found.config)}; {found.source}, {found.seconds:g} s")
