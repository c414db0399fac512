"""Export a model: read the source, optimize its graph, write variants, compare them, and put the bundle in place last.

export_model       any source; safetensors go through PyTorch
bundle_from_files  what a model's first use needs: the converter that `crossrank.resolve` finds by its entry point
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import onnx_ir

from crossrank.bundles.bundle import (
    MANIFEST,
    Bundle,
    Graph,
    Manifest,
    Precision,
    Source,
    load_bundle,
    sha256_of,
    write_manifest,
)
from crossrank.bundles.layout import CARD, Kind
from crossrank.checkpoints.config import ModelConfig, choose_label, read_config
from crossrank.checkpoints.tokens import PairTokens, read_tokens
from crossrank.engines.memory import return_memory
from crossrank.errors import SetupError
from crossrank_export.engine_parity import compare_engines
from crossrank_export.graph_files import INLINE_BYTES
from crossrank_export.graphs import Scorer, check_graph, without_links
from crossrank_export.native_weights import write_weights
from crossrank_export.onnx_source import graph_scorer, read_graph
from crossrank_export.parity import prepare
from crossrank_export.passes.report import PassReport
from crossrank_export.replacing import refuse_occupied, replacing
from crossrank_export.samples import BUILTIN_TOKENS, SampleGroup, builtin_groups
from crossrank_export.sources import SourceFiles, find_source, is_class_of_transformers
from crossrank_export.token_parity import refuse_other_tokens
from crossrank_export.variants import Reference, write_fp32, write_others

logger = logging.getLogger(__name__)

_TOOLS = ("crossrank", "onnx", "onnx-ir", "onnxruntime", "tokenizers")
_TORCH_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx")
# Documents a query on first use in a server: a quarter of the pairs that an export compares on.
_QUICK_DOCUMENTS = 4

# Called with the title of each step as it begins.
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        precisions: Variants to write; fp32 always is, as the others are made from it.
        max_length: Most tokens of a pair; defaults to the model's window.
        opset: ONNX opset; defaults to 17 for safetensors, and to the file's own for ONNX.
        label: Index of the logit that is the score.
        name: Id of the model in requests; defaults to that of the source.
        card: Model card; defaults to the source's README.md.
        groups: The user's own pairs, by name of their file.
        documents: Built-in documents of each query to compare on.
        inline_bytes: Largest size of weights inside a graph file; larger ones lie in a file beside it.
    """

    precisions: Sequence[Precision] = ("fp32",)
    max_length: int | None = None
    opset: int | None = None
    label: int | None = None
    name: str | None = None
    card: Path | None = None
    groups: dict[str, list[SampleGroup]] = field(default_factory=dict)
    documents: int = 16
    inline_bytes: int = INLINE_BYTES


@dataclass(frozen=True)
class _Model:
    """Configuration, tokenization and pairs of a source, and the changes made to its graph before the passes."""

    files: SourceFiles
    config: ModelConfig
    tokens: PairTokens
    label: int
    scorer_name: str
    prepared: list[PassReport]


def bundle_from_files(path: Path, out: Path, source: Source | None = None, label: int | None = None) -> None:
    """Make an optimized fp32 bundle of a model on its first use; an ONNX graph needs neither torch nor transformers.

    Args:
        path: A directory with config.json, tokenizer.json and an ONNX graph or safetensors, or such a graph in it.
        out: Bundle directory to create.
        source: Source for the manifest, with the files that are read; defaults to one derived from the directory.
        label: Index of the logit that is the score, where the model has several.

    Raises:
        ModelSourceError: The model is not a cross-encoder that can be served.
        SetupError: The optimized graph does not agree with the source.
    """
    kind: Kind | None = None
    if source is not None:
        kind = "onnx" if any(name.endswith(".onnx") for name in source.sha256) else "safetensors"
    files = find_source(path, kind=kind, source=source)
    if label is not None and read_config(files.directory).num_labels == 1:
        label = None
    name = files.source.name
    export_model(
        files,
        out,
        ExportOptions(label=label, documents=_QUICK_DOCUMENTS),
        on_step=lambda step: logger.info("%s: %s", name, step),
    )


