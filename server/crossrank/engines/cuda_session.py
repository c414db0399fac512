"""Open ONNX Runtime sessions on an NVIDIA GPU, with buffers and a CUDA graph for each shape.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Graph
from crossrank.engines.shaped import GATE
from crossrank.errors import BundleError, SetupError

_log = logging.getLogger("crossrank")

_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
LIBRARY = "capi/libonnxruntime_providers_cuda.so"


def cuda_installed() -> bool:
    """Tell whether the installed ONNX Runtime has the CUDA provider, without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    places = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(place) / LIBRARY).is_file() for place in places)


@dataclass
class _Bound:
    """Hold the buffers of one shape."""

    inputs: dict[str, Any]
    output: Any
    binding: Any
    options: Any


class Lane:
    """Run a session for one thread, with the buffers of each shape: ONNX Runtime keeps CUDA graphs by thread.

    Args:
        session: ONNX Runtime's.
        graph: Inputs and output of the session.
        device: Where the buffers lie, `cuda` or `cpu`.
        labels: Columns of the output.
        captures: Whether a CUDA graph is captured for each shape.
    """

    def __init__(self, session: Any, graph: Graph, device: str, labels: int, *, captures: bool) -> None:
        self._session = session
        self._graph = graph
        self._device = device
        self._labels = labels
        self._captures = captures
        self._bound: dict[tuple[int, ...], _Bound] = {}

    def run(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Return the graph's output, float32 [rows, labels]; a shape's first run captures its CUDA graph."""
        shape = next(iter(inputs.values())).shape
        bound = self._bound.get(shape)
        if bound is None:
            with GATE.capture():
                return self._run(self._bind(shape), inputs)
        with GATE.run():
            return self._run(bound, inputs)

    def _run(self, bound: _Bound, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        for name, array in inputs.items():
            bound.inputs[name].update_inplace(array)
            if not self._captures:
                # What the CPU reads of a GPU's buffer was copied when it was bound.
                bound.binding.bind_ortvalue_input(name, bound.inputs[name])
        # Returns when the GPU has computed.
        self._session.run_with_iobinding(bound.binding, bound.options)
        output: NDArray[np.float32] = bound.output.numpy()
        return output

    def run_plainly(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Return the same without bound buffers and CUDA graph."""
        from onnxruntime import RunOptions

        options = RunOptions()
        if self._captures:
            options.add_run_config_entry("gpu_graph_id", "-1")
        with GATE.run():
            output: NDArray[np.float32] = self._session.run([self._graph.output.name], inputs, options)[0]
        return output

    def _bind(self, shape: tuple[int, ...]) -> _Bound:
        from onnxruntime import OrtValue, RunOptions

        def buffer(shape: tuple[int, ...], dtype: str) -> Any:
            return OrtValue.ortvalue_from_shape_and_type(shape, np.dtype(dtype), self._device)

        binding, options = self._session.io_binding(), RunOptions()
        inputs = {tensor.name: buffer(shape, tensor.dtype) for tensor in self._graph.inputs}
        output = buffer((shape[0], self._labels), self._graph.output.dtype)
        for name, value in inputs.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(self._graph.output.name, output)
        if self._captures:
            # 0 is ONNX Runtime's own.
            options.add_run_config_entry("gpu_graph_id", str(len(self._bound) + 1))
        self._bound[shape] = bound = _Bound(inputs, output, binding, options)
        return bound


def new_session(path: Path, device: str, precision: str) -> tuple[Any, bool]:
    """Return a session, and whether it captures CUDA graphs.

    Raises:
        SetupError: There is no usable GPU, or its CUDA libraries cannot be loaded.
        BundleError: The graph cannot be loaded.
    """
    import onnxruntime

    if device == "cuda" and _PROVIDERS[device] not in onnxruntime.get_available_providers():
        raise SetupError(
            f"engine cuda needs ONNX Runtime's CUDA provider, this one has {onnxruntime.get_available_providers()}: "
            "put onnxruntime-gpu in place of onnxruntime (make cuda)"
        )
    if device == "cuda" and not _driver_found():
        raise SetupError("engine cuda found no NVIDIA driver (libcuda.so.1): install it; see nvidia-smi")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if device == "cpu":
        return _load(path, options, ["CPUExecutionProvider"]), False
    # From the nvidia-* packages, where they are installed.
    onnxruntime.preload_dlls()
    # TF32 would take 13 bits off fp32's mantissa.
    settings = {"use_tf32": "0" if precision == "fp32" else "1"}
    try:
        return _load(path, options, [(_PROVIDERS[device], {**settings, "enable_cuda_graph": "1"})]), True
    except BundleError as error:
        # A graph of operators that the GPU has not all of.
        _log.warning("%s is computed without CUDA graphs: %s", path, error.message)
        return _load(path, options, [(_PROVIDERS[device], settings), "CPUExecutionProvider"]), False


def _driver_found() -> bool:
    # Without it ONNX Runtime prints a page of what it tried, and computes on the CPU.
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


def _load(path: Path, options: Any, providers: list[Any]) -> Any:
    import onnxruntime

    try:
        session = onnxruntime.InferenceSession(str(path), options, providers)
    except Exception as error:  # ONNX Runtime raises its own unexported types
        raise BundleError(f"ONNX Runtime cannot load {path}: {error}") from error
    wanted = providers[0] if isinstance(providers[0], str) else providers[0][0]
    # It goes on without a provider that it cannot load.
    if session.get_providers()[0] != wanted:
        raise SetupError(
            "engine cuda found no usable GPU: the driver, CUDA and cuDNN must be those that this onnxruntime-gpu wants "
            "(nvidia-smi shows the driver's); --engine native, openvino or onnxruntime compute on the CPU"
        )
    return session
