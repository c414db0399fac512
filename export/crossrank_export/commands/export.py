"""`crossrank export`: convert a model to a bundle."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, get_args

import click

from crossrank.bundles.bundle import Bundle, Precision
from crossrank.bundles.model_name import checked_name
from crossrank.errors import CrossrankError, SetupError
from crossrank.reasons import reason_of

if TYPE_CHECKING:
    from crossrank.bundles.layout import Kind
    from crossrank_export.sources import SourceFiles

logger = logging.getLogger(__name__)


def _precisions(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[Precision]:
    """Return the precisions of options such as `--precision fp32,fp16 --precision int8`."""
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    for name in names:
        if name not in get_args(Precision):
            raise click.BadParameter(f"{name!r} is not one of {', '.join(get_args(Precision))}")
    return cast(list[Precision], names)


def _name(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    return value if value is None else checked_name(value)


@click.command()
@click.argument("model")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Bundle directory to create or replace.")
@click.option(
    "--precision",
    "precisions",
    multiple=True,
    default=["fp32"],
    callback=_precisions,
    metavar="LIST",
    help="Variants, separated by commas: fp32 (always written), fp16 (for GPUs), int8 (for CPUs without AMX; it "
    "changes scores).  [default: fp32]",
)
@click.option("--max-length", type=click.IntRange(min=1), help="Cap on the tokens of a pair; shorter is cheaper.")
@click.option(
    "--opset", type=click.IntRange(min=11, max=20), help="ONNX opset; 17 from safetensors, else the file's own."
)
@click.option("--label", type=click.IntRange(min=0), help="Which logit is the score, where a model gives several.")
@click.option("--name", callback=_name, help="The model's id in requests; else its hub id, or its directory's name.")
@click.option(
    "--pairs",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="JSONL of your own queries and documents to compare on as well.",
)
@click.option(
    "--from",
    "kind",
    type=click.Choice(["safetensors", "onnx"]),
    help="What to read where a model has both; safetensors if PyTorch is installed.",
)
@click.option(
    "--card",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Model card to include; the model's own README.md if omitted.",
)
def export(
    model: str,
    out: Path,
    precisions: list[Precision],
    max_length: int | None,
    opset: int | None,
    label: int | None,
    name: str | None,
    pairs: Path | None,
    kind: Kind | None,
    card: Path | None,
) -> None:
    """Convert MODEL to a bundle: optimize its graph, and check that the scores stay the same.

    MODEL is a Hugging Face directory, an ONNX file beside its config.json and tokenizer.json, or a hub id. Each variant
    is compared with the source (PyTorch, or the source's own ONNX graph) on pairs of all lengths; where they disagree
    beyond the stated threshold nothing is written.

    \b
    Examples:
      crossrank export cross-encoder/ms-marco-MiniLM-L6-v2 --out minilm
      crossrank export ./my-finetuned-model --out bundle --precision fp32,fp16,int8
      crossrank export ./my-finetuned-model --out bundle --max-length 256 --pairs dev.jsonl
      crossrank serve --model bundle

    \b
    A line of --pairs, judgments optional (they add the change in NDCG@10):
      {"query": "...", "documents": ["...", "..."], "judgments": {"0": 2}}
      {"query": "...", "candidates": [{"docid": "a", "text": "..."}], "judgments": {"a": 1}}
    """  # noqa: D301 - click reads the backspace character
    from crossrank_export.pipeline import ExportOptions, export_model
    from crossrank_export.samples import read_groups

    # The dot tells a file called `reference` from the record's own entries.
    groups = {pairs.name if pairs.suffix else f"./{pairs.name}": read_groups(pairs)} if pairs else {}
    options = ExportOptions(precisions, max_length, opset, label, name, card, groups)
    try:
        with _progress() as on_step, _source(model, kind, on_step) as files:
            bundle = export_model(files, out, options, on_step)
    except CrossrankError:
        raise
    except Exception as error:
        # Libraries raise many types at unknown models; the log has the traceback.
        logger.debug("the export of %s ended", model, exc_info=True)
        raise SetupError(
            f"{model} cannot be exported, for a reason that was not foreseen: report it ({reason_of(error)})"
        ) from error
    _report(bundle)


@contextmanager
def _source(model: str, kind: Kind | None, on_step: Callable[[str], None]) -> Iterator[SourceFiles]:
    """Yield the files of MODEL on disk, or download them from the hub for the time of the export."""
    import tempfile

    from crossrank_export.sources import find_source

    path = Path(model).expanduser()
    if path.exists() or model.startswith((".", "/", "~")):
        yield find_source(path, kind=kind)
        return
    from crossrank_export.hub_source import fetch_source

    on_step(f"fetching {model}")
    with tempfile.TemporaryDirectory(prefix="crossrank-hub-") as folder:
        try:
            yield fetch_source(model, Path(folder), kind)
        except CrossrankError as error:
            # The user knows the model by its id; the folder is temporary.
            raise type(error)(error.message.replace(folder, model)) from error


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    """Print each step on stderr as it begins, and its seconds as the next one begins."""
    began = time.perf_counter()
    is_running = False

    def finish() -> None:
        if is_running:
            click.echo(f" {time.perf_counter() - began:.1f} s", err=True)

    def on_step(title: str) -> None:
        nonlocal began, is_running
        finish()
        click.echo(f"{title} ...", err=True, nl=False)
        began, is_running = time.perf_counter(), True

    try:
        yield on_step
    finally:
        finish()


def _report(bundle: Bundle) -> None:
    """Print the changes to the graph and the agreement of each variant on stderr, and the bundle's path on stdout."""
    manifest = bundle.manifest
    for entry in manifest.passes:
        click.echo(f"{'+' if entry['applied'] else '-'} {entry['name']}: {entry['detail']}", err=True)
    before, after = manifest.cost["before"], manifest.cost["after"]
    click.echo(
        f"{_number(before['mflop'])} -> {_number(after['mflop'])} MFLOP per {after['sequence']}-token pair, "
        f"{before['nodes']} -> {after['nodes']} nodes, {before['parameters']:,} -> {after['parameters']:,} parameters",
        err=True,
    )
    for graph in manifest.graphs:
        size_mb = sum(bundle.file(name).stat().st_size for name in graph.files) / 1e6
        click.echo(f"{graph.file}: {size_mb:.1f} MB, against {graph.parity['reference']}", err=True)
        _report_agreements(graph.parity)
    for name, record in manifest.engines.items():
        click.echo(f"engine {name} ({record['runtime']}), from these files:", err=True)
        if "refused" in record:
            click.echo(f"  it cannot serve this bundle: {record['refused']}", err=True)
        _report_agreements(record)
        if record.get("disagrees"):
            click.echo("  beyond the limit: --engine auto does not choose it for this bundle", err=True)
    click.echo(str(bundle.path))


def _report_agreements(record: dict[str, Any]) -> None:
    for name, agreement in record.items():
        if isinstance(agreement, dict):
            click.echo(f"  {name}: {_agreement(agreement)}", err=True)


def _agreement(record: dict[str, Any]) -> str:
    ndcg = f", NDCG@10 {record['ndcg10_source']:.4f} -> {record['ndcg10']:.4f}" if "ndcg10" in record else ""
    return (
        f"{record['pairs']} pairs, max |delta logit| {record['max_abs_delta']:.1e} "
        f"(limit {record['limit']:g}) in a range of {record['logit_range']:.1f}, "
        f"mean {record['mean_abs_delta']:.1e}, Kendall tau {record['kendall_tau']:.4f}, "
        f"top-10 overlap {record['top10_overlap']:.3f}{ndcg}"
    )


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.1f}"
