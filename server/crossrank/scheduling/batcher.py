"""Merge the pairs of concurrent requests into batches of similar length under a token budget.

Every request gets its own logits back, whatever shared its batches.
"""

from __future__ import annotations

import asyncio
import math
import time
from bisect import bisect_left
from collections.abc import Callable, MutableMapping

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.base import BatchedEngine
from crossrank.errors import EngineFailure, Overloaded
from crossrank.packed import PairBatch, join_pairs, take_pairs
from crossrank.scheduling.cores import Cores
from crossrank.scheduling.fair_queue import SIZES, FairQueue, size_of
from crossrank.scheduling.job import Job
from crossrank.scheduling.similar import first_similar
from crossrank.scheduling.throughput import Throughput
from crossrank.scheduling.tiers import BULK, REALTIME

# A batch is not made smaller than this to occupy an idle core, nor than two calls' own cost: that would eat the gain.
_MIN_BATCH_TOKENS = 512
# A pair shorter than this share of the batch's longest is left for another batch, unless its padding costs less than a
# call.
_MIN_LENGTH_SHARE = 0.75
# A batch that small requests may have to wait for takes so long, or as long as the smallest batch: in shorter ones the
# fastest models would lose a fifth of their speed between batches.
_SHORT_BATCH_S = 0.008
# A request may wait this many times as long as it takes itself, if that is more than `max_queue_s`.
_MOST_SLOWDOWN = 20


# A job and the indices of the pairs of it that are in a batch.
_Part = tuple[Job, list[int]]


