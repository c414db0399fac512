"""Choose the files of a model that are read, in any common layout, or say why the model cannot be read.

    config.json, tokenizer.json           always; vocab.txt can replace tokenizer.json for BERT's tokenizers
    onnx/model.onnx, model.onnx           the graph; else another one, the least reduced in precision
    onnx/model.onnx_data                  the graph's external data, under any name
    model.safetensors                     the weights, in one file or in the shards of model.safetensors.index.json

File names come from a directory or from the hub's listing; the choice is the same for both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from crossrank.errors import ModelSourceError

CONFIG = "config.json"
TOKENIZER = "tokenizer.json"
VOCABULARY = "vocab.txt"
MODULES = "modules.json"
CARD = "README.md"
# Read if present.
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
    MODULES,
)
ADAPTER = "adapter_config.json"
_GRAPHS = ("onnx/model.onnx", "model.onnx")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# Marks in the file names of graphs that are not plain fp32.
_HALF = re.compile(r"fp16|float16|bf16|half|_o4\b", re.IGNORECASE)
_OPTIMIZED = re.compile(r"_o[1-4]$|optimized", re.IGNORECASE)
_QUANTIZED = re.compile(r"quant|int8|int4|q4|q8|bnb|_i8", re.IGNORECASE)

Kind = Literal["safetensors", "onnx"]
# Returns the content of one of the model's small files.
Read = Callable[[str], bytes]
# Tells by the content of config.json whether a model's safetensors are preferred to its ONNX graph.
ReadsWeights = Callable[[dict[str, Any]], bool]


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model that are read.

    Attributes:
        kind: Form of the model: `safetensors` or `onnx`.
        graph: The ONNX file if kind is `onnx`, else None.
        names: All files but the graph's external data, POSIX paths relative to the model's directory or repository.
        data: Files named as exporters name a graph's external data.
    """

    kind: Kind
    graph: str | None
    names: list[str]
    data: list[str]


def choose_files(
    names: Collection[str],
    where: str,
    read: Read,
    *,
    kind: Kind | None = None,
    reads_weights: ReadsWeights = lambda config: True,
) -> ModelFiles:
    """Choose which of a model's files are read.

    Args:
        names: Files of the model, POSIX paths relative to its directory or repository.
        where: Hub id or directory of the model, for error messages.
        read: Reads a small file of the model.
        kind: Accept only this form; None accepts both.
        reads_weights: Tells by config.json whether safetensors are preferred to an ONNX graph.

    Raises:
        ModelSourceError: The model cannot be read; the message says what is missing, why it is needed, and what to do.
    """
    present = set(names)
    _refuse_adapter(present, where, read)
    weights = [] if kind == "onnx" else weights_among(present, where, read)
    prefers_weights = bool(weights) and (
        kind == "safetensors" or (CONFIG in present and reads_weights(read_object(CONFIG, where, read)))
    )
    graph = None if prefers_weights or kind == "safetensors" else graph_among(present, where)
    if not weights and graph is None:
        raise ModelSourceError(_why_nothing(present, where, read, kind))
    _refuse_incomplete(present, where)
    tokenizer = TOKENIZER if TOKENIZER in present else VOCABULARY
    common = [CONFIG, tokenizer, *(name for name in COMPANIONS if name in present)]
    if graph is None:
        return ModelFiles("safetensors", None, [*common, *weights], [])
    return ModelFiles("onnx", graph, [*common, graph], _data_beside(graph, present))


def graph_among(names: Collection[str], where: str) -> str | None:
    """Return the ONNX graph to read: `model.onnx`, else the one least reduced in precision; None if there is none.

    Of graphs that ONNX Runtime optimized to different levels, the least optimized one is taken.

    Raises:
        ModelSourceError: Several graphs are left whose names do not tell how they differ.
    """
    for name in _GRAPHS:
        if name in names:
            return name
    others = [name for name in sorted(names) if name.endswith(".onnx") and name.count("/") == name.count("onnx/")]
    for reduced in (None, _HALF, _QUANTIZED):
        found = [name for name in others if _reduced(name) is reduced]
        unlike = [name for name in found if not _OPTIMIZED.search(PurePosixPath(name).stem)] if reduced is None else []
        if len(unlike) > 1:
            raise ModelSourceError(
                f"{where} has several ONNX graphs, none of them called model.onnx ({', '.join(unlike[:5])}): give the "
                "path of the one that is the model"
            )
        if found:
            return (unlike or found)[0]
    return None


def weights_among(names: Collection[str], where: str, read: Read) -> list[str]:
    """Return the safetensors to read; of a model in shards, the index and every shard.

    Raises:
        ModelSourceError: The index is malformed, or a shard that it names is missing.
    """
    if _WEIGHTS in names:
        return [_WEIGHTS]
    if _INDEX not in names:
        return []
    shards = read_object(_INDEX, where, read).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ModelSourceError(f"{where}: {_INDEX} has no weight_map: download it again")
    found = sorted(set(shards.values()))
    missing = [name for name in found if name not in names]
    if missing:
        raise ModelSourceError(
            f"{where} lacks {missing[0]}, one of the {len(found)} shards that {_INDEX} names: download the model again"
        )
    return [_INDEX, *found]


