"""The whole export: read the source, optimize its graph, write variants, prove them, and only then leave a bundle.

export_model      any source; safetensors go through PyTorch
bundle_from_onnx  an ONNX source, without torch or transformers: what `crossrank serve --model` calls
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crossrank_export.graphs import Scorer, check_graph, describe_graph, load_graph, session_scorer
from crossrank_export.native_weights import write_weights
from crossrank_export.parity import SampleSet, check, compare, prepare
from crossrank_export.samples import SampleGroup, builtin_groups
from crossrank_export.sources import CARD, ModelConfig, SourceFiles, choose_label, find_source, read_config
from crossrank_export.tokens import PairTokens, read_tokens
from crossrank_server.bundle import (
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
from crossrank_server.errors import CrossrankError, SetupError

if TYPE_CHECKING:
    import onnx_ir

    from crossrank_export.passes import PassReport

logger = logging.getLogger(__name__)

FILES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
# Beside the fp16 graph of standard operators: the one for ONNX Runtime's CUDA provider.
FILE_FOR_ONNXRUNTIME = "model.fp16.onnxruntime.onnx"
_TOOLS = ("crossrank", "onnx", "onnx-ir", "onnxruntime", "tokenizers")
_TORCH_TOOLS = ("torch", "transformers", "optimum", "optimum-onnx")
# What `crossrank engine` leaves in a bundle beside its files, and what an interrupted write does.
_TIMINGS = ".cache"
_PARTIAL = ".partial"
# For a server that starts: a quarter of the pairs that an export compares on.
_QUICK_DOCUMENTS = 4

# Told the title of each step as it begins.
OnStep = Callable[[str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What the user may choose.

    Attributes:
        precisions: Variants to write; fp32 is always among them, as the others are made from it.
        max_length: Cap on the tokens of a pair; the model's whole window if None.
        opset: ONNX opset; 17 for safetensors and the file's own for ONNX if None.
        label: Which logit is the score.
        card: The model card; the source's README.md if None.
        groups: The user's own pairs, by the name of their file.
        documents: Built-in documents a query to compare on.
    """

    precisions: Sequence[Precision] = ("fp32",)
    max_length: int | None = None
    opset: int | None = None
    label: int | None = None
    card: Path | None = None
    groups: dict[str, list[SampleGroup]] = field(default_factory=dict)
    documents: int = 16


@dataclass(frozen=True)
class _Model:
    """A source that has been read: its facts, its graph and its own logits."""

    files: SourceFiles
    config: ModelConfig
    tokens: PairTokens
    label: int
    graph: onnx_ir.Model
    reference: Scorer
    reference_name: str


def bundle_from_onnx(source_dir: Path, out: Path, *, source: Source | None = None) -> None:
    """Make an optimized fp32 bundle from a directory with an ONNX graph, as the hub ships it.

    Args:
        source_dir: Holds config.json, tokenizer.json and onnx/model.onnx or model.onnx.
        out: The bundle directory to create.
        source: What the manifest records; derived from the directory if omitted.

    Raises:
        ModelSourceError: It is not a cross-encoder that can be served.
        SetupError: The optimized graph does not agree with the source.
    """
    files = find_source(source_dir, kind="onnx", source=source)
    export_model(files, out, ExportOptions(documents=_QUICK_DOCUMENTS))


def export_model(files: SourceFiles, out: Path, options: ExportOptions, on_step: OnStep = logger.debug) -> Bundle:
    """Write a bundle whose every variant agrees with the source; on any failure `out` is as it was.

    Args:
        files: The source, from `find_source`.
        out: The bundle directory: new, empty, or a bundle to replace.
        options: What to write.
        on_step: Told what begins.

    Raises:
        ModelSourceError: The source cannot be exported.
        SetupError: `out` is something else than a bundle, or a variant is beyond its parity threshold.
    """
    out = out.resolve()  # `.` has no name, and what a link leads to is replaced, not the link
    _refuse_occupied(out)
    precisions = [name for name in FILES if name == "fp32" or name in options.precisions]
    model = _read(files, options, on_step)
    card = _read_card(files, options)
    with _replacing(out) as partial:
        samples = _samples(model, options, on_step)
        entries, facts = _write_variants(model, precisions, samples, partial, on_step)
        on_step("writing and checking the weights by role")
        architecture = model.config.architecture
        facts["weights"] = write_weights(model.graph, architecture, model.label, samples, partial / FILES["fp32"])
        on_step("writing the manifest")
        model.tokens.write(partial)
        if card is not None:
            (partial / CARD).write_bytes(card)
        write_manifest(partial, _manifest(model, entries, facts, partial))
        load_bundle(partial)
    return load_bundle(out)


