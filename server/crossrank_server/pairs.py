"""Query and documents to token ids, and the batches that reach the engine.

`PairEncoder` tokenizes the query once and each document once, and assembles the pairs. `Batcher` merges the pairs of
concurrent requests into batches of similar length under a token budget, and gives every request its own logits.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import TOKENIZER, Bundle
from crossrank_server.engines.base import Engine, PairBatch
from crossrank_server.errors import BundleError, EngineFailure, Overloaded
from crossrank_server.tokenization import TextTokenizer

# A batch is not made smaller than this to occupy an idle core: per-call overhead would eat the gain.
_MIN_BATCH_TOKENS = 512
# A pair shorter than this share of the batch's longest is left for another batch: padding costs more than a call.
_MIN_LENGTH_SHARE = 0.75
# Batches have a multiple of this many pairs where they can: runtimes prepare and remember every shape they meet.
_ROW_STEP = 4
# Shortest remaining work goes first; each second of waiting counts as this many tokens less, so that nothing starves.
_AGING_TOKENS_PER_S = 100_000


@dataclass(frozen=True)
class EncodedPairs:
    """The pairs of one request, in document order.

    Attributes:
        batch: The packed token ids.
        truncated: Indices of the documents of which only a part fits the window.
        query_truncated: Whether the query lost tokens too (it is longer than half the window).
    """

    batch: PairBatch
    truncated: list[int]
    query_truncated: bool


class PairEncoder:
    """Assembles `start + query + middle + document + end` as the bundle's pair template says.

    Raises:
        BundleError: The tokenizer cannot be read, or gives ids that the model has no embedding for.
    """

    def __init__(self, bundle: Bundle) -> None:
        manifest = bundle.manifest
        self._tokenizer = TextTokenizer(bundle.file(TOKENIZER))
        self._template = manifest.pair_template
        self._window = manifest.max_length - manifest.pair_template.special_tokens
        # An id without an embedding would be scored all the same by some runtimes.
        template = manifest.pair_template
        ids = [*template.start, *template.middle, *template.end, manifest.pad_token_id, self._tokenizer.vocab_size - 1]
        rows = manifest.architecture.vocab_size
        if not 0 <= min(ids) <= max(ids) < rows:
            raise BundleError(
                f"{bundle.path}: token ids reach from {min(ids)} to {max(ids)}, the model has embeddings for 0 to "
                f"{rows - 1}; the tokenizer or the template belongs to another model: export it again"
            )

    def encode(self, query: str, documents: list[str]) -> EncodedPairs:
        """Tokenize and assemble all pairs of a request.

        A pair over the window is truncated as Hugging Face's `longest_first` does it: the document gives way,
        unless the query alone takes more than half of the window.
        Source: https://huggingface.co/docs/transformers/pad_truncation
        """
        template, window = self._template, self._window
        query_ids = self._tokenizer.tokenize([query], window)[0]
        if len(query_ids) > window:
            # It may have more; a document over the window too must be compared with all of it: the longer keeps more.
            query_ids = self._tokenizer.tokenize([query], len(query))[0]
        document_ids = self._tokenizer.tokenize(documents, max(window, len(query_ids)))
        head_type, tail_type = template.segments
        ids: list[int] = []
        types: list[int] = []
        offsets = np.zeros(len(documents) + 1, np.int64)
        truncated: list[int] = []
        query_truncated = False
        head = template.start + query_ids + template.middle
        head_types = [head_type] * len(head)
        for i, tail in enumerate(document_ids):
            if len(query_ids) + len(tail) > window:
                kept_query, kept_document = _longest_first(len(query_ids), len(tail), window)
                if kept_document < len(tail):
                    truncated.append(i)
                query_truncated |= kept_query < len(query_ids)
                ids += template.start + query_ids[:kept_query] + template.middle + tail[:kept_document]
                types += [head_type] * (len(head) - len(query_ids) + kept_query)
                tail_length = kept_document
            else:
                ids += head
                ids += tail
                types += head_types
                tail_length = len(tail)
            ids += template.end
            types += [tail_type] * (tail_length + len(template.end))
            offsets[i + 1] = len(ids)
        return EncodedPairs(
            PairBatch(np.array(ids, np.int32), np.array(types, np.int32), offsets), truncated, query_truncated
        )


def _longest_first(query: int, document: int, window: int) -> tuple[int, int]:
    """Return how many tokens of the query and of the document are kept; the longer side gives way.

    Source: `TruncationStrategy::LongestFirst` in https://github.com/huggingface/tokenizers (utils/truncation.rs)
    """
    short, long = sorted((query, document))
    long = short if short > window else max(short, window - short)
    if short + long > window:
        short = window // 2
        long = short + window % 2
    return (short, long) if query <= document else (long, short)


@dataclass(eq=False)
class _Job:
    """The pairs of one request that are still to be scored; longest last, if the engine pads."""

    batch: PairBatch
    logits: NDArray[np.float32]
    done: asyncio.Future[None]
    indices: list[int]
    lengths: list[int]
    waiting_tokens: int
    unscored: int
    arrived_s: float

    def take(self, start: int, stop: int) -> list[int]:
        """Remove and return pairs `start:stop` of those that wait."""
        taken = self.indices[start:stop]
        self.waiting_tokens -= sum(self.lengths[start:stop])
        del self.indices[start:stop], self.lengths[start:stop]
        return taken


class Batcher:
    """Keeps an engine busy with batches made of all waiting requests.

    Args:
        engine: Where batches go: `engine.concurrency` at a time, and for every two of them one more, ready to follow
            without a pause.
        max_waiting_pairs: Beyond this many waiting pairs a new request is refused (Overloaded).
    """

    def __init__(self, engine: Engine, max_waiting_pairs: int) -> None:
        self._engine = engine
        self._max_waiting_pairs = max_waiting_pairs
        # Measured on 2 cores: a quarter more documents a second than without the one ahead, no more with two.
        self._most_running = engine.concurrency + max(1, engine.concurrency // 2)
        self._jobs: list[_Job] = []
        self._running: set[asyncio.Task[None]] = set()

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits of a request's pairs, float32 [pairs].

        A cancelled caller's waiting pairs are dropped.

        Raises:
            Overloaded: Too many pairs wait already.
            EngineFailure: The engine broke or a logit is not finite.
        """
        waiting = sum(len(job.indices) for job in self._jobs)
        if waiting and waiting + len(batch) > self._max_waiting_pairs:
            raise Overloaded(
                f"{waiting} documents wait and this request adds {len(batch)}; "
                f"the queue holds {self._max_waiting_pairs}: "
                "try again in a second, or send less at a time",
                retry_after_s=1.0,
            )
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
        )
        self._jobs.append(job)
        try:
            self._dispatch()
            await job.done
        finally:
            if job in self._jobs:
                self._jobs.remove(job)
        return job.logits

    async def close(self) -> None:
        """Wait for the batches under way."""
        await asyncio.gather(*self._running, return_exceptions=True)

    def _dispatch(self) -> None:
        # What waits is cut into equal batches, a multiple of the cores: none idles while another does two.
        waiting_tokens = sum(job.waiting_tokens for job in self._jobs)
        rounds = -(-waiting_tokens // (self._engine.batch_tokens * self._engine.concurrency))
        budget = max(-(-waiting_tokens // (max(rounds, 1) * self._engine.concurrency)), _MIN_BATCH_TOKENS)
        budget = min(budget, self._engine.batch_tokens)
        while self._jobs and len(self._running) < self._most_running:
            task = asyncio.get_running_loop().create_task(self._run(self._next_batch(budget)))
            self._running.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._dispatch()

    def _next_batch(self, budget_tokens: int) -> list[tuple[_Job, list[int]]]:
        """Take similar pairs: those of the most urgent request first, then fitting ones of others."""
        now = time.monotonic()
        jobs = sorted(self._jobs, key=lambda job: job.waiting_tokens - _AGING_TOKENS_PER_S * (now - job.arrived_s))
        if not self._engine.pads:
            return self._fill(jobs, budget_tokens)
        longest = jobs[0].lengths[-1]
        most = max(self._engine.batch_tokens // longest, 1)
        if most > _ROW_STEP:
            most -= most % _ROW_STEP
        room = min(-(-budget_tokens // (longest * _ROW_STEP)) * _ROW_STEP, most)
        parts: list[tuple[_Job, list[int]]] = []
        for job in jobs:
            stop = bisect_left(job.lengths, longest + 1)
            start = max(bisect_left(job.lengths, int(longest * _MIN_LENGTH_SHARE)), stop - room, 0)
            if start < stop:
                parts.append((job, job.take(start, stop)))
                room -= stop - start
                if not job.indices:
                    self._jobs.remove(job)
            if room <= 0:
                break
        return parts

    def _fill(self, jobs: list[_Job], budget_tokens: int) -> list[tuple[_Job, list[int]]]:
        """Take whole documents of any length until the budget is spent, for an engine that does not pad."""
        parts: list[tuple[_Job, list[int]]] = []
        for job in jobs:
            start = stop = len(job.indices)
            while start and budget_tokens > 0:
                start -= 1
                budget_tokens -= job.lengths[start]
            parts.append((job, job.take(start, stop)))
            if not job.indices:
                self._jobs.remove(job)
            if budget_tokens <= 0:
                break
        return parts

    async def _run(self, parts: list[tuple[_Job, list[int]]]) -> None:
        try:
            logits = await self._engine.score(_gather(parts))
            pairs = sum(len(indices) for _, indices in parts)
            if logits.shape != (pairs,):
                raise EngineFailure(f"the engine returned {list(logits.shape)} scores for {pairs} pairs")
        except Exception as error:
            for job, _ in parts:
                self._fail(job, error)
            return
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
        if job in self._jobs:
            self._jobs.remove(job)
        if not job.done.done():
            job.done.set_exception(error)


def _gather(parts: list[tuple[_Job, list[int]]]) -> PairBatch:
    """Copy the chosen pairs of several requests into one packed batch."""
    ids, types, lengths = [], [], []
    for job, indices in parts:
        offsets = job.batch.offsets
        for i in indices:
            start, stop = int(offsets[i]), int(offsets[i + 1])
            ids.append(job.batch.input_ids[start:stop])
            types.append(job.batch.token_type_ids[start:stop])
            lengths.append(stop - start)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return PairBatch(np.concatenate(ids), np.concatenate(types), offsets)
