"""Hand requests to an engine that merges them itself, with limits on the pairs under way."""

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
from crossrank.scheduling.tiers import BULK, REALTIME

# Bulk pairs that the engine has at a time: enough to fill its batches, and a realtime request waits for no more.
_BULK_PAIRS = 256


class Passthrough:
    """Hand each realtime request to the engine as it comes, and bulk requests while no realtime one is under way.

    It takes the place that `Batcher` has in front of engines of this process. Triton's dynamic batcher sees the
    requests of all its clients; merging here too would add latency, and a request that shares its batch could not be
    cancelled.

    Args:
        engine: Scores the requests.
        max_pairs: Beyond this many realtime pairs under way a new request is refused (Overloaded).
        max_bulk_pairs: The same for bulk requests (tier `batch`), those that wait included; defaults to
            `max_pairs`.
    """

    def __init__(self, engine: Engine, max_pairs: int, max_bulk_pairs: int | None = None) -> None:
        self._engine = engine
        most = max_pairs if max_bulk_pairs is None else max_bulk_pairs
        self._max_pairs = {REALTIME: max_pairs, BULK: most}
        self._pairs = Counter({REALTIME: 0, BULK: 0})
        self._realtime_requests = 0
        self._bulk_pairs = 0
        # First come, first served.
        self._waiting: dict[asyncio.Future[None], int] = {}

    @property
    def waiting_pairs(self) -> int:
        """Return the number of pairs under way: waiting for a turn, waiting in the engine, or being scored."""
        return sum(self._pairs.values())

    def check_room(self, pairs: int, tokens: int, tier: str = REALTIME) -> None:
        """Check that a request can be taken.

        Args:
            pairs: Number of its pairs.
            tokens: Not used: how long its tokens take is the upstream server's knowledge.
            tier: As for `score`.

        Raises:
            Overloaded: Too many pairs of that tier are under way.
        """
        under_way, limit = self._pairs[tier], self._max_pairs[tier]
        if under_way and under_way + pairs > limit:
            raise overloaded(f"{under_way} documents are under way", pairs, limit, tier)

    async def score(
        self, batch: PairBatch, *, tier: str = REALTIME, stages_s: MutableMapping[str, float] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits of a request's pairs, float32 [pairs]; a cancelled caller cancels the engine's work.

        Args:
            batch: The pairs.
            tier: `realtime` or `batch`.
            stages_s: Gets the seconds of the stage `inference`, the engine's own queue included, and of the stage
                `queue`, which only bulk requests have.

        Raises:
            Overloaded: See `check_room`.
            EngineFailure: A logit is not finite.
            CrossrankError: Whatever the engine raises.
        """
        self.check_room(len(batch), len(batch.input_ids), tier)
        arrived_s = time.monotonic()
        self._pairs[tier] += len(batch)
        try:
            async with self._realtime_turn() if tier == REALTIME else self._bulk_turn(len(batch)):
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
        self._realtime_requests += 1
        try:
            yield
        finally:
            self._realtime_requests -= 1
            self._give_turns()

    @contextlib.asynccontextmanager
    async def _bulk_turn(self, pairs: int) -> AsyncIterator[None]:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[turn] = pairs
        self._give_turns()
        try:
            await turn
            yield
        finally:
            # A caller may be cancelled after its turn was given.
            if self._waiting.pop(turn, None) is None:
                self._bulk_pairs -= pairs
            self._give_turns()

    def _give_turns(self) -> None:
        while self._waiting and not self._realtime_requests:
            turn, pairs = next(iter(self._waiting.items()))
            if self._bulk_pairs and self._bulk_pairs + pairs > _BULK_PAIRS:
                return
            del self._waiting[turn]
            self._bulk_pairs += pairs
            if not turn.done():
                turn.set_result(None)

    async def close(self) -> None:
        """Do nothing: requests under way end by themselves, or are cancelled by their callers."""
