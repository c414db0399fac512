"""Accounts with keys: looked up with a short cache, admitted by the store, recorded in batches."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, MutableMapping
from typing import Any

from crossrank.errors import BackendUnavailable, CrossrankError, Unauthorized
from crossrank_server.accounts.base import Account, Charge, require_scope
from crossrank_server.accounts.clock import SYSTEM_CLOCK, Clock
from crossrank_server.accounts.keys import find_account, missing_key, refuse_expired
from crossrank_server.accounts.ledger import Hold, Ledger
from crossrank_server.accounts.meter import Meter
from crossrank_server.accounts.prices import Prices, usd_from_nano
from crossrank_server.accounts.redis_limits import RedisLimits
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.threads import StoreThreads
from crossrank_server.accounts.usage import account_statement
from crossrank_server.accounts.windows import Window, refuse_never_admissible, write_headers

_log = logging.getLogger("crossrank.accounts")

# Seconds for which the account of a key is cached, and so a revoked key is still accepted.
TRUST_S = 5.0
_MAX_TRUSTED = 10_000


class MeteredAccounts:
    """Look up keys, enforce limits and credit, and record usage in a store that gateways share.

    Args:
        store: The database.
        prices: What documents cost.
        flush_window_s: Seconds after which recorded usage is in the store at the latest; a kill can lose so much.
        limits: Counts the limits, instead of the store.
        clock: Tells minutes, leases, and the age of what is cached.
    """

    def __init__(
        self,
        store: Store,
        prices: Prices,
        *,
        flush_window_s: float = 1.0,
        limits: RedisLimits | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self._store = store
        self._clock = clock
        self._prices = prices
        self._limits = limits
        self._ledger = Ledger(store, count_here=limits is None, clock=clock)
        self._meter = Meter(self._ledger)
        self._threads = StoreThreads(store.threads)
        self._trusted: OrderedDict[bytes, tuple[float, Account | Unauthorized]] = OrderedDict()
        self._flush_window_s = flush_window_s
        self._closing = threading.Event()
        self._flusher = threading.Thread(target=self._flush_often, name="crossrank-usage", daemon=True)
        self._flusher.start()

    async def identify(self, token: str | None) -> Account | None:
        """Return the account of a key; see `Accounts.identify`. It is cached for TRUST_S seconds."""
        if token is None:
            raise missing_key()
        # Keys themselves are not kept in memory.
        digest = hashlib.sha256(token.encode()).digest()
        until, found = self._trusted.get(digest, (0.0, None))
        if found is None or until < self._clock.monotonic():
            found = await self._threads.run(lambda: _account_or_refusal(self._store, token, self._clock))
            self._trusted[digest] = (self._clock.monotonic() + TRUST_S, found)
            self._trusted.move_to_end(digest)
            if len(self._trusted) > _MAX_TRUSTED:
                self._trusted.popitem(last=False)
        if isinstance(found, Unauthorized):
            raise Unauthorized(found.message, code=found.code)
        refuse_expired(found, self._clock.time())
        return found

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
        """Enter with limits and credit checked, leave with the usage recorded; see `Accounts.admit`."""
        if account is None:
            raise missing_key()
        cost = self._prices.cost_nano_usd(model, tier, documents)
        try:
            require_scope(account, "rerank")
            refuse_never_admissible(account, documents)
            hold = await self._take(account, documents, cost, headers)
        except CrossrankError:
            await self.show_limits(account, headers)
            raise
        charge = _HeldCharge(documents, self, model, tier, hold)
        try:
            yield charge
        except BaseException:
            self._meter.release(charge.hold)
            raise
        cost = self._prices.cost_nano_usd(model, tier, charge.documents)
        charge.cost_usd = usd_from_nano(cost)
        self._meter.record(
            account.key_id,
            model,
            tier,
            documents=charge.documents,
            tokens=charge.tokens,
            cost=cost,
            hold=charge.hold,
        )

    async def show_limits(self, account: Account | None, headers: MutableMapping[str, str]) -> None:
        """Add the `x-ratelimit-*` headers of a key, unless `admit` did."""
        if account is None or not account.limited or any(name.startswith("x-ratelimit-") for name in headers):
            return
        look = (self._limits or self._ledger).windows
        with contextlib.suppress(BackendUnavailable):  # the answer counts for more than these headers
            write_headers(await self._threads.run(lambda: look(account)), headers)

    async def statement(self, account: Account | None) -> dict[str, Any] | None:
        """Return credit and usage of a key, with everything that this gateway has scored until now."""
        if account is None:
            raise missing_key()

        def read() -> dict[str, Any]:
            self._meter.flush()
            return account_statement(self._store, account)

        return await self._threads.run(read)

    async def more(self, model: str, tier: str, hold: Hold | None, documents: int) -> Hold | None:
        """Take the cost of so many documents more into a hold, and return the larger hold."""
        cost = self._prices.cost_nano_usd(model, tier, documents)
        if hold is None or cost <= 0:
            return hold
        return await self._threads.run(
            lambda: self._ledger.take_more(hold, cost),
            undo=lambda _: self._meter.release(Hold(hold.key_id, hold.gateway_id, cost)),
        )

    async def close(self) -> None:
        """Write the usage that is not written yet and release connections; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        await asyncio.to_thread(self._flusher.join)
        await self._threads.run(self._meter.close)
        self._threads.close()
        self._store.close()

    async def _take(
        self, account: Account, documents: int, cost: int, headers: MutableMapping[str, str]
    ) -> Hold | None:
        if not account.limited and not account.prepaid:
            return None

        def take() -> tuple[Hold | None, list[Window]]:
            if self._limits is None:
                return self._ledger.admit(account, documents, cost)
            windows = self._limits.hit(account, documents) if account.limited else []
            return self._ledger.admit(account, documents, cost)[0] if account.prepaid else None, windows

        hold, windows = await self._threads.run(take, undo=lambda taken: self._meter.release(taken[0]))
        write_headers(windows, headers)
        return hold

    def _flush_often(self) -> None:
        # Half the window, so that usage recorded just after a flush is written within the whole.
        while not self._closing.wait(self._flush_window_s / 2):
            try:
                self._threads.submit(self._meter.flush).result()
            except BackendUnavailable:
                _log.warning("usage is kept in memory until the account store answers again")
            except Exception:  # without this thread nothing would be recorded any more
                _log.exception("usage could not be written; it is tried again")


class _HeldCharge(Charge):
    """Take more credit when the charge is raised."""

    def __init__(self, documents: int, accounts: MeteredAccounts, model: str, tier: str, hold: Hold | None) -> None:
        super().__init__(documents)
        self.hold = hold
        self._accounts, self._model, self._tier = accounts, model, tier

    async def raise_to(self, documents: int) -> None:
        self.hold = await self._accounts.more(self._model, self._tier, self.hold, documents - self.documents)
        self.documents = documents


def _account_or_refusal(store: Store, token: str, clock: Clock) -> Account | Unauthorized:
    try:
        return find_account(store, token, clock)
    except Unauthorized as refusal:
        return refusal
