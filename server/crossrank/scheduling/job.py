"""Hold the pairs of one request while it waits for its logits."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.packed import PairBatch


@dataclass(eq=False)
class Job:
    """Hold the pairs of one request that are still to be scored.

    Attributes:
        batch: All pairs of the request.
        logits: float32 [pairs], filled batch by batch.
        done: Resolved when all logits are there, or with the engine's failure.
        indices: Indices of the pairs that wait; the longest is last, if the engine pads.
        lengths: Tokens of each of them.
        size: Size class, see `FairQueue`.
        unscored: Number of pairs without a logit.
        arrived_s: time.monotonic() when the request came.
        started_s: The same when its first batch was made; 0 before.
    """

    batch: PairBatch
    logits: NDArray[np.float32]
    done: asyncio.Future[None]
    indices: list[int]
    lengths: list[int]
    size: int
    unscored: int
    arrived_s: float
    started_s: float = 0.0
