"""Load the compiled encoder and call it through ctypes, without the GIL while it computes.

One shared library for each kernel lies in this directory where a compiler was there at installation:

    portable      fp32, any CPU; tells what else this CPU runs
    avx2          fp32, x86-64
    avx512        fp32, x86-64
    avx512_bf16   bf16 products, fp32 sums, by dot products of pairs, x86-64
    amx           the same, by AMX tiles, x86-64 on Linux
    amx_emulated  as amx, with tile instructions in C++: slow, built for tests only
"""

from __future__ import annotations

import ctypes
import importlib.machinery
import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from crossrank.native.interface import INTERFACE
from crossrank.native.weights import Shape

Kernel = Literal["portable", "avx2", "avx512", "avx512_bf16", "amx", "amx_emulated"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)
# Not in wheels: built by make native and make test.
TEST_KERNELS: tuple[Kernel, ...] = ("amx_emulated",)
# All others are made of instructions of x86-64.
ANYWHERE: tuple[Kernel, ...] = ("portable", *TEST_KERNELS)
# The other libraries of this directory, for `wordpiece.py` and `padding.py`.
HELPERS = ("wordpiece", "padding")
# Set by developers who test a build that lies elsewhere (README.md in this directory).
_DIRECTORY = "CROSSRANK_NATIVE_DIR"
ERROR_BYTES = 256
_INSTRUCTIONS = {"avx2": "AVX2", "avx512": "AVX-512", "avx512_bf16": "AVX-512 BF16", "amx": "AMX"}

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
    """A library is missing or cannot be used, refused its arguments, or ran out of memory."""


def library_path(name: str) -> Path | None:
    """Return where the library lies, None if it was not built."""
    directory = Path(os.environ.get(_DIRECTORY) or Path(__file__).parent)
    candidates = (directory / f"_{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    return next((path for path in candidates if path.is_file()), None)


def open_library(name: str) -> ctypes.CDLL:
    """Load the library of a kernel that this CPU runs, or one of HELPERS.

    Raises:
        NativeError: It was not built, was built for another C library than this machine's, or from headers with other
            declarations than those that this Python code calls.
    """
    path = library_path(name)
    if path is None:
        raise NativeError("it was not built: when crossrank was installed, no C++ compiler could (GCC 12 or Clang)")
    if _is_cut_off(path):  # loading it would end the process with SIGBUS
        raise NativeError(f"{path} is cut off: run `make native`, or install crossrank anew")
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise NativeError(f"{path.name} cannot be loaded: {error}") from error
    found = "none"  # as in builds from before it was checked
    if hasattr(library, "crossrank_interface"):
        library.crossrank_interface.argtypes, library.crossrank_interface.restype = [], _BUFFER
        found = library.crossrank_interface().decode(errors="replace")
    if found != INTERFACE:
        raise NativeError(
            f"{path} is of another version (its interface is {found}, not {INTERFACE}): run `make native`, or install "
            "crossrank anew"
        )
    return library


def _is_cut_off(path: Path) -> bool:
    """Tell whether a 64-bit ELF file ends before its section headers do, which stand last.

    Source: https://refspecs.linuxfoundation.org/elf/gabi4+/ch4.eheader.html
    """
    with path.open("rb") as stream:
        header = stream.read(64)
    if header[:5] != b"\x7fELF\x02" or len(header) < 64:
        return False  # the loader refuses what is no header
    start, size, count = (int.from_bytes(header[at : at + n], "little") for at, n in ((40, 8), (58, 2), (60, 2)))
    return start + size * count > path.stat().st_size


def declare(library: ctypes.CDLL, prefix: str, functions: Functions) -> None:
    """Tell ctypes the arguments and results of a library's functions, named without their prefix."""
    for name, (arguments, result) in functions.items():
        function = getattr(library, f"{prefix}{name}")
        function.argtypes, function.restype = arguments, result


@cache
def kernel_fault(kernel: Kernel) -> str:
    """Return why this process cannot use a kernel, empty if it can."""
    if kernel not in KERNELS:
        return f"there is none of that name: {', '.join(KERNELS)}"
    if kernel not in ANYWHERE and platform.machine() not in ("x86_64", "AMD64"):
        return f"its instructions are those of x86-64, not of this CPU ({platform.machine()})"
    try:
        # A library is opened only where its CPU is known to run it.
        portable = open_library("portable")
        if kernel not in ANYWHERE:
            portable.crossrank_cpu_runs.argtypes, portable.crossrank_cpu_runs.restype = [_BUFFER], ctypes.c_bool
            if not portable.crossrank_cpu_runs(kernel.encode()):
                return f"this CPU, or its system, has no {_INSTRUCTIONS[kernel]}"
        open_library(kernel)
    except NativeError as error:
        return str(error)
    return ""


def usable_kernels() -> tuple[Kernel, ...]:
    """Return the kernels that are built and that this CPU runs."""
    return tuple(name for name in KERNELS if not kernel_fault(name))


@cache
def load_library(kernel: Kernel) -> ctypes.CDLL:
    """Load a kernel's library, which this CPU must run.

    Raises:
        NativeError: It is not there, this CPU does not run it, or it is of another version.
    """
    fault = kernel_fault(kernel)
    if fault:
        raise NativeError(f"kernel {kernel}: {fault}")
    library = open_library(kernel)
    declare(library, "crossrank_", _FUNCTIONS)
    return library


class NativeModel:
    """Hold a model's weights, packed by a kernel's library. Threads may make contexts of it at the same time.

    Args:
        kernel: Which library.
        shape: The model's shape.
        weights: float32 arrays by role; copied.

    Raises:
        NativeError: The kernel cannot be used here, or the weights do not fit the shape.
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
    """Hold the buffers of one thread; two threads must not use a context at once.

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
