"""Run calls to a store in threads: within one time limit for each request, and refused at once while it is frozen.

Each kind of call has threads and a circuit breaker of its own, so that a store that accepts reads and no writes, or a
frozen Redis, stops only the requests that need it. The breaker is 40 lines here because the libraries for it
(purgatory, pybreaker, aiobreaker) close by letting a caller's request try: that caller would wait.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from crossrank.errors import AccountsUnavailable
from crossrank_server.accounts.base import ACCOUNT_STORE, again, unavailable

T = TypeVar("T")

_log = logging.getLogger("crossrank.accounts")

# Limit of calls waiting in one pool.
_MAX_WAITING = 2_000
# Seconds between two tries whether a store that failed is back.
_PROBE_EVERY_S = 0.5


class _Budget:
    """Seconds that a request may still wait for stores."""

    __slots__ = ("left_s",)

    def __init__(self, seconds: float) -> None:
        self.left_s = seconds


# Of the request that the running task answers. The tasks it starts share it.
_budget: contextvars.ContextVar[_Budget] = contextvars.ContextVar("store_budget")


def begin_request(seconds: float) -> None:
    """Give the running task's request so many seconds to wait for stores, over all its calls."""
    _budget.set(_Budget(seconds))


class StoreThreads:
    """Run one kind of call to a store.

    Args:
        name: Names the kind in the log, such as `admissions`.
        count: Number of threads.
        timeout_s: Seconds that a request may wait in all, where `begin_request` gave it none; without an answer for so
            long the store counts as frozen.
        probe: Raises an error unless such calls work; run in one of the threads while the breaker is open.
        what: What does not answer, for callers.
    """

    def __init__(
        self, name: str, count: int, *, timeout_s: float, probe: Callable[[], object], what: str = ACCOUNT_STORE
    ) -> None:
        self._name = name
        self._what = what
        self._timeout_s = timeout_s
        self._probe = probe
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=f"crossrank-{name}")
        self._waiting = 0
        self._answered_at = time.monotonic()
        self._open: AccountsUnavailable | None = None
        self._recovery: asyncio.Task[None] | None = None

    def refuse_if_open(self) -> None:
        """Refuse a request that needs a store known not to answer.

        Raises:
            AccountsUnavailable: The breaker is open.
        """
        if self._open is not None:
            raise again(self._open)

    async def run(self, work: Callable[[], T], undo: Callable[[T], object] | None = None) -> T:
        """Run `work` in a thread and return its result.

        Args:
            work: The call.
            undo: Called in a thread with the result if it comes too late: the caller was cancelled or has given up.

        Raises:
            AccountsUnavailable: The store does not answer, not in time, or too many calls are waiting.
        """
        call, future = self._start(work)
        try:
            return await self.wait(future)
        finally:
            # Neither the store nor the key's limits are bothered for a caller that has gone.
            if not call.done() and not call.cancel() and undo is not None:
                call.add_done_callback(lambda late: _undo(late, undo))

    def start(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run `work` in a thread, for several requests.

        Raises:
            AccountsUnavailable: The breaker is open, or too many calls are waiting.
        """
        return self._start(work)[1]

    def _start(self, work: Callable[[], T]) -> tuple[Future[T], asyncio.Future[T]]:
        self.refuse_if_open()
        if self._waiting >= _MAX_WAITING:
            raise unavailable(f"{self._waiting} calls wait for it", self._what)
        self._waiting += 1
        call = self._pool.submit(work)
        future = asyncio.wrap_future(call)
        future.add_done_callback(self._ended)
        return call, future

    async def wait(self, future: asyncio.Future[T]) -> T:
        """Return a result within what is left of the request's time; the future is not cancelled at its end.

        Raises:
            AccountsUnavailable: The time is over.
        """
        budget = _budget.get(None) or _Budget(self._timeout_s)
        began = time.monotonic()
        try:
            if budget.left_s > 0:
                await asyncio.wait([future], timeout=budget.left_s)
        finally:
            waited_s = time.monotonic() - began
            budget.left_s -= waited_s
        if future.done():
            return future.result()
        error = unavailable(f"no answer within {self._timeout_s:g} s", self._what)
        if waited_s > 0.9 * self._timeout_s:
            self._failed(error)
        raise error

    def close(self) -> None:
        """End the threads; calls that wait for a thread are dropped, those under way are not waited for."""
        if self._recovery is not None:
            self._recovery.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ended(self, call: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if call.cancelled():
            return
        error = call.exception()
        if isinstance(error, AccountsUnavailable):
            self._failed(error)
        else:
            self._answered_at = time.monotonic()

    def _failed(self, error: AccountsUnavailable) -> None:
        """Open the breaker if nothing was answered for as long as a request may wait."""
        if self._open is None and time.monotonic() - self._answered_at >= self._timeout_s:
            self._open = error
            _log.error("%s: %s (%s); they get 503 at once until it does", self._name, self._what, error.reason)
            self._recovery = asyncio.get_running_loop().create_task(self._recover())

    async def _recover(self) -> None:
        began = time.monotonic()
        while True:
            try:
                await asyncio.get_running_loop().run_in_executor(self._pool, self._probe)
                break
            except AccountsUnavailable as error:
                self._open = error
            except Exception:
                _log.exception("%s: the store cannot be probed", self._name)
            await asyncio.sleep(_PROBE_EVERY_S)
        self._open = None
        self._answered_at = time.monotonic()
        _log.warning("%s: the store answers again after %.1f s", self._name, time.monotonic() - began)


def _undo(late: Future[T], undo: Callable[[T], object]) -> None:
    if not late.cancelled() and late.exception() is None:
        undo(late.result())
