"""Accounts with keys: looked up with a short cache, admitted by the store, recorded in batches."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, MutableMapping
from functools import partial
from pathlib import Path
from typing import Any

from crossrank.errors import AccountsUnavailable, CrossrankError
from crossrank_server.accounts.base import Account, Charge, require_scope
from crossrank_server.accounts.journal import Journal, replay
from crossrank_server.accounts.key_cache import KeyCache
from crossrank_server.accounts.keys import missing_key
from crossrank_server.accounts.ledger import Hold, Ledger
from crossrank_server.accounts.meter import Meter
from crossrank_server.accounts.prices import Prices, usd_from_nano
from crossrank_server.accounts.redis_limits import LIMITS_STORE, RedisLimits
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.threads import StoreThreads, begin_request
from crossrank_server.accounts.usage import account_statement
from crossrank_server.accounts.windows import Window, refuse_never_admissible, write_headers

_log = logging.getLogger("crossrank.accounts")

# Seconds that the last flush may take; then usage is left in the journal.
_LAST_FLUSH_S = 3.0
# Pause between two writes of the journal, as a multiple of the time that one takes.
_KEEP_PAUSE = 20.0


class MeteredAccounts:
    """Look up keys, enforce limits and credit, and record usage in a store that gateways share.

    Args:
        store: The database.
        prices: What documents cost.
        journals: Folder for usage that the store does not take; what earlier processes left there is written now.
        flush_window_s: Seconds after which recorded usage is in the store or a journal; a kill can lose so much.
        timeout_s: Seconds that a request may wait for the stores of keys and limits, over all its calls.
        limits: Counts the limits, instead of the store.

    Raises:
        AccountsUnavailable: The store does not answer.
    """

    def __init__(
        self,
        store: Store,
        prices: Prices,
        *,
        journals: Path,
        flush_window_s: float = 1.0,
        timeout_s: float = 1.0,
        limits: RedisLimits | None = None,
    ) -> None:
        self._store = store
        self._prices = prices
        self._limits = limits
        self._timeout_s = timeout_s
        self._ledger = Ledger(store, count_here=limits is None)
        replay(journals, self._ledger)
        self._meter = Meter(self._ledger, Journal(journals))
        # Apart, so that what one of them waits for delays none of the others.
        threads = partial(StoreThreads, timeout_s=timeout_s)
        self._reads = threads("keys", min(2, store.writers), probe=store.probe_read)
        self._admissions = threads("admissions", store.writers, probe=store.probe_write)
        self._statements = threads("statements", 1, probe=store.probe_write)
        self._limit_checks = threads("limits", 8, probe=limits.probe, what=LIMITS_STORE) if limits else None
        self._keys = KeyCache(store, self._reads)
        self._flush_window_s = flush_window_s
        self._keep_after = 0.0
        self._closing = threading.Event()
        self._flusher = threading.Thread(target=self._flush_often, name="crossrank-usage", daemon=True)
        self._flusher.start()

    async def identify(self, token: str | None) -> Account | None:
        """Return the account of a key; see `Accounts.identify`. It is cached for TRUST_S seconds."""
        begin_request(self._timeout_s)
        if token is None:
            raise missing_key()
        return await self._keys.find(token)

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
        with contextlib.suppress(AccountsUnavailable):  # the answer counts for more than these headers
            if self._limits and self._limit_checks:
                windows = await self._limit_checks.run(partial(self._limits.windows, account))
            else:
                windows = await self._reads.run(partial(self._ledger.windows, account))
            write_headers(windows, headers)

    async def statement(self, account: Account | None) -> dict[str, Any] | None:
        """Return credit and usage of a key, with everything that this gateway has scored until now."""
        if account is None:
            raise missing_key()

        def read() -> dict[str, Any]:
            self._meter.flush()
            return account_statement(self._store, account, self._ledger.time.today())

        return await self._statements.run(read)

    async def more(self, model: str, tier: str, hold: Hold | None, documents: int) -> Hold | None:
        """Take the cost of so many documents more into a hold, and return the larger hold."""
        cost = self._prices.cost_nano_usd(model, tier, documents)
        if hold is None or cost <= 0:
            return hold
        return await self._admissions.run(
            partial(self._ledger.take_more, hold, cost),
            undo=lambda _: self._meter.release(Hold(hold.key_id, hold.gateway_id, cost)),
        )

    async def close(self) -> None:
        """Write the usage that is not written yet and release connections; a second call does nothing."""
        if self._closing.is_set():
            return
        self._closing.set()
        # Daemons: a store that is frozen must not keep the process.
        closer = threading.Thread(target=self._close_meter, name="crossrank-usage-close", daemon=True)
        closer.start()
        await asyncio.to_thread(closer.join, _LAST_FLUSH_S)
        if closer.is_alive():
            await asyncio.to_thread(self._meter.close_without_store)
        for threads in (self._reads, self._admissions, self._statements, self._limit_checks):
            if threads is not None:
                threads.close()
        if not closer.is_alive():
            self._store.close()

    async def _take(
        self, account: Account, documents: int, cost: int, headers: MutableMapping[str, str]
    ) -> Hold | None:
        if account.limited and self._limits and self._limit_checks:
            write_headers(await self._limit_checks.run(partial(self._limits.hit, account, documents)), headers)
        elif not account.limited and not account.prepaid:
            return None
        if not account.prepaid and self._limits:
            return None

        def undo(taken: tuple[Hold | None, list[Window]]) -> None:
            self._meter.release(taken[0])

        hold, windows = await self._admissions.run(partial(self._ledger.admit, account, documents, cost), undo)
        write_headers(windows, headers)
        return hold

    def _close_meter(self) -> None:
        self._flusher.join()
        try:
            self._meter.close()
        except AccountsUnavailable:
            self._meter.close_without_store()

    def _flush_often(self) -> None:
        # Half the window, so that usage recorded just after a flush is written within the whole.
        failing = False
        while not self._closing.wait(self._flush_window_s / 2):
            try:
                self._check_store()
                self._meter.flush()
            except AccountsUnavailable as error:
                self._keep(error.reason, known=failing)
                failing = True
            except Exception:  # without this thread nothing would be recorded any more
                _log.exception("usage could not be written; it is tried again")
            else:
                if failing:
                    _log.warning("the account store takes usage again")
                failing = False

    def _check_store(self) -> None:
        try:
            self._store.check()
        except AccountsUnavailable:
            # Nobody is served on the word of a store that is gone.
            self._keys.forget()
            raise

    def _keep(self, reason: str, *, known: bool) -> None:
        """Save usage that the store did not take, and say so the first time."""
        began = time.monotonic()
        if known and began < self._keep_after:
            return
        try:
            self._meter.keep()
        except OSError as error:
            where = f"in memory alone, as the journal cannot be written ({error.strerror or error})"
        else:
            where = "in the journal"
        # Much usage is written more rarely.
        self._keep_after = began + _KEEP_PAUSE * (time.monotonic() - began)
        if not known:
            _log.error("the account store does not take usage (%s); until it does it is kept %s", reason, where)


class _HeldCharge(Charge):
    """Take more credit when the charge is raised."""

    def __init__(self, documents: int, accounts: MeteredAccounts, model: str, tier: str, hold: Hold | None) -> None:
        super().__init__(documents)
        self.hold = hold
        self._accounts, self._model, self._tier = accounts, model, tier

    async def raise_to(self, documents: int) -> None:
        self.hold = await self._accounts.more(self._model, self._tier, self.hold, documents - self.documents)
        self.documents = documents
