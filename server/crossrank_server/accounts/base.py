"""The seam for keys, limits and metering: what the service asks of it before and after it scores.

A request is identified by its key, admitted (limits, credit) before any work is done for it, and charged for what was
scored. A request that fails costs nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, MutableMapping
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Account:
    """A key that was presented and is good.

    Attributes:
        key_id: Its public part, as `crossrank keys list` shows it.
        name: What its owner called it.
        scopes: What it may do: `rerank`, `models`, `account`, `metrics`.
    """

    key_id: str
    name: str
    scopes: frozenset[str]


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


class Accounts(Protocol):
    """Knows keys, enforces limits and credit, and records usage."""

    async def identify(self, token: str | None) -> Account | None:
        """Return whose key it is; None where keys are off.

        Raises:
            Unauthorized: The key is missing, unknown, expired or revoked.
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
            PaymentRequired: The credit does not cover it.
            RateLimited: The key's limit is reached.
        """
        ...

    async def close(self) -> None:
        """Write what is not written yet and release connections."""
        ...


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

    async def close(self) -> None:
        """Do nothing."""
