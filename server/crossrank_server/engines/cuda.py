"""ONNX Runtime on an NVIDIA GPU: buffers of fixed address for each of few shapes, and a CUDA graph of each.

A model this small spends more time launching kernels than in them; a CUDA graph launches all of them at once. It reads
and writes the same memory each time, so that every shape has buffers of its own, bound once. All graphs are captured
before the first request.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import threading
from bisect import bisect_left
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import Bundle, Graph, Precision
from crossrank_server.engines.base import PairBatch
from crossrank_server.engines.buckets import take_pairs
from crossrank_server.engines.cuda_gate import CaptureGate
from crossrank_server.engines.embedded import GraphEngine
from crossrank_server.engines.onnxruntime import session_interface
from crossrank_server.errors import BundleError, EngineFailure, SetupError

_log = logging.getLogger("crossrank")

# Sequence lengths as in `crossrank repository`; beyond 32, rows are padded by half at most.
LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512)
# Coarse where a call costs more than its rows.
ROWS = (1, 8, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
# Two: while one batch computes, the next is copied.
_LANES = 2
# Of a hidden size of 128, and of others in inverse proportion: measured on an H200 with a TinyBERT-L2, where a call
# takes 105 us and 6 ns more for each token, and twice as many tokens would save less than a tenth. Full batches of all
# lengths are among the shapes.
_HIDDEN, _BATCH_TOKENS, _CALL_TOKENS = 128, 98_304, 16_384
# ONNX Runtime's own operators are taken from the release on that they were measured in: those of earlier ones added up
# mean and variance in fp16 on GPUs. Source: https://github.com/microsoft/onnxruntime/pull/28682
_EXACT_SINCE = (1, 31)
_PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
# Between a CUDA graph and the same kernels launched one by one; cuBLAS may choose others.
_MOST_DELTA = 1e-2
_GATE = CaptureGate()
_LIBRARY = "capi/libonnxruntime_providers_cuda.so"


def cuda_installed() -> bool:
    """Tell whether the installed ONNX Runtime has the CUDA provider, without importing it."""
    spec = importlib.util.find_spec("onnxruntime")
    places = (spec.submodule_search_locations if spec else None) or ()
    return any((Path(place) / _LIBRARY).is_file() for place in places)


def _has_exact_operators() -> bool:
    import onnxruntime

    major, minor = map(int, onnxruntime.__version__.split(".")[:2])
    return (major, minor) >= _EXACT_SINCE


@dataclass
class _Bound:
    """The buffers of one shape."""

    inputs: dict[str, Any]
    output: Any
    binding: Any
    options: Any


class CudaEngine(GraphEngine):
    """Runs an ONNX graph with bound buffers, each thread with a session, buffers and CUDA graphs of its own.

    Args:
        bundle: The model.
        precision: fp16 is what GPUs are fast in; fp32 is computed without TF32.
        threads: Batches under way at a time; two if None.
        device: `cpu` runs the same code on ONNX Runtime's CPU provider, which captures no graphs.
        lengths: Ascending; those beyond the model's window are left out, and the window is one.
        rows: Ascending, from 1.

    Raises:
        EngineFailure: A CUDA graph computes something else than the plain run.
        SetupError: There is no usable GPU, or its CUDA libraries cannot be loaded.
        BundleError: The graph cannot be loaded, or does not fit the manifest.
    """

    name = "cuda"

    def __init__(
        self,
        bundle: Bundle,
        precision: Precision = "fp16",
        threads: int | None = None,
        *,
        device: Literal["cuda", "cpu"] = "cuda",
        lengths: tuple[int, ...] = LENGTHS,
        rows: tuple[int, ...] = ROWS,
    ) -> None:
        graph = bundle.manifest.graph(precision, "onnxruntime" if _has_exact_operators() else "onnx")
        super().__init__(bundle, graph, precision, threads or _LANES)
        self._device = device
        hidden = bundle.manifest.architecture.hidden
        self.batch_tokens = max(_BATCH_TOKENS * _HIDDEN // hidden, 2 * self._max_length)
        self.call_tokens = _CALL_TOKENS * _HIDDEN // hidden
        self._vocab_size = bundle.manifest.architecture.vocab_size
        self._lengths = (*(length for length in lengths if length < self._max_length), self._max_length)
        self._rows = {
            length: tuple(count for count in rows if count == 1 or count * length <= self.batch_tokens)
            for length in self._lengths
        }
        barrier = threading.Barrier(self.concurrency)
        try:
            list(self._pool.map(self._prepare, [barrier] * self.concurrency))
        except BaseException:
            self._pool.shutdown()
            raise

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Rows and columns of all tensors that it computes, the largest first, which sizes the GPU's memory pool."""
        found = [(rows, length) for length in self._lengths for rows in self._rows[length]]
        return sorted(found, key=lambda shape: (-shape[0] * shape[1], shape))

    def padded_shape(self, batch: PairBatch) -> tuple[int, int]:
        """Return rows and columns of the tensors that a batch becomes, over all its parts."""
        length = self._lengths[bisect_left(self._lengths, int(batch.lengths.max()))]
        rows = self._rows[length]
        parts, rest = divmod(len(batch), rows[-1])
        return parts * rows[-1] + (rows[bisect_left(rows, rest)] if rest else 0), length

    def infer(self, batch: PairBatch) -> NDArray[np.float32]:
        """See EmbeddedEngine.infer; computed in one of the engine's own threads, whichever calls."""
        if not hasattr(self._local, "lane"):
            return self._pool.submit(self.infer, batch).result()
        most = self._rows[self.padded_shape(batch)[1]][-1]
        if len(batch) <= most:
            return super().infer(batch)
        rows = np.arange(len(batch))
        parts = [take_pairs(batch, rows[first : first + most]) for first in range(0, len(batch), most)]
        return np.concatenate([self.infer(part) for part in parts])

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        lane: _Lane = self._local.lane
        return lane.run(inputs)

    def _prepare(self, barrier: threading.Barrier) -> None:
        """Give this thread its session, and capture all graphs."""
        barrier.wait(timeout=60)
        with _GATE.run():
            session, captures = _new_session(self._path, self._device, self.precision)
        self._local.lane = _Lane(session, self._graph, self._device, self._num_labels, captures=captures)
        self._check_interface(*session_interface(session))
        random = np.random.default_rng(0)
        for shape in self.shapes:
            self._check_replay(shape, random)

    def _check_replay(self, shape: tuple[int, int], random: np.random.Generator) -> None:
        """Capture a shape, then compare other inputs with a run that uses neither graph nor bound buffers.

        Raises:
            EngineFailure: They differ: something was baked into the graph that belongs to the input.
        """
        lane: _Lane = self._local.lane
        self._infer(self.tensors(self._random_pairs(shape, random), *shape))
        other = self.tensors(self._random_pairs(shape, random), *shape)
        delta = float(np.abs(self._infer(other) - lane.run_plainly(other)).max())
        if not delta <= _MOST_DELTA:
            raise EngineFailure(f"engine cuda differs by {delta:g} between a CUDA graph and the plain run of {shape}")

    def _random_pairs(self, shape: tuple[int, int], random: np.random.Generator) -> PairBatch:
        """Return pairs of all lengths, one of them as long as the shape."""
        lengths = random.integers(1, shape[1], shape[0], endpoint=True)
        lengths[0] = shape[1]
        tokens = int(lengths.sum())
        return PairBatch(
            random.integers(0, self._vocab_size, tokens, np.int32),
            np.zeros(tokens, np.int32),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        )


class _Lane:
    """A session with its buffers, for one thread: ONNX Runtime keeps CUDA graphs by thread.

    Args:
        session: Of ONNX Runtime.
        graph: Its inputs and output.
        device: Where the buffers are.
        labels: Columns of the output.
        captures: Whether a CUDA graph is captured of each shape.
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
            with _GATE.capture():
                return self._run(self._bind(shape), inputs)
        with _GATE.run():
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
        with _GATE.run():
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


def _new_session(path: Path, device: str, precision: str) -> tuple[Any, bool]:
    """Return a session, and whether it captures CUDA graphs."""
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
