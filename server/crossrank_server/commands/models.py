"""`crossrank models`: list the models with their published figures, and which are cached here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from textwrap import fill, wrap
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from crossrank.bundles.cache import CachedBundle
    from crossrank.bundles.catalog import CatalogModel

# All columns fit into it; a narrower terminal folds cells instead of cutting them.
_PIPE_WIDTH = 80
_LICENCE_WIDTH = 10


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON, with full ids, shapes, pins and protocols.")
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where bundles are cached.  [default: CROSSRANK_CACHE_DIR, or crossrank in the user's cache directory]",
)
def models(as_json: bool, cache_dir: Path | None) -> None:
    """List the models this server is made for, with figures, licence and price.

    Any of them is fetched from the Hugging Face hub when first served, turned into an optimized bundle and kept.
    Other cross-encoders work too: give their hub id or directory.

    \b
    Examples:
      crossrank models
      crossrank serve --model ms-marco-TinyBERT-L2-v2
      crossrank models --json | jq -r '.[] | select(.cached) | .model_id'
    """  # noqa: D301 - click reads the backspace character
    from crossrank.bundles.catalog import MODELS

    rows = [(model, _cached(model, cache_dir)) for model in MODELS]
    if as_json:
        click.echo(json.dumps([_as_json(model, cached) for model, cached in rows], indent=1))
    else:
        _print_table(rows)


def _cached(model: CatalogModel, cache_dir: Path | None) -> CachedBundle | None:
    """Return the bundle of the model on this machine, or None; the built-in one is part of the installation."""
    from crossrank.bundles.cache import BundleCache, measure_bundle
    from crossrank.bundles.catalog import BUILTIN
    from crossrank.resolve import builtin_path

    if model is BUILTIN:
        return measure_bundle(builtin_path(), "built in")
    return BundleCache(cache_dir).newest(model.model_id)


def _as_json(model: CatalogModel, cached: CachedBundle | None) -> dict[str, Any]:
    pin = {"revision": model.pin.revision, "sha256": dict(model.pin.sha256)} if model.pin else None
    where = {**asdict(cached), "path": str(cached.path)} if cached else None
    fields = {key: value for key, value in vars(model).items() if key != "pin"}
    return {**fields, "pin": pin, "cached": where}


def _print_table(rows: list[tuple[CatalogModel, CachedBundle | None]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    table = Table(box=None, padding=(0, 1, 0, 0))
    table.add_column("model", overflow="fold")
    for title in ("layers/\nhidden", "NDCG\n@10", "MRR\n@10", "docs/s\nV100"):
        table.add_column(title, justify="right")
    table.add_column("licence")
    table.add_column("$/1,000\ndocs", justify="right")
    table.add_column("cached\nhere", justify="right")
    for model, cached in rows:
        table.add_row(*_cells(model, cached))
    console.print(table)
    for note in (*_NOTES, *_terms(model for model, _ in rows)):
        console.print(note, markup=False, highlight=False)


def _terms(models: Iterable[CatalogModel]) -> list[str]:
    """Return the lines that say what the licences of some models forbid."""
    lines = [wrap(f"{model.short_name}: {model.terms}", _PIPE_WIDTH - 2) for model in models if model.terms]
    return list(chain.from_iterable(lines))


def _cells(model: CatalogModel, cached: CachedBundle | None) -> list[str]:
    from crossrank.bundles.catalog import BUILTIN

    is_builtin = model is BUILTIN
    return [
        f"{model.short_name} builtin" if is_builtin else model.short_name,
        f"{model.layers}/{model.hidden}",
        f"{model.ndcg_at_10:.2f}{'*' if is_builtin else ' '}",
        "-" if model.mrr_at_10 is None else f"{model.mrr_at_10:.2f}",
        "-" if model.docs_per_s_v100 is None else str(model.docs_per_s_v100),
        fill(model.licence, _LICENCE_WIDTH),
        f"{model.usd_per_1000_docs:.3f}{' ' if model.price_published else '~'}",
        "no" if cached is None else f"{cached.size_bytes / 1e6:.1f} MB",
    ]


_NOTES = (
    "",
    "NDCG@10 (TREC DL 2019, in %), MRR@10 (MS MARCO dev), docs/s: as their authors",
    "publish them.",
    "* measured by this project, re-ranking BM25 top-100 (BM25 order alone: 50.58);",
    "  the others re-rank a deeper list: not comparable. It is for demonstration.",
    "~ estimated in proportion to docs/s from TinyBERT-L2-v2's price, itself a",
    "  published estimate of a hosted service.",
    "Serve one with `crossrank serve --model NAME`; hub ids are cross-encoder/NAME.",
)
