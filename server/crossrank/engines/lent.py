"""Objects that one thread uses at a time, lent to any thread: no more are made than were ever in use at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

Each = TypeVar("Each")


class Lent(Generic[Each]):
    """A stock of equal objects, such as the buffers of an inference.

    An object for each thread would stay as long as the thread, and callers may have many.

    Args:
        make: Makes one.
    """

    def __init__(self, make: Callable[[], Each]) -> None:
        self._make = make
        # list.pop and list.append are atomic. The last one returned is lent first: its memory is in the caches.
        self._stock: list[Each] = []

    @contextmanager
    def one(self) -> Iterator[Each]:
        """Lend one while inside."""
        try:
            each = self._stock.pop()
        except IndexError:
            each = self._make()
        try:
            yield each
        finally:
            self._stock.append(each)
