"""Builds the native tokenizer and padding, and the native encoder: one shared library for each kernel, from one source.

All else is in pyproject.toml. Without a compiler, or with one that does not know a kernel's instructions, that library
is left out and the rest installs all the same: `crossrank engines` says which were built. CROSSRANK_NATIVE_FLAGS adds
compiler flags, for sanitizers and debuggers; CROSSRANK_NATIVE_TEST=1 adds the library that only tests load (Makefile).
"""

import os
import platform
import runpy
from pathlib import Path

from setuptools import Extension, setup

FOLDER = "server/crossrank/native"
# No option that lets results depend on what stands beside a number: -ffast-math would.
FLAGS = [
    "-std=c++17",
    "-O3",
    "-g0",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=fast",
]
AVX512 = ["-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]

kernels = {"portable": []}
if os.environ.get("CROSSRANK_NATIVE_TEST") == "1":
    kernels["amx_emulated"] = ["-DCROSSRANK_AMX_EMULATED"]
if platform.machine() in ("x86_64", "AMD64"):
    kernels |= {
        "avx2": ["-mavx2", "-mfma"],
        "avx512": AVX512,
        "avx512_bf16": ["-DCROSSRANK_DOT", *AVX512, "-mavx512bf16"],
        "amx": ["-DCROSSRANK_AMX", *AVX512, "-mavx512bf16", "-mamx-tile", "-mamx-bf16"],
    }

declared = runpy.run_path(f"{FOLDER}/interface.py")
interface = declared["interface_of"](Path(FOLDER))
if interface != declared["INTERFACE"]:
    raise SystemExit(
        f"{FOLDER}: the headers that Python calls have changed. Change their ctypes declarations alike, then write "
        f'INTERFACE = "{interface}" into interface.py'
    )


def extension(name: str, sources: list[str], flags: list[str]) -> Extension:
    """Describe one library; no Python.h is needed, as ctypes loads it."""
    extra = os.environ.get("CROSSRANK_NATIVE_FLAGS", "").split()
    return Extension(
        f"crossrank.native._{name}",
        sources=[f"{FOLDER}/{source}" for source in sources],
        depends=sorted(str(path) for path in Path(FOLDER).glob("*.h")),
        define_macros=[("CROSSRANK_INTERFACE", f'"{interface}"')],
        language="c++",
        extra_compile_args=[*FLAGS, *flags, *extra],
        extra_link_args=extra,
        py_limited_api=True,  # no Python version in its name: it knows no Python
        optional=True,
    )


setup(
    ext_modules=[
        extension("wordpiece", ["wordpiece.cpp"], []),
        extension("padding", ["padding.cpp"], []),
        *(
            extension(kernel, ["api.cpp", *(["cpu.cpp"] if kernel == "portable" else [])], flags)
            for kernel, flags in kernels.items()
        ),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
