"""Share the memory for bodies and answers between callers, so that none of them takes it all."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
from collections.abc import Iterator

from crossrank.errors import Overloaded

# The first bytes of a body are always taken: a request of some documents gets in whoever holds how much.
_FREE_BYTES = 16_384


class HeldBytes:
    """Count the bytes that requests hold, by caller.

    A body may grow while twice its size and what its caller holds are no more than what is still free. So a caller
    alone may hold half of the memory, several share it, and with any number of greedy ones a part stays free for the
    next, and for other bodies of the same caller.

    Args:
        limit: Bytes of all requests.

    Source: Choudhury and Hahne, Dynamic queue length thresholds for shared-memory packet switches (1998),
        https://doi.org/10.1109/90.664262
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self._by_caller: dict[str, int] = {}

    def open(self, caller: str, *, yields: bool = False) -> Holding:
        """Return a request's holding, which the caller has to close.

        Args:
            caller: Whoever shares are counted for: a key, or an address.
            yields: The request is of the tier `batch`, whose long waits must leave half of the memory to others.
        """
        return Holding(self, caller, self.limit // 2 if yields else self.limit)

    def count(self, caller: str, size: int) -> int:
        """Add bytes to those of a caller, and return how many these are now."""
        self.total += size
        held = self._by_caller.get(caller, 0) + size
        if held:
            self._by_caller[caller] = held
        else:
            self._by_caller.pop(caller, None)
        return held


class Holding:
    """What one request holds.

    Attributes:
        size: Its bytes.
    """

    def __init__(self, held: HeldBytes, caller: str, limit: int) -> None:
        self.size = 0
        self._held = held
        self._caller = caller
        self._limit = limit

    def add(self, size: int) -> None:
        """Hold more bytes of a body.

        Raises:
            Overloaded: The caller holds more than its share; the bytes count until the holding is closed.
        """
        self.size += size
        of_caller = self._held.count(self._caller, size)
        free = self._limit - self._held.total
        if self.size > _FREE_BYTES and 2 * self.size + of_caller > free:
            raise Overloaded(
                f"requests under way hold {self._held.total} bytes, {of_caller} of them this caller's, the limit of "
                f"all is {self._limit} and a part stays free for others; try again in a second, or send smaller "
                "requests",
                retry_after_s=1.0,
            )

    @contextlib.contextmanager
    def holding(self, size: int) -> Iterator[None]:
        """Hold more bytes until the block ends.

        Raises:
            Overloaded: See `add`.
        """
        try:
            self.add(size)
            yield
        finally:
            self.become(self.size - size)

    def become(self, size: int) -> None:
        """Hold so many bytes from now on, which exist already: those of an answer in place of those of its request."""
        self._held.count(self._caller, size - self.size)
        self.size = size

    def close(self) -> None:
        """Hold nothing any more."""
        self.become(0)


@functools.lru_cache(1024)
def caller_at(host: str) -> str:
    """Return who is taken for the caller at an address: of IPv6 the network of 64 bits, which one host may have."""
    if ":" not in host:
        return host
    address = ipaddress.IPv6Address(host.partition("%")[0])
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.IPv6Network((int(address) >> 64 << 64, 64)))
