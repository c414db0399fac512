"""Map safetensors into memory, and read tensors of any floating-point type as float32 on demand.

Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import ModelSourceError

Array = NDArray[np.float32]

# The format's own limit.
_MOST_HEADER_BYTES = 100_000_000
_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class _Entry:
    """Location of a tensor in a file.

    Attributes:
        content: Bytes of the file, mapped into memory.
        dtype: Name of its type in the format.
        shape: Dimensions.
        offset: Its first byte in `content`.
    """

    content: NDArray[np.uint8]
    dtype: str
    shape: tuple[int, ...]
    offset: int


class Tensors:
    """Tensors of one or more safetensors files, by name.

    Args:
        paths: The files.

    Raises:
        ModelSourceError: A file is not in the format, or is cut off.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._entries: dict[str, _Entry] = {}
        for path in paths:
            self._entries |= _entries(path)

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    def shape(self, name: str) -> tuple[int, ...]:
        """Return a tensor's dimensions."""
        return self._entries[name].shape

    def array(self, name: str) -> Array:
        """Return a tensor as float32; if it is stored as that, a view of the mapped file.

        Raises:
            ModelSourceError: The type is not a plain floating-point type, or a number is not finite.
        """
        entry = self._entries[name]
        kind = _TYPES.get(entry.dtype)
        if kind is None:
            raise ModelSourceError(
                f"{name} is of type {entry.dtype}, of which no graph is built: give a checkpoint in "
                f"{', '.join(_TYPES)}, not a quantized one"
            )
        stored: NDArray[Any] = np.ndarray(entry.shape, kind, entry.content, entry.offset)
        if entry.dtype == "BF16":  # the upper half of a float32
            array = (stored.astype(np.uint32) << 16).view(np.float32)
        else:
            with np.errstate(over="ignore"):  # overflow is reported below
                array = stored.astype(np.float32, copy=False)
        # A sum takes one pass, and is not finite if any number is not.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(array.sum(dtype=np.float32))) or bool(np.isfinite(array).all())
        if not finite:
            raise ModelSourceError(f"{name} holds numbers that are not finite: the model's weights are damaged")
        return array


def _entries(path: Path) -> dict[str, _Entry]:
    size = path.stat().st_size
    try:
        with path.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(stream.read(length))
        content = np.memmap(path, np.uint8, "r") if size else np.empty(0, np.uint8)
        return {
            str(name): _entry(content, 8 + length, name, value)
            for name, value in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ModelSourceError(f"{path} is no complete safetensors file ({error}): download it again") from error


def _entry(content: NDArray[np.uint8], start: int, name: str, value: dict[str, Any]) -> _Entry:
    dtype, shape, (first, last) = str(value["dtype"]), tuple(value["shape"]), value["data_offsets"]
    if not all(isinstance(number, int) and number >= 0 for number in (*shape, first, last)):
        raise ValueError(f"{name} has no sound shape or place")
    needed = math.prod(shape) * np.dtype(_TYPES[dtype]).itemsize if dtype in _TYPES else last - first
    if last - first != needed or start + last > len(content):
        raise ValueError(f"{name} has bytes {first} to {last} of {len(content) - start}, its shape needs {needed}")
    return _Entry(content, dtype, shape, start + first)
