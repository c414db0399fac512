"""Weights by role: found in every exporter's graph, proved by their scores, written once."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file

from crossrank.bundles.bundle import Architecture, SharedTensor
from crossrank.native.padding import pad
from crossrank.native.weights import WORD
from crossrank.packed import PairBatch
from crossrank_export.bert import score_pairs
from crossrank_export.native_weights import write_weights
from crossrank_export.parity import SampleSet
from crossrank_export.roles import NoRolesError, find_roles
from crossrank_export.samples import SampleGroup
from tests.native_models import random_pairs
from tests.onnx_exports import Exporter, export_named, session_of

EXPORTERS = [
    Exporter(False, "eager", 11),
    Exporter(False, "eager", 17),
    Exporter(False, "sdpa", 17),
    Exporter(True, "eager", 18),
    Exporter(True, "sdpa", 23),
]
BERT = Architecture(model_type="bert", layers=2, hidden=32, heads=4, ffn=64, vocab_size=400)
# The shape that the native engine serves, with few words.
TINY = Architecture(model_type="bert", layers=2, hidden=128, heads=2, ffn=512, vocab_size=200)
LEGACY = Exporter(False, "eager", 17)


def logits_of(model: ir.Model, batch: PairBatch) -> NDArray[np.float32]:
    """float32 [pairs, labels] by ONNX Runtime."""
    session = session_of(model)
    arrays = zip(
        ("input_ids", "token_type_ids", "attention_mask"), pad(batch, int(batch.lengths.max()), 0), strict=True
    )
    names = {value.name for value in session.get_inputs()}
    logits: NDArray[np.float32] = session.run(
        ["logits"], {name: array.astype(np.int64) for name, array in arrays if name in names}
    )[0]
    return logits


def tiny(path: Path, **changes: Any) -> ir.Model:
    return export_named("TinyBERT-L2", LEGACY, path / "source.onnx", vocab_size=200, **changes)


def samples(model: ir.Model) -> list[SampleSet]:
    names = [f"d{i}" for i in range(4)]
    group = SampleGroup("q", names, names)
    batch = PairBatch(
        np.arange(60, dtype=np.int32) % 200, np.arange(60, dtype=np.int32) % 2, np.array([0, 5, 20, 50, 60])
    )
    return [SampleSet("builtin", [group], batch, logits_of(model, batch)[:, 0])]


@pytest.mark.parametrize("exporter", EXPORTERS, ids=str)
def test_roles_are_found_however_bert_was_exported(exporter: Exporter, tmp_path: Path) -> None:
    model = export_named("bert", exporter, tmp_path / "model.onnx", num_labels=3)
    shape, weights = find_roles(model, BERT, label=1)
    assert (shape.positions, shape.segments) == (512, 2)
    assert shape.epsilon == pytest.approx(1e-12)
    batch = random_pairs(shape, [1, 3, 20, 33])
    expected = logits_of(model, batch)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(score_pairs(shape, weights, batch), expected[:, 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["roberta", "electra", "mpnet"])
def test_other_families_have_no_roles(family: str, tmp_path: Path) -> None:
    with pytest.raises(NoRolesError):
        find_roles(export_named(family, LEGACY, tmp_path / "model.onnx"), BERT, label=0)


def test_another_number_of_layers_is_named(tmp_path: Path) -> None:
    deeper = BERT.model_copy(update={"layers": 3})
    with pytest.raises(
        NoRolesError, match="2 attention blocks, 5 layer normalizations and 14 linear layers, where BERT"
    ):
        find_roles(export_named("bert", LEGACY, tmp_path / "model.onnx"), deeper, label=0)


def test_word_embeddings_are_not_written_twice(tmp_path: Path) -> None:
    model = tiny(tmp_path)
    fp32 = tmp_path / "model.onnx"
    ir.save(model, fp32)
    record = write_weights(model, TINY, 0, samples(model), fp32)
    assert record is not None
    written = load_file(tmp_path / record.file)
    shape, weights = find_roles(model, TINY, label=0)
    assert written.keys() == shape.arrays().keys() - {WORD}
    shared = record.shared[WORD]
    assert isinstance(shared, SharedTensor)
    table = np.fromfile(tmp_path / shared.file, "<f4", 200 * 128, offset=shared.offset).reshape(200, 128)
    np.testing.assert_array_equal(table, weights[WORD])
    assert record.parity["builtin"]["max_abs_delta"] < 1e-5


def test_a_model_with_another_activation_gets_no_weights_and_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tiny(tmp_path, hidden_act="relu")
    ir.save(model, tmp_path / "model.onnx")
    with caplog.at_level(logging.WARNING):
        assert write_weights(model, TINY, 0, samples(model), tmp_path / "model.onnx") is None
    assert "read as BERT's they give logits" in caplog.text
    assert not (tmp_path / "weights.safetensors").exists()


def test_a_model_of_a_shape_that_is_not_served_gets_no_weights(tmp_path: Path) -> None:
    model = export_named("bert", LEGACY, tmp_path / "source.onnx")
    assert write_weights(model, BERT, 0, [], tmp_path / "model.onnx") is None
