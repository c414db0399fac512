"""The one seam for inference: what every engine takes and gives.

`PairBatch` is packed (no padding), so that an engine pads as its hardware likes, or not at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from crossrank_server.padding import pad


@dataclass(frozen=True)
class PairBatch:
    """Tokenized pairs, one after the other.

    Attributes:
        input_ids: int32 [tokens], all pairs concatenated, special tokens included.
        token_type_ids: int32 [tokens], the segment of each token.
        offsets: int64 [pairs + 1]; pair i is `input_ids[offsets[i]:offsets[i + 1]]`.
    """

    input_ids: NDArray[np.int32]
    token_type_ids: NDArray[np.int32]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [pairs]: tokens of each pair."""
        return np.diff(self.offsets)

    def padded(
        self, length: int, pad_token_id: int, rows: int | None = None
    ) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]:
        """Return (input_ids, token_type_ids, attention_mask), each int32 [rows, length].

        Args:
            length: Columns; at least the longest pair.
            pad_token_id: Fills input_ids beyond each pair.
            rows: Rows, at least `len(self)`; extra rows repeat nothing and attend to one padding token, so that
                no softmax runs over an empty row.
        """
        rows = len(self) if rows is None else rows
        return pad(self.input_ids, self.token_type_ids, self.offsets, rows, length, pad_token_id)


class Engine(Protocol):
    """Turns token ids into logits.

    Attributes:
        name: `native`, `openvino`, `onnxruntime`, `triton` ...
        precision: `fp32`, `bf16`, `fp16` ...: the arithmetic in use.
        concurrency: Batches it can work on at the same time.
        batch_tokens: Tokens of a batch (padded) at which it is most efficient.
        call_tokens: Tokens (padded) that take as long as a call takes beside them; padding worth less than that saves.
        pads: Whether every pair of a batch costs what its longest does, so that only similar ones belong together.
    """

    name: str
    precision: str
    concurrency: int
    batch_tokens: int
    call_tokens: int
    pads: bool

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits, float32 [pairs], in the order of the batch.

        Raises:
            EngineFailure: The engine broke.
            BackendUnavailable, BackendTimeout, BackendError, Overloaded: An upstream server's own failures.
        """
        ...

    def ready(self) -> bool:
        """Tell whether the next `score` can be expected to succeed."""
        ...

    async def close(self) -> None:
        """Release threads, memory and connections. Calling it twice is harmless."""
        ...


@runtime_checkable
class PadsBatches(Protocol):
    """An engine that computes padding, and knows how much."""

    def padded_shape(self, batch: PairBatch) -> tuple[int, int]:
        """Return rows and columns of the tensors that a batch becomes."""
        ...
