"""Run calls to the store in threads, within a time limit; a call that ends too late can be undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from crossrank.errors import BackendUnavailable
from crossrank_server.accounts.store import RETRY_AFTER_S

T = TypeVar("T")

# Longer than the store's own timeouts, so that the store's error is the one reported.
_ANSWER_S = 10.0
# Limit of calls waiting for a store that hangs.
_MAX_WAITING = 2_000


class StoreThreads:
    """Run calls to the store in a few threads.

    Args:
        count: Number of threads; one for SQLite.
    """

    def __init__(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, thread_name_prefix="crossrank-accounts")
        self._waiting = 0

    async def run(self, work: Callable[[], T], undo: Callable[[T], None] | None = None) -> T:
        """Run `work` in a thread and return its result.

        Args:
            work: The call.
            undo: Called with the result if it comes too late: the caller was cancelled, or the time limit has passed.

        Raises:
            BackendUnavailable: The call took too long, or too many calls are waiting.
        """
        if self._waiting >= _MAX_WAITING:
            raise _too_slow()
        self._waiting += 1
        future: asyncio.Future[T] = asyncio.get_running_loop().run_in_executor(self._pool, work)
        future.add_done_callback(self._answered)
        try:
            # Unlike wait_for it does not cancel the future at the timeout.
            await asyncio.wait([future], timeout=_ANSWER_S)
        finally:
            if not future.done():
                future.add_done_callback(lambda late: _undo(late, undo))
        if not future.done():
            raise _too_slow()
        return future.result()

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in one of the threads."""
        return self._pool.submit(work)

    def close(self) -> None:
        """Wait for the calls under way and end the threads."""
        self._pool.shutdown()

    def _answered(self, _: asyncio.Future[Any]) -> None:
        self._waiting -= 1


def _undo(late: asyncio.Future[T], undo: Callable[[T], None] | None) -> None:
    if not late.cancelled() and late.exception() is None and undo is not None:
        undo(late.result())


def _too_slow() -> BackendUnavailable:
    return BackendUnavailable(
        f"the account store does not answer in time, so that keys and credit cannot be checked; "
        f"try again in {RETRY_AFTER_S:g} s",
        code="accounts_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
