"""Batching for callers that are threads: a small batch is scored at once, others are merged on a loop of their own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.embedded import EmbeddedEngine
from crossrank.errors import EngineFailure
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import Batcher

Result = TypeVar("Result")

# A batch of no more tokens, padding included, gains nothing from being divided among cores.
_SMALL_TOKENS = 512
# Callers wait for their own calls; what they give at a time is theirs to decide.
_UNLIMITED = 1 << 40


class BackgroundBatcher:
    """Scores batches of many threads and event loops with one engine.

    Its event loop runs in a thread that starts when it is first needed.

    Args:
        engine: What computes the logits.
        on_batch: Called in that thread with each merged batch, and the seconds that it took.
    """

    def __init__(self, engine: EmbeddedEngine, on_batch: Callable[[PairBatch, float], None] | None = None) -> None:
        self._engine = engine
        self._batcher = Batcher(engine, _UNLIMITED, on_batch=on_batch)
        self._slots = threading.Semaphore(engine.concurrency)
        self._workers = ThreadPoolExecutor(engine.concurrency, thread_name_prefix="crossrank-texts")
        self._starting = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def score(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits of a batch, float32 [pairs], to a thread that waits for them.

        Raises:
            EngineFailure: The engine broke, or a logit is not finite.
        """
        small = len(batch) == 1 or self._engine.padded_tokens(batch) <= _SMALL_TOKENS
        # Not ahead of calls that wait already.
        if small and self._batcher.idle and self._slots.acquire(blocking=False):
            try:
                logits = self._engine.infer(batch)
            finally:
                self._slots.release()
            if not np.isfinite(logits).all():
                raise EngineFailure("the engine returned a score that is not a finite number")
            return logits
        return self.run(self.merge(batch))

    async def merge(self, batch: PairBatch) -> NDArray[np.float32]:
        """Return the logits of a batch, scored together with those of other calls; for work that `start` runs.

        Raises:
            EngineFailure: The engine broke, or a logit is not finite.
        """
        return await self._batcher.score(batch)

    async def in_worker(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Return what a function of texts returns, called in a worker thread; for work that `start` runs."""
        return await asyncio.get_running_loop().run_in_executor(self._workers, function, *arguments)

    def start(self, work: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run a coroutine on the event loop of the background; cancelling the future cancels it."""
        return asyncio.run_coroutine_threadsafe(work, self._started())

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run a coroutine on the event loop of the background, and wait for its result in this thread."""
        future = self.start(work)
        try:
            return future.result()
        except BaseException:  # KeyboardInterrupt leaves nothing behind that would go on
            future.cancel()
            raise

    def close(self) -> None:
        """Wait for the work under way, then stop the threads and release the engine."""
        self.run(self._finish())
        self.stop()
        if self._thread is not None:
            self._thread.join()
        self._workers.shutdown()

    def stop(self) -> None:
        """Tell the thread to end, without waiting for it: safe in any thread, and while the interpreter exits."""
        with self._starting:
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._loop.stop)

    async def _finish(self) -> None:
        await self._batcher.close()
        await self._engine.close()

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._starting:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=_run, args=(self._loop,), name="crossrank-batches", daemon=True)
                self._thread.start()
            return self._loop


def _run(loop: asyncio.AbstractEventLoop) -> None:
    # It knows nothing of the object that started it, which is therefore freed when nobody else holds it.
    try:
        loop.run_forever()
    finally:
        loop.close()
