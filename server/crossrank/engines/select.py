"""Which engine serves a bundle on this machine."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from functools import cache, cached_property
from typing import Literal, get_args

from crossrank.bundles.bundle import Bundle
from crossrank.engines.agreement import Expected, check_logits, expect_logits
from crossrank.engines.cpu import has_bf16
from crossrank.engines.cuda import CudaEngine, best_operators
from crossrank.engines.cuda_session import cuda_installed
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.memory import return_memory
from crossrank.engines.native import NativeEngine, native_kernel
from crossrank.errors import CrossrankError, EngineFailure, SetupError
from crossrank.native.library import usable_kernels
from crossrank.native.weights import OFFERED, offered_kernels
from crossrank.reasons import reason_of

EngineName = Literal["auto", "native", "openvino", "onnxruntime", "cuda"]
# Those of CPUs, which `crossrank tune` measures.
ENGINES: tuple[EngineName, ...] = tuple(name for name in get_args(EngineName) if name not in ("auto", "cuda"))
PrecisionName = Literal["auto", "fp32", "bf16", "fp16", "int8"]

_log = logging.getLogger("crossrank")


def make_engine(
    bundle: Bundle, name: EngineName = "auto", precision: PrecisionName = "auto", threads: int | None = None
) -> EmbeddedEngine:
    """Load a bundle into the engine asked for, or into the fastest one of this machine that works.

    `auto` takes the GPU where the installed ONNX Runtime can use one, else the native encoder where it was measured
    faster than any other that is installed (its own model shapes, from AVX2 on), else OpenVINO where that is installed,
    else ONNX Runtime; and bf16 where the CPU multiplies bf16 natively. An engine that cannot load the bundle, or
    computes something else than its fp32 graph, is passed over, which is said once. `fp16` and `int8` are graphs of the
    bundle, which ONNX Runtime runs.

    Raises:
        SetupError: The engine is not installed, it cannot compute in that precision on this CPU, or none works.
        BundleError: The bundle does not fit its manifest or has no such graph.
        EngineFailure: The engine asked for computes something else than the bundle's fp32 graph.
    """
    reference = _Reference(bundle)
    if name != "auto":
        return _load(name, _MAKERS[name], reference, precision, threads)
    passed_over = []
    for candidate in auto_engines(precision):
        make = _native_if_fastest if candidate == "native" else _MAKERS[candidate]
        try:
            _refuse_disagreeing(bundle, candidate)
            engine = _load(candidate, make, reference, precision, threads)
        except CrossrankError as error:
            passed_over.append(error.message)
            _say_once(f"engine {candidate} is not used: {error.message}")
            continue
        if candidate == "cuda":
            _say_once(
                "engine cuda is used, as ONNX Runtime found a GPU; --engine native, openvino or onnxruntime use the CPU"
            )
        return engine
    raise SetupError(f"no engine of this machine serves {bundle.manifest.model_id}: {'; '.join(passed_over)}")


def auto_engines(precision: PrecisionName) -> list[EngineName]:
    """Return the engines that `auto` tries, the fastest first; one that is not installed is not worth a word."""
    graphs_only = precision in ("fp16", "int8")
    found: dict[EngineName, bool] = {
        "cuda": precision not in ("bf16", "int8") and cuda_installed(),
        "native": not graphs_only,
        "openvino": not graphs_only and _openvino_installed(),
        "onnxruntime": True,
    }
    return [name for name, wanted in found.items() if wanted]


def _refuse_disagreeing(bundle: Bundle, name: EngineName) -> None:
    """Pass over an engine that was found to give other logits than the source's when the bundle was exported."""
    record = bundle.manifest.engines.get(name, {})
    if record.get("disagrees"):
        raise SetupError(
            f"its logits were not the source's when {bundle.manifest.model_id} was exported, with {record['runtime']}"
        )


