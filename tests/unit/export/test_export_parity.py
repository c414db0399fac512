"""What is no reference for a parity check is refused before anything is compared with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crossrank.checkpoints.config import read_config
from crossrank.checkpoints.tokens import read_tokens
from crossrank.errors import ModelSourceError
from crossrank_export.convert import checkpoint_scorer
from crossrank_export.parity import prepare
from crossrank_export.samples import builtin_groups
from tests.checkpoints import SMALL, build_model, write_family


def test_a_model_that_reads_padding_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write_family(tmp_path / "bert", "bert")
    config = read_config(directory, "safetensors")
    tokens = read_tokens(directory, config, None)
    groups = builtin_groups(tokens.max_length, documents=3)
    vocab_size = config.architecture.vocab_size
    prepare("builtin", groups, tokens, checkpoint_scorer(build_model("bert", vocab_size=vocab_size)), 1, 0)

    # Its convolutions reach beyond the last token, and no mask reaches them.
    monkeypatch.setitem(SMALL, "convbert", {**SMALL["bert"], "model_type": "convbert", "embedding_size": 32})
    convbert = checkpoint_scorer(build_model("convbert", vocab_size=vocab_size))
    with pytest.raises(ModelSourceError, match=r"depend on padding: a pair of \d+ tokens .* beside one of 128 tokens"):
        prepare("builtin", groups, tokens, convbert, 1, 0)
