"""Read config.json and its companions, and refuse models that give no score for a pair."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import MOST_LAYERS, MOST_ROWS, MOST_WIDTH, Architecture
from crossrank.bundles.layout import CONFIG, MODULES, Kind, own_code, read_object, why_own_code
from crossrank.checkpoints.families import is_own_class
from crossrank.errors import ModelSourceError

logger = logging.getLogger(__name__)

_GENERATIVE = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel", "ForSeq2SeqLM")
_CLASSIFIER = "ForSequenceClassification"
_SETTINGS = "config_sentence_transformers.json"
# Activations of torch.nn that keep the order of scores, and softmax over labels.
_ACTIVATIONS = frozenset({"identity", "sigmoid", "tanh", "softplus", "logsigmoid", "softmax", "relu"})
# Models whose position ids start after the padding id, so that the position table is longer than the window.
_OFFSET_POSITIONS = (
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
)
# Families by the default pad_token_id of their configuration in transformers, for a config.json that states none. None
# is no padding token; all other families have 0.
_PADDING: dict[int | None, tuple[str, ...]] = {
    1: (
        *_OFFSET_POSITIONS,
        *("bart", "biogpt", "convbert", "ernie_m", "led", "mbart", "mega", "mra", "mvp", "nystromformer", "opt"),
        *("plbart", "qdqbert", "seed_oss", "yoso"),
    ),
    2: ("flaubert", "xlm"),
    3: ("fnet", "helium"),
    5: ("xlnet",),
    32000: ("phi3",),
    50283: ("modernbert", "modernbert-decoder"),
    128004: ("smollm3",),
    151329: ("glm", "glm4"),
    None: (
        *("arcee", "bloom", "code_llama", "ctrl", "deepseek_v2", "deepseek_v3", "diffllama", "doge", "esm", "exaone4"),
        *(
            "falcon",
            "funnel",
            "gemma3",
            "gpt-sw3",
            "gpt2",
            "gpt_bigcode",
            "gpt_neo",
            "gpt_neox",
            "gpt_oss",
            "gptj",
            "jetmoe",
        ),
        *("llama", "minimax", "ministral", "mistral", "mixtral", "mpt", "nemotron", "openai-gpt", "persimmon", "phi"),
        *("phimoe", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "stablelm", "starcoder2", "transfo-xl"),
    ),
}
# Names of the same number in config.json of different families.
_SPELLINGS = {
    "layers": ("num_hidden_layers", "n_layers", "num_layers", "n_layer"),
    "hidden": ("hidden_size", "dim", "d_model"),
    "heads": ("num_attention_heads", "n_heads", "n_head"),
    "ffn": ("intermediate_size", "hidden_dim", "d_ff", "d_inner"),
    "vocab_size": ("vocab_size",),
}


@dataclass(frozen=True)
class ModelConfig:
    """Configuration of a model as config.json and its companions state it.

    Attributes:
        architecture: Shape of the encoder.
        num_labels: Number of logits of a pair.
        activation: Activation that the authors apply to the logit: `identity`, `sigmoid` ..., the class name of
            torch.nn in lower case; another class by its path.
        window: Maximum tokens that the encoder has positions for; None if config.json states no limit.
        pad_token_id: Id of the padding token; None if the model has none.
        segment_types: Rows of the segment embeddings; with 0 or 1, segments have no meaning.
    """

    architecture: Architecture
    num_labels: int
    activation: str
    window: int | None
    pad_token_id: int | None
    segment_types: int


def read_config(
    directory: Path, kind: Kind = "onnx", *, is_known_class: Callable[[str, str], bool] = is_own_class
) -> ModelConfig:
    """Read config.json, and the files that sentence-transformers writes beside it.

    Args:
        directory: Directory of the model.
        kind: Form of the model; safetensors need the class that config.json names.
        is_known_class: Tells by model_type and class name whether a class that config.json lists as the model's own
            code can be read without that code: config.json may still list code that the model once needed.

    Raises:
        ModelSourceError: config.json is unreadable or incomplete, or the model gives no score for a pair or needs its
            own code.
    """
    path = directory / CONFIG
    config = _read(directory, CONFIG)
    _refuse_malformed(config, path)
    code = own_code(config)
    if kind == "safetensors" and code is not None and not is_known_class(str(config.get("model_type")), code):
        raise ModelSourceError(why_own_code(str(directory), code))
    _refuse_modules(directory)
    _refuse_architecture(config, path)
    model_type = str(config.get("model_type", ""))
    numbers: dict[str, int] = {}
    for name, spellings in _SPELLINGS.items():
        value = next((config[key] for key in spellings if key in config), None)
        if value is None:
            raise ModelSourceError(
                f"{path} states no {spellings[0]}: {model_type or 'its model'} is no stack of equal layers, as the "
                "encoders are that crossrank reads"
            )
        numbers[name] = value
    num_labels = _num_labels(config)
    pad_token_id = _pad_token_id(config, numbers["vocab_size"])
    positions = config.get("max_position_embeddings")
    window = positions if isinstance(positions, int) and positions > 0 else None
    if window is not None and model_type in _OFFSET_POSITIONS:
        window -= (pad_token_id or 0) + 1
    return ModelConfig(
        architecture=Architecture(model_type=model_type, **numbers),
        num_labels=num_labels,
        activation=_activation(directory, config, num_labels),
        window=window,
        pad_token_id=pad_token_id,
        segment_types=int(config.get("type_vocab_size") or 0),
    )


def choose_label(num_labels: int, label: int | None, where: str) -> int:
    """Return the index of the logit that is the score.

    Raises:
        ModelSourceError: There are several logits and none is chosen, or the chosen one does not exist.
    """
    if label is None and num_labels > 1:
        raise ModelSourceError(
            f"{where} gives {num_labels} logits a pair, and a score is one: say which with "
            f"--label 0..{num_labels - 1} of crossrank serve or crossrank export, or label= in Python"
        )
    if label is not None and not 0 <= label < num_labels:
        raise ModelSourceError(f"--label {label} is not among the {num_labels} of {where}: give 0..{num_labels - 1}")
    return label or 0


def _read(directory: Path, name: str) -> dict[str, Any]:
    return read_object(name, str(directory), lambda file: (directory / file).read_bytes())


def _refuse_malformed(config: dict[str, Any], path: Path) -> None:
    """Refuse a config.json whose fields have wrong types, before any is used."""
    names = config.get("architectures")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ModelSourceError(f"{path}: architectures is {str(names)[:80]}, not a list of class names")
    if not isinstance(config.get("model_type", ""), str):
        raise ModelSourceError(f"{path}: model_type is {str(config['model_type'])[:80]}, not the name of a family")
    bounds = {"num_labels": (1, MOST_WIDTH), "type_vocab_size": (0, MOST_ROWS), "embedding_size": (1, MOST_WIDTH)}
    for name, keys in _SPELLINGS.items():
        most = {"layers": MOST_LAYERS, "vocab_size": MOST_ROWS}.get(name, MOST_WIDTH)
        bounds |= dict.fromkeys(keys, (1, most))
    for key, (least, _) in bounds.items():
        value = config.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            raise ModelSourceError(f"{path}: {key} is {str(value)[:80]}, not a whole number of at least {least}")
    for key, (_, most) in {**bounds, "max_position_embeddings": (0, MOST_ROWS)}.items():
        value = config.get(key)
        if isinstance(value, int) and value > most:
            raise ModelSourceError(f"{path}: {key} is {str(value)[:40]}, the limit is {most}: no known model has more")


def _refuse_modules(directory: Path) -> None:
    """Refuse models that need more of sentence-transformers than the classifier: further modules or a default prompt.

    Source: `CrossEncoder` of https://github.com/huggingface/sentence-transformers, from version 5.4 on
    """
    if (directory / MODULES).is_file():
        try:
            modules = json.loads((directory / MODULES).read_bytes())
            kinds = [str(module["type"]).rpartition(".")[2] for module in modules]
            folders = [str(module.get("path", "")) for module in modules]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelSourceError(f"{directory / MODULES} lists no modules ({error!r}): download it again") from error
        if not kinds:
            raise ModelSourceError(f"{directory / MODULES} lists no modules: download it again")
        if kinds == ["Transformer"] and folders[0] not in ("", "."):
            raise ModelSourceError(
                f"{directory} keeps its Transformer in the folder {folders[0]}: give {directory / folders[0]}"
            )
        if kinds != ["Transformer"]:
            raise ModelSourceError(
                f"{directory} is a chain of modules ({', '.join(kinds)}), of which only a Transformer with its own "
                f"classifier (*{_CLASSIFIER}) is read here"
            )
    if (directory / _SETTINGS).is_file():
        prompt = _read(directory, _SETTINGS).get("default_prompt_name")
        if prompt:
            raise ModelSourceError(
                f"{directory / _SETTINGS}: the default prompt {prompt!r} belongs before every query, which is not done "
                "here: its scores would be others"
            )


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


def _pad_token_id(config: dict[str, Any], vocab_size: int) -> int | None:
    """Return the padding id of config.json, else of the family; None if it is no valid id (some models write -1)."""
    if "pad_token_id" in config:
        stated = config["pad_token_id"]
    else:
        model_type = config.get("model_type")
        stated = next((number for number, types in _PADDING.items() if model_type in types), 0)
    return stated if isinstance(stated, int) and 0 <= stated < vocab_size else None


def _num_labels(config: dict[str, Any]) -> int:
    """Return the number of logits: id2label goes before num_labels, and where neither is stated there are two.

    Source: `PretrainedConfig`, configuration_utils.py of https://github.com/huggingface/transformers, v4.57.6
    """
    labels = config.get("id2label")
    if isinstance(labels, dict) and labels:
        return len(labels)
    return int(config["num_labels"]) if isinstance(config.get("num_labels"), int) else 2


def _activation(directory: Path, config: dict[str, Any], num_labels: int) -> str:
    """Return the activation that CrossEncoder.predict applies by default; an unknown one is logged and kept by path.

    Source: `CrossEncoder.get_default_activation_fn`, https://github.com/huggingface/sentence-transformers
    """
    section = config.get("sentence_transformers")
    settings = _read(directory, _SETTINGS) if (directory / _SETTINGS).is_file() else {}
    candidates = (
        settings.get("activation_fn"),
        section.get("activation_fn") if isinstance(section, dict) else None,
        config.get("sbert_ce_default_activation_function"),
    )
    named = next((str(name) for name in candidates if name), None)
    if named is None:
        return "sigmoid" if num_labels == 1 else "identity"
    kind = named.rpartition(".")[2].lower()
    if kind not in _ACTIVATIONS or not named.startswith("torch."):
        logger.warning(
            "%s: its activation %s is not known here: raw_scores gives the model's logits, other scores are sigmoids",
            directory,
            named,
        )
        return named
    return kind
