"""List what can compute a model's scores, in order: `auto` takes the first line that can serve.

A line is an engine with its precision and its kernel, why it stands where it does, and what it needs of the machine,
the installation and the model. `crossrank engines` prints the table with the reason for each line that is not taken.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crossrank.bundles.bundle import Bundle, Operators, Precision
from crossrank.engines.cpu import cpu_flags
from crossrank.engines.cuda import CudaEngine, fused_operators_are_exact
from crossrank.engines.cuda_session import cuda_installed
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import DEVICES, PRECISIONS, Device, EngineName, PrecisionName
from crossrank.engines.native import NativeEngine, precision_of
from crossrank.engines.tensorrt.choose import plan_fault, tensorrt_installed
from crossrank.engines.tensorrt.engine import load_tensorrt
from crossrank.errors import BundleError
from crossrank.native.library import Kernel, kernel_fault
from crossrank.native.weights import NATIVE_SHAPES, is_native_shape

# Hidden size and heads.
_TINYBERT_L2 = frozenset({(128, 2)})


@dataclass(frozen=True)
class Fault:
    """Say why a line of the table cannot serve a model here.

    Attributes:
        reason: What is missing, with the remedy where there is one.
        absent: It was not installed, or not exported: of no interest unless it was asked for.
    """

    reason: str
    absent: bool = False


@dataclass(frozen=True)
class Candidate:
    """Describe one line of the table.

    Attributes:
        engine: Its name.
        precision: Its arithmetic; `auto` where a server decides that.
        kernel: The instructions or operators that it computes with, empty where there is no choice.
        why: Why it stands at this place.
        fault: Return what it lacks to serve a bundle on this machine. Loads nothing.
        load: Load a bundle for a number of inferences at a time (None: as many as there are cores), with a directory
            for what is kept (None: the default cache). None where a server computes.
        asked: It is considered only where its engine, or its precision, was asked for by name.
        reads: Which of the bundle's files it computes with, where the lines of an engine differ in that.
        checked: Its logits are compared with the fp32 graph's before it serves. Engines of a GPU do so by themselves.
        note: Return what users should know when `auto` takes it, empty for nothing.
    """

    engine: EngineName
    precision: PrecisionName
    kernel: str
    why: str
    fault: Callable[[Bundle], Fault | None]
    load: Callable[[Bundle, int | None, Path | None], EmbeddedEngine] | None
    asked: Literal["", "engine", "precision"] = ""
    reads: str = ""
    checked: bool = False
    note: Callable[[Bundle], str] = lambda bundle: ""

    def considered(self, engine: EngineName, precision: PrecisionName) -> bool:
        """Tell whether a choice of engine and precision, each of which may be `auto`, leaves this line in."""
        asked = {"engine": engine, "precision": precision}
        return (
            engine in ("auto", self.engine)
            and (self.precision == "auto" or precision in ("auto", self.precision))
            and (not self.asked or asked[self.asked] != "auto")
        )

    @property
    def label(self) -> str:
        """Name the line in a sentence."""
        return f"engine {self.engine} in {self.precision}" + (f" with {self.kernel}" if self.kernel else "")


def considered(engine: EngineName, precision: PrecisionName) -> list[Candidate]:
    """Return the lines that a choice of engine and precision leaves, in order."""
    return [candidate for candidate in CANDIDATES if candidate.considered(engine, precision)]


def choosable_engines(bundle: Bundle, precision: PrecisionName) -> list[EngineName]:
    """Return the engines that `auto` may choose on this machine for a bundle, in order."""
    usable = (candidate for candidate in considered("auto", precision) if candidate.fault(bundle) is None)
    return list(dict.fromkeys(candidate.engine for candidate in usable))


def precisions_of(engine: EngineName) -> list[PrecisionName]:
    """Return the precisions that an engine serves, in the order of PRECISIONS."""
    served = {candidate.precision for candidate in CANDIDATES if candidate.engine == engine}
    return [precision for precision in PRECISIONS if precision in served]


def device_of(engine: EngineName) -> Device:
    """Return where an engine computes; that of `auto` is the GPU where the installed ONNX Runtime can use one."""
    if engine == "auto":
        return "gpu" if cuda_installed() else "cpu"
    return DEVICES[engine]


def _missing_graph(bundle: Bundle, precision: Precision, operators: Operators = "onnx") -> Fault | None:
    try:
        found = bundle.manifest.graph(precision, operators)
    except BundleError as error:
        return Fault(error.message, absent=True)
    if found.operators != operators:
        return Fault(f"{bundle.manifest.model_id} has no {precision} graph of ONNX Runtime's operators", absent=True)
    return None


def _cuda(precision: Precision, operators: Operators, why: str) -> Candidate:
    def fault(bundle: Bundle) -> Fault | None:
        if not cuda_installed():
            return Fault(
                "engine cuda needs ONNX Runtime's CUDA provider: put onnxruntime-gpu in place of onnxruntime "
                "(make cuda)",
                absent=True,
            )
        if operators == "onnxruntime" and not fused_operators_are_exact():
            return Fault("this ONNX Runtime adds up its fused operators' sums in fp16; 1.31 does not")
        return _missing_graph(bundle, precision, operators)

    def note(bundle: Bundle) -> str:
        if any(graph.precision == "fp16" for graph in bundle.manifest.graphs):
            return ""
        return (
            f"{bundle.manifest.model_id} has no fp16 graph, which GPUs compute faster: crossrank export --precision "
            "fp32,fp16 writes one"
        )

    return Candidate(
        "cuda",
        precision,
        "fused operators" if operators == "onnxruntime" else "standard operators",
        why,
        fault,
        lambda bundle, threads, _: CudaEngine(bundle, precision, threads, operators=operators),
        reads=f"{precision} {operators}",
        note=note,
    )


def _tensorrt_fault(bundle: Bundle) -> Fault | None:
    if not tensorrt_installed():
        return Fault(
            "engine tensorrt needs TensorRT for RTX: pip install 'crossrank[tensorrt]' (Linux on x86-64)", absent=True
        )
    if reason := plan_fault(bundle):
        return Fault(reason)
    return _missing_graph(bundle, "fp16")


def _native(
    kernel: Kernel,
    why: str,
    shapes: frozenset[tuple[int, int]] = NATIVE_SHAPES,
    asked: Literal["", "engine"] = "",
    note: Callable[[Bundle], str] = lambda bundle: "",
) -> Candidate:
    def fault(bundle: Bundle) -> Fault | None:
        sizes = bundle.manifest.architecture
        if not is_native_shape(sizes):
            return Fault(
                f"engine native serves BERT models of hidden size and heads {sorted(NATIVE_SHAPES)}, not "
                f"{sizes.model_type} of ({sizes.hidden}, {sizes.heads})"
            )
        if (sizes.hidden, sizes.heads) not in shapes:
            return Fault(f"with kernel {kernel} it was not measured faster for models of hidden size {sizes.hidden}")
        if bundle.manifest.weights is None:
            return Fault(f"{bundle.path} holds no weights by role, which engine native reads: export the model again")
        reason = kernel_fault(kernel)
        return Fault(reason) if reason else None

    def load(bundle: Bundle, threads: int | None, _: Path | None) -> EmbeddedEngine:
        return NativeEngine(bundle, kernel, threads)

    return Candidate("native", precision_of(kernel), kernel, why, fault, load, asked, checked=True, note=note)


def _openvino(precision: Literal["fp32", "bf16"], flag: str, why: str) -> Candidate:
    def fault(bundle: Bundle) -> Fault | None:
        if importlib.util.find_spec("openvino") is None:
            return Fault("engine openvino is not installed: pip install 'crossrank[openvino]'", absent=True)
        if flag and flag not in cpu_flags():
            return Fault(f"this CPU has no {'AMX' if flag == 'amx_bf16' else 'AVX-512 BF16'}")
        return _missing_graph(bundle, "fp32")

    def load(bundle: Bundle, threads: int | None, _: Path | None) -> EmbeddedEngine:
        from crossrank.engines.openvino import OpenVinoEngine

        return OpenVinoEngine(bundle, precision, threads)

    kernel = {"amx_bf16": "amx"}.get(flag, flag)
    return Candidate("openvino", precision, kernel, why, fault, load, checked=True)


def _onnxruntime(precision: Precision, why: str, asked: Literal["", "precision"] = "") -> Candidate:
    def load(bundle: Bundle, threads: int | None, _: Path | None) -> EmbeddedEngine:
        from crossrank.engines.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(bundle, precision, threads)

    def fault(bundle: Bundle) -> Fault | None:
        return _missing_graph(bundle, precision)

    return Candidate("onnxruntime", precision, "", why, fault, load, asked, reads=precision)


def _triton_fault(bundle: Bundle) -> Fault | None:
    if importlib.util.find_spec("tritonclient") is None:
        return Fault("engine triton needs tritonclient: pip install 'crossrank[triton]'", absent=True)
    return Fault("it computes in a Triton server: crossrank serve --engine triton --triton-url grpc://HOST:8001")


def _amx_is_idle(bundle: Bundle) -> str:
    if "amx_bf16" not in cpu_flags():
        return ""
    return (
        f"engine native serves {bundle.manifest.model_id} in bf16 without this CPU's AMX; OpenVINO uses it and may be "
        "faster: pip install 'crossrank[openvino]'"
    )


# The figures behind the order are in native/README.md ("Which shapes are offered") and perf/results.
CANDIDATES: tuple[Candidate, ...] = (
    _cuda("fp16", "onnxruntime", "a GPU is faster than any CPU, and fastest in fp16"),
    _cuda("fp16", "onnx", "the same, by the graph that every ONNX Runtime computes exactly"),
    _cuda("fp32", "onnx", "a GPU is faster than any CPU"),
    Candidate(
        "tensorrt",
        "fp16",
        "",
        "it has not been measured on any GPU, so auto takes cuda",
        _tensorrt_fault,
        load_tensorrt,
        asked="engine",
    ),
    _native("amx", "2.2 times as fast as OpenVINO with AMX or more", _TINYBERT_L2),
    _openvino("bf16", "amx_bf16", "AMX multiplies faster than AVX-512; the native encoder was not measured with it"),
    _native("avx512_bf16", "1.4 times as fast as OpenVINO with AVX-512 BF16 or more", note=_amx_is_idle),
    _openvino("bf16", "avx512_bf16", "bf16 is about twice as fast as fp32"),
    _native("avx512", "1.3 times as fast as OpenVINO in fp32 or more"),
    _native("avx2", "1.4 times as fast as OpenVINO in fp32 or more"),
    _native("portable", "it was not measured faster than OpenVINO or ONNX Runtime", asked="engine"),
    _openvino("fp32", "", "faster than ONNX Runtime on most x86 CPUs"),
    _onnxruntime("fp32", "it is always installed"),
    _onnxruntime("fp16", "for CPUs, it is slower and less exact than fp32", asked="precision"),
    _onnxruntime("int8", "its scores depend on what else is in the batch", asked="precision"),
    Candidate("triton", "auto", "", "it is another machine's or process's", _triton_fault, None, asked="engine"),
)
