"""The way to an engine that merges requests itself: no queue here, only limits on what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, MutableMapping

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.base import Engine
from crossrank.errors import EngineFailure
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import overloaded

# Pairs of the tier `batch` that the engine is given at a time: enough to fill its batches, little to wait for.
_BATCH_TIER_PAIRS = 256


class Passage:
    """Hands each request to the engine as it comes; those of the tier `batch` when no other is under way.

    It stands where `Batcher` stands for embedded engines. Triton's dynamic batcher sees the requests of all its
    clients; merging here too would add latency, and a request that shares its batch could not be cancelled.

    Args:
        engine: Where requests go.
        max_pairs: Beyond this many pairs under way a new request is refused (Overloaded).
        max_batch_pairs: The same for the tier `batch`, those that wait included; as many if None.
    """

    def __init__(self, engine: Engine, max_pairs: int, max_batch_pairs: int | None = None) -> None:
        self._engine = engine
        self._max_pairs = {"realtime": max_pairs, "batch": max_pairs if max_batch_pairs is None else max_batch_pairs}
        self._pairs = Counter({"realtime": 0, "batch": 0})
        self._realtime = 0
        self._batch_pairs_given = 0
        # First come, first served.
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def waiting_pairs(self) -> int:
        """Pairs under way: those that wait in the engine and those that it scores."""
        return sum(self._pairs.values())

    async def score(
        self, batch: PairBatch, *, tier: str = "realtime", stages_s: MutableMapping[str, float] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits of a request's pairs, float32 [pairs]; a cancelled caller cancels the engine's work.

        Args:
            batch: The pairs.
            tier: `realtime` or `batch`.
            stages_s: Where the seconds of the stage `inference` go, the engine's own queue included, and those of the
                stage `queue`, which only the tier `batch` has.

        Raises:
            Overloaded: Too many pairs of that tier are under way.
            EngineFailure: A logit is not finite.
            CrossrankError: Whatever the engine raises.
        """
        pairs, limit = self._pairs[tier], self._max_pairs[tier]
        if pairs and pairs + len(batch) > limit:
            raise overloaded(f"{pairs} documents are under way", len(batch), limit, tier)
        arrived_s = time.monotonic()
        self._pairs[tier] += len(batch)
        try:
            async with self._realtime_turn() if tier == "realtime" else self._batch_turn(len(batch)):
                started_s = time.monotonic()
                logits = await self._engine.score(batch)
        finally:
            self._pairs[tier] -= len(batch)
        if stages_s is not None:
            stages_s["queue"] = started_s - arrived_s
            stages_s["inference"] = time.monotonic() - started_s
        if not np.isfinite(logits).all():
            raise EngineFailure("the engine returned a score that is not a finite number")
        return logits

    @contextlib.asynccontextmanager
    async def _realtime_turn(self) -> AsyncIterator[None]:
        self._realtime += 1
        try:
            yield
        finally:
            self._realtime -= 1
            self._give_turns()

    @contextlib.asynccontextmanager
    async def _batch_turn(self, pairs: int) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = pairs
        self._give_turns()
        try:
            await turn
            yield
        finally:
            # A caller may be cancelled after its turn was given.
            if self._waiting.pop(turn, None) is None:
                self._batch_pairs_given -= pairs
            self._give_turns()

    def _give_turns(self) -> None:
        while self._waiting and not self._realtime:
            turn, pairs = next(iter(self._waiting.items()))
            if self._batch_pairs_given and self._batch_pairs_given + pairs > _BATCH_TIER_PAIRS:
                return
            del self._waiting[turn]
            self._batch_pairs_given += pairs
            if not turn.done():
                turn.set_result(None)

    async def close(self) -> None:
        """Do nothing: what is under way belongs to its request."""
