"""For tests of the native encoder: its kernels, and seeded random weights by role, without any framework."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.native.library import KERNELS, usable_kernels
from crossrank.native.weights import Shape
from crossrank.packed import PairBatch

TINY = Shape(layers=2, hidden=128, heads=2, ffn=512, vocab_size=500, positions=512, segments=2, epsilon=1e-12)


def each_kernel(**marks: pytest.MarkDecorator) -> list[Any]:
    """Every kernel there is, as parameters of a test that is skipped with those that this CPU does not run.

    Args:
        **marks: For a kernel, by its name.
    """
    usable = usable_kernels()
    absent = {
        name: pytest.mark.skip(reason=f"kernel {name} is not built, or not for this CPU")
        for name in KERNELS
        if name not in usable
    }
    return [pytest.param(name, marks=[table[name] for table in (absent, marks) if name in table]) for name in KERNELS]


def random_weights(shape: Shape, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """Weights that keep the size of what they multiply, so that a lost token or role shows in the logit."""
    rng = np.random.default_rng(seed)
    weights = {}
    for role, dims in shape.arrays().items():
        array = rng.standard_normal(dims)
        if "norm" in role:
            array = array * 0.1 + (1.0 if role.endswith("weight") else 0.0)
        elif role.endswith("bias"):
            array *= 0.3
        elif not role.startswith("embeddings"):
            array *= dims[0] ** -0.5
        weights[role] = array.astype(np.float32)
    return weights


def random_pairs(shape: Shape, lengths: list[int], seed: int = 0) -> PairBatch:
    """Pairs of these lengths, of any tokens."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return PairBatch(
        rng.integers(0, shape.vocab_size, total, np.int32),
        rng.integers(0, shape.segments, total, np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )
