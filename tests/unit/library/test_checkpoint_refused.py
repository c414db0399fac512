"""Checkpoints that contradict themselves or are damaged: refused by name, and nothing is computed from them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from crossrank.bundles.bundle import Source
from crossrank.checkpoints import families
from crossrank.checkpoints.convert import bundle_from_checkpoint
from crossrank.checkpoints.families import why_not_built
from crossrank.checkpoints.tensors import Tensors
from crossrank.errors import ModelSourceError
from tests.model_layouts import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
BERT: dict[str, Any] = {"model_type": "bert", "architectures": ["BertForSequenceClassification"]}
Arrays = dict[str, NDArray[Any]]


def said_of(directory: Path) -> str:
    with pytest.raises(ModelSourceError) as caught:
        bundle_from_checkpoint(
            directory, ["model.safetensors"], directory.parent / "bundle", Source(kind="directory", name="m")
        )
    return caught.value.message


def change_tensors(directory: Path, change: Callable[[Arrays], object]) -> Path:
    file = directory / "model.safetensors"
    tensors: Arrays = {name: array.copy() for name, array in load_file(file).items()}
    change(tensors)
    save_file(tensors, file, {"format": "pt"})
    return directory


def set_infinite(tensors: Arrays) -> None:
    tensors["bert.encoder.layer.1.output.dense.weight"][3, 5] = np.inf


def set_nan(tensors: Arrays) -> None:
    tensors["classifier.bias"][0] = np.nan


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("classifier.weight"), "lacks weights (classifier.weight), which would be random"),
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("bert.encoder.layer.1.")],
            "lacks weights (bert.encoder.layer.1.attention.output.LayerNorm.bias, ",
        ),
        (
            lambda t: t.update({"classifier.weight": np.zeros((2, 128), np.float32)}),
            "classifier.weight has shape [2, 128], config.json says [1, 128]: the two are of different models",
        ),
        (set_infinite, "bert.encoder.layer.1.output.dense.weight holds numbers that are not finite"),
        (set_nan, "classifier.bias holds numbers that are not finite: the model's weights are damaged"),
        (
            lambda t: t.update({"bert.pooler.dense.weight": np.zeros((128, 128), np.int8)}),
            "bert.pooler.dense.weight is of type I8, of which no graph is built",
        ),
    ],
)
def test_weights_that_are_not_those_of_the_config_are_named(
    tmp_path: Path, change: Callable[[Arrays], object], words: str
):
    assert words in said_of(change_tensors(write_checkpoint(tmp_path / "m"), change))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"num_attention_heads": 3}, "hidden size 128 is no multiple of 3 attention heads"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps is small, not a number between 0 and 1"),
        ({"layer_norm_eps": -1e-5}, "layer_norm_eps is -1e-05, not a number between 0 and 1"),
        ({"layer_norm_eps": 1e-60}, "layer_norm_eps is 1e-60, not a number between 0 and 1"),
        ({"max_position_embeddings": 128}, "has shape [64, 128], config.json says [128, 128]"),
        ({"vocab_size": 401}, "has shape [400, 128], config.json says [401, 128]"),
        ({"num_hidden_layers": 10**12}, "num_hidden_layers is 1000000000000, the limit is 1000"),
        ({"hidden_size": 2**63}, "hidden_size is 9223372036854775808, the limit is 1000000"),
        ({"vocab_size": 10**40}, "vocab_size is 1000000"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000, the limit is 10000000"),
        ({"num_hidden_layers": 3}, "lacks weights (bert.encoder.layer.2."),
        ({"hidden_act": "gelu_of_mine"}, "hidden_act 'gelu_of_mine' is none of gelu, "),
        ({"id2label": {"0": "a", "1": "b"}}, "gives 2 logits a pair, and a score is one: say which with --label 0..1"),
    ],
)
def test_a_config_that_is_not_that_of_the_weights_is_named(tmp_path: Path, fields: dict[str, Any], words: str):
    directory = write_checkpoint(tmp_path / "m")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))
    assert words in said_of(directory)


def test_a_tokenizer_of_more_segments_than_the_model_has_is_refused(tmp_path: Path):
    directory = write_checkpoint(tmp_path / "m")
    definition = json.loads((directory / "tokenizer.json").read_text())
    for piece in definition["post_processor"]["pair"]:
        for part in piece.values():
            part["type_id"] *= 3
    (directory / "tokenizer.json").write_text(json.dumps(definition))
    assert "its tokenizer gives segments up to 3, the model has 2" in said_of(directory)


def header(**entries: Any) -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text


def tensor(dtype: str = "F32", shape: Any = (2,), place: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": place}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x08",
        struct.pack("<Q", 1 << 62) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 4) + b"true" + bytes(8),
        struct.pack("<Q", 4) + b"\xff\xff\xff\xff" + bytes(8),
        header(x=tensor())[:-4],
        header(x=tensor()) + bytes(7),
        header(x=tensor(place=(0, 4))) + bytes(8),
        header(x=tensor(place=(4, 12))) + bytes(8),
        header(x=tensor(place=(-8, 0))) + bytes(8),
        header(x=tensor(shape=(1 << 40, 1 << 40), place=(0, 8))) + bytes(8),
        header(x=tensor(shape=(-1, -2), place=(0, 8))) + bytes(8),
        header(x=tensor(shape="2")) + bytes(8),
        header(x=tensor(shape=(1.5,))) + bytes(8),
        header(x=tensor(place=8)) + bytes(8),
        header(x={"dtype": "F32"}) + bytes(8),
        header(x=[]) + bytes(8),
    ],
    ids=range(18),
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ModelSourceError, match=r"is no complete safetensors file \(.*\): download it again"):
        Tensors([tmp_path / "x.safetensors"])


def test_a_sound_file_is_read_where_it_lies(tmp_path: Path):
    (tmp_path / "x.safetensors").write_bytes(
        header(x=tensor(), __metadata__={"format": "pt"}) + struct.pack("<2f", 1, -2)
    )
    tensors = Tensors([tmp_path / "x.safetensors"])
    assert "x" in tensors
    assert "__metadata__" not in tensors
    np.testing.assert_array_equal(tensors.array("x"), np.array([1, -2], np.float32))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**BERT, "model_type": "deberta-v2"}, "model_type 'deberta-v2' is none of bert, electra"),
        ({**BERT, "model_type": ["bert"]}, "model_type"),
        ({}, "model_type 'None' is none of"),
        ({**BERT, "architectures": ["JinaBertForSequenceClassification"]}, "is not BertForSequenceClassification"),
        ({**BERT, "hidden_act": "gelu_10"}, "hidden_act 'gelu_10' is none of"),
        ({"model_type": "distilbert", "activation": "gelu_10"}, "activation 'gelu_10' is none of"),
        ({**BERT, "position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({**BERT, "is_decoder": True}, "states is_decoder"),
        ({**BERT, "pruned_heads": {"0": [1]}}, "states pruned_heads"),
        ({**BERT, "quantization_config": {"bits": 4}}, "states quantization_config"),
        ({"model_type": "roberta", "pad_token_id": None}, "pad_token_id, from which its positions count, is None"),
        ({"model_type": "roberta", "pad_token_id": -1}, "pad_token_id, from which its positions count, is -1"),
        ({"model_type": "mpnet", "pad_token_id": 0}, "pad_token_id is 0, not 1"),
        ({"model_type": "mpnet", "relative_attention_num_buckets": 64}, "relative_attention_num_buckets is 64, not 32"),
    ],
)
def test_what_is_not_built_says_why(config: dict[str, Any], words: str):
    assert words in str(why_not_built(config))


@pytest.mark.parametrize("model_type", families.FAMILIES)
def test_families_are_built_with_their_defaults(model_type: str):
    assert why_not_built({"model_type": model_type}) is None
    assert (
        why_not_built({"model_type": model_type, "architectures": [families.FAMILIES[model_type].class_name]}) is None
    )
