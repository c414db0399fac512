"""Count limits in Redis instead of the database, with the sliding windows of the library `limits`.

A window lives as long as Redis says, so that clocks of gateways have no part in it. Redis keeps the moment at which a
key expires: when its own clock is set back, a window would last until the clock is there again. Such windows are known
by their time to live, and shortened.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from crossrank.errors import SetupError
from crossrank_server.accounts.base import Account, unavailable
from crossrank_server.accounts.windows import WINDOW_S, Window, refuse_over_limit

LIMITS_STORE = "the store of rate limits does not answer"


class RedisLimits:
    """Count the requests and documents of keys.

    Args:
        url: Such as `redis://host:6379`; any form of Redis URL that the library knows.
        timeout_s: Seconds that Redis may take for an answer.

    Raises:
        SetupError: It is another kind of URL, or no Redis answers there.
    """

    def __init__(self, url: str, timeout_s: float = 1.0) -> None:
        # The address may hold a password, and errors quote what they could not read: only the scheme is shown.
        scheme = url.partition(":")[0][:20]
        form = "give redis://host:6379, with @, : and / in a password written %40, %3A and %2F, or leave it out"
        if not url.startswith("redis") or url.count("@") > 1:
            raise SetupError(f"--limits-store is {scheme!r}...: {form}")
        try:
            from limits.errors import StorageError
            from limits.storage import storage_from_string
            from limits.strategies import SlidingWindowCounterRateLimiter
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ModuleNotFoundError:
            raise SetupError("--limits-store redis:// needs Redis' client: pip install 'crossrank[redis]'") from None
        self._failure = StorageError
        # Its default tries ten times, each as long as the timeout.
        options: dict[str, Any] = {
            "socket_connect_timeout": timeout_s,
            "socket_timeout": timeout_s,
            "retry": Retry(NoBackoff(), 0),
        }
        try:
            self._storage: Any = storage_from_string(url, wrap_exceptions=True, **options)
        except Exception:
            raise SetupError(f"--limits-store {scheme}://... cannot be read: {form}") from None
        if not self._storage.check():
            raise SetupError("--limits-store: no Redis answers there; check its address, its password and that it runs")
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def hit(self, account: Account, documents: int) -> list[Window]:
        """Count a request against its key's limits, and return their state.

        Raises:
            RateLimited: A limit is reached.
            AccountsUnavailable: Redis does not answer.
        """
        amounts = {"requests": 1, "documents": documents}
        with self._reported():
            windows = self._windows(account)
            refuse_over_limit(account, windows, documents)
            for window in windows:
                item = _item(window.limit)
                if not self._limiter.hit(item, account.key_id, window.kind, cost=amounts[window.kind]):
                    # Another gateway took the rest since the check.
                    refuse_over_limit(account, self._windows(account), documents, at_least_s=1)
            return self._windows(account)

    def probe(self) -> None:
        """Ask Redis for a sign of life.

        Raises:
            AccountsUnavailable: It does not answer.
        """
        if not self._storage.check():
            raise unavailable("Redis does not answer", LIMITS_STORE)

    def windows(self, account: Account) -> list[Window]:
        """Return the state of a key's limits, without counting a request.

        Raises:
            AccountsUnavailable: Redis does not answer.
        """
        with self._reported():
            return self._windows(account)

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise unavailable(str(error), LIMITS_STORE) from error

    def _windows(self, account: Account) -> list[Window]:
        windows = []
        limits = {"requests": account.requests_per_minute, "documents": account.documents_per_minute}
        for kind, limit in limits.items():
            if limit is not None:
                key = _item(limit).key_for(account.key_id, kind)
                previous, previous_ttl_s, current, ttl_s = self._storage.get_sliding_window(key, WINDOW_S)
                if max(previous_ttl_s, ttl_s - WINDOW_S) > WINDOW_S + 1:
                    self._shorten(key, limit, current)
                    previous, previous_ttl_s, current, ttl_s = self._storage.get_sliding_window(key, WINDOW_S)
                # A counter lives for its own minute and the next one.
                left_s = max(0.0, ttl_s - WINDOW_S) if current else previous_ttl_s
                windows.append(Window(kind, limit, current, previous, left_s))
        return windows

    def _shorten(self, key: str, limit: int, current: int) -> None:
        """Begin a window that lasts too long anew, with what it counted."""
        self._storage.clear_sliding_window(key, WINDOW_S)
        if current:
            self._storage.acquire_sliding_window_entry(key, limit, WINDOW_S, min(current, limit))


def _item(limit: int) -> Any:
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(limit, namespace="crossrank")
