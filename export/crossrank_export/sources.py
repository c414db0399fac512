"""Which files of a model are read, what its config.json says, and what cannot be exported at all."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crossrank_server.bundle import Architecture, Source, sha256_of
from crossrank_server.errors import ModelSourceError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
CARD = "README.md"
_COMPANIONS = ("tokenizer_config.json", "special_tokens_map.json")
_GRAPHS = ("onnx/model.onnx", "model.onnx")
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "model.pth", "model.ckpt")
_GENERATIVE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForSeq2SeqLM")
_CLASSIFIER = "ForSequenceClassification"
# Models whose position ids start after the padding id, so that the table is longer than the window.
_OFFSET_POSITIONS = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "xmod", "mpnet")
# How config.json of each family spells the same number.
_SPELLINGS = {
    "layers": ("num_hidden_layers", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "dim", "d_model"),
    "heads": ("num_attention_heads", "n_heads"),
    "ffn": ("intermediate_size", "hidden_dim", "d_ff"),
    "vocab_size": ("vocab_size",),
}

Kind = Literal["safetensors", "onnx"]


@dataclass(frozen=True)
class SourceFiles:
    """A model's files on disk.

    Attributes:
        directory: Where config.json and tokenizer.json lie.
        kind: What the graph is made from.
        graph: The ONNX file, where kind is `onnx`.
        source: What the manifest says of it.
    """

    directory: Path
    kind: Kind
    graph: Path | None
    source: Source


@dataclass(frozen=True)
class ModelConfig:
    """What config.json says of a model.

    Attributes:
        architecture: Its shape.
        num_labels: Logits a pair gets.
        activation: What its authors apply to the logit.
        window: Positions of the encoder in tokens, None where the config names no limit.
        pad_token_id: Id that fills a batch.
        segment_types: Rows of the segment embedding; 0 or 1 where segments mean nothing.
    """

    architecture: Architecture
    num_labels: int
    activation: Literal["identity", "sigmoid"]
    window: int | None
    pad_token_id: int
    segment_types: int


def find_source(path: Path, *, kind: Kind | None = None, source: Source | None = None) -> SourceFiles:
    """Decide what of a directory (or ONNX file) is read.

    Safetensors are preferred where the export extra is installed, because PyTorch is then the reference for
    parity; else the directory's ONNX graph is.

    Args:
        path: A Hugging Face directory, or an ONNX file beside (or one folder below) its config.json.
        kind: Insist on one of the two.
        source: What to record; derived from the path if omitted.

    Raises:
        ModelSourceError: Something needed is missing, or only pickled weights are there.
    """
    directory, graph = _locate(path)
    for name in (CONFIG, TOKENIZER):
        if not (directory / name).is_file():
            hint = (
                "save a fast tokenizer there (`AutoTokenizer.from_pretrained(...).save_pretrained(...)`)"
                if name == TOKENIZER
                else "the shape and the number of labels are read from it"
            )
            raise ModelSourceError(f"{directory} has no {name}: {hint}")
    weights = [directory / name for name in _WEIGHTS if (directory / name).is_file()]
    if graph is not None and graph == path:
        kind = "onnx"
    if kind is None:
        kind = "safetensors" if weights and (graph is None or torch_is_installed()) else "onnx"
    if kind == "onnx":
        if graph is None:
            raise ModelSourceError(_why_nothing(directory, weights))
        files = [graph, *sorted(graph.parent.glob(f"{graph.name}[._]*"))]
        record = source or _source("onnx" if graph == path else "directory", path, directory, files)
        return SourceFiles(directory, "onnx", graph, record)
    if not weights:
        raise ModelSourceError(_why_nothing(directory, weights))
    if not torch_is_installed():
        raise ModelSourceError(
            f"{directory} has safetensors, which need PyTorch to become a graph: pip install 'crossrank[export]', or "
            "give a directory that has onnx/model.onnx"
        )
    shards = sorted(directory.glob("model*.safetensors"))
    record = source or _source("directory", path, directory, shards)
    return SourceFiles(directory, "safetensors", None, record)


def torch_is_installed() -> bool:
    """Tell whether everything needed to export safetensors is there, without importing it."""
    return all(importlib.util.find_spec(name) is not None for name in ("torch", "transformers", "optimum"))


def read_config(directory: Path) -> ModelConfig:
    """Read config.json.

    Raises:
        ModelSourceError: It is unreadable, incomplete, or of a model that gives no score for a pair.
    """
    path = directory / CONFIG
    config = read_json(path)
    _refuse_architecture(config, path)
    model_type = str(config.get("model_type", ""))
    numbers: dict[str, int] = {}
    for name, spellings in _SPELLINGS.items():
        value = next((config[key] for key in spellings if isinstance(config.get(key), int)), None)
        if value is None:
            raise ModelSourceError(f"{path} states no {spellings[0]}: it is not the config of an encoder")
        numbers[name] = value
    num_labels = _num_labels(config)
    pad_token_id = config.get("pad_token_id")
    pad_token_id = pad_token_id if isinstance(pad_token_id, int) else 0
    positions = config.get("max_position_embeddings")
    window = positions if isinstance(positions, int) and positions > 0 else None
    if window is not None and model_type in _OFFSET_POSITIONS:
        window -= pad_token_id + 1
    return ModelConfig(
        architecture=Architecture(model_type=model_type, **numbers),
        num_labels=num_labels,
        activation=_activation(config, num_labels, path),
        window=window,
        pad_token_id=pad_token_id,
        segment_types=int(config.get("type_vocab_size") or 0),
    )


def choose_label(num_labels: int, label: int | None, where: str) -> int:
    """Return which logit is the score.

    Raises:
        ModelSourceError: There are several and none is named, or there is no such label.
    """
    if label is None and num_labels > 1:
        raise ModelSourceError(
            f"{where} gives {num_labels} logits a pair, and a score is one: say which with --label 0..{num_labels - 1}"
        )
    if label is not None and not 0 <= label < num_labels:
        raise ModelSourceError(f"--label {label} is not among the {num_labels} of {where}: give 0..{num_labels - 1}")
    return label or 0


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, or raise ModelSourceError naming the file."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelSourceError(f"{path} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise ModelSourceError(f"{path} is not a JSON object: download it again")
    return value


def _locate(path: Path) -> tuple[Path, Path | None]:
    """Return (directory of config.json, ONNX file if any)."""
    if path.is_file():
        if path.suffix != ".onnx":
            raise ModelSourceError(f"{path} is not an ONNX file: give a .onnx file or a Hugging Face directory")
        parent = path.parent
        nested = not (parent / CONFIG).is_file() and (parent.parent / CONFIG).is_file()
        return (parent.parent if nested else parent), path
    if not path.is_dir():
        raise ModelSourceError(f"{path} does not exist: give a Hugging Face directory, an ONNX file or a hub id")
    return path, next((path / name for name in _GRAPHS if (path / name).is_file()), None)


def _source(kind: Literal["directory", "onnx"], path: Path, directory: Path, files: list[Path]) -> Source:
    companions = [directory / name for name in _COMPANIONS if (directory / name).is_file()]
    read = [directory / CONFIG, directory / TOKENIZER, *companions, *files]
    name = path.resolve().name
    return Source(
        kind=kind,
        name=name,
        revision=None,
        sha256={file.relative_to(directory).as_posix(): sha256_of(file) for file in read},
    )


def _why_nothing(directory: Path, weights: list[Path]) -> str:
    if weights:
        return f"{directory} has no ONNX graph: looked for {' and '.join(_GRAPHS)}"
    pickle = next((name for name in _PICKLES if (directory / name).is_file()), None)
    if pickle:
        return (
            f"{directory} has only pickled weights ({pickle}), which can run any code when loaded and are never read "
            "here: ask its owner for model.safetensors or onnx/model.onnx, or convert it where you trust it"
        )
    return f"{directory} has no weights: looked for {', '.join((*_WEIGHTS, *_GRAPHS))}"


def _refuse_architecture(config: dict[str, Any], path: Path) -> None:
    names = config.get("architectures") or []
    for name in map(str, names):
        if name.endswith(_GENERATIVE):
            raise ModelSourceError(
                f"{path}: {name} generates text; crossrank serves cross-encoders, whose architecture is a "
                f"*{_CLASSIFIER}"
            )
    if names and not any(str(name).endswith(_CLASSIFIER) for name in names):
        raise ModelSourceError(
            f"{path}: {names[0]} has no classification head, so it gives no score for a pair; crossrank serves "
            f"cross-encoders, whose architecture is a *{_CLASSIFIER}"
        )


def _num_labels(config: dict[str, Any]) -> int:
    """Return the number of logits; transformers leaves its default of two out of config.json."""
    if isinstance(config.get("num_labels"), int):
        return int(config["num_labels"])
    labels = config.get("id2label")
    return len(labels) if isinstance(labels, dict) and labels else 2


def _activation(config: dict[str, Any], num_labels: int, path: Path) -> Literal["identity", "sigmoid"]:
    """Return what CrossEncoder.predict applies by default.

    Source: `CrossEncoder.get_default_activation_fn`, https://github.com/huggingface/sentence-transformers
    """
    section = config.get("sentence_transformers")
    named = section.get("activation_fn") if isinstance(section, dict) else None
    named = named or config.get("sbert_ce_default_activation_function")
    if named is None:
        return "sigmoid" if num_labels == 1 else "identity"
    kind = str(named).rpartition(".")[2]
    if kind in ("Identity", "Linear"):
        return "identity"
    if kind == "Sigmoid":
        return "sigmoid"
    raise ModelSourceError(f"{path}: activation {named} is not known here: Identity and Sigmoid are")
