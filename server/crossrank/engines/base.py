"""The one seam for inference: what every engine takes and gives.

`PairBatch` is packed (no padding), so that an engine pads as its hardware likes, or not at all.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from crossrank.packed import PairBatch


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
