"""What the built-in model's scores are, and measures of a ranking, computed without crossrank's own code."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from tests.conftest import ROOT

_BUNDLE = ROOT / "server" / "crossrank" / "bundles" / "builtin"


class PairAtATime:
    """The built-in model's fp32 graph in onnxruntime, its tokenizer in the tokenizers library, one pair at a time."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(_BUNDLE / "tokenizer.json"))
        self._tokenizer.enable_truncation(512, strategy="longest_first")
        self._tokenizer.no_padding()
        self._session = ort.InferenceSession(_BUNDLE / "model.onnx", providers=["CPUExecutionProvider"])

    def score(self, query: str, text: str) -> float:
        """Return the sigmoid of the pair's logit."""
        tokens = self._tokenizer.encode(query, text)
        inputs = {
            "input_ids": tokens.ids,
            "attention_mask": tokens.attention_mask,
            "token_type_ids": tokens.type_ids,
        }
        [logits] = self._session.run(None, {name: np.array([ids], np.int32) for name, ids in inputs.items()})
        return 1 / (1 + math.exp(-float(logits[0, 0])))

    def rank(self, query: str, texts: Sequence[str]) -> list[tuple[int, float]]:
        """Return (index, score) of each text, best first, equal ones in their order."""
        scores = [self.score(query, text) for text in texts]
        return sorted(enumerate(scores), key=lambda hit: -hit[1])


def reciprocal_rank(relevant: Sequence[bool], k: int) -> float:
    """Return 1 / rank of the first relevant text of a ranking, 0 if there is none among the first k."""
    return next((1 / rank for rank, is_relevant in enumerate(relevant[:k], 1) if is_relevant), 0.0)


def average_precision(relevant: Sequence[bool]) -> float:
    """Return the mean of the precisions at the relevant texts of a ranking that holds all of them."""
    ranks = [rank for rank, is_relevant in enumerate(relevant, 1) if is_relevant]
    return sum(found / rank for found, rank in enumerate(ranks, 1)) / len(ranks)


def ndcg(relevant: Sequence[bool], k: int) -> float:
    """Return the normalized discounted cumulative gain of a ranking that holds all relevant texts.

    Source: Järvelin & Kekäläinen 2002, https://doi.org/10.1145/582415.582418, with gains 0 and 1
    """
    gain, best = (
        sum(is_relevant / math.log2(rank + 1) for rank, is_relevant in enumerate(ranking[:k], 1))
        for ranking in (relevant, sorted(relevant, reverse=True))
    )
    return gain / best
