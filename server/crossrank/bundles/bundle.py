"""A bundle: the directory that conversion writes and every engine reads.

    BUNDLE/
        manifest.json   what the model is, and the sha256 of every other file
        tokenizer.json  a Hugging Face fast tokenizer
        model.onnx      the fp32 graph; further variants (model.fp16.onnx, ...) beside it, of standard operators or
                        of ONNX Runtime's own (model.fp16.onnxruntime.onnx)
        model.onnx_data the weights of a graph where they lie beside it, as protobuf holds no more than 2 GB
        weights.safetensors  the fp32 weights by role, for the native engine (of the shapes that it serves)
        README.md       the model card (optional)

Export imports this module too, so that writer and reader agree on every field.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from crossrank.bundles.model_directory import external_locations
from crossrank.errors import BundleError
from crossrank.request import TruncationDirection

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.json"
FORMAT = 1

Precision = Literal["fp32", "fp16", "int8"]
Operators = Literal["onnx", "onnxruntime"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class Source(_Frozen):
    """Where the weights came from."""

    kind: Literal["hub", "directory", "onnx"]
    name: str = Field(description="hub id, or the name of the directory or file")
    revision: str | None = Field(None, description="commit of the hub repository")
    sha256: dict[str, str] = Field(default_factory=dict, description="files read, by name")


# Far above every encoder that is known, and far below what overflows where sizes are multiplied or takes minutes.
MOST_LAYERS = 1000
MOST_WIDTH = 1_000_000
MOST_ROWS = 10_000_000
Layers = Annotated[int, Field(gt=0, le=MOST_LAYERS)]
Width = Annotated[int, Field(gt=0, le=MOST_WIDTH)]
Rows = Annotated[int, Field(gt=0, le=MOST_ROWS)]
TokenId = Annotated[int, Field(ge=0, lt=MOST_ROWS)]


class Architecture(_Frozen):
    """The shape of the encoder, as its config.json states it."""

    model_type: str
    layers: Layers
    hidden: Width
    heads: Width
    ffn: Width
    vocab_size: Rows


class Tensor(_Frozen):
    """A graph input or output; dynamic axes are named, fixed ones are numbers."""

    name: str
    dtype: Literal["int32", "int64", "float32"]
    shape: list[str | int]


class PairTemplate(_Frozen):
    """Special tokens around a pair: `start + query + middle + document + end`.

    BERT: start [CLS], middle [SEP], end [SEP], segments (0, 1). RoBERTa: <s>, </s></s>, </s>, (0, 0).
    """

    start: list[TokenId] = Field(max_length=100)
    middle: list[TokenId] = Field(max_length=100)
    end: list[TokenId] = Field(max_length=100)
    segments: tuple[TokenId, TokenId] = (0, 1)

    @property
    def special_tokens(self) -> int:
        """Number of special tokens in a pair."""
        return len(self.start) + len(self.middle) + len(self.end)


class Graph(_Frozen):
    """One precision variant of the model."""

    file: str
    data_file: str | None = Field(None, description="file with its weights, where one file cannot hold all")
    precision: Precision
    operators: Operators = Field(
        default="onnx", description="standard ones, or also ONNX Runtime's own: for masks of ones before zeros only"
    )
    inputs: list[Tensor]
    output: Tensor
    parity: dict[str, Any] = Field(default_factory=dict, description="agreement with the source, as measured at export")

    @property
    def files(self) -> list[str]:
        """Names of all files of the graph, which must be copied together."""
        return [self.file] if self.data_file is None else [self.file, self.data_file]

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Earlier versions do not know the field and refuse unknown ones.
        fields: dict[str, Any] = handler(self)
        if self.data_file is None:
            fields.pop("data_file", None)
        return fields


class SharedTensor(_Frozen):
    """A tensor that another of the bundle's files holds already, as plain little-endian float32."""

    file: str
    offset: int = Field(ge=0, lt=2**63, description="byte where it begins")


class Weights(_Frozen):
    """The fp32 weights by role (`crossrank.native.weights`), for the native engine."""

    file: str = Field(description="safetensors; all roles but the shared ones")
    positions: Rows = Field(description="rows of the position embeddings")
    segments: Rows = Field(description="rows of the segment embeddings")
    epsilon: float = Field(gt=0, lt=1, description="of every layer normalization")
    shared: dict[str, SharedTensor] = Field(default_factory=dict, description="roles that lie in other files")
    read_back: bool = Field(False, description="false where the file may hold other weights than were measured")
    parity: dict[str, Any] = Field(default_factory=dict, description="agreement with the source, as measured at export")


