"""The way to an engine that merges requests itself: no queue here, only a limit on what is under way."""

from __future__ import annotations

import time
from collections.abc import MutableMapping

import numpy as np
from numpy.typing import NDArray

from crossrank_server.engines.base import Engine, PairBatch
from crossrank_server.errors import EngineFailure, Overloaded


class Passage:
    """Hands each request to the engine as it comes.

    It stands where `Batcher` stands for embedded engines. Triton's dynamic batcher sees the requests of all its
    clients; merging here too would add latency, and a request that shares its batch could not be cancelled.

    Args:
        engine: Where requests go.
        max_pairs: Beyond this many pairs under way a new request is refused (Overloaded).
    """

    def __init__(self, engine: Engine, max_pairs: int) -> None:
        self._engine = engine
        self._max_pairs = max_pairs
        self._pairs = 0

    @property
    def waiting_pairs(self) -> int:
        """Pairs under way: those that wait in the engine and those that it scores."""
        return self._pairs

    async def score(
        self, batch: PairBatch, *, tier: str = "realtime", stages_s: MutableMapping[str, float] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits of a request's pairs, float32 [pairs]; a cancelled caller cancels the engine's work.

        Args:
            batch: The pairs.
            tier: `realtime` or `batch`.
            stages_s: Where the seconds of the stage `inference` go, the engine's own queue included.

        Raises:
            Overloaded: Too many pairs are under way.
            EngineFailure: A logit is not finite.
            CrossrankError: Whatever the engine raises.
        """
        if self._pairs and self._pairs + len(batch) > self._max_pairs:
            raise Overloaded(
                f"{self._pairs} documents are under way and this request adds {len(batch)}; "
                f"the limit is {self._max_pairs}: try again in a second, or send less at a time",
                retry_after_s=1.0,
            )
        self._pairs += len(batch)
        started_s = time.monotonic()
        try:
            logits = await self._engine.score(batch)
        finally:
            self._pairs -= len(batch)
        if stages_s is not None:
            stages_s["inference"] = time.monotonic() - started_s
        if not np.isfinite(logits).all():
            raise EngineFailure("the engine returned a score that is not a finite number")
        return logits

    async def close(self) -> None:
        """Do nothing: what is under way belongs to its request."""
