"""Share code among the engines of this process: worker threads, and padding for runtimes of ONNX graphs."""

from __future__ import annotations

import asyncio
import math
import threading
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Graph
from crossrank.engines.cpu import available_cores
from crossrank.errors import BundleError, EngineFailure
from crossrank.native.padding import pad
from crossrank.packed import PairBatch
from crossrank.reasons import reason_of

# Each new shape costs 2 ms and, for good, 0.3 - 0.5 MB (measured with OpenVINO): lengths are padded to a multiple of
# 16, rows to a multiple of 4, and fewer than 4 to a power of two.
LENGTH_STEP = 16
ROW_STEP = 4
# The longest pair of the self-test at load: attention takes time and memory by the square of it.
PROVED_TOKENS = 1024


class EmbeddedEngine(ABC):
    """Infer in this process, with one thread for each inference.

    For models this small, several threads inside one inference lose more than they gain.

    Args:
        bundle: The model.
        file: Name of the bundle's file with the weights it computes with.
        precision: The arithmetic in use.
        threads: Inferences at the same time; defaults to the available cores.
    """

    name: str
    # Larger batches were no faster a pair (measured from 400 tokens on) and need more memory.
    batch_tokens = 2048
    # A call of a CPU engine costs less than the padding of a few pairs.
    call_tokens = 0
    pads: bool
    length_step = LENGTH_STEP
    row_step = ROW_STEP

    def __init__(self, bundle: Bundle, file: str, precision: str, threads: int | None) -> None:
        self.file = file
        self.precision = precision
        self.concurrency = threads or available_cores()
        self._max_length = bundle.manifest.max_length
        self._pad_token_id = bundle.manifest.pad_token_id
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix=f"crossrank-{self.name}")
        self._closed = False

    @abstractmethod
    def infer(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits of a batch, float32 [pairs], in the calling thread.

        Raises:
            EngineFailure: The runtime raised.
        """

    def padded_tokens(self, batch: PairBatch) -> int:
        """See BatchedEngine.padded_tokens."""
        return len(batch.input_ids)

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        """See Engine.score."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, self.infer, batch)

    def warm_up(self) -> None:
        """Run a short and a long batch on every thread, so that the first request meets compiled kernels."""
        barrier = threading.Barrier(self.concurrency)

        def work(_: int) -> None:
            barrier.wait(timeout=60)
            for pairs, length in ((1, 32), (32, 96)):
                self.infer(self._padding(pairs, min(length, self._max_length)))

        list(self._pool.map(work, range(self.concurrency)))

    def ready(self) -> bool:
        """See Engine.ready."""
        return not self._closed

    async def close(self) -> None:
        """See Engine.close."""
        self._closed = True
        await asyncio.get_running_loop().run_in_executor(None, self._pool.shutdown)

    def _padding(self, pairs: int, length: int) -> PairBatch:
        return PairBatch(
            np.full(pairs * length, self._pad_token_id, np.int32),
            np.zeros(pairs * length, np.int32),
            np.arange(pairs + 1, dtype=np.int64) * length,
        )


class GraphEngine(EmbeddedEngine):
    """Run one of the bundle's graphs, with pairs padded to equal length.

    Args:
        bundle: The model.
        graph: The one to run.
        precision: The arithmetic in use.
        threads: Inferences at the same time; defaults to the available cores.
    """

    pads = True

    def __init__(self, bundle: Bundle, graph: Graph, precision: str, threads: int | None) -> None:
        super().__init__(bundle, graph.file, precision, threads)
        self._graph = graph
        self._path = bundle.file(graph.file)
        self._num_labels = bundle.manifest.num_labels
        self._label = bundle.manifest.label

    def _check_interface(self, inputs: dict[str, str], outputs: dict[str, int | None]) -> None:
        """Compare the loaded graph with the manifest, then run the longest pair there can be, or one of PROVED_TOKENS.

        That first inference is made while no other thread can: OpenVINO's binding initializes itself on first use, and
        of two threads that get there together, one waits for the GIL and the other, holding it, for the first
        (openvino 2026.4).

        Args:
            inputs: dtype of each input of the graph.
            outputs: Columns of each output, None where the graph leaves them open.

        Raises:
            BundleError: They differ, or the graph cannot run.
        """
        expected = {tensor.name: tensor.dtype for tensor in self._graph.inputs}
        if inputs != expected:
            raise BundleError(
                f"{self._path}: the graph has inputs {inputs}, the manifest says {expected}: the two are not of one "
                "export"
            )
        output = self._graph.output.name
        if outputs.get(output, 0) not in (None, self._num_labels):
            raise BundleError(
                f"{self._path}: the graph has outputs {outputs} (name and columns), the manifest says {output} with "
                f"{self._num_labels}: the two are not of one export"
            )
        length = min(self._max_length, PROVED_TOKENS)
        try:
            self.infer(self._padding(1, length))
        except (EngineFailure, IndexError) as error:
            raise BundleError(
                f"{self._path} cannot score a pair of {length} tokens, of max_length {self._max_length} ({error}): "
                "export the model with a smaller --max-length, or use another --engine"
            ) from error

    @abstractmethod
    def _infer(self, inputs: dict[str, NDArray[np.generic]]) -> NDArray[np.float32]:
        """Return the graph's output, float32 [rows, labels]; called from any worker thread."""

    def padded_shape(self, batch: PairBatch) -> tuple[int, int]:
        """Return rows and columns of the tensors that a batch becomes.

        Columns are a multiple of `length_step`, rows of `row_step`; fewer rows than that become a power of two, so that
        one pair alone is not padded.
        """
        length = min(_round_up(int(batch.lengths.max()), self.length_step), self._max_length)
        rows = _round_up(len(batch), self.row_step)
        if len(batch) < self.row_step:
            rows = min(rows, 1 << (len(batch) - 1).bit_length())
        return rows, length

    def padded_tokens(self, batch: PairBatch) -> int:
        """See BatchedEngine.padded_tokens."""
        return math.prod(self.padded_shape(batch))

    def tensors(self, batch: PairBatch, rows: int, length: int) -> dict[str, NDArray[np.generic]]:
        """Return a batch as the graph's inputs, each [rows, length] in the graph's own integer type."""
        ids, types, mask = pad(batch, length, self._pad_token_id, rows)
        arrays = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
        # Only the inputs that the graph has: RoBERTa has no token_type_ids.
        return {tensor.name: arrays[tensor.name].astype(tensor.dtype, copy=False) for tensor in self._graph.inputs}

    def infer(self, batch: PairBatch) -> NDArray[np.float32]:
        """See EmbeddedEngine.infer."""
        inputs = self.tensors(batch, *self.padded_shape(batch))
        try:
            output = self._infer(inputs)
        except Exception as error:
            raise EngineFailure(f"{self.name} failed: {reason_of(error)}") from error
        return np.array(output[: len(batch), self._label], np.float32)


def _round_up(number: int, step: int) -> int:
    return -(-number // step) * step
