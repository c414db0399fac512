"""The clock of accounts, handed in so that a test need not wait for the next minute."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells the time, as the module `time` does."""

    def time(self) -> float:
        """Return Unix time in seconds: for minutes, leases and expiry, which gateways must agree on."""
        ...

    def monotonic(self) -> float:
        """Return seconds from any start, which never go back: for how long something is kept."""
        ...


SYSTEM_CLOCK: Clock = time
