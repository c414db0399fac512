"""Compute with ONNX Runtime on an NVIDIA GPU, with buffers and a CUDA graph for each of a few shapes.

A model this small spends more time launching kernels than in them; a CUDA graph launches all of them at once. It reads
and writes the same memory each time, so that every shape has buffers of its own, bound once. All graphs are captured
before the first request.

Source: https://onnxruntime.ai/docs/execution-providers/CUDA-ExecutionProvider.html#using-cuda-graphs-preview
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Operators, Precision
from crossrank.engines.agreement import check_logits, expect_logits
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.engines.cuda_session import GATE, Lane, new_session
from crossrank.engines.embedded import GraphEngine
from crossrank.engines.onnxruntime import session_interface
from crossrank.errors import EngineFailure
from crossrank.packed import PairBatch, offsets_of, take_pairs

# Two: while one batch computes, the next is copied.
_LANES = 2
# Measured on an H200 with a TinyBERT-L2, whose hidden size is 128: a call takes 105 us and 6 ns more for each token,
# and twice as many tokens would save less than a tenth. For other sizes inverse proportion is assumed.
_HIDDEN, _BATCH_TOKENS, _CALL_TOKENS = 128, 98_304, 16_384
# ONNX Runtime's own operators are taken from the release on that they were measured in: those of earlier ones added up
# mean and variance in fp16 on GPUs. Source: https://github.com/microsoft/onnxruntime/pull/28682
_EXACT_SINCE = (1, 31)
# Between a CUDA graph and the same kernels launched one by one; cuBLAS may choose others.
_MOST_DELTA = 1e-2


def row_counts(length: int, batch_tokens: int, call_tokens: int) -> tuple[int, ...]:
    """Return the rows of the shapes of a length: from 1 to a full batch, ascending.

    From one to the next, padding is worth about a quarter of a call, or a third of the batch.
    """
    full = max(batch_tokens // length, 1)
    full -= full % 8 if full > 8 else 0
    counts = [1]
    while counts[-1] < full:
        count = max(counts[-1] + max(call_tokens // (4 * length), 1), -(-counts[-1] * 4 // 3))
        counts.append(min(-(-count // 8) * 8 if count > 8 else count, full))
    return tuple(counts)


def fused_operators_are_exact() -> bool:
    """Tell whether the installed ONNX Runtime computes its own fused operators as exactly as the standard ones."""
    import onnxruntime

    major, minor = map(int, onnxruntime.__version__.split(".")[:2])
    return (major, minor) >= _EXACT_SINCE


class CudaEngine(GraphEngine):
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
        super().__init__(bundle, bundle.manifest.graph(precision, operators), precision, threads or _LANES)
        self._device = device
        self._local = threading.local()
        hidden = bundle.manifest.architecture.hidden
        self.batch_tokens = max(_BATCH_TOKENS * _HIDDEN // hidden, 2 * self._max_length)
        self.call_tokens = _CALL_TOKENS * _HIDDEN // hidden
        self._vocab_size = bundle.manifest.architecture.vocab_size
        self._lengths = fit_lengths(lengths, self._max_length)
        self._rows = {
            length: rows or row_counts(length, self.batch_tokens, self.call_tokens) for length in self._lengths
        }
        barrier = threading.Barrier(self.concurrency)
        try:
            list(self._pool.map(self._prepare, [barrier] * self.concurrency))
            expected = expect_logits(bundle)
            if expected is not None:
                check_logits(self, expected)
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
        lane: Lane = self._local.lane
        return lane.run(inputs)

    def _prepare(self, barrier: threading.Barrier) -> None:
        """Give this thread its session, and capture all graphs."""
        barrier.wait(timeout=60)
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

    def _random_pairs(self, shape: tuple[int, int], random: np.random.Generator) -> PairBatch:
        """Return pairs of all lengths, one of them as long as the shape."""
        lengths = random.integers(1, shape[1], shape[0], endpoint=True)
        lengths[0] = shape[1]
        tokens = int(lengths.sum())
        return PairBatch(
            random.integers(0, self._vocab_size, tokens, np.int32),
            np.zeros(tokens, np.int32),
            offsets_of(lengths),
        )
