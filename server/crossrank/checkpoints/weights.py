"""Read the weights of a checkpoint by role, and check them against its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from crossrank.bundles.bundle import Architecture
from crossrank.checkpoints.families import FAMILIES, Family
from crossrank.checkpoints.position_bias import BUCKETS
from crossrank.checkpoints.tensors import Array, Tensors
from crossrank.errors import ModelSourceError

# Defaults of BERT's configuration in transformers, where config.json states none.
_EPSILON = 1e-12
_POSITIONS = 512
# Names that TensorFlow's checkpoints have for weight and bias of a layer normalization; transformers reads both.
_OLD_NAMES = {".weight": ".gamma", ".bias": ".beta"}


class CheckpointWeights:
    """Float32 weights of a checkpoint by role, read on demand.

    Linear layers compute x W^T + b with W [out, in], as PyTorch stores them.

    Args:
        directory: Directory of the checkpoint.
        files: Its safetensors files.
        config: Content of its config.json, for which `why_not_built` returned None.
        sizes: Shape of the encoder as config.json states it.
        num_labels: Number of logits of a pair.

    Raises:
        ModelSourceError: Files are damaged, weights are missing, or have other shapes than config.json states.
    """

    def __init__(
        self, directory: Path, files: list[Path], config: Mapping[str, Any], sizes: Architecture, num_labels: int
    ) -> None:
        self.family: Family = FAMILIES[sizes.model_type]
        self.sizes = sizes
        self.num_labels = num_labels
        self.epsilon = self.family.epsilon or _positive(config, "layer_norm_eps", _EPSILON, directory)
        width, types = self.family.embedding_size, self.family.segment_types
        self.embedding_size = _count(config, "embedding_size", width, directory) if width else sizes.hidden
        self.segments = _count(config, "type_vocab_size", types, directory) if types else 0
        self.positions = _count(config, "max_position_embeddings", _POSITIONS, directory)
        if sizes.hidden % sizes.heads:
            raise ModelSourceError(
                f"{directory}: hidden size {sizes.hidden} is no multiple of {sizes.heads} attention heads: config.json "
                "is of another model"
            )
        self._tensors = Tensors(files)
        self._check(directory)

    def array(self, role: str) -> Array:
        """Return the float32 weights of a role; layers and head have the roles `NAME.weight` and `NAME.bias`."""
        return self._tensors.array(self._name(role))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the expected shape of every role's array."""
        hidden, width = self.sizes.hidden, self.embedding_size
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word": (self.sizes.vocab_size, width),
            "embeddings.position": (self.positions, width),
            **_pair("embeddings.norm", width),
        }
        if self.segments:
            shapes["embeddings.segment"] = (self.segments, width)
        if width != hidden:
            shapes |= _pair("embeddings.projection", hidden, width)
        if self.family.attention_bias:
            shapes["attention_bias"] = (BUCKETS, self.sizes.heads)
        for layer in range(self.sizes.layers):
            at = f"layer.{layer}."
            for name in ("query", "key", "value", "output"):
                shapes |= _pair(at + name, hidden, hidden)
            shapes |= _pair(f"{at}up", self.sizes.ffn, hidden) | _pair(f"{at}down", hidden, self.sizes.ffn)
            shapes |= _pair(f"{at}attention_norm", hidden) | _pair(f"{at}output_norm", hidden)
        return shapes | _pair("pooler", hidden, hidden) | _pair("classifier", self.num_labels, hidden)

    def _name(self, role: str) -> str:
        """Return the name of a role's tensor; the old name if only that is present."""
        module, kind = role, ".weight"
        if role.endswith((".weight", ".bias")):
            module, _, last = role.rpartition(".")
            kind = f".{last}"
        stem = self.family.module(module)
        name, old = stem + kind, stem + _OLD_NAMES[kind]
        return old if name not in self._tensors and old in self._tensors and "LayerNorm" in stem else name

    def _check(self, directory: Path) -> None:
        shapes = self.shapes()
        names = {role: self._name(role) for role in shapes}
        missing = sorted(name for name in names.values() if name not in self._tensors)
        if missing:
            raise ModelSourceError(
                f"{directory} lacks weights ({', '.join(missing[:3])}), which would be random: it is not a complete "
                "cross-encoder"
            )
        for role, name in names.items():
            found = self._tensors.shape(name)
            if found != shapes[role]:
                raise ModelSourceError(
                    f"{directory}: {name} has shape {list(found)}, config.json says {list(shapes[role])}: the two are "
                    "of different models"
                )


def _pair(role: str, *dims: int) -> dict[str, tuple[int, ...]]:
    return {f"{role}.weight": dims, f"{role}.bias": dims[:1]}


def _count(config: Mapping[str, Any], name: str, default: int, directory: Path) -> int:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelSourceError(f"{directory}/config.json: {name} is {str(value)[:80]}, not a whole number from 1 on")
    return value


def _positive(config: Mapping[str, Any], name: str, default: float, directory: Path) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1 or np.float32(value) == 0:
        raise ModelSourceError(f"{directory}/config.json: {name} is {str(value)[:80]}, not a number between 0 and 1")
    return float(value)
