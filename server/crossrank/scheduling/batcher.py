"""Merge the pairs of concurrent requests into batches of similar length under a token budget.

Every request gets its own logits back, whatever shared its batches.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.base import BatchedEngine
from crossrank.errors import EngineFailure, Overloaded
from crossrank.packed import PairBatch, join_pairs, take_pairs
from crossrank.scheduling.cores import Cores
from crossrank.scheduling.similar import first_similar
from crossrank.scheduling.tiers import BULK, REALTIME

# A batch is not made smaller than this to occupy an idle core, nor than two calls' own cost: that would eat the gain.
_MIN_BATCH_TOKENS = 512
# A pair shorter than this share of the batch's longest is left for another batch, unless its padding costs less than a
# call.
_MIN_LENGTH_SHARE = 0.75
# Shortest remaining work goes first; each second of waiting counts as this many tokens less, so that nothing starves.
_AGING_TOKENS_PER_S = 100_000


@dataclass(eq=False)
class _Job:
    """Hold the pairs of one request that are still to be scored; longest last, if the engine pads."""

    batch: PairBatch
    logits: NDArray[np.float32]
    done: asyncio.Future[None]
    indices: list[int]
    lengths: list[int]
    waiting_tokens: int
    unscored: int
    arrived_s: float
    queue: list[_Job]
    started_s: float = 0.0

    def take(self, start: int, stop: int) -> list[int]:
        """Remove and return pairs `start:stop` of those that wait."""
        self.started_s = self.started_s or time.monotonic()
        taken = self.indices[start:stop]
        self.waiting_tokens -= sum(self.lengths[start:stop])
        del self.indices[start:stop], self.lengths[start:stop]
        return taken


class Batcher:
    """Keep an engine busy with batches made of all waiting requests.

    A batch holds pairs of one tier. Bulk requests (tier `batch`) get only idle cores, and no batch of theirs is
    queued ahead on a busy one: a realtime request waits for no more than the batch under way.

    Args:
        engine: Scores the batches: `engine.concurrency` at a time, and for every two of them one more, ready to follow
            without a pause.
        max_waiting_pairs: Beyond this many waiting realtime pairs a new request is refused (Overloaded).
        max_waiting_bulk_pairs: The same for bulk requests; defaults to `max_waiting_pairs`.
        cores: Shared with the batchers of other models.
        on_batch: Called after each batch with its pairs and the seconds that it took.
    """

    def __init__(
        self,
        engine: BatchedEngine,
        max_waiting_pairs: int,
        max_waiting_bulk_pairs: int | None = None,
        cores: Cores | None = None,
        on_batch: Callable[[PairBatch, float], None] | None = None,
    ) -> None:
        self._engine = engine
        self._cores = cores or Cores()
        self._on_batch = on_batch
        most = max_waiting_pairs if max_waiting_bulk_pairs is None else max_waiting_bulk_pairs
        self._max_waiting_pairs = {REALTIME: max_waiting_pairs, BULK: most}
        # Measured on 2 cores: a quarter more documents a second than without the one ahead, no more with two.
        self._most_running = engine.concurrency + max(1, engine.concurrency // 2)
        self._queues: dict[str, list[_Job]] = {REALTIME: [], BULK: []}
        self._running: set[asyncio.Task[None]] = set()

    @property
    def waiting_pairs(self) -> int:
        """Return the number of pairs that are in no batch yet."""
        return sum(map(_waiting_pairs, self._queues.values()))

    @property
    def idle(self) -> bool:
        """Tell whether no pair waits and no batch is under way."""
        return not self._running and not any(self._queues.values())

    async def score(
        self, batch: PairBatch, *, tier: str = REALTIME, stages_s: MutableMapping[str, float] | None = None
    ) -> NDArray[np.float32]:
        """Return the logits of a request's pairs, float32 [pairs].

        A cancelled caller's waiting pairs are dropped.

        Args:
            batch: The pairs.
            tier: `realtime`, or `batch`, whose pairs are taken when cores are idle.
            stages_s: Gets the seconds of the stages `queue` and `inference`.

        Raises:
            Overloaded: Too many pairs of that tier wait already.
            EngineFailure: The engine broke or a logit is not finite.
        """
        queue = self._queues[tier]
        waiting = _waiting_pairs(queue)
        if waiting and waiting + len(batch) > self._max_waiting_pairs[tier]:
            raise overloaded(f"{waiting} documents wait", len(batch), self._max_waiting_pairs[tier], tier)
        lengths = batch.lengths
        # In order of length where similar pairs are sought; else as they come, so that batches take equally long.
        order = np.argsort(lengths, kind="stable") if self._engine.pads else np.arange(len(batch))
        job = _Job(
            batch=batch,
            logits=np.empty(len(batch), np.float32),
            done=asyncio.get_running_loop().create_future(),
            indices=order.tolist(),
            lengths=lengths[order].tolist(),
            waiting_tokens=len(batch.input_ids),
            unscored=len(batch),
            arrived_s=time.monotonic(),
            queue=queue,
        )
        queue.append(job)
        try:
            self._dispatch()
            await job.done
        finally:
            if job in queue:
                queue.remove(job)
        if stages_s is not None:
            stages_s["queue"] = job.started_s - job.arrived_s
            stages_s["inference"] = time.monotonic() - job.started_s
        return job.logits

    async def close(self) -> None:
        """Wait for the batches under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _dispatch(self) -> None:
        queue = self._queues[REALTIME]
        budget = self._budget_tokens(queue)
        while queue and len(self._running) < self._most_running:
            self._start(queue, budget)
        if self._queues[BULK]:
            self._cores.wait(self)
        self._cores.offer()

    def start_bulk(self) -> bool:
        """Start one batch of bulk requests if a core is idle; tell whether more of them wait."""
        queue = self._queues[BULK]
        if queue and self._cores.running < self._engine.concurrency:
            self._start(queue, self._budget_tokens(queue))
        return bool(queue)

    def _budget_tokens(self, queue: list[_Job]) -> int:
        # What waits is cut into equal batches, a multiple of the cores: none idles while another does two.
        waiting_tokens = sum(job.waiting_tokens for job in queue)
        rounds = -(-waiting_tokens // (self._engine.batch_tokens * self._engine.concurrency))
        least = max(_MIN_BATCH_TOKENS, 2 * self._engine.call_tokens)
        budget = max(-(-waiting_tokens // (max(rounds, 1) * self._engine.concurrency)), least)
        return min(budget, self._engine.batch_tokens)

    def _start(self, queue: list[_Job], budget_tokens: int) -> None:
        task = asyncio.get_running_loop().create_task(self._run(self._next_batch(queue, budget_tokens)))
        self._running.add(task)
        self._cores.running += 1
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._cores.running -= 1
        self._dispatch()

    def _next_batch(self, queue: list[_Job], budget_tokens: int) -> list[tuple[_Job, list[int]]]:
        """Take similar pairs: those of the most urgent request first, then fitting ones of others."""
        now = time.monotonic()
        jobs = sorted(queue, key=lambda job: job.waiting_tokens - _AGING_TOKENS_PER_S * (now - job.arrived_s))
        if not self._engine.pads:
            return self._fill(queue, jobs, budget_tokens)
        longest = jobs[0].lengths[-1]
        spare_tokens = self._engine.call_tokens
        # A multiple of the engine's step where that can be: runtimes prepare and remember every shape they meet.
        step = self._engine.row_step
        most = max(self._engine.batch_tokens // longest, 1)
        if most > step:
            most -= most % step
        room = min(-(-budget_tokens // (longest * step)) * step, most)
        parts: list[tuple[_Job, list[int]]] = []
        for job in jobs:
            stop = bisect_left(job.lengths, longest + 1)
            start, spare_tokens = first_similar(job.lengths, stop, longest, _MIN_LENGTH_SHARE, spare_tokens)
            start = max(start, stop - room)
            if start < stop:
                parts.append((job, job.take(start, stop)))
                room -= stop - start
                if not job.indices:
                    queue.remove(job)
            if room <= 0:
                break
        return parts

    @staticmethod
    def _fill(queue: list[_Job], jobs: list[_Job], budget_tokens: int) -> list[tuple[_Job, list[int]]]:
        """Take whole documents of any length until the budget is spent, for an engine that does not pad."""
        parts: list[tuple[_Job, list[int]]] = []
        for job in jobs:
            start = stop = len(job.indices)
            while start and budget_tokens > 0:
                start -= 1
                budget_tokens -= job.lengths[start]
            parts.append((job, job.take(start, stop)))
            if not job.indices:
                queue.remove(job)
            if budget_tokens <= 0:
                break
        return parts

    async def _run(self, parts: list[tuple[_Job, list[int]]]) -> None:
        batch = _gather(parts)
        started_s = time.monotonic()
        try:
            logits = await self._engine.score(batch)
            pairs = sum(len(indices) for _, indices in parts)
            if logits.shape != (pairs,):
                raise EngineFailure(f"the engine returned {list(logits.shape)} scores for {pairs} pairs")
        except Exception as error:
            for job, _ in parts:
                self._fail(job, error)
            return
        if self._on_batch is not None:
            self._on_batch(batch, time.monotonic() - started_s)
        start = 0
        for job, indices in parts:
            own = logits[start : start + len(indices)]
            start += len(indices)
            if not np.isfinite(own).all():
                self._fail(job, EngineFailure("the engine returned a score that is not a finite number"))
                continue
            job.logits[indices] = own
            job.unscored -= len(indices)
            if job.unscored == 0 and not job.done.done():
                job.done.set_result(None)

    def _fail(self, job: _Job, error: Exception) -> None:
        if job in job.queue:
            job.queue.remove(job)
        if not job.done.done():
            job.done.set_exception(error)


def overloaded(state: str, added: int, limit: int, tier: str) -> Overloaded:
    """Return the error of a full queue, with the state of it, the limit and when to try again."""
    retry_after_s = 5.0 if tier == BULK else 1.0
    return Overloaded(
        f"{state} and this request adds {added}; the queue of tier {tier} holds {limit}: "
        f"try again in {retry_after_s:g} s, or send less at a time",
        retry_after_s=retry_after_s,
    )


def _waiting_pairs(queue: list[_Job]) -> int:
    return sum(len(job.indices) for job in queue)


def _gather(parts: list[tuple[_Job, list[int]]]) -> PairBatch:
    """Copy the chosen pairs of several requests into one packed batch."""
    return join_pairs([take_pairs(job.batch, np.array(indices)) for job, indices in parts])