def export_model(files: SourceFiles, out: Path, options: ExportOptions, on_step: OnStep = logger.debug) -> Bundle:
    """Write a bundle whose variants all agree with the source; on any failure `out` stays as it was.

    Args:
        files: Files of the source, from `find_source`.
        out: Bundle directory: new, empty, or a bundle to replace.
        options: Options of the export.
        on_step: Called with the title of each step as it begins.

    Raises:
        ModelSourceError: The source cannot be exported.
        SetupError: `out` is not a bundle, or a variant is beyond its threshold.
    """
    out = out.resolve()  # `.` has no name; and the target of a link is replaced, not the link
    refuse_occupied(out)
    card = _read_card(files, options)
    with replacing(out) as partial, tempfile.TemporaryDirectory(dir=partial.parent) as scratch:
        model, graph, scorer = _read(files, options, Path(scratch), on_step)
        reference = _reference(model, scorer, options, on_step)
        del scorer
        _collect()  # frees the source's weights before the passes make their own
        fp32, passes, cost = write_fp32(graph, reference, partial, on_step, options.inline_bytes)
        on_step("writing and checking the weights by role")
        weights = write_weights(graph, model.config.architecture, model.label, reference.samples, partial / fp32.file)
        del graph
        _collect()
        others, further = write_others(options.precisions, fp32, reference, partial, on_step)
        _collect()
        reports = [*model.prepared, *passes, *further]
        facts = {"weights": weights, "passes": [report.as_dict() for report in reports], "cost": cost}
        on_step("writing the manifest")
        model.tokens.write(partial)
        if card is not None:
            (partial / CARD).write_bytes(card)
        manifest = _manifest(model, options.name, [fp32, *others], facts, partial)
        write_manifest(partial, manifest)
        on_step("comparing the engines of this machine")
        engines = compare_engines(load_bundle(partial), reference.samples)
        write_manifest(partial, manifest.model_copy(update={"engines": engines}))
        bundle = load_bundle(partial)
    return replace(bundle, path=out)


def _read(
    files: SourceFiles, options: ExportOptions, scratch: Path, on_step: OnStep
) -> tuple[_Model, onnx_ir.Model, Scorer]:
    """Read and check configuration and tokenizer first, then load the model: a refusal comes before anything heavy."""
    config = read_config(files.directory, files.kind, is_known_class=is_class_of_transformers)
    label = choose_label(config.num_labels, options.label, str(files.directory))
    tokens = read_tokens(files.directory, config, options.max_length)
    refuse_other_tokens(files.directory, tokens, config)
    prepared: list[PassReport] = []
    if files.kind == "safetensors":
        from crossrank_export import convert

        on_step("loading the checkpoint in PyTorch")
        checkpoint = convert.load_checkpoint(files.directory, tokens.pad_token_id)
        on_step("exporting to ONNX")
        graph = convert.graph_from_checkpoint(checkpoint, options.opset, options.inline_bytes)
        scorer, name = convert.checkpoint_scorer(checkpoint), f"pytorch {version('torch')} fp32"
        where = f"the graph exported from {files.source.name}"
    else:
        assert files.graph is not None
        on_step(f"reading {files.graph.name}")
        file = without_links(files.graph, scratch)
        where = str(files.graph)
        graph, prepared = read_graph(file, options.opset, config.num_labels, where)
    check_graph(graph, config, tokens.template, where)
    if files.kind == "onnx":
        scorer, name = graph_scorer(file, graph, prepared, config.num_labels, tokens.pad_token_id, where)
    return _Model(files, config, tokens, label, name, prepared), graph, scorer


def _reference(model: _Model, scorer: Scorer, options: ExportOptions, on_step: OnStep) -> Reference:
    on_step("scoring the pairs with the source")
    builtin = builtin_groups(model.tokens.max_length, options.documents)
    labels, label = model.config.num_labels, model.label
    samples = [prepare("builtin", builtin, model.tokens, scorer, labels, label, BUILTIN_TOKENS)]
    # A user's own pairs are compared at their full length.
    for name, groups in options.groups.items():
        samples.append(prepare(name, groups, model.tokens, scorer, labels, label))
    return Reference(model.scorer_name, samples, labels, label, model.tokens.pad_token_id)


def _collect() -> None:
    """Free weights that are no longer used: models and graphs refer to themselves in circles."""
    gc.collect()
    return_memory()


def _manifest(model: _Model, name: str | None, graphs: list[Graph], facts: dict[str, Any], partial: Path) -> Manifest:
    tools = _TOOLS + (_TORCH_TOOLS if model.files.kind == "safetensors" else ())
    return Manifest(
        model_id=name or model.files.source.name,
        source=model.files.source,
        architecture=model.config.architecture,
        num_labels=model.config.num_labels,
        label=model.label,
        max_length=model.tokens.max_length,
        pad_token_id=model.tokens.special_token_ids["pad"],
        special_token_ids=model.tokens.special_token_ids,
        pair_template=model.tokens.template,
        truncation_side=model.tokens.truncation_side,
        activation=model.config.activation,
        graphs=graphs,
        **facts,
        files={
            path.name: sha256_of(path) for path in sorted(partial.iterdir()) if path.is_file() and path.name != MANIFEST
        },
        tool_versions={name: _version(name) for name in tools},
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def _read_card(files: SourceFiles, options: ExportOptions) -> bytes | None:
    """Return the text of the model card, read before the bundle is replaced: it may lie in the old one."""
    path = options.card or files.directory / CARD
    if options.card is None and not path.is_file():
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"model card {path} cannot be read ({error.strerror}): give a Markdown file") from error