def _read(files: SourceFiles, options: ExportOptions, on_step: OnStep) -> _Model:
    """Read configuration and tokenizer first: what must be refused is refused before anything heavy is loaded."""
    config = read_config(files.directory)
    label = choose_label(config.num_labels, options.label, str(files.directory))
    tokens = read_tokens(files.directory, config, options.max_length)
    if files.kind == "safetensors":
        from crossrank_export import convert

        on_step("loading the checkpoint in PyTorch")
        checkpoint = convert.load_checkpoint(files.directory)
        on_step("exporting to ONNX")
        graph = convert.graph_from_checkpoint(checkpoint, options.opset)
        reference, name = convert.checkpoint_scorer(checkpoint), f"pytorch {version('torch')} fp32"
        where = f"the graph exported from {files.source.name}"
    else:
        assert files.graph is not None
        on_step(f"reading {files.graph.name}")
        graph = load_graph(files.graph, options.opset)
        where = str(files.graph)
    check_graph(graph, config, tokens.template, where)
    if files.kind == "onnx":
        assert files.graph is not None
        entry = describe_graph(graph, files.graph.name, "fp32", config.num_labels)
        reference = session_scorer(files.graph, entry, config.pad_token_id)
        name = f"source ONNX in onnxruntime {version('onnxruntime')}"
    return _Model(files, config, tokens, label, graph, reference, name)


def _write_variants(
    model: _Model, precisions: Sequence[Precision], samples: list[SampleSet], partial: Path, on_step: OnStep
) -> tuple[list[Graph], dict[str, Any]]:
    """Write and check each variant; returns the manifest's graphs and its facts of passes and cost."""
    import onnx_ir

    from crossrank_export.cost import measure_cost
    from crossrank_export.passes import optimize
    from crossrank_export.precision import fp16_from_fp32, write_int8

    on_step("optimizing the graph")
    optimized, reports = optimize(model.graph)
    facts: dict[str, Any] = {
        "passes": [report.as_dict() for report in reports],
        "cost": {"before": measure_cost(model.graph).as_dict(), "after": measure_cost(optimized).as_dict()},
    }
    entries = []
    for precision in precisions:
        on_step(f"writing and checking {precision}")
        path = partial / FILES[precision]
        if precision == "fp32":
            onnx_ir.save(optimized, path)
        elif precision == "fp16":
            onnx_ir.save(fp16_from_fp32(optimized), path)
        else:
            write_int8(optimized, path)
        entry = describe_graph(optimized, path.name, precision, model.config.num_labels)
        entries.append(entry.model_copy(update={"parity": _parity(model, entry, path, samples)}))
    if "fp16" in precisions:
        on_step("writing and checking fp16 for ONNX Runtime on GPUs")
        graph, report = _write_for_onnxruntime(model, optimized, samples, partial / FILE_FOR_ONNXRUNTIME)
        entries += [graph] if graph is not None else []
        facts["passes"].append(report.as_dict())
    return entries, facts


