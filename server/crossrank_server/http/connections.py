"""Bound what the clients of all connections together make the server hold: descriptors, memory and time.

One sweep each second looks at every open connection: timers for each request would cost every caller more than that.
"""

from __future__ import annotations

import logging
import os
import time
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

_log = logging.getLogger("crossrank")
# Bytes a second that a body must come with, or an answer be taken with, after a grace of `client_timeout_s`.
LEAST_RATE = 10_000
# Longest bodies that may be held before they are read, and longest answers that may wait for their readers.
_BODIES_UNREAD = 4
_ANSWERS_UNSENT = 8
# Seconds between two counts of what was read meanwhile, where too much seems to be unread.
_RECOUNT_EVERY_S = 0.02
# Seconds between two lines in the log about the same shortage.
_REPORT_EVERY_S = 10.0
# Seconds for which a client may do nothing while the server ends.
_DRAIN_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What clients may take.

    Attributes:
        max_connections: Open connections; beyond it, those without a request make room.
        client_timeout_s: For a request's head; and for which a body may not come, or an answer not be taken.
        idle_timeout_s: Between requests.
        max_body_bytes: Limit of one body, from which those of all bodies and answers in buffers follow.
    """

    max_connections: int = 4096
    client_timeout_s: float = 30.0
    idle_timeout_s: float = 75.0
    max_body_bytes: int = 10_000_000


class Connection(Protocol):
    """What is asked of a connection here."""

    @property
    def host(self) -> str:
        """Address of the client."""

    @property
    def waits_since(self) -> float | None:
        """When it began to wait for a request (`time.monotonic`); None while one is under way."""

    def unread_bytes(self) -> int:
        """Bytes received that no application has read."""

    def unsent_bytes(self) -> int:
        """Bytes of answers that the client has not taken."""

    def check_time(self, now: float) -> None:
        """Close it if its client is overdue."""

    def drop(self) -> None:
        """Close it at once."""


class Connections:
    """Watch the open connections of a server.

    Args:
        limits: What their clients may take.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.draining = False
        self._open: set[Connection] = set()
        self._unread: dict[Connection, int] = {}
        self._unread_bytes = 0
        self._recounted_at = 0.0
        # In the order in which their buffers filled.
        self._unsent: dict[Connection, None] = {}
        self._reported_at: dict[str, float] = {}

    def admit(self, connection: Connection) -> bool:
        """Add a connection, for which others that wait for a request may have to go; return False if none can."""
        self._open.add(connection)
        if len(self._open) <= self.limits.max_connections:
            return True
        self._report("connections", f"{self.limits.max_connections} connections are open, which is --max-connections")
        waiting = [other for other in self._open if other is not connection and other.waits_since is not None]
        # Those of the address that has most go first, so that nobody alone can push others out.
        most = Counter(other.host for other in waiting).most_common(1)
        for host, _ in most:
            victims = sorted((other for other in waiting if other.host == host), key=lambda each: each.waits_since or 0)
            for victim in victims[: 1 + self.limits.max_connections // 20]:
                victim.drop()
        return bool(most)

    def forget(self, connection: Connection) -> None:
        """Remove a connection that is closed."""
        self._open.discard(connection)
        self._unsent.pop(connection, None)
        self._unread_bytes -= self._unread.pop(connection, 0)

    @property
    def crowded(self) -> bool:
        """Whether not even refusals of new connections may linger."""
        return len(self._open) > self.limits.max_connections * 1.1

    @property
    def client_timeout_s(self) -> float:
        """Seconds for which a client may keep the server waiting now."""
        longest_s = self.limits.client_timeout_s
        return min(longest_s, _DRAIN_TIMEOUT_S) if self.draining else longest_s

    def count_unread(self, connection: Connection, size: int) -> bool:
        """Note what a connection holds unread; return False if that is more than its share of a full memory."""
        self._unread_bytes += size - self._unread.get(connection, 0)
        self._unread[connection] = size
        most = _BODIES_UNREAD * self.limits.max_body_bytes
        if self._unread_bytes > most and time.monotonic() - self._recounted_at > _RECOUNT_EVERY_S:
            self._recount()
        if self._unread_bytes <= most:
            return True
        fair = size * len(self._unread) < self._unread_bytes
        if not fair:
            self._report(
                "unread", f"{self._unread_bytes} bytes have come that no request has read: senders are refused"
            )
        return fair

    def fill(self, connection: Connection) -> None:
        """Note that the buffer of a connection's answers is full; where all hold too much, the oldest are dropped."""
        self._unsent[connection] = None
        sizes = {other: other.unsent_bytes() for other in self._unsent}
        held = sum(sizes.values())
        for other, size in sizes.items():
            if held <= _ANSWERS_UNSENT * self.limits.max_body_bytes or other is connection:
                return
            self._report("unsent", f"{held} bytes of answers wait for clients that do not read: the oldest are dropped")
            held -= size
            other.drop()

    def drain(self, connection: Connection) -> None:
        """Note that the buffer of a connection's answers has room again."""
        self._unsent.pop(connection, None)

    def sweep(self) -> None:
        """Close the connections whose clients are overdue, and report a lack of descriptors."""
        now = time.monotonic()
        for connection in list(self._open):
            connection.check_time(now)
        self._recount()
        try:
            os.close(os.open(os.devnull, os.O_RDONLY))
        except OSError as error:
            self._report(
                "descriptors",
                f"new connections fail, {len(self._open)} are open: {error.strerror}; raise the limit of open files "
                "(ulimit -n), or lower --max-connections",
            )

    def _recount(self) -> None:
        """Leave out what was read since it was counted."""
        self._unread = {each: size for each in self._unread if (size := each.unread_bytes())}
        self._unread_bytes = sum(self._unread.values())
        self._recounted_at = time.monotonic()

    def _report(self, about: str, message: str) -> None:
        now = time.monotonic()
        if now - self._reported_at.get(about, -_REPORT_EVERY_S) >= _REPORT_EVERY_S:
            self._reported_at[about] = now
            _log.error(message)


class Patience:
    """Measure how long a client keeps the server waiting in one state."""

    __slots__ = ("_left_at", "_seen", "_state", "since")

    def __init__(self) -> None:
        self._state: str | None = None
        self._seen = 0
        self._left_at = 0.0
        self.since = 0.0

    def reset(self, now: float) -> None:
        """Begin anew: it is not the client that is waited for."""
        self._state, self.since = None, now

    def is_over(self, state: str, moved_bytes: int, limit_s: float, now: float) -> bool:
        """Tell whether a state has lasted too long.

        Args:
            state: Where it differs from the last one, time begins anew.
            moved_bytes: Bytes moved in all; `LEAST_RATE` of them earn a second, of which never more are left than
                `limit_s`.
            limit_s: Seconds that it may last without any.
            now: Time (`time.monotonic`).
        """
        if state != self._state:
            self._state, self.since, self._left_at = state, now, now + limit_s
        elif moved_bytes > self._seen:
            self._left_at += (moved_bytes - self._seen) / LEAST_RATE
        self._seen = moved_bytes
        self._left_at = min(self._left_at, now + limit_s)
        return now > self._left_at
