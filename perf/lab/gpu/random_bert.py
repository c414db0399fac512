"""Write a BERT cross-encoder of any shape with seeded random weights, without PyTorch: its scores mean nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import TOKENIZER
from crossrank.bundles.catalog import CatalogModel
from crossrank.resolve import builtin_path

_VOCABULARY, _POSITIONS, _SEGMENTS = 30522, 512, 2
# Wider than a training run starts with, so that logits differ from pair to pair.
_DEVIATION = 0.05
_CONFIG = {"architectures": ["BertForSequenceClassification"], "hidden_act": "gelu", "layer_norm_eps": 1e-12}
_TOKENS = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": _POSITIONS}


def write_random_bert(model: CatalogModel, out: Path, seed: int = 0) -> Path:
    """Write a checkpoint of the model's shape in the form of `save_pretrained`; return its directory."""
    from safetensors.numpy import save_file

    out.mkdir(parents=True)
    config: dict[str, Any] = {
        **_CONFIG,
        "model_type": "bert",
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": model.ffn,
        "vocab_size": _VOCABULARY,
        "max_position_embeddings": _POSITIONS,
        "type_vocab_size": _SEGMENTS,
        "pad_token_id": 0,
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
    }
    (out / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(_TOKENS), encoding="utf-8")
    shutil.copy(builtin_path() / TOKENIZER, out / TOKENIZER)
    save_file(_weights(model, np.random.default_rng(seed)), out / "model.safetensors")
    return out


def _weights(model: CatalogModel, random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    hidden, ffn = model.hidden, model.ffn
    found: dict[str, NDArray[np.float32]] = {}

    def matrix(name: str, rows: int, columns: int, *, bias: bool = True) -> None:
        found[f"{name}.weight"] = (random.standard_normal((rows, columns)) * _DEVIATION).astype(np.float32)
        if bias:
            found[f"{name}.bias"] = (random.standard_normal(rows) * _DEVIATION).astype(np.float32)

    def norm(name: str) -> None:
        found[f"{name}.weight"] = np.ones(hidden, np.float32)
        found[f"{name}.bias"] = np.zeros(hidden, np.float32)

    tables = {"word": _VOCABULARY, "position": _POSITIONS, "token_type": _SEGMENTS}
    for name, rows in tables.items():
        matrix(f"bert.embeddings.{name}_embeddings", rows, hidden, bias=False)
    norm("bert.embeddings.LayerNorm")
    for layer in range(model.layers):
        prefix = f"bert.encoder.layer.{layer}"
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            matrix(f"{prefix}.attention.{name}", hidden, hidden)
        norm(f"{prefix}.attention.output.LayerNorm")
        matrix(f"{prefix}.intermediate.dense", ffn, hidden)
        matrix(f"{prefix}.output.dense", hidden, ffn)
        norm(f"{prefix}.output.LayerNorm")
    matrix("bert.pooler.dense", hidden, hidden)
    matrix("classifier", 1, hidden)
    return found