def _write_for_onnxruntime(
    model: _Model, optimized: onnx_ir.Model, samples: list[SampleSet], path: Path
) -> tuple[Graph | None, PassReport]:
    """Write and check the fp16 graph of ONNX Runtime's operators.

    Unlike the variants asked for, it may be missing: every engine runs the standard one.
    """
    import onnx_ir

    from crossrank_export.precision import fp16_for_onnxruntime

    graph, report = fp16_for_onnxruntime(optimized)
    if graph is None:
        return None, report
    onnx_ir.save(graph, path)
    entry = describe_graph(optimized, path.name, "fp16", model.config.num_labels)
    entry = entry.model_copy(update={"operators": "onnxruntime"})
    try:
        parity = _parity(model, entry, path, samples)
    except CrossrankError as error:
        path.unlink()
        return None, replace(report, applied=False, detail=f"Left out: {error.message}")
    return entry.model_copy(update={"parity": parity}), report


def _samples(model: _Model, options: ExportOptions, on_step: OnStep) -> list[SampleSet]:
    on_step("scoring the pairs with the source")
    named = {"builtin": builtin_groups(model.tokens.max_length, options.documents), **options.groups}
    return [
        prepare(name, groups, model.tokens, model.reference, model.config.num_labels, model.label)
        for name, groups in named.items()
    ]


def _parity(model: _Model, entry: Graph, path: Path, samples: list[SampleSet]) -> dict[str, Any]:
    """Compare a written variant with the source on every sample; returns the manifest's record."""
    scorer = session_scorer(path, entry, model.config.pad_token_id)
    record: dict[str, Any] = {
        "reference": model.reference_name,
        "runtime": f"onnxruntime {version('onnxruntime')} CPU",
    }
    for sample in samples:
        agreement = compare(sample, scorer(sample.batch)[:, model.label])
        check(agreement, entry.precision, f"the {sample.name} pairs")
        record[sample.name] = agreement.as_dict()
    return record


def _manifest(model: _Model, graphs: list[Graph], facts: dict[str, Any], partial: Path) -> Manifest:
    tools = _TOOLS + (_TORCH_TOOLS if model.files.kind == "safetensors" else ())
    return Manifest(
        model_id=model.files.source.name,
        source=model.files.source,
        architecture=model.config.architecture,
        num_labels=model.config.num_labels,
        label=model.label,
        max_length=model.tokens.max_length,
        pad_token_id=model.tokens.special_token_ids["pad"],
        special_token_ids=model.tokens.special_token_ids,
        pair_template=model.tokens.template,
        activation=model.config.activation,
        graphs=graphs,
        weights=facts["weights"],
        passes=facts["passes"],
        cost=facts["cost"],
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
    """Read the card before the bundle is replaced, as it may lie in the old one."""
    path = options.card or files.directory / CARD
    if options.card is None and not path.is_file():
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SetupError(f"model card {path} cannot be read ({error.strerror}): give a Markdown file") from error


def _refuse_occupied(out: Path) -> None:
    """Refuse to replace what is not a bundle, and a bundle that something else was put into."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    try:
        own = {MANIFEST, *Manifest.model_validate_json((out / MANIFEST).read_bytes()).files}
    except (OSError, ValueError):
        raise SetupError(f"{out} exists and is not a bundle: it would be overwritten, so give another --out") from None
    strange = sorted(
        path.name
        for path in out.iterdir()
        if (path.name not in own and not path.name.endswith((_TIMINGS, _PARTIAL))) or not path.is_file()
    )
    if strange:
        raise SetupError(
            f"{out} holds {strange[0]}, which is no part of the bundle there and would be lost: move it, or give "
            "another --out"
        )


@contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """Give a directory beside `out` that takes its place when the block succeeds, and is removed when it does not."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=_PARTIAL, dir=out.parent))
    except OSError as error:
        raise _unwritable(out, error) from error
    try:
        partial, old = scratch / "new", scratch / "old"
        partial.mkdir()
        yield partial
        _swap(partial, out, old)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _swap(partial: Path, out: Path, old: Path) -> None:
    """Move `out` aside and `partial` to its place, or leave `out` as it was."""
    try:
        if out.exists():
            out.rename(old)  # fails where `out` is a mount point, before anything is lost
        try:
            partial.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise
    except OSError as error:
        raise _unwritable(out, error) from error


def _unwritable(out: Path, error: OSError) -> SetupError:
    return SetupError(f"{out} cannot be written ({os.strerror(error.errno or 0)}): give another --out")
