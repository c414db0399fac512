"""The weights of a BERT cross-encoder by role: what export writes, the bundle holds and the native engine reads.

    embeddings.word [vocab_size, hidden]   embeddings.position [positions, hidden]   embeddings.segment [segments, hidden]
    embeddings.norm.weight, .bias
    layer.N.query, .key, .value, .output, .up, .down    .weight [in, out] and .bias [out], computing x W + b
    layer.N.attention_norm, .output_norm                .weight and .bias [hidden]
    pooler.weight [hidden, hidden], .bias   classifier.weight [hidden], .bias [1]: the one label that is the score
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

WORD = "embeddings.word"


@dataclass(frozen=True)
class Shape:
    """The numbers that decide every array's size.

    Attributes:
        epsilon: Of every layer normalization.
    """

    INTEGERS: ClassVar[tuple[str, ...]] = ("layers", "hidden", "heads", "ffn", "vocab_size", "positions", "segments")

    layers: int
    hidden: int
    heads: int
    ffn: int
    vocab_size: int
    positions: int
    segments: int
    epsilon: float

    def arrays(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every role's array."""
        hidden = self.hidden
        sizes: dict[str, tuple[int, ...]] = {
            WORD: (self.vocab_size, hidden),
            "embeddings.position": (self.positions, hidden),
            "embeddings.segment": (self.segments, hidden),
            "embeddings.norm.weight": (hidden,),
            "embeddings.norm.bias": (hidden,),
        }
        for layer in range(self.layers):
            for name, inputs, outputs in (
                ("query", hidden, hidden),
                ("key", hidden, hidden),
                ("value", hidden, hidden),
                ("output", hidden, hidden),
                ("up", hidden, self.ffn),
                ("down", self.ffn, hidden),
            ):
                sizes[f"layer.{layer}.{name}.weight"] = (inputs, outputs)
                sizes[f"layer.{layer}.{name}.bias"] = (outputs,)
            for name in ("attention_norm", "output_norm"):
                sizes[f"layer.{layer}.{name}.weight"] = sizes[f"layer.{layer}.{name}.bias"] = (hidden,)
        sizes["pooler.weight"] = (hidden, hidden)
        sizes["pooler.bias"] = (hidden,)
        sizes["classifier.weight"] = (hidden,)
        sizes["classifier.bias"] = (1,)
        return sizes
