"""The seam for keys, limits and metering: what the service asks of it before and after it scores.

A request is identified by its key, admitted (limits, credit) before any work is done for it, and charged for what was
scored. A request that fails costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from typing import Any, Protocol

from crossrank.errors import AccountsUnavailable, Forbidden

ACCOUNT_STORE = "the account store does not answer"
_RETRY_AFTER_S = 2.0

SCOPES = ("rerank", "models", "account", "metrics")


@dataclass(frozen=True)
class Account:
    """A key that was presented and is good.

    Attributes:
        key_id: Its public part, as `crossrank keys list` shows it.
        name: What its owner called it.
        scopes: What it may do, of SCOPES.
        requests_per_minute: Its limit; None is no limit.
        documents_per_minute: Its limit; None is no limit.
        prepaid: It has credit, and no more than that.
        expires_at: Unix time; None is never.
    """

    key_id: str
    name: str
    scopes: frozenset[str]
    requests_per_minute: int | None = None
    documents_per_minute: int | None = None
    prepaid: bool = False
    expires_at: float | None = None

    @property
    def limited(self) -> bool:
        """Whether it has a limit a minute."""
        return self.requests_per_minute is not None or self.documents_per_minute is not None


@dataclass
class Charge:
    """What a request costs; the service writes the counts into it when they are known.

    Attributes:
        documents: Documents billed: chunks where long documents are scored by chunks.
        tokens: Tokens scored.
        cost_usd: What they cost; set by the accounts when the block ends.
    """

    documents: int
    tokens: int = 0
    cost_usd: float = 0.0

    async def raise_to(self, documents: int) -> None:
        """Bill more documents than were sent, as when long ones are scored by chunks; before they are scored.

        Raises:
            PaymentRequired: The credit does not cover them.
        """
        self.documents = documents


class Accounts(Protocol):
    """Knows keys, enforces limits and credit, and records usage."""

    async def identify(self, token: str | None) -> Account | None:
        """Return whose key it is; None where keys are off.

        Raises:
            Unauthorized: The key is missing, unknown, expired or revoked.
            AccountsUnavailable: Keys cannot be looked up now.
        """
        ...

    def admit(
        self,
        account: Account | None,
        *,
        model: str,
        tier: str,
        documents: int,
        headers: MutableMapping[str, str],
    ) -> contextlib.AbstractAsyncContextManager[Charge]:
        """Enter with the limits and the credit checked; leave with the usage recorded, or nothing if it raised.

        Args:
            account: As `identify` gave it.
            model: Id of the model.
            tier: `realtime` or `batch`.
            documents: How many are sent.
            headers: Where `x-ratelimit-*` go, to be sent with the answer or the error.

        Raises:
            Forbidden: The key's scopes do not cover it.
            InvalidRequest: There are more documents than the key may ever send in a minute.
            PaymentRequired: The credit does not cover it.
            RateLimited: The key's limit is reached.
            AccountsUnavailable: Limits and credit cannot be checked now.
        """
        ...

    async def show_limits(self, account: Account | None, headers: MutableMapping[str, str]) -> None:
        """Put the `x-ratelimit-*` of a limited key into an answer that `admit` had no part in; nothing is counted."""
        ...

    async def statement(self, account: Account | None) -> dict[str, Any] | None:
        """Return credit and usage of a key up to this moment; None where keys are off.

        Raises:
            AccountsUnavailable: They cannot be looked up now.
        """
        ...

    async def close(self) -> None:
        """Write what is not written yet and release connections."""
        ...


def unavailable(reason: str, what: str = ACCOUNT_STORE) -> AccountsUnavailable:
    """Return the error for a store that does not answer.

    Args:
        reason: Why, for operators; callers do not see it.
        what: What does not answer, for callers.
    """
    error = AccountsUnavailable(
        f"{what}, so that keys, limits and credit cannot be checked; try again in {_RETRY_AFTER_S:g} s",
        retry_after_s=_RETRY_AFTER_S,
    )
    error.reason = reason
    return error


def again(error: AccountsUnavailable) -> AccountsUnavailable:
    """Return the same error for another request: a raised one holds the stack of its own."""
    copy = AccountsUnavailable(error.message, retry_after_s=error.retry_after_s)
    copy.reason = error.reason
    return copy


def require_scope(account: Account | None, scope: str) -> None:
    """Refuse a key that may not do this; where keys are off anybody may.

    Raises:
        Forbidden: The key lacks the scope.
    """
    if account is not None and scope not in account.scopes:
        raise Forbidden(
            f"API key {account.key_id} has the scopes {', '.join(sorted(account.scopes)) or 'none'}, and this needs "
            f"{scope}; use a key made with `crossrank keys create --scopes {scope}`"
        )


class OpenAccounts:
    """No keys, no limits, nothing recorded: a server for oneself, on loopback."""

    async def identify(self, token: str | None) -> Account | None:
        """Accept anybody, also with a key meant for another server."""
        return None

    @contextlib.asynccontextmanager
    async def admit(
        self,
        account: Account | None,
        *,
        model: str,
        tier: str,
        documents: int,
        headers: MutableMapping[str, str],
    ) -> AsyncIterator[Charge]:
        """Admit everything."""
        yield Charge(documents)

    async def show_limits(self, account: Account | None, headers: MutableMapping[str, str]) -> None:
        """Do nothing."""

    async def statement(self, account: Account | None) -> dict[str, Any] | None:
        """Return None: there are no keys."""
        return None

    async def close(self) -> None:
        """Do nothing."""
