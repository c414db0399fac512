"""A model with a window of thousands of tokens: its export and its start cost no more than those of a short one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.checkpoints.config import read_config
from crossrank.checkpoints.tokens import read_tokens
from crossrank.engines.onnxruntime import OnnxRuntimeEngine
from crossrank.engines.openvino import OpenVinoEngine
from crossrank.text.encoding import PairEncoder
from crossrank_export.convert import checkpoint_scorer, load_checkpoint
from crossrank_export.pipeline import ExportOptions, export_model
from crossrank_export.samples import BUILTIN_TOKENS, SampleGroup, builtin_groups
from crossrank_export.sources import find_source
from tests.checkpoints import write_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning")
WINDOW = 8192
OWN = [SampleGroup("w7 w9", [" ".join(f"w{i % 300}" for i in range(1200)), "w7 b"], ["0", "1"])]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ModernBERT in miniature, which averages over all tokens; its local attention sees 64 to each side."""
    path = tmp_path_factory.mktemp("modernbert") / "source"
    shape = {"model_type": "modernbert", "num_hidden_layers": 3, "classifier_pooling": "mean"}
    ends = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    write_checkpoint(path, "bert", vocab_size=1000, max_position_embeddings=WINDOW, **shape, **ends)
    settings = path / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "model_max_length": WINDOW}))
    return path


@pytest.fixture(scope="module")
def bundle(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("bundle") / "modernbert"
    return export_model(find_source(checkpoint), out, ExportOptions(documents=4, groups={"own.jsonl": OWN}))


def test_the_record_says_how_long_the_longest_pair_was(bundle: Bundle):
    assert bundle.manifest.max_length == WINDOW
    parity = bundle.manifest.graph("fp32").parity
    assert parity["builtin"]["longest_pair_tokens"] == 1024
    assert parity["builtin"]["logit_range"] > 0.1
    assert "longest_pair_tokens" not in parity["own.jsonl"], "a user's own pairs are compared whole"


def test_built_in_pairs_are_bounded_whatever_the_window(checkpoint: Path):
    groups = builtin_groups(32_768)
    assert groups == builtin_groups(BUILTIN_TOKENS)
    tokens = read_tokens(checkpoint, read_config(checkpoint), None)
    pairs = [(group.query, document) for group in groups for document in group.documents]
    assert tokens.encode(pairs, BUILTIN_TOKENS).lengths.max() == BUILTIN_TOKENS
    assert tokens.encode(pairs).lengths.max() > BUILTIN_TOKENS, "words of many tokens are what the bound is for"


def test_a_pair_is_scored_beyond_what_was_compared(bundle: Bundle, checkpoint: Path):
    batch = PairEncoder(bundle).encode(OWN[0].query, OWN[0].documents).batch
    assert batch.lengths.max() > BUILTIN_TOKENS
    expected = checkpoint_scorer(load_checkpoint(checkpoint))(batch)[:, 0]
    for engine in (OnnxRuntimeEngine(bundle, "fp32", 1), OpenVinoEngine(bundle, "fp32", 1)):
        np.testing.assert_allclose(engine.infer(batch), expected, atol=1e-4, rtol=0)


class _Recording:
    """Notes the length of each inference."""

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        self.lengths: list[int] = [*getattr(self, "lengths", []), inputs["input_ids"].shape[1]]
        return super()._infer(inputs)  # type: ignore[misc]


@pytest.mark.parametrize("engine", [OnnxRuntimeEngine, OpenVinoEngine])
def test_an_engine_starts_without_a_pair_of_the_whole_window(bundle: Bundle, engine: Any):
    class Recording(_Recording, engine):
        pass

    started = Recording(bundle, "fp32", threads=1)
    started.warm_up()
    assert max(started.lengths) == 1024
