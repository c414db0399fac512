"""Decide whether a call is retried, and how long it waits first.

429, 503 and a failed connection are retried: the server did not do the work. A 500, a connection lost midway and a read
timeout are not: the work may have been done, and would be done again.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import httpx
from httpx_retries import Retry

from crossrank_client.errors import CrossrankClientError, RateLimited, Unavailable

_RETRIED_STATUSES = frozenset({429, 503})
# Pauses without a Retry-After: 0.5, 1, 2, 4... seconds, each shortened by up to a half so that clients spread out.
_BACKOFF_FACTOR_S = 0.25
_JITTER = 0.5


class _TryAgain(Exception):
    """Makes httpx-retries send the request again; it is caught there."""


class _RetryByAnswer(Retry):
    """Leave the decision to `validate_response`, which sees the headers of the answer too."""

    def is_retryable_status_code(self, status_code: int) -> bool:
        """Return False: the status alone does not decide."""
        return False


@dataclass(frozen=True)
class RetryPolicy:
    """Bounds of the retries.

    Attributes:
        max_retries: Attempts after the first.
        max_wait_s: Seconds after the start of a call when no further attempt begins. A server that asks to wait
            beyond it (Retry-After) gets no further attempt: its error is raised at once.
    """

    max_retries: int
    max_wait_s: float

    def __post_init__(self) -> None:
        if self.max_retries < 0:
            raise ValueError(f"max_retries is {self.max_retries}; pass 0 (never try again) or more")
        if not self.max_wait_s > 0:
            raise ValueError(f"max_retry_wait_s is {self.max_wait_s}; pass more than 0, or max_retries=0")

    def new_retry(self) -> Retry:
        """Return the state of one call, whose clock starts now."""
        give_up_at = time.monotonic() + self.max_wait_s

        def judge(response: httpx.Response) -> None:
            wait_s = retry_after_s(response.headers) or 0.0
            if response.status_code in _RETRIED_STATUSES and time.monotonic() + wait_s <= give_up_at:
                raise _TryAgain

        return _RetryByAnswer(
            total=self.max_retries,
            allowed_methods=("GET", "POST"),
            retry_on_exceptions=(httpx.ConnectError, httpx.ConnectTimeout, _TryAgain),
            backoff_factor=_BACKOFF_FACTOR_S,
            backoff_jitter=_JITTER,
            max_backoff_wait=self.max_wait_s,
            total_timeout=self.max_wait_s,
            validate_response=judge,
        )


class Attempts:
    """Apply a retry policy to one call, for a transport that does not retry by itself.

    Args:
        policy: Its bounds; the clock starts now.
    """

    def __init__(self, policy: RetryPolicy) -> None:
        self._give_up_at = time.monotonic() + policy.max_wait_s
        self._retry = Retry(
            total=policy.max_retries,
            backoff_factor=_BACKOFF_FACTOR_S,
            backoff_jitter=_JITTER,
            max_backoff_wait=policy.max_wait_s,
        )

    def pause_s(self, error: CrossrankClientError, *, never_sent: bool) -> float | None:
        """Return the seconds to wait before the next attempt; None if the error is to be raised instead.

        Args:
            error: The error of the last attempt.
            never_sent: The server has not begun with it: there was no connection, or it refused the stream.
        """
        if self._retry.is_exhausted() or not (never_sent or isinstance(error, (RateLimited, Unavailable))):
            return None
        self._retry = self._retry.increment()
        asked_s = error.retry_after_s if isinstance(error, (RateLimited, Unavailable)) else None
        pause_s = asked_s or self._retry.backoff_strategy()
        return pause_s if time.monotonic() + pause_s <= self._give_up_at else None


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Return the seconds that a Retry-After header asks for (a number or a date), or None without a usable one."""
    value = headers.get("retry-after")
    if value is None:
        return None
    try:
        return Retry().parse_retry_after(value)
    except ValueError:
        return None
