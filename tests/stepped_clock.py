"""A clock that moves only when it is told to."""

from __future__ import annotations

import time


class SteppedClock:
    """Stands at ten seconds past a full minute, near the present, until it is advanced."""

    def __init__(self) -> None:
        self._now_s = time.time() // 60 * 60 + 10.0
        self._set_ahead_s = 0.0

    def time(self) -> float:
        return self._now_s + self._set_ahead_s

    def monotonic(self) -> float:
        return self._now_s

    def advance(self, seconds: float) -> None:
        self._now_s += seconds

    def step(self, seconds: float) -> None:
        """Set the clock ahead or back, as a person or NTP does; no time passes."""
        self._set_ahead_s += seconds
