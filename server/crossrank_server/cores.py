"""The cores that all models of a server share: idle ones go to the tier `batch`."""

from __future__ import annotations

from typing import Protocol


class _Queue(Protocol):
    def start_batch_tier(self) -> bool:
        """Start one batch of the tier `batch` if a core is idle; tell whether more of them wait."""
        ...


class Cores:
    """Counts the batches under way over all models, and offers an idle core to those that wait for one in turn."""

    def __init__(self) -> None:
        self.running = 0
        self._waiting: dict[_Queue, None] = {}

    def wait(self, queue: _Queue) -> None:
        """Ask to be offered idle cores until nothing waits."""
        self._waiting.setdefault(queue)

    def offer(self) -> None:
        """Let those that wait start what idle cores can take, each in turn."""
        started = True
        while started:
            started = False
            for queue in list(self._waiting):
                before = self.running
                more = queue.start_batch_tier()
                if self.running > before or not more:
                    del self._waiting[queue]
                    if more:
                        # Behind the others.
                        self._waiting[queue] = None
                started |= self.running > before