class Manifest(_Frozen):
    """Contents of manifest.json: facts of the model, and the hashes of the bundle's files."""

    format: int = FORMAT
    model_id: str
    source: Source
    architecture: Architecture
    num_labels: Width
    label: int = Field(0, description="which logit is the score, where the source has several")
    max_length: Rows = Field(description="tokens of a pair, special tokens included")
    pad_token_id: TokenId
    special_token_ids: dict[str, TokenId] = Field(description="cls, sep, pad, unk ... by role")
    pair_template: PairTemplate
    truncation_side: TruncationDirection = Field(
        default="right", description="which side of a text its tokenizer cuts where a request does not say"
    )
    activation: str = Field(
        description="what the model's authors apply to the logit: identity, sigmoid, tanh ..., or a class by its path"
    )
    graphs: list[Graph] = Field(min_length=1)
    weights: Weights | None = Field(None, description="for the native engine; of the shapes that it serves")
    engines: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="by engine: agreement with the source at export, or why it cannot serve"
    )
    plans: list[dict[str, Any]] = Field(default_factory=list, description="TensorRT engines built from this bundle")
    passes: list[dict[str, Any]] = Field(default_factory=list, description="graph passes applied, one entry each")
    cost: dict[str, Any] = Field(default_factory=dict, description="parameters, nodes and MFLOP before and after")
    files: dict[str, str] = Field(description="sha256 of every file but the manifest")
    tool_versions: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check(self) -> Manifest:
        if self.format != FORMAT:
            raise ValueError(f"format {self.format} is not the format {FORMAT} that this version reads")
        shared = self.weights.shared.values() if self.weights else ()
        weights = [self.weights.file, *(tensor.file for tensor in shared)] if self.weights else []
        for name in [TOKENIZER, *(name for graph in self.graphs for name in graph.files), *weights]:
            if name not in self.files:
                raise ValueError(f"files has no sha256 for {name}")
        if self.max_length <= self.pair_template.special_tokens:
            raise ValueError(f"max_length {self.max_length} leaves no room for text")
        if not 0 <= self.label < self.num_labels:
            raise ValueError(f"label {self.label} is none of the {self.num_labels} labels, counted from 0")
        return self

    @model_serializer(mode="wrap")
    def _serialize(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # Earlier versions do not know the field and refuse unknown ones.
        fields: dict[str, Any] = handler(self)
        if self.truncation_side == "right":
            fields.pop("truncation_side", None)
        return fields

    def graph(self, precision: Precision, operators: Operators = "onnx") -> Graph:
        """Return the graph of a precision; one of standard operators where there is none of the requested operators.

        Raises:
            BundleError: There is no graph of that precision; the message lists those there are.
        """
        for wanted in (operators, "onnx"):
            for graph in self.graphs:
                if (graph.precision, graph.operators) == (precision, wanted):
                    return graph
        present = ", ".join(graph.precision for graph in self.graphs if graph.operators == "onnx")
        raise BundleError(
            f"{self.model_id} has no {precision} graph, only {present}: export it with --precision {precision}"
        )


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """Return the path of one of the bundle's files."""
        return self.path / name

    def named(self, name: str) -> Bundle:
        """Return the same bundle under another model id."""
        return Bundle(self.path, self.manifest.model_copy(update={"model_id": name}))


def sha256_of(path: Path) -> str:
    """Return the hex sha256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def is_bundle(path: Path) -> bool:
    """Tell whether the directory has a manifest; nothing is verified."""
    return (path / MANIFEST).is_file()


def load_bundle(path: Path) -> Bundle:
    """Read a bundle and check every file against its manifest.

    Raises:
        BundleError: The manifest is missing, unreadable or of another format, a file is missing, or its
            sha256 differs.
    """
    manifest_path = path / MANIFEST
    try:
        manifest = Manifest.model_validate_json(manifest_path.read_bytes())
    except FileNotFoundError:
        raise BundleError(f"{path} is not a bundle: it has no {MANIFEST}") from None
    except (ValidationError, OSError) as error:
        raise BundleError(f"{manifest_path}: {_first_line(error)}") from error
    _refuse_suspect(path, manifest)
    for name, expected in manifest.files.items():
        file = path / name
        if Path(name).name != name or not file.is_file():
            raise BundleError(f"{path}: {name} is named in {MANIFEST} but is not there; export the bundle again")
        actual = sha256_of(file)
        if actual != expected:
            raise BundleError(
                f"{path}: {name} has sha256 {actual}, the manifest says {expected}; export the bundle again"
            )
    for graph in manifest.graphs:
        others = sorted(external_locations(path / graph.file).keys() - {graph.data_file})
        if others:
            raise BundleError(
                f"{path}: {graph.file} reads weights from {others[0][:200]!r}, which {MANIFEST} does not name as its "
                "data_file; export the bundle again"
            )
    return Bundle(path, manifest)


def _refuse_suspect(path: Path, manifest: Manifest) -> None:
    """Refuse bundles that version 0.1.0 wrote of models with several labels.

    Their classifier weights for the native engine are wrong: for a strided view, the memory beneath it was written,
    while parity was measured on the view itself.
    """
    if manifest.weights is not None and manifest.num_labels > 1 and not manifest.weights.read_back:
        source = manifest.source.name
        raise BundleError(
            f"{path}: {manifest.model_id} has {manifest.num_labels} labels, and its {manifest.weights.file} is of a "
            f"version that wrote wrong weights for such models: export {source} again with --label {manifest.label}"
        )


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write `manifest.json` into the bundle directory, atomically."""
    partial = path / f".{MANIFEST}.partial"
    partial.write_text(manifest.model_dump_json(indent=1) + "\n")
    partial.replace(path / MANIFEST)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part)[:100] for part in first["loc"]) or MANIFEST
        # Of a number that is out of bounds the message has the bound.
        value = f" (it is {str(first['input'])[:40]})" if isinstance(first["input"], (int, float, str)) else ""
        return f"{where}: {first['msg']}{value}; export the bundle again"
    return str(error)
