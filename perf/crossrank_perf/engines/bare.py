"""Call an engine directly from as many threads as it computes with, and measure its rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from crossrank.engines.embedded import EmbeddedEngine
from crossrank.packed import PairBatch


@dataclass(frozen=True)
class BareRate:
    """Rate of an engine that is called directly.

    Attributes:
        documents_per_s: Documents/s of all threads together.
        cpu_us_per_document: CPU time of this process, in microseconds; the steadier figure where other processes use
            the machine.
    """

    documents_per_s: float
    cpu_us_per_document: float


class BareEngine:
    """An engine and the threads that call it.

    Args:
        engine: Engine; `engine.concurrency` threads call it.
    """

    def __init__(self, engine: EmbeddedEngine) -> None:
        self.engine = engine
        self._pool = ThreadPoolExecutor(engine.concurrency, thread_name_prefix="bare")

    def measure(self, batches: Sequence[PairBatch], seconds: float) -> BareRate:
        """Compute the batches again and again for so many seconds, each thread its own share, and return the rate."""
        begin, cpu_begin = time.perf_counter(), time.process_time()
        running = [self._pool.submit(self._work, batches, i, begin + seconds) for i in range(self.engine.concurrency)]
        documents = sum(each.result() for each in running)
        elapsed_s, cpu_s = time.perf_counter() - begin, time.process_time() - cpu_begin
        return BareRate(round(documents / elapsed_s, 1), round(1e6 * cpu_s / documents, 1))

    def _work(self, batches: Sequence[PairBatch], first: int, until: float) -> int:
        documents, i = 0, first
        while not documents or time.perf_counter() < until:
            batch = batches[i % len(batches)]
            self.engine.infer(batch)
            documents += len(batch)
            i += self.engine.concurrency
        return documents

    def close(self) -> None:
        """End the threads and release the engine."""
        self._pool.shutdown()
        asyncio.run(self.engine.close())
