"""Compute limits per minute as sliding windows: this clock minute's count, and a share of the count of the one before.

The share is the part of the previous minute that lies within the last 60 s, as if its requests had been spread evenly.
Two counters are enough, whatever the limit, and no burst of twice the limit passes where two minutes meet.

Source: https://blog.cloudflare.com/counting-things-a-lot-of-different-things/ (sliding windows from two counters)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass

from crossrank.errors import InvalidRequest, RateLimited
from crossrank_server.accounts.base import Account

WINDOW_S = 60


@dataclass(frozen=True)
class Window:
    """The state of one limit of a key.

    Attributes:
        kind: `requests` or `documents`.
        limit: Limit per minute.
        current: Count of this clock minute.
        previous: Count of the minute before.
        left_s: Seconds to the end of this minute.
    """

    kind: str
    limit: int
    current: int
    previous: int
    left_s: float

    @property
    def remaining(self) -> int:
        """How many more fit now."""
        return max(0, math.floor(self.limit - self.current - self.previous * self.left_s / WINDOW_S))

    @property
    def reset_s(self) -> float:
        """Seconds until the limit is whole again, if nothing more comes."""
        if self.current:
            return self.left_s + WINDOW_S
        return self.left_s if self.previous else 0.0

    def retry_after_s(self, amount: int) -> int:
        """Return whole seconds until `amount` fits, if nothing else comes before it; 0 if it fits now.

        Args:
            amount: At most the limit.
        """
        if self.remaining >= amount:
            return 0
        room = self.limit - self.current - amount
        if room >= 0:
            wait_s = self.left_s - WINDOW_S * room / self.previous
        else:
            wait_s = self.left_s + WINDOW_S - WINDOW_S * (self.limit - amount) / self.current
        return max(1, math.ceil(wait_s))


def write_headers(windows: Iterable[Window], headers: MutableMapping[str, str]) -> None:
    """Add the headers `x-ratelimit-{limit,remaining,reset}-{requests,documents}`; reset in OpenAI's form: `12.5s`."""
    for window in windows:
        headers[f"x-ratelimit-limit-{window.kind}"] = str(window.limit)
        headers[f"x-ratelimit-remaining-{window.kind}"] = str(window.remaining)
        headers[f"x-ratelimit-reset-{window.kind}"] = f"{window.reset_s:.1f}s"


def refuse_never_admissible(account: Account, documents: int) -> None:
    """Refuse a request that would not fit however long its caller waited.

    Raises:
        InvalidRequest: It alone is over the key's limit of documents a minute.
    """
    limit = account.documents_per_minute
    if limit is not None and documents > limit:
        raise InvalidRequest(
            f"the request has {documents} documents, API key {account.key_id} may send {limit} a minute: it can never "
            "pass; split it into smaller ones",
            param="documents",
            code="over_key_limit",
        )


def refuse_over_limit(account: Account, windows: Iterable[Window], documents: int, *, at_least_s: int = 0) -> None:
    """Refuse a request that does not fit now.

    Args:
        account: The key's.
        windows: The state of its limits.
        documents: Number of documents in the request.
        at_least_s: Refuse it in any case, with at least so many seconds to wait.

    Raises:
        RateLimited: A limit is reached; says which, and when the request fits.
    """
    waits = [(window.retry_after_s(1 if window.kind == "requests" else documents), window) for window in windows]
    longest_s, window = max(waits, key=lambda wait: wait[0], default=(0, None))
    wait_s = max(longest_s, at_least_s)
    if window is not None and wait_s:
        asked = "" if window.kind == "requests" else f", the request has {documents}"
        raise RateLimited(
            f"API key {account.key_id} may send {window.limit} {window.kind} a minute and has {window.remaining} "
            f"left{asked}; try again in {wait_s} s",
            retry_after_s=wait_s,
        )
