"""Share what engines on a GPU do alike: a few shapes, prepared before the first request, on each of a few threads."""

from __future__ import annotations

import threading
from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Graph, Manifest
from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.embedded import GraphEngine
from crossrank.packed import PairBatch, offsets_of, take_pairs

# Of the process: captures of one engine would fail beside another engine's allocations.
GATE = CaptureGate()
# Two: while one batch computes, the next is copied.
_LANES = 2
# Measured on an H200 with engine cuda and a TinyBERT-L2, whose hidden size is 128: a call takes 105 us and 6 ns more
# for each token, and twice as many tokens would save less than a tenth. For other sizes inverse proportion is assumed.
_HIDDEN, _BATCH_TOKENS, _CALL_TOKENS = 128, 98_304, 16_384


def batch_tokens_of(manifest: Manifest) -> int:
    """Return the tokens of a batch that keeps a GPU busy with a model."""
    return max(_BATCH_TOKENS * _HIDDEN // manifest.architecture.hidden, 2 * manifest.max_length)


def call_tokens_of(manifest: Manifest) -> int:
    """Return the tokens that a GPU computes in the time that a call costs by itself."""
    return _CALL_TOKENS * _HIDDEN // manifest.architecture.hidden


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


class ShapedEngine(GraphEngine):
    """Compute only prepared shapes; each thread of the engine has buffers of its own for them.

    Args:
        bundle: The model.
        graph: The graph that is computed.
        precision: The arithmetic in use.
        threads: Batches under way at a time; defaults to two.
        rows: Rows to prepare, ascending from 1, for each sequence length, ascending to the model's window.
    """

    def __init__(
        self, bundle: Bundle, graph: Graph, precision: str, threads: int | None, rows: Mapping[int, tuple[int, ...]]
    ) -> None:
        super().__init__(bundle, graph, precision, threads or _LANES)
        self._local = threading.local()
        self._rows = dict(rows)
        self._lengths = tuple(self._rows)
        self._vocab_size = bundle.manifest.architecture.vocab_size
        self.batch_tokens = batch_tokens_of(bundle.manifest)
        self.call_tokens = call_tokens_of(bundle.manifest)

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

    def _prepare_all(self) -> None:
        """Prepare every thread of the engine."""
        barrier = threading.Barrier(self.concurrency)

        def prepare(_: int) -> None:
            barrier.wait(timeout=60)  # so that each thread takes one
            self._prepare()

        list(self._pool.map(prepare, range(self.concurrency)))

    @abstractmethod
    def _prepare(self) -> None:
        """Give this thread its `_local.lane`, and run every shape in it."""

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
