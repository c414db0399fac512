"""Share idle cores among the batchers of all loaded models."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Protocol

from crossrank.scheduling.tiers import BULK


class _Queue(Protocol):
    def start_bulk(self) -> bool:
        """Start one batch of bulk requests if a core is idle; tell whether more of them wait."""
        ...


class Cores:
    """Count the work under way over all models, and offer idle cores to the waiting queues in turn.

    Attributes:
        running: Batches under way, and realtime requests being tokenized.
    """

    def __init__(self) -> None:
        self.running = 0
        self._waiting: dict[_Queue, None] = {}

    @contextlib.contextmanager
    def tokenizing(self, tier: str) -> Iterator[None]:
        """Count a core as taken inside the block, unless a bulk request is tokenized."""
        if tier == BULK:
            yield
            return
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            # Not at once: the text that is ready now goes first.
            asyncio.get_running_loop().call_soon(self.offer)

    def wait(self, queue: _Queue) -> None:
        """Ask to be offered idle cores until nothing waits."""
        self._waiting.setdefault(queue)

    def offer(self) -> None:
        """Let the waiting queues start bulk batches on idle cores, one each in turn."""
        started = True
        while started:
            started = False
            for queue in list(self._waiting):
                before = self.running
                more = queue.start_bulk()
                if self.running > before or not more:
                    del self._waiting[queue]
                    if more:
                        # Behind the others.
                        self._waiting[queue] = None
                started |= self.running > before
