"""The native engine serves the catalogue's wider shapes: random weights give PyTorch's logits, whatever the batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.bundles.bundle import load_bundle
from crossrank.engines.select import make_engine
from crossrank.native.library import NativeContext, NativeModel, usable_kernels
from crossrank.native.weights import Shape
from crossrank.packed import PairBatch, take_pairs
from crossrank_export.convert import checkpoint_scorer
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.sources import find_source
from tests.checkpoints import build_model, write_checkpoint
from tests.native_models import random_pairs

KERNEL = next((name for name in ("avx512", "avx2", "portable") if name in usable_kernels()), None)
NAMES = ["MiniLM-L2-v2", "MiniLM-L6-v2", "MiniLM-L12-v2", "TinyBERT-L4"]
VOCABULARY = 300
NAMES_IN_TRANSFORMERS = {
    "bert.": "",
    "encoder.": "",
    "attention.self.": "",
    "_embeddings": "",
    "token_type": "segment",
    "pooler.dense": "pooler",
    "attention.output.dense": "output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "output_norm",
    "LayerNorm": "norm",
}
# More tokens than the encoder takes at a time, and lengths on both sides of its blocks.
LENGTHS = [1, 3, 512, 17, 95, 96, 97, 128, 30, 6, 288, 289, *range(40, 60)]

pytestmark = pytest.mark.skipif(KERNEL is None, reason="the native encoder was not built: no C++ compiler")


class Case(NamedTuple):
    scorer: NativeContext
    batch: PairBatch
    logits: NDArray[np.float32]
    """float32 [pairs], by PyTorch."""


@pytest.fixture(scope="module", params=NAMES)
def case(request: pytest.FixtureRequest) -> Case:
    assert KERNEL is not None
    model = build_model(request.param, vocab_size=VOCABULARY)
    config = model.config
    shape = Shape(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        ffn=config.intermediate_size,
        vocab_size=VOCABULARY,
        positions=config.max_position_embeddings,
        segments=config.type_vocab_size,
        epsilon=config.layer_norm_eps,
    )
    batch = random_pairs(shape, LENGTHS)
    scorer = NativeContext(NativeModel(KERNEL, shape, weights_by_role(model)))
    return Case(scorer, batch, checkpoint_scorer(model)(batch)[:, 0])


def weights_by_role(model: Any) -> dict[str, NDArray[np.float32]]:
    """Of BertForSequenceClassification with one label; PyTorch stores linear layers as [out, in]."""
    weights = {}
    for key, tensor in model.state_dict().items():
        role = key.removesuffix(".weight") if "_embeddings" in key else key
        for name, short in NAMES_IN_TRANSFORMERS.items():
            role = role.replace(name, short)
        array = tensor.numpy()
        is_linear = array.ndim == 2 and not role.startswith("embeddings")
        weights[role] = np.ascontiguousarray(array.T if is_linear else array)
    weights["classifier.weight"] = weights["classifier.weight"][:, 0]
    return weights


def score(case: Case, batch: PairBatch) -> NDArray[np.float32]:
    return case.scorer.score(batch.input_ids, batch.token_type_ids, batch.offsets)


def test_logits_are_those_of_pytorch(case: Case) -> None:
    assert np.ptp(case.logits) > 0.1
    np.testing.assert_allclose(score(case, case.batch), case.logits, atol=2e-5, rtol=0)


def test_a_logit_has_the_same_bits_in_every_batch(case: Case) -> None:
    whole = score(case, case.batch)
    rng = np.random.default_rng(1)
    for size in (1, 2, 7, len(LENGTHS)):
        rows = rng.permutation(len(LENGTHS))[:size]
        np.testing.assert_array_equal(score(case, take_pairs(case.batch, rows)), whole[rows])


@pytest.mark.skipif(KERNEL == "portable", reason="auto takes another engine where there is no AVX2")
@pytest.mark.parametrize("name", ["MiniLM-L2-v2", "TinyBERT-L4"])
def test_an_exported_bundle_is_served_by_it(name: str, tmp_path: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "source", name, vocab_size=VOCABULARY)
    export_model(find_source(checkpoint), tmp_path / "bundle", ExportOptions(documents=2))
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.manifest.weights is not None
    engine = make_engine(bundle, "auto", "fp32", threads=1)
    assert engine.name == "native"
    batch = random_pairs(Shape(2, 1, 1, 1, VOCABULARY, 512, 2, 1e-12), [5, 64, 100])
    expected = make_engine(bundle, "onnxruntime", "fp32", threads=1).infer(batch)
    np.testing.assert_allclose(engine.infer(batch), expected, atol=1e-4, rtol=0)