class _Reference:
    """A bundle, and what its fp32 graph gives in ONNX Runtime, computed when it is first asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def expected(self) -> Expected | None:
        return expect_logits(self.bundle)


_Maker = Callable[[Bundle, PrecisionName, "int | None"], EmbeddedEngine]


def _load(
    name: EngineName, make: _Maker, reference: _Reference, precision: PrecisionName, threads: int | None
) -> EmbeddedEngine:
    """Return an engine that computes what the bundle's fp32 graph does.

    Raises:
        CrossrankError: It does not, or cannot be loaded.
    """
    try:
        if name == "openvino":
            # Of any size: two copies of the weights at a time would be one too many.
            _ = reference.expected
        engine = make(reference.bundle, precision, threads)
    except CrossrankError:
        raise
    except Exception as error:  # a broken installation raises anything, on import already
        _log.debug("engine %s cannot be loaded", name, exc_info=True)
        raise SetupError(f"engine {name} cannot be loaded here ({reason_of(error)})") from error
    if name in _CHECKED and reference.expected is not None:
        check_logits(engine, reference.expected)
    return_memory()  # of other copies of the weights, which loading makes
    return engine


def _cuda_engine(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    if precision in ("bf16", "int8"):
        raise SetupError(f"engine cuda serves fp16 and fp32, not {precision}: use --precision auto")
    has_fp16 = any(graph.precision == "fp16" for graph in bundle.manifest.graphs)
    fp16 = precision == "fp16" or (precision == "auto" and has_fp16)
    operators = best_operators()
    try:
        engine = CudaEngine(bundle, "fp16" if fp16 else "fp32", threads, operators=operators)
    except EngineFailure as error:
        if operators == "onnx" or not any(graph.operators == operators for graph in bundle.manifest.graphs):
            raise
        _say_once(f"{error.message}: the graph of standard operators is taken")
        engine = CudaEngine(bundle, "fp16" if fp16 else "fp32", threads, operators="onnx")
    if precision == "auto" and not fp16:
        _say_once(
            f"{bundle.manifest.model_id} has no fp16 graph, which GPUs compute faster: crossrank export --precision "
            "fp32,fp16 writes one"
        )
    return engine


def _native_if_fastest(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    """Return the native engine.

    Raises:
        CrossrankError: It cannot be used, or another was measured faster.
    """
    precisions: tuple[PrecisionName, ...] = (precision,)
    if precision == "auto":
        precisions = ("bf16", "fp32") if has_bf16() else ("fp32",)
    fastest = precisions[0]
    if not _openvino_installed():
        engine = _native_in_place_of_openvino(bundle, precisions, threads)
        if engine is not None:
            return engine
    if native_kernel(fastest) in (None, "portable"):
        # Not measured faster than OpenVINO.
        raise SetupError(_why_no_kernel(fastest))
    return _native_engine(bundle, fastest, threads)


def _native_in_place_of_openvino(
    bundle: Bundle, precisions: tuple[PrecisionName, ...], threads: int | None
) -> EmbeddedEngine | None:
    """Return the native engine with another kernel than the CPU's fastest, where that one is not offered.

    ONNX Runtime, which would serve instead, has no bf16, and took at least 1.4 times as long in fp32 with every model
    that is offered (native/README.md).

    Args:
        bundle: The model.
        precisions: Those that may serve, the fastest first.
        threads: See `make_engine`.

    Returns:
        None where the fastest kernel is offered, and where no other is.
    """
    offered = offered_kernels(bundle.manifest.architecture)
    fastest = native_kernel(precisions[0])
    kernels = (native_kernel(precision, offered) for precision in precisions)
    kernel = next((kernel for kernel in kernels if kernel not in (None, "portable")), None)
    if kernel is None or fastest in offered:
        return None
    engine = NativeEngine(bundle, kernel, threads)
    why = f"it was not measured with kernel {fastest}" if fastest else "the build has none for this CPU's bf16"
    _say_once(
        f"engine native serves {bundle.manifest.model_id} in {engine.precision} with its kernel {kernel}: {why}; "
        "OpenVINO may be faster here: pip install 'crossrank[openvino]'"
    )
    return engine


def _native_engine(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    sizes = bundle.manifest.architecture
    offered = offered_kernels(sizes)
    if precision == "auto":
        precision = "bf16" if native_kernel("bf16") in offered else "fp32"
    if precision not in ("fp32", "bf16"):
        raise SetupError(f"engine native serves fp32 and bf16, not {precision}: use --engine onnxruntime")
    if not offered:
        raise SetupError(
            f"engine native serves BERT models of hidden size and heads {sorted(OFFERED)}, not {sizes.model_type} of "
            f"({sizes.hidden}, {sizes.heads}): use --engine openvino"
        )
    kernel = native_kernel(precision)
    if kernel is None:
        raise SetupError(f"engine native cannot be used: {_why_no_kernel(precision)}")
    if kernel not in offered:
        raise SetupError(
            f"engine native does not serve models of hidden size {sizes.hidden} in {precision} on this CPU: it was not "
            f"measured faster with its kernel {kernel}; use --engine openvino"
        )
    return NativeEngine(bundle, kernel, threads)


def _why_no_kernel(precision: str) -> str:
    if not usable_kernels():
        return "it was not built, as there was no C++ compiler (GCC 12 or Clang) when crossrank was installed"
    if precision == "bf16":
        return "this CPU has neither AMX nor AVX-512 BF16, or the build lacks it; --precision fp32 goes without"
    return "this CPU has no AVX2, or the build lacks it"


@cache
def _say_once(message: str) -> None:
    _log.info(message)


def _openvino_engine(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    if not _openvino_installed():
        raise SetupError("engine openvino is not installed: pip install 'crossrank[openvino]', or --engine onnxruntime")
    if precision == "auto":
        precision = "bf16" if has_bf16() else "fp32"
    if precision not in ("fp32", "bf16"):
        raise SetupError(f"engine openvino serves fp32 and bf16, not {precision}: use --engine onnxruntime")
    if precision == "bf16" and not has_bf16():
        raise SetupError("this CPU has no bf16 arithmetic (neither AMX nor AVX-512 BF16): use --precision fp32")
    from crossrank.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(bundle, precision, threads)


def _onnxruntime_engine(bundle: Bundle, precision: PrecisionName, threads: int | None) -> EmbeddedEngine:
    if precision == "bf16":
        raise SetupError("engine onnxruntime has no bf16 on CPUs: use --engine openvino, or --precision fp32")
    from crossrank.engines.onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(bundle, "fp32" if precision == "auto" else precision, threads)


def _openvino_installed() -> bool:
    return importlib.util.find_spec("openvino") is not None


_MAKERS: dict[str, _Maker] = {
    "cuda": _cuda_engine,
    "native": _native_engine,
    "openvino": _openvino_engine,
    "onnxruntime": _onnxruntime_engine,
}
# Those that are compared here; engine cuda compares itself, to fall back on another of the bundle's graphs.
_CHECKED = ("native", "openvino")
