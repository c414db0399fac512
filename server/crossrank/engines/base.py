"""Define the interface of all engines: batches of token ids in, logits out.

`PairBatch` is packed (no padding), so that an engine pads as its hardware likes, or not at all.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from crossrank.packed import PairBatch


class Engine(Protocol):
    """Compute the logits of tokenized pairs.

    Attributes:
        name: `native`, `openvino`, `onnxruntime`, `triton` ...
        precision: `fp32`, `bf16`, `fp16` ...: the arithmetic in use.
    """

    name: str
    precision: str

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
class BatchedEngine(Engine, Protocol):
    """Compute batches that a `Batcher` makes: an engine that does not merge requests itself.

    Attributes:
        concurrency: Batches it can work on at the same time.
        batch_tokens: Tokens of a batch (padded) at which it is most efficient.
        call_tokens: Tokens (padded) that take as long as the fixed cost of a call. Padding of fewer tokens is cheaper
            than one more call.
        pads: Whether every pair of a batch costs what its longest does, so that only similar ones belong together.
        row_step: Pairs of a batch are best a multiple of it, if the engine pads.
    """

    concurrency: int
    batch_tokens: int
    call_tokens: int
    pads: bool
    row_step: int

    def padded_tokens(self, batch: PairBatch) -> int:
        """Return the tokens that are computed for a batch, its padding included."""
        ...
