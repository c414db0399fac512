"""Time: the system's, handed in so that a test need not wait for the next minute, and the store's."""

from __future__ import annotations

import time
from datetime import date, datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """Tells the time, as the module `time` does."""

    def time(self) -> float:
        """Return Unix time in seconds; it jumps when somebody sets the system's clock."""
        ...

    def monotonic(self) -> float:
        """Return seconds from any start, which never go back: for how long something is kept."""
        ...


SYSTEM_CLOCK: Clock = time


class StoreTime:
    """Tell the store's time without asking it, by the monotonic clock: steps of this machine's clock do not show.

    Args:
        clock: The monotonic clock.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_s = clock.time() - clock.monotonic()

    def learn(self, now_s: float) -> None:
        """Take note of the store's Unix time."""
        self._offset_s = now_s - self._clock.monotonic()

    def today(self) -> date:
        """Return the store's day (UTC)."""
        return datetime.fromtimestamp(self._clock.monotonic() + self._offset_s, timezone.utc).date()
