"""The graph that is built from a checkpoint gives the logits of transformers, whatever the family and its settings."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from crossrank.bundles.bundle import Bundle, Source, load_bundle
from crossrank.checkpoints.convert import bundle_from_checkpoint
from crossrank.checkpoints.families import FAMILIES
from crossrank.checkpoints.position_bias import distance_buckets
from crossrank.engines.native import NativeEngine
from crossrank.engines.select import make_engine
from crossrank.native.library import usable_kernels
from crossrank.packed import PairBatch
from tests.checkpoints import build_model, write_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
LENGTHS = [1, 2, 7, 64, 200, 3]

CASES: list[tuple[str, int, dict[str, Any]]] = [
    *((family, labels, {}) for family in ("bert", "electra", "roberta", "xlm-roberta", "mpnet") for labels in (1, 2)),
    *(("distilbert", labels, {}) for labels in (1, 3)),
    ("roberta", 3, {"model_type": "camembert"}),
    ("roberta", 1, {"type_vocab_size": 2, "layer_norm_eps": 1e-5}),
    ("roberta", 1, {"pad_token_id": 5}),
    ("electra", 1, {"embedding_size": 32, "layer_norm_eps": 1e-3}),
    ("bert", 3, {"type_vocab_size": 1}),
    # Too many sums of segments and positions for one table.
    ("roberta", 1, {"max_position_embeddings": 40_000}),
    ("bert", 1, {"type_vocab_size": 4}),
    ("bert", 1, {"type_vocab_size": 90, "num_hidden_layers": 1}),
    ("bert", 1, {"num_hidden_layers": 3, "num_attention_heads": 1}),
    *(
        ("bert", 1, {"hidden_act": name})
        for name in ("gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu", "swish", "tanh")
    ),
    ("distilbert", 1, {"activation": "relu"}),
    ("electra", 1, {"hidden_act": "gelu_new"}),
]


def name_of(case: tuple[str, int, dict[str, Any]]) -> str:
    family, labels, changes = case
    return "-".join([family, str(labels), *(f"{name}={value}" for name, value in changes.items())])


def write_model(path: Path, name: str, labels: int, **changes: Any) -> Any:
    """Write a random checkpoint; return its model."""
    model = build_model(name, num_labels=labels, **{"vocab_size": 400, **changes})
    model.save_pretrained(path)
    write_tokenizer(path, model.config)
    return model


def built(path: Path, label: int = 0) -> Bundle:
    out = path.with_name(f"{path.name}-bundle")
    bundle_from_checkpoint(path, ["model.safetensors"], out, Source(kind="directory", name="m"), label)
    return load_bundle(out)


def random_pairs(model: Any) -> PairBatch:
    """Pairs of every token, padding in the middle of a text too, of the model's segments at random."""
    generator = np.random.default_rng(7)
    segments = getattr(model.config, "type_vocab_size", 1) or 1
    return PairBatch(
        generator.integers(0, model.config.vocab_size, sum(LENGTHS), np.int32),
        generator.integers(0, segments, sum(LENGTHS), np.int32),
        np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int64),
    )


def logits_of(model: Any, batch: PairBatch) -> NDArray[np.float32]:
    """PyTorch's logits of each pair alone, float32 [pairs, labels]."""
    import torch

    has_segments = getattr(model.config, "type_vocab_size", 0) > 0
    rows = []
    for start, stop in zip(batch.offsets, batch.offsets[1:], strict=False):
        ids, types = (
            torch.from_numpy(array[start:stop].astype(np.int64))[None]
            for array in (batch.input_ids, batch.token_type_ids)
        )
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            rows.append(model(**inputs, **({"token_type_ids": types} if has_segments else {})).logits[0].numpy())
    return np.array(rows)


@pytest.mark.parametrize("case", CASES, ids=name_of)
def test_a_built_graph_gives_the_logits_of_transformers(tmp_path: Path, case: tuple[str, int, dict[str, Any]]):
    family, labels, changes = case
    model = write_model(tmp_path / "m", family, labels, **changes)
    batch = random_pairs(model)
    expected = logits_of(model, batch)
    assert np.std(expected[:, -1]) > 1e-3, "logits that do not differ would prove nothing"
    bundle = built(tmp_path / "m", label=labels - 1)
    assert bundle.manifest.num_labels == labels
    for engine in ("onnxruntime", "openvino"):
        logits = make_engine(bundle, engine, "fp32", 1).infer(batch)  # type: ignore[arg-type]
        np.testing.assert_allclose(logits, expected[:, -1], atol=2e-5, rtol=0, err_msg=engine)


@pytest.mark.parametrize(("labels", "label"), [(1, 0), (3, 1)])
def test_the_native_engine_gives_the_same_logits_from_the_weights(tmp_path: Path, labels: int, label: int):
    if not usable_kernels():
        pytest.skip("the native engine was not built")
    model = write_model(tmp_path / "m", "TinyBERT-L2", labels)
    batch = random_pairs(model)
    bundle = built(tmp_path / "m", label)
    assert bundle.manifest.weights is not None
    # The large ones lie in the graph's file already.
    assert bundle.manifest.weights.shared.keys() >= {"embeddings.word", "layer.0.up.weight", "layer.1.down.weight"}
    logits = NativeEngine(bundle, "portable", 1).infer(batch)
    np.testing.assert_allclose(logits, logits_of(model, batch)[:, label], atol=2e-5, rtol=0)


@pytest.mark.parametrize("changes", [{"hidden_act": "relu"}, {"num_attention_heads": 4}])
def test_what_the_native_engine_does_not_compute_gets_no_weights_for_it(tmp_path: Path, changes: dict[str, Any]):
    write_model(tmp_path / "m", "TinyBERT-L2", 1, **changes)
    assert built(tmp_path / "m").manifest.weights is None


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64"])
def test_weights_of_other_types_are_read_exactly(tmp_path: Path, kind: str):
    import torch

    model = write_model(tmp_path / "m", "bert", 1).to(getattr(torch, kind))
    model.save_pretrained(tmp_path / "m")
    model = model.float()
    batch = random_pairs(model)
    logits = make_engine(built(tmp_path / "m"), "onnxruntime", "fp32", 1).infer(batch)
    np.testing.assert_allclose(logits, logits_of(model, batch)[:, 0], atol=2e-5, rtol=0)


def test_names_of_old_checkpoints_are_read(tmp_path: Path):
    """TensorFlow's: transformers still reads gamma and beta of layer normalizations."""
    model = write_model(tmp_path / "m", "bert", 1)
    file = tmp_path / "m/model.safetensors"
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(file)
    for new, before in old.items():
        tensors = {name.replace(new, before): tensor for name, tensor in tensors.items()}
    assert sum(".gamma" in name for name in tensors) == 5
    save_file(tensors, file, {"format": "pt"})
    batch = random_pairs(model)
    logits = make_engine(built(tmp_path / "m"), "onnxruntime", "fp32", 1).infer(batch)
    np.testing.assert_allclose(logits, logits_of(model, batch)[:, 0], atol=2e-5, rtol=0)


def test_distances_have_the_buckets_of_transformers():
    import torch
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    distances = torch.arange(1 - 2048, 2048)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = MPNetEncoder.relative_position_bucket(distances, num_buckets=32).numpy()
    np.testing.assert_array_equal(distance_buckets(2048), expected)


def test_every_family_names_its_class_of_transformers():
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES

    for model_type, family in FAMILIES.items():
        assert MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES[model_type] == family.class_name
