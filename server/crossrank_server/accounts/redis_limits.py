"""Count limits in Redis instead of the database, with the sliding windows of the library `limits`."""

from __future__ import annotations

import logging
from typing import Any

from crossrank.errors import BackendUnavailable, SetupError
from crossrank_server.accounts.base import Account
from crossrank_server.accounts.store import RETRY_AFTER_S
from crossrank_server.accounts.windows import WINDOW_S, Window, refuse_over_limit

_log = logging.getLogger("crossrank.accounts")
_ANSWER_S = 2.0


class RedisLimits:
    """Count the requests and documents of keys.

    Args:
        url: Such as `redis://host:6379`; any form of Redis URL that the library knows.

    Raises:
        SetupError: It is another kind of URL, or no Redis answers there.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith("redis"):
            raise SetupError(
                f"--limits-store is {url.partition(':')[0][:20]!r}...: give redis://host:6379, or leave it out"
            )
        try:
            from limits.errors import StorageError
            from limits.storage import storage_from_string
            from limits.strategies import SlidingWindowCounterRateLimiter
        except ModuleNotFoundError:
            raise SetupError("--limits-store redis:// needs Redis' client: pip install 'crossrank[redis]'") from None
        self._failure = StorageError
        options: dict[str, Any] = {"socket_connect_timeout": _ANSWER_S, "socket_timeout": _ANSWER_S}
        try:
            self._storage: Any = storage_from_string(url, wrap_exceptions=True, **options)
            answers = self._storage.check()
        except Exception as error:
            raise SetupError(f"--limits-store cannot be used: {error}; check its address") from None
        if not answers:
            raise SetupError("--limits-store: no Redis answers there; check its address and that it runs")
        self._limiter = SlidingWindowCounterRateLimiter(self._storage)

    def hit(self, account: Account, documents: int) -> list[Window]:
        """Count a request against its key's limits, and return their state.

        Raises:
            RateLimited: A limit is reached.
            BackendUnavailable: Redis does not answer.
        """
        amounts = {"requests": 1, "documents": documents}
        try:
            windows = self._windows(account)
            refuse_over_limit(account, windows, documents)
            for window in windows:
                item = _item(window.limit)
                if not self._limiter.hit(item, account.key_id, window.kind, cost=amounts[window.kind]):
                    # Another gateway took the rest since the check.
                    refuse_over_limit(account, self._windows(account), documents, at_least_s=1)
            return self._windows(account)
        except self._failure as error:
            raise _unavailable(error) from error

    def windows(self, account: Account) -> list[Window]:
        """Return the state of a key's limits, without counting a request.

        Raises:
            BackendUnavailable: Redis does not answer.
        """
        try:
            return self._windows(account)
        except self._failure as error:
            raise _unavailable(error) from error

    def _windows(self, account: Account) -> list[Window]:
        windows = []
        limits = {"requests": account.requests_per_minute, "documents": account.documents_per_minute}
        for kind, limit in limits.items():
            if limit is not None:
                key = _item(limit).key_for(account.key_id, kind)
                previous, previous_ttl_s, current, ttl_s = self._storage.get_sliding_window(key, WINDOW_S)
                # A counter lives for its own minute and the next one.
                left_s = max(0.0, ttl_s - WINDOW_S) if current else previous_ttl_s
                windows.append(Window(kind, limit, current, previous, left_s))
        return windows


def _item(limit: int) -> Any:
    from limits import RateLimitItemPerMinute

    return RateLimitItemPerMinute(limit, namespace="crossrank")


def _unavailable(error: Exception) -> BackendUnavailable:
    _log.error("the store of limits failed: %s", error)
    return BackendUnavailable(
        f"the store of rate limits does not answer; try again in {RETRY_AFTER_S:g} s",
        code="accounts_unavailable",
        retry_after_s=RETRY_AFTER_S,
    )
