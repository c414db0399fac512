"""Which engine serves a bundle on this machine."""

from __future__ import annotations

import importlib.util
from typing import Literal, get_args

from crossrank_server.bundle import Bundle
from crossrank_server.engines.embedded import EmbeddedEngine, has_bf16
from crossrank_server.errors import SetupError

EngineName = Literal["auto", "onnxruntime", "openvino"]
# What `auto` chooses from, and `crossrank tune` measures.
ENGINES: tuple[EngineName, ...] = tuple(name for name in get_args(EngineName) if name != "auto")
PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]


def make_engine(
    bundle: Bundle, name: EngineName = "auto", precision: PrecisionName = "auto", threads: int | None = None
) -> EmbeddedEngine:
    """Load a bundle into the engine asked for, or into the fastest one that this machine has.

    `auto` takes OpenVINO where it is installed (it was the faster one on every CPU measured) and bf16 where the CPU
    multiplies bf16 natively. `fp16` and `int8` are graphs of the bundle, which ONNX Runtime runs.

    Raises:
        SetupError: The engine is not installed, or it cannot compute in that precision on this CPU.
        BundleError: The bundle does not fit its manifest or has no such graph.
    """
    if name == "auto":
        name = "openvino" if _openvino_installed() and precision not in ("fp16", "int8") else "onnxruntime"
    if name == "openvino":
        if not _openvino_installed():
            raise SetupError(
                "engine openvino is not installed: pip install 'crossrank[openvino]', or --engine onnxruntime"
            )
        return _openvino_engine(bundle, precision, threads)
    if precision == "bf16":
        raise SetupError("engine onnxruntime has no bf16 on CPUs: use --engine openvino, or --precision fp32")
    from crossrank_server.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, "fp32" if precision == "auto" else precision, threads)


def _openvino_engine(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    from crossrank_server.engines.openvino import OpenVinoEngine

    if precision == "auto":
        precision = "bf16" if has_bf16() else "fp32"
    if precision not in ("fp32", "bf16"):
        raise SetupError(f"engine openvino serves fp32 and bf16, not {precision}: use --engine onnxruntime")
    if precision == "bf16" and not has_bf16():
        raise SetupError("this CPU has no bf16 arithmetic (neither AMX nor AVX-512 BF16): use --precision fp32")
    return OpenVinoEngine(bundle, precision, threads)


def _openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None
