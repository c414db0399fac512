"""Compute BERT in plain numpy, to check that weights have been assigned the right roles."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from crossrank.native.weights import WORD, Shape
from crossrank.packed import PairBatch

Array = NDArray[np.float32]


def score_pairs(shape: Shape, weights: Mapping[str, Array], batch: PairBatch) -> Array:
    """Return the logits of packed pairs, float32 [pairs], one pair at a time.

    Source: J. Devlin et al., https://arxiv.org/abs/1810.04805, and `BertForSequenceClassification` of transformers.
    """
    logits = np.empty(len(batch), np.float32)
    for i in range(len(batch)):
        tokens = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
        x = weights[WORD][batch.input_ids[tokens]] + weights["embeddings.segment"][batch.token_type_ids[tokens]]
        x = _norm(x + weights["embeddings.position"][: len(x)], weights, "embeddings.norm", shape.epsilon)
        for layer in range(shape.layers):
            x = _layer(x, shape, weights, f"layer.{layer}.")
        pooled = np.tanh(_linear(x[:1], weights, "pooler"))
        logits[i] = (pooled @ weights["classifier.weight"])[0] + weights["classifier.bias"][0]
    return logits


def _layer(x: Array, shape: Shape, weights: Mapping[str, Array], at: str) -> Array:
    heads = (-1, shape.heads, shape.hidden // shape.heads)
    query, key, value = (
        _linear(x, weights, at + name).reshape(heads).transpose(1, 0, 2) for name in ("query", "key", "value")
    )
    scores = query @ key.transpose(0, 2, 1) / np.float32(heads[2] ** 0.5)
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    context = (powers / powers.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(x.shape)
    x = _norm(x + _linear(context, weights, at + "output"), weights, at + "attention_norm", shape.epsilon)
    up = _linear(x, weights, at + "up")
    down = _linear((up * (1 + _erf(up * np.float32(0.5**0.5))) / 2).astype(np.float32), weights, at + "down")
    return _norm(x + down, weights, at + "output_norm", shape.epsilon)


def _linear(x: Array, weights: Mapping[str, Array], role: str) -> Array:
    return x @ weights[role + ".weight"] + weights[role + ".bias"]


def _norm(x: Array, weights: Mapping[str, Array], role: str, epsilon: float) -> Array:
    off = x - x.mean(-1, keepdims=True)
    scale = np.sqrt((off * off).mean(-1, keepdims=True) + np.float32(epsilon))
    normal: Array = off / scale
    return normal * weights[role + ".weight"] + weights[role + ".bias"]


def _erf(x: Array) -> Array:
    """Return erf(x) to 2e-7. Source: M. Abramowitz, I. Stegun, Handbook of Mathematical Functions, 7.1.26."""
    t = 1 / (1 + np.float32(0.3275911) * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    result: Array = np.sign(x) * (1 - series * np.exp(-x * x))
    return result
