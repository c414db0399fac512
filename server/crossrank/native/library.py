"""The compiled encoder through ctypes, which holds no GIL while it computes.

One shared library for each kernel lies in this directory where a compiler was there at installation:

    portable      fp32, any CPU; tells what else this CPU runs
    avx2          fp32
    avx512        fp32
    avx512_bf16   bf16 products, fp32 sums, by dot products of pairs
    amx           the same, by AMX tiles
    amx_emulated  as amx, with tile instructions in C++: slow, for tests on any CPU
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crossrank.native.weights import Shape

Kernel = Literal["portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# Set by developers who test a build that lies elsewhere (README.md in this directory).
_DIRECTORY = "CROSSRANK_NATIVE_DIR"
ERROR_BYTES = 256

_POINTER, _INT64, _BUFFER = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p


class _Shape(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in Shape.INTEGERS] + [("epsilon", ctypes.c_float)]


class _Weight(ctypes.Structure):
    _fields_ = [("role", _BUFFER), ("data", _POINTER), ("count", _INT64)]


# By name: the types of its arguments, and of its result.
Functions = dict[str, tuple[list[Any], Any]]
_FUNCTIONS: Functions = {
    "model_create": ([ctypes.POINTER(_Shape), ctypes.POINTER(_Weight), _INT64, _BUFFER], _POINTER),
    "model_destroy": ([_POINTER], None),
    "context_create": ([_POINTER, _BUFFER], _POINTER),
    "context_destroy": ([_POINTER], None),
    "score": ([_POINTER, _POINTER, _POINTER, _INT64, _POINTER, _INT64, _POINTER, _BUFFER], ctypes.c_bool),
    "elementwise": ([_BUFFER, _POINTER, _INT64, _POINTER, _BUFFER], ctypes.c_bool),
}


class NativeError(Exception):
    """The library refused its arguments, or ran out of memory."""


def library_path(name: str) -> Path | None:
    """Return where the library lies, None if it was not built."""
    directory = Path(os.environ.get(_DIRECTORY) or Path(__file__).parent)
    candidates = (directory / f"_{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def open_library(name: str) -> ctypes.CDLL | None:
    """Return the library, None if it was not built, or was built for another C library than this machine's."""
    path = library_path(name)
    try:
        return ctypes.CDLL(str(path)) if path else None
    except OSError:
        return None


def declare(library: ctypes.CDLL, prefix: str, functions: Functions) -> None:
    """Tell ctypes the arguments and results of a library's functions, named without their prefix."""
    for name, (arguments, result) in functions.items():
        function = getattr(library, f"{prefix}{name}")
        function.argtypes, function.restype = arguments, result


@cache
def usable_kernels() -> tuple[Kernel, ...]:
    """Return the kernels that are built and that this CPU runs."""
    library = open_library("portable")
    if library is None:
        return ()
    runs = library.crossrank_cpu_runs
    runs.argtypes, runs.restype = [_BUFFER], ctypes.c_bool
    everywhere = ("portable", "amx_emulated")
    return tuple(name for name in KERNELS if library_path(name) and (name in everywhere or runs(name.encode())))


@cache
def load_library(kernel: Kernel) -> ctypes.CDLL:
    """Load a kernel's library, which this CPU must run.

    Raises:
        NativeError: It is not there, or this CPU does not run it.
    """
    if kernel not in usable_kernels():
        raise NativeError(f"kernel {kernel} is not built or not for this CPU; there are: {', '.join(usable_kernels())}")
    try:
        library = ctypes.CDLL(str(library_path(kernel)))
    except OSError as error:
        raise NativeError(f"kernel {kernel} cannot be loaded: {error}") from error
    declare(library, "crossrank_", _FUNCTIONS)
    return library


class NativeModel:
    """Packed weights in a kernel's library. Any thread may make contexts of it.

    Args:
        kernel: Which library.
        shape: The model's shape.
        weights: float32 arrays by role; copied.

    Raises:
        NativeError: The weights do not fit the shape.
    """

    def __init__(self, kernel: Kernel, shape: Shape, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.library = load_library(kernel)
        self.pointer: int | None = None
        arrays = {role: np.ascontiguousarray(array, np.float32) for role, array in weights.items()}
        entries = [_Weight(role.encode(), array.ctypes.data, array.size) for role, array in arrays.items()]
        integers = [getattr(shape, name) for name in Shape.INTEGERS]
        error = ctypes.create_string_buffer(ERROR_BYTES)
        self.pointer = self.library.crossrank_model_create(
            _Shape(*integers, shape.epsilon), (_Weight * len(entries))(*entries), len(entries), error
        )
        if not self.pointer:
            raise NativeError(error.value.decode())

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.crossrank_model_destroy(self.pointer)


class NativeContext:
    """One thread's buffers; two threads must not use it at once.

    Raises:
        NativeError: There is no memory for them.
    """

    def __init__(self, model: NativeModel) -> None:
        self._model = model  # kept alive
        self._error = ctypes.create_string_buffer(ERROR_BYTES)
        self._pointer = model.library.crossrank_context_create(model.pointer, self._error)
        if not self._pointer:
            raise NativeError(self._error.value.decode())

    def score(
        self, input_ids: NDArray[np.int32], token_type_ids: NDArray[np.int32], offsets: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Return logits, float32 [pairs], of packed pairs (PairBatch).

        Raises:
            NativeError: The arrays are no packed pairs of this model.
        """
        ids, types = (np.ascontiguousarray(array, np.int32) for array in (input_ids, token_type_ids))
        bounds = np.ascontiguousarray(offsets, np.int64)
        if ids.ndim != 1 or ids.shape != types.shape or bounds.ndim != 1 or not len(bounds):
            shapes = ", ".join(str(list(array.shape)) for array in (ids, types, bounds))
            raise NativeError(f"ids, types and offsets must be [tokens], [tokens] and [pairs + 1], not {shapes}")
        logits = np.empty(len(bounds) - 1, np.float32)
        done = self._model.library.crossrank_score(
            self._pointer,
            ids.ctypes.data,
            types.ctypes.data,
            len(ids),
            bounds.ctypes.data,
            len(logits),
            logits.ctypes.data,
            self._error,
        )
        if not done:
            raise NativeError(self._error.value.decode())
        return logits

    def __del__(self) -> None:
        if getattr(self, "_pointer", None):
            self._model.library.crossrank_context_destroy(self._pointer)
