"""An event loop whose clock jumps to the next timer, so that minutes of queueing are simulated in a moment."""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest

Result = TypeVar("Result")


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Runs callbacks at once, and passes time only where nothing else is left to do."""

    def __init__(self) -> None:
        self.now_s = 0.0
        super().__init__(_JumpingSelector(self))

    def time(self) -> float:
        return self.now_s


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self, loop: SimulatedLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "everything waits for something that never comes"
        self._loop.now_s += max(timeout, 0.0)
        return super().select(0)


def simulate(work: Coroutine[Any, Any, Result], monkeypatch: pytest.MonkeyPatch) -> Result:
    """Run a coroutine in simulated time, which time.monotonic() gives too."""
    loop = SimulatedLoop()
    with monkeypatch.context() as patched:
        patched.setattr(time, "monotonic", loop.time)
        try:
            return loop.run_until_complete(work)
        finally:
            loop.close()