class Batcher:
    """Keep an engine busy with batches made of all waiting requests.

    A batch holds pairs of one tier. Bulk requests (tier `batch`) get only idle cores, and no batch of theirs is
    queued ahead on a busy one: a realtime request waits for no more than the batch under way.

    Within a tier small requests go first, and every size has a guaranteed share: see `FairQueue`.

    Args:
        engine: Scores the batches: `engine.concurrency` at a time, and for every two of them one more, ready to follow
            without a pause.
        max_waiting_pairs: Beyond this many waiting realtime pairs a new request is refused (Overloaded).
        max_waiting_bulk_pairs: The same for bulk requests; defaults to `max_waiting_pairs`.
        cores: Shared with the batchers of other models.
        on_batch: Called after each batch with its pairs and the seconds that it took.
        max_queue_s: A realtime request that would wait longer, by the rate measured, is refused (Overloaded). A request
            may wait twenty times as long as it takes itself, if that is more and leaves it time to be answered.
        timeout_s: Seconds after which an answer is worthless.
    """

    def __init__(
        self,
        engine: BatchedEngine,
        max_waiting_pairs: int,
        max_waiting_bulk_pairs: int | None = None,
        cores: Cores | None = None,
        on_batch: Callable[[PairBatch, float], None] | None = None,
        *,
        max_queue_s: float = math.inf,
        timeout_s: float = math.inf,
    ) -> None:
        self._engine = engine
        self._cores = cores or Cores()
        self._on_batch = on_batch
        most = max_waiting_pairs if max_waiting_bulk_pairs is None else max_waiting_bulk_pairs
        self._max_waiting_pairs = {REALTIME: max_waiting_pairs, BULK: most}
        self._max_queue_s = max_queue_s
        self._timeout_s = timeout_s
        # Measured on 2 cores: a quarter more documents a second than without the one ahead, no more with two.
        self._most_running = engine.concurrency + max(1, engine.concurrency // 2)
        self._least_tokens = max(_MIN_BATCH_TOKENS, 2 * engine.call_tokens)
        self._queues = {REALTIME: FairQueue(), BULK: FairQueue()}
        # The tokens of each batch under way.
        self._running: dict[asyncio.Task[None], int] = {}
        self._throughput = Throughput()

    @property
    def waiting_pairs(self) -> int:
        """Return the number of pairs that are in no batch yet."""
        return sum(queue.waiting_pairs for queue in self._queues.values())

    @property
    def idle(self) -> bool:
        """Tell whether no pair waits and no batch is under way."""
        return not self._running and not any(self._queues.values())

    def check_room(self, pairs: int, tokens: int, tier: str = REALTIME) -> None:
        """Check that a request can be taken into the queue.

        Args:
            pairs: Number of its pairs.
            tokens: Number of its tokens, or fewer if that is not known yet.
            tier: As for `score`.

        Raises:
            Overloaded: Too many pairs of that tier wait already, or the request would wait too long.
        """
        queue = self._queues[tier]
        waiting = queue.waiting_pairs
        if not waiting:
            return
        if waiting + pairs > self._max_waiting_pairs[tier]:
            raise overloaded(f"{waiting} documents wait", pairs, self._max_waiting_pairs[tier], tier)
        if tier == BULK:  # waits for idle cores, however long that takes
            return
        ahead = queue.tokens_ahead(size_of(tokens)) + sum(self._running.values())
        wait_s, own_s = self._throughput.seconds(ahead), self._throughput.seconds(tokens)
        most_s = max(min(_MOST_SLOWDOWN * own_s, self._timeout_s - own_s), self._max_queue_s)
        if wait_s > most_s:
            raise Overloaded(
                f"requests that go first take {wait_s:.1f} s, and this one may wait {most_s:.1f} s: try again in "
                f"{max(wait_s, 1.0):.0f} s, or raise --max-queue-s",
                retry_after_s=float(math.ceil(max(wait_s, 1.0))),
            )

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
            Overloaded: See `check_room`.
            EngineFailure: The engine broke or a logit is not finite.
        """
        self.check_room(len(batch), len(batch.input_ids), tier)
        lengths = batch.lengths
        # In order of length where similar pairs are sought; else as they come, so that batches take equally long.
        order = np.argsort(lengths, kind="stable") if self._engine.pads else np.arange(len(batch))
        job = Job(
            batch=batch,
            logits=np.empty(len(batch), np.float32),
            done=asyncio.get_running_loop().create_future(),
            indices=order.tolist(),
            lengths=lengths[order].tolist(),
            size=size_of(len(batch.input_ids)),
            unscored=len(batch),
            arrived_s=time.monotonic(),
        )
        queue = self._queues[tier]
        queue.add(job)
        try:
            self._dispatch()
            await job.done
        finally:
            queue.discard(job)
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

    def _budget_tokens(self, queue: FairQueue) -> int:
        # What waits is cut into equal batches, a multiple of the cores: none idles while another does two.
        waiting_tokens = queue.waiting_tokens
        rounds = -(-waiting_tokens // (self._engine.batch_tokens * self._engine.concurrency))
        budget = max(-(-waiting_tokens // (max(rounds, 1) * self._engine.concurrency)), self._least_tokens)
        return min(budget, self._engine.batch_tokens)

    def _start(self, queue: FairQueue, budget_tokens: int) -> None:
        parts, tokens = self._next_batch(queue, budget_tokens)
        task = asyncio.get_running_loop().create_task(self._run(queue, parts))
        self._running[task] = tokens
        self._cores.running += 1
        self._throughput.note(time.monotonic(), len(self._running) >= self._engine.concurrency)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        tokens = self._running.pop(task)
        self._cores.running -= 1
        self._throughput.note(time.monotonic(), len(self._running) >= self._engine.concurrency, tokens)
        self._dispatch()

    def _next_batch(self, queue: FairQueue, budget_tokens: int) -> tuple[list[_Part], int]:
        """Take the pairs of the size class whose turn it is, and return them and the number of their tokens.

        Pairs of others join as far as they cost no more than another call would.
        """
        size = queue.next_size(self._least_tokens)
        realtime = self._queues[REALTIME]
        if queue.delays_smaller(size) or (queue is not realtime and realtime.delays_smaller(SIZES)):
            # The next small request waits for no more than such a batch.
            short = _SHORT_BATCH_S * self._throughput.tokens_per_s / self._engine.concurrency
            budget_tokens = min(budget_tokens, max(self._least_tokens, int(short)))
        before = queue.waiting_tokens
        fill = self._fill_similar if self._engine.pads else self._fill
        first = queue.jobs(size)
        longest = first[0].lengths[-1]
        parts = fill(queue, first, budget_tokens, longest)
        spare_tokens = self._engine.call_tokens - (before - queue.waiting_tokens)
        if spare_tokens > 0 and queue:
            parts += fill(queue, queue.others(size), min(spare_tokens, budget_tokens), longest)
        now_s = time.monotonic()
        for job, _ in parts:
            job.started_s = job.started_s or now_s
        tokens = before - queue.waiting_tokens
        queue.count(size, tokens)
        return parts, tokens

    def _fill_similar(self, queue: FairQueue, jobs: list[Job], budget_tokens: int, longest: int) -> list[_Part]:
        """Take pairs close to `longest` tokens: those of the first job first, then fitting ones of the next."""
        spare_tokens = self._engine.call_tokens
        # A multiple of the engine's step where that can be: runtimes prepare and remember every shape they meet.
        step = self._engine.row_step
        most = max(self._engine.batch_tokens // longest, 1)
        if most > step:
            most -= most % step
        room = min(-(-budget_tokens // (longest * step)) * step, most)
        parts: list[_Part] = []
        for job in jobs:
            stop = bisect_left(job.lengths, longest + 1)
            start, spare_tokens = first_similar(job.lengths, stop, longest, _MIN_LENGTH_SHARE, spare_tokens)
            start = max(start, stop - room)
            if start < stop:
                parts.append((job, queue.take(job, start, stop)))
                room -= stop - start
            if room <= 0:
                break
        return parts

    @staticmethod
    def _fill(queue: FairQueue, jobs: list[Job], budget_tokens: int, _: int) -> list[_Part]:
        """Take whole documents of any length until the budget is spent, for an engine that does not pad."""
        parts: list[_Part] = []
        for job in jobs:
            start = stop = len(job.indices)
            while start and budget_tokens > 0:
                start -= 1
                budget_tokens -= job.lengths[start]
            parts.append((job, queue.take(job, start, stop)))
            if budget_tokens <= 0:
                break
        return parts

    async def _run(self, queue: FairQueue, parts: list[_Part]) -> None:
        batch = _gather(parts)
        started_s = time.monotonic()
        try:
            logits = await self._engine.score(batch)
            pairs = sum(len(indices) for _, indices in parts)
            if logits.shape != (pairs,):
                raise EngineFailure(f"the engine returned {list(logits.shape)} scores for {pairs} pairs")
        except Exception as error:
            for job, _ in parts:
                _fail(queue, job, error)
            return
        if self._on_batch is not None:
            self._on_batch(batch, time.monotonic() - started_s)
        start = 0
        for job, indices in parts:
            own = logits[start : start + len(indices)]
            start += len(indices)
            if not np.isfinite(own).all():
                _fail(queue, job, EngineFailure("the engine returned a score that is not a finite number"))
                continue
            job.logits[indices] = own
            job.unscored -= len(indices)
            if job.unscored == 0 and not job.done.done():
                job.done.set_result(None)


def _fail(queue: FairQueue, job: Job, error: Exception) -> None:
    queue.discard(job)
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


def _gather(parts: list[_Part]) -> PairBatch:
    """Copy the chosen pairs of several requests into one packed batch."""
    return join_pairs([take_pairs(job.batch, np.array(indices)) for job, indices in parts])
