"""What is read of a model directory, and what is refused with which words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from crossrank.checkpoints.config import ModelConfig, choose_label, read_config
from crossrank.errors import ModelSourceError
from crossrank_export import sources
from crossrank_export.sources import find_source

BERT: dict[str, Any] = {
    "architectures": ["BertForSequenceClassification"],
    "model_type": "bert",
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 512,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "id2label": {"0": "LABEL_0"},
}


@pytest.fixture
def with_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "torch_is_installed", lambda: True)


@pytest.fixture
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "torch_is_installed", lambda: False)


def model_dir(path: Path, *names: str, **config: Any) -> Path:
    """Write config.json, and the named files with some bytes."""
    (path / "onnx").mkdir(parents=True)
    (path / "config.json").write_text(json.dumps({**BERT, **config}))
    for name in ("tokenizer.json", *names):
        (path / name).write_bytes(name.encode())
    return path


def test_safetensors_are_read_where_pytorch_is_installed(tmp_path: Path, with_torch: None):
    files = find_source(model_dir(tmp_path / "m", "model.safetensors", "onnx/model.onnx"))
    assert (files.kind, files.graph) == ("safetensors", None)
    assert files.source.name == "m"
    assert set(files.source.sha256) == {"config.json", "tokenizer.json", "model.safetensors"}


def test_the_onnx_graph_is_read_where_it_is_not(tmp_path: Path, without_torch: None):
    directory = model_dir(tmp_path / "m", "model.safetensors", "onnx/model.onnx", "onnx/model.onnx_data")
    files = find_source(directory)
    assert (files.kind, files.graph) == ("onnx", directory / "onnx/model.onnx")
    assert set(files.source.sha256) == {"config.json", "tokenizer.json", "onnx/model.onnx", "onnx/model.onnx_data"}


def test_the_user_may_insist_on_onnx(tmp_path: Path, with_torch: None):
    directory = model_dir(tmp_path / "m", "model.safetensors", "model.onnx")
    assert find_source(directory, kind="onnx").graph == directory / "model.onnx"


@pytest.mark.parametrize("name", ["model.onnx", "onnx/model.onnx", "onnx/other.onnx"])
def test_an_onnx_file_is_read_with_the_config_beside_or_above_it(tmp_path: Path, with_torch: None, name: str):
    directory = model_dir(tmp_path / "m", "model.safetensors", name)
    files = find_source(directory / name)
    assert (files.kind, files.graph, files.directory) == ("onnx", directory / name, directory)
    assert files.source.kind == "onnx"


def test_safetensors_alone_without_pytorch_name_the_extra(tmp_path: Path, without_torch: None):
    with pytest.raises(ModelSourceError, match=r"pip install 'crossrank\[export\]'"):
        find_source(model_dir(tmp_path / "m", "model.safetensors"))


def test_pickled_weights_are_refused(tmp_path: Path, with_torch: None):
    with pytest.raises(ModelSourceError, match=r"only pickled weights \(pytorch_model\.bin\)"):
        find_source(model_dir(tmp_path / "m", "pytorch_model.bin"))


def test_no_weights_name_what_was_looked_for(tmp_path: Path, with_torch: None):
    with pytest.raises(ModelSourceError, match=r"no weights: looked for model\.safetensors"):
        find_source(model_dir(tmp_path / "m"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_missing_companion_is_named(tmp_path: Path, with_torch: None, name: str):
    directory = model_dir(tmp_path / "m", "model.safetensors")
    (directory / name).unlink()
    with pytest.raises(ModelSourceError, match=f"has no {name}"):
        find_source(directory)


def test_a_path_that_is_no_model_is_refused(tmp_path: Path):
    with pytest.raises(ModelSourceError, match="does not exist"):
        find_source(tmp_path / "absent")
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelSourceError, match="is not an ONNX file"):
        find_source(tmp_path / "weights.bin")


def config_of(tmp_path: Path, **changes: Any) -> ModelConfig:
    values = {key: value for key, value in {**BERT, **changes}.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(values))
    return read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["LlamaForCausalLM"]}, "generates text"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "generates text"),
        ({"architectures": ["GPT2LMHeadModel"]}, "generates text"),
        ({"architectures": ["BertModel"]}, "no classification head"),
        ({"architectures": ["BertForMaskedLM"]}, "no classification head"),
        ({"hidden_size": None}, "states no hidden_size"),
    ],
)
def test_what_gives_no_score_for_a_pair_is_refused(tmp_path: Path, changes: dict[str, Any], words: str):
    with pytest.raises(ModelSourceError, match=words):
        config_of(tmp_path, **changes)


@pytest.mark.parametrize("text", ["{", "[]", "\ufeff"])
def test_an_unreadable_config_is_refused(tmp_path: Path, text: str):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelSourceError, match=r"config\.json"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("changes", "activation"),
    [
        ({}, "sigmoid"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"}, "identity"),
        ({"sbert_ce_default_activation_function": "torch.nn.modules.activation.Sigmoid"}, "sigmoid"),
        ({"id2label": {"0": "no", "1": "yes"}}, "identity"),
        ({"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}}, "tanh"),
        ({"sentence_transformers": {"activation_fn": "mine.functions.Tanh"}}, "mine.functions.Tanh"),
        (
            {"sbert_ce_default_activation_function": "torch.nn.modules.activation.Hardtanh"},
            "torch.nn.modules.activation.Hardtanh",
        ),
    ],
)
def test_the_activation_is_what_sentence_transformers_would_apply(
    tmp_path: Path, changes: dict[str, Any], activation: str
):
    assert config_of(tmp_path, **changes).activation == activation


def test_a_config_without_labels_has_transformers_default_of_two(tmp_path: Path):
    assert config_of(tmp_path, id2label=None).num_labels == 2
    assert config_of(tmp_path, id2label={"0": "relevance"}, num_labels=3).num_labels == 1
    assert config_of(tmp_path, id2label=None, num_labels=3).num_labels == 3


def test_roberta_positions_start_after_the_padding_id(tmp_path: Path):
    roberta = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert config_of(tmp_path, **roberta).window == 512
    assert config_of(tmp_path, max_position_embeddings=None).window is None


def test_distilbert_spells_its_shape_otherwise(tmp_path: Path):
    shape = {"n_layers": 6, "dim": 768, "n_heads": 12, "hidden_dim": 3072, "model_type": "distilbert"}
    absent = dict.fromkeys(("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size"))
    architecture = config_of(tmp_path, **absent, **shape).architecture
    assert (architecture.layers, architecture.hidden, architecture.heads, architecture.ffn) == (6, 768, 12, 3072)


def test_several_labels_need_one_named():
    with pytest.raises(ModelSourceError, match=r"3 logits a pair.*--label 0\.\.2"):
        choose_label(3, None, "m")
    assert choose_label(3, 2, "m") == 2
    assert choose_label(1, None, "m") == 0


@pytest.mark.parametrize(("labels", "label"), [(3, 3), (1, 1)])
def test_a_label_that_is_not_there_is_refused(labels: int, label: int):
    with pytest.raises(ModelSourceError, match="is not among"):
        choose_label(labels, label, "m")
