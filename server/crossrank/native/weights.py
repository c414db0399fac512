"""Read and write the weights of a BERT cross-encoder by role, which the native encoder computes with.

    embeddings.word [vocab_size, hidden]    embeddings.position [positions, hidden]
    embeddings.segment [segments, hidden]   embeddings.norm
    layer.N.query, .key, .value, .output, .up, .down, .attention_norm, .output_norm
    pooler                                  classifier: of the one label that is the score

All but the tables have `.weight` and `.bias`; a linear layer computes x W + b with W [in, out].
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from crossrank.bundles.bundle import Architecture, Weights
from crossrank.errors import BundleError

WEIGHTS_FILE = "weights.safetensors"
WORD = "embeddings.word"
# Hidden size and heads of the models that the native encoder was measured with: TinyBERT-L2, TinyBERT-L4, MiniLM.
# engines/candidates.py says with which kernels it serves them.
NATIVE_SHAPES = frozenset({(128, 2), (312, 12), (384, 12)})


@dataclass(frozen=True)
class Shape:
    """Hold the numbers that decide every array's size.

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

    def check(self, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Compare arrays with the shape.

        Raises:
            ValueError: A role is missing or unknown, or its array is not float32 of the right shape.
        """
        expected = self.arrays()
        if arrays.keys() != expected.keys():
            different = sorted(arrays.keys() ^ expected.keys())
            raise ValueError(f"roles are missing or unknown: {', '.join(different[:3])}")
        for role, dims in expected.items():
            array = arrays[role]
            if array.shape != dims or array.dtype != np.float32:
                raise ValueError(f"{role} is {array.dtype} {list(array.shape)}, not float32 {list(dims)}")


def is_native_shape(architecture: Architecture) -> bool:
    """Tell whether the native encoder serves models of this shape."""
    return architecture.model_type == "bert" and (architecture.hidden, architecture.heads) in NATIVE_SHAPES


def write_arrays(path: Path, arrays: Mapping[str, NDArray[np.float32]]) -> None:
    """Write arrays as safetensors, each in the order of its own elements.

    The library writes the memory under a strided view as it lies there, so that `weight[:, 1]` would become the first
    elements of `weight`: an array that is not contiguous is copied.

    Source: https://github.com/safetensors/safetensors/issues/825
    """
    contiguous = {role: np.ascontiguousarray(array, "<f4") for role, array in arrays.items()}
    path.write_bytes(save(contiguous))  # save_file would make it readable for its owner only


def read_weights(directory: Path, record: Weights, sizes: Architecture) -> tuple[Shape, dict[str, NDArray[np.float32]]]:
    """Read a bundle's weights, whose files have been compared with their hashes when it was loaded.

    Args:
        directory: Where the bundle lies.
        record: The manifest's entry of the weights.
        sizes: The model's shape.

    Raises:
        BundleError: They do not fit the manifest.
    """
    integers = {name: getattr(sizes, name) for name in ("layers", "hidden", "heads", "ffn", "vocab_size")}
    shape = Shape(**integers, positions=record.positions, segments=record.segments, epsilon=record.epsilon)
    expected = shape.arrays()
    try:
        arrays = load_file(directory / record.file)
        for role, tensor in record.shared.items():
            dims = expected.get(role, ())
            end, size = tensor.offset + 4 * math.prod(dims), (directory / tensor.file).stat().st_size
            if end > size:
                raise ValueError(f"{role} ends at byte {end} of {tensor.file}, which has {size}")
            numbers = np.fromfile(directory / tensor.file, "<f4", math.prod(dims), offset=tensor.offset)
            arrays[role] = numbers.astype(np.float32, copy=False).reshape(dims)
        shape.check(arrays)
    except (OSError, ValueError, SafetensorError) as error:
        raise BundleError(f"{directory / record.file} does not fit the manifest ({error}); export it again") from error
    return shape, arrays
