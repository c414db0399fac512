"""Compute with ONNX Runtime on an NVIDIA GPU, with buffers and a CUDA graph for each of a few shapes.

A model this small spends more time launching kernels than in them; a CUDA graph launches all of them at once. It reads
and writes the same memory each time, so that every shape has buffers of its own, bound once. All graphs are captured
before the first request.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Operators, Precision
from crossrank.engines.agreement import check_logits, expect_logits
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.engines.cuda_session import Lane, new_session
from crossrank.engines.onnxruntime import session_interface
from crossrank.engines.shaped import GATE, ShapedEngine, batch_tokens_of, call_tokens_of, row_counts
from crossrank.errors import EngineFailure

# ONNX Runtime's own operators are taken from the release on that they were measured in: those of earlier ones added up
# mean and variance in fp16 on GPUs. Source: https://github.com/microsoft/onnxruntime/pull/28682
_EXACT_SINCE = (1, 31)
# Between a CUDA graph and the same kernels launched one by one; cuBLAS may choose others.
_MOST_DELTA = 1e-2


def fused_operators_are_exact() -> bool:
    """Tell whether the installed ONNX Runtime computes its own fused operators as exactly as the standard ones."""
    import onnxruntime

    major, minor = map(int, onnxruntime.__version__.split(".")[:2])
    return (major, minor) >= _EXACT_SINCE


class CudaEngine(ShapedEngine):
    """Run an ONNX graph with bound buffers; each thread has a session, buffers and CUDA graphs of its own.

    Args:
        bundle: The model.
        precision: GPUs are fastest in fp16; fp32 is computed without TF32.
        threads: Batches under way at a time; defaults to two.
        device: `cpu` runs the same code on ONNX Runtime's CPU provider, which captures no graphs.
        lengths: Sequence lengths to prepare, ascending. The model's window replaces those beyond it.
        rows: Rows to prepare at each length, ascending from 1; defaults to `row_counts`.
        operators: Those of the graph to run, if the bundle has one of them.

    Raises:
        EngineFailure: A CUDA graph computes something else than the plain run, or the GPU something else than the CPU.
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
        lengths: tuple[int, ...] = BUCKET_LENGTHS,
        rows: tuple[int, ...] | None = None,
        operators: Operators = "onnxruntime",
    ) -> None:
        manifest = bundle.manifest
        tokens = batch_tokens_of(manifest), call_tokens_of(manifest)
        fitting = fit_lengths(lengths, manifest.max_length)
        shapes = {length: rows or row_counts(length, *tokens) for length in fitting}
        super().__init__(bundle, manifest.graph(precision, operators), precision, threads, shapes)
        self._device = device
        try:
            self._prepare_all()
            expected = expect_logits(bundle)
            if expected is not None:
                check_logits(self, expected)
        except BaseException:
            self._pool.shutdown()
            raise

    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        lane: Lane = self._local.lane
        return lane.run(inputs)

    def _prepare(self) -> None:
        """Give this thread its session, and capture all graphs."""
        with GATE.run():
            session, captures = new_session(self._path, self._device, self.precision)
        self._local.lane = Lane(session, self._graph, self._device, self._num_labels, captures=captures)
        self._check_interface(*session_interface(session))
        random = np.random.default_rng(0)
        for shape in self.shapes:
            self._check_replay(shape, random)

    def _check_replay(self, shape: tuple[int, int], random: np.random.Generator) -> None:
        """Capture a shape, then compare other inputs with a run that uses neither graph nor bound buffers.

        Raises:
            EngineFailure: They differ: something was baked into the graph that belongs to the input.
        """
        lane: Lane = self._local.lane
        self._infer(self.tensors(self._random_pairs(shape, random), *shape))
        other = self.tensors(self._random_pairs(shape, random), *shape)
        delta = float(np.abs(self._infer(other) - lane.run_plainly(other)).max())
        if not delta <= _MOST_DELTA:
            raise EngineFailure(f"engine cuda differs by {delta:g} between a CUDA graph and the plain run of {shape}")