def read_object(name: str, where: str, read: Read) -> dict[str, Any]:
    """Read a JSON file whose content is an object.

    Raises:
        ModelSourceError: The file is unreadable or holds no JSON object.
    """
    try:
        value = json.loads(read(name))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelSourceError(f"{where}/{name} cannot be read as JSON ({error}): download it again") from error
    if not isinstance(value, dict):
        raise ModelSourceError(f"{where}/{name} is not a JSON object: download it again")
    return value


def own_code(config: dict[str, Any]) -> str | None:
    """Return the class that a model's own Python code defines, or None. Such code is never run."""
    classes = config.get("auto_map")
    if not isinstance(classes, dict):
        return None
    for name in ("AutoModelForSequenceClassification", "AutoModel"):
        value = classes.get(name)
        if isinstance(value, str):
            return value.rpartition(".")[2]
    return None


def why_own_code(where: str, name: str) -> str:
    """Return the error message for a model that needs its own code."""
    return (
        f"{where} needs its own code (class {name}), which is never run here: ask its owner for an ONNX graph "
        f"({_GRAPHS[0]}), or export one where you trust that code"
    )


def _data_beside(graph: str, names: Collection[str]) -> list[str]:
    """Return the files named after a graph, as exporters name its external data."""
    return sorted(name for name in names if name.startswith(graph) and re.fullmatch(r"[._][^/]+", name[len(graph) :]))


def _reduced(name: str) -> re.Pattern[str] | None:
    stem = PurePosixPath(name).stem
    return next((pattern for pattern in (_QUANTIZED, _HALF) if pattern.search(stem)), None)


def _refuse_adapter(present: set[str], where: str, read: Read) -> None:
    if ADAPTER not in present or _WEIGHTS in present or _INDEX in present or graph_among(present, where):
        return
    base = read_object(ADAPTER, where, read).get("base_model_name_or_path") or "a base model that it does not name"
    raise ModelSourceError(
        f"{where} is an adapter of {base}, not a model: merge the two with peft's merge_and_unload(), save the result "
        "with save_pretrained(), and give that"
    )


def _refuse_incomplete(present: set[str], where: str) -> None:
    if CONFIG not in present:
        raise ModelSourceError(
            f"{where} has no {CONFIG}, from which the shape and the number of labels are read: give the whole model"
        )
    if not {TOKENIZER, VOCABULARY} & present:
        raise ModelSourceError(why_no_tokenizer(where))


def why_no_tokenizer(where: str) -> str:
    """Return the error message for a model without a tokenizer that can be read."""
    return (
        f"{where} has no {TOKENIZER}: save a fast tokenizer there, with "
        "AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers"
    )


def _why_nothing(present: set[str], where: str, read: Read, kind: Kind | None) -> str:
    """Return the error message for a model without weights that can be read, by the files that it has instead."""
    if any(name.endswith(".safetensors") for name in present):
        code = own_code(read_object(CONFIG, where, read)) if CONFIG in present else None
        if code is not None:
            return why_own_code(where, code)
        if kind == "onnx":
            return f"{where} has safetensors but no ONNX graph ({' or '.join(_GRAPHS)}): omit --from onnx to read them"
        found = min(name for name in present if name.endswith(".safetensors"))
        return f"{where} has no {_WEIGHTS} or {_INDEX}, only {found}: save the model with save_pretrained()"
    if kind == "safetensors" and graph_among(present, where):
        return f"{where} has no safetensors: omit --from safetensors to read its ONNX graph"
    pickles = sorted(name for name in present if _is_pickle(name))
    if pickles:
        return (
            f"{where} has only pickled weights ({pickles[0]}), which can run any code when loaded and are never "
            "read here: ask its owner for safetensors or ONNX, or convert it where you trust it"
        )
    for suffix, form in _FOREIGN.items():
        foreign = next((name for name in sorted(present) if name.endswith(suffix)), None)
        if foreign:
            return f"{where} has its weights as {form} only ({foreign}), which is not read here: get its ONNX graph"
    if kind == "onnx":
        return f"{where} has no ONNX graph: looked for {' and '.join(_GRAPHS)}"
    return f"{where} has no weights: looked for {', '.join((_WEIGHTS, _INDEX, *_GRAPHS))}"


_FOREIGN = {".gguf": "GGUF", ".xml": "OpenVINO IR", ".h5": "TensorFlow", ".msgpack": "Flax", ".tflite": "TFLite"}


def _is_pickle(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix in {".pt", ".pth", ".ckpt", ".pkl"} or path.name.startswith("pytorch_model")
