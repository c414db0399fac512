"""Admit and settle requests in the store: one statement checks limits and credit and takes both; usage is batched.

The cost of a request under way is moved from the key's balance into a hold of the gateway. Settling the request turns
its hold into spent credit; a request that fails gives it back. A gateway that died leaves its holds behind: when its
lease is over by the store's clock, any other gateway gives them back. So granted = spent + balance + holds at any time,
and the balance of a prepaid key never goes below zero, however many gateways there are.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, TypeVar

from sqlalchemy import Connection, and_, delete, insert, select, update

from crossrank.errors import PaymentRequired, RateLimited
from crossrank_server.accounts.admission import AdmissionSql, admission_facts
from crossrank_server.accounts.base import Account
from crossrank_server.accounts.clock import StoreTime
from crossrank_server.accounts.prices import usd_from_nano
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances, gateways, holds, usage
from crossrank_server.accounts.windows import WINDOW_S, Window, refuse_over_limit

LEASE_S = 60.0
# As long as a gateway is remembered, usage that it left in a journal is written once.
_FORGET_GATEWAY_S = 30 * 86_400.0
# Rows that one statement writes: each is given up when the store takes too long for it.
_ROWS_PER_STATEMENT = 1000

UsageKey = tuple[str, date, str, str]
T = TypeVar("T")


@dataclass(frozen=True)
class Hold:
    """Credit taken out of a key's balance for a request under way.

    Attributes:
        key_id: The key.
        gateway_id: The gateway that took it; the hold lasts as long as its lease.
        nano_usd: How much, in nano-dollars.
    """

    key_id: str
    gateway_id: str
    nano_usd: int


@dataclass
class UsageBatch:
    """Usage that is added to the store in one transaction.

    Attributes:
        gateway_id: The gateway that scored it.
        number: Grows with every batch of a gateway; the store takes each number once.
        usage: [requests, documents, tokens, nano-dollars] by (key, day, model, tier).
        settled: [held, spent] in nano-dollars by (key, gateway that holds), for prepaid keys.
    """

    gateway_id: str
    number: int
    usage: dict[UsageKey, list[int]] = field(default_factory=dict)
    settled: dict[tuple[str, str], list[int]] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to write."""
        return not self.usage and not self.settled


class Ledger:
    """Admit and settle the requests of one gateway.

    Args:
        store: The database.
        lease_s: Seconds after its last sign of life at which a gateway counts as dead.
        count_here: Count the limits in this store; otherwise they are counted elsewhere.

    Attributes:
        gateway_id: The id of this gateway in the store; another one after its lease was lost.
        time: The store's time.
    """

    def __init__(self, store: Store, *, lease_s: float = LEASE_S, count_here: bool = True) -> None:
        self._store = store
        self._clock = store.clock
        self._sql = AdmissionSql(store)
        self._lease_s = lease_s
        self._count_here = count_here
        self._add_hold = store.add_to(holds, ["held"])
        self._add_usage = store.add_to(usage, ["requests", "documents", "tokens", "cost"])
        self.time = StoreTime(store.clock)
        self.gateway_id = ""
        self._seen_at = 0.0
        self.open_gateway()

    def open_gateway(self) -> None:
        """Register under a new id with a lease of its own, and give back the holds of dead gateways."""
        self.gateway_id = uuid.uuid4().hex
        now = self._store.now
        with self._store.write() as connection:
            row = {"id": self.gateway_id, "lease_until": now + self._lease_s, "last_batch": 0}
            connection.execute(insert(gateways).values(row))
            old = gateways.c.lease_until <= now - _FORGET_GATEWAY_S
            connection.execute(delete(gateways).where(old, gateways.c.id.not_in(select(holds.c.gateway_id))))
            self.time.learn(connection.scalars(select(now)).one())
        self._seen_at = self._clock.monotonic()
        self.release_dead()

    def admit(self, account: Account, documents: int, cost: int) -> tuple[Hold | None, list[Window]]:
        """Count a request against its key's limits and take its cost out of the balance: both or neither.

        Args:
            account: The key's.
            documents: Number of documents in the request.
            cost: Cost in nano-dollars.

        Returns:
            The hold (None for a key that is not prepaid), and the state of the limits.

        Raises:
            PaymentRequired: The balance does not cover the cost.
            RateLimited: A limit is reached.
            AccountsUnavailable: The store does not answer.
        """
        return self._with_dead_holds_released(lambda: self._admit(account, documents, cost))

    def take_more(self, hold: Hold, nano_usd: int) -> Hold:
        """Take more credit into a hold, and return the larger hold.

        Raises:
            PaymentRequired: The balance does not cover it.
            AccountsUnavailable: The store does not answer.
        """

        def take() -> Hold:
            with self._store.write() as connection:
                row = connection.execute(self._sql.take, {"key": hold.key_id, "cost": nano_usd}).first()
                if row is None:
                    balance = connection.scalar(self._sql.look_balance, {"key": hold.key_id})
                    raise out_of_credit(hold.key_id, balance or 0, nano_usd)
                self._hold(connection, hold.key_id, hold.gateway_id, nano_usd)
            return Hold(hold.key_id, hold.gateway_id, hold.nano_usd + nano_usd)

        return self._with_dead_holds_released(take)

    def windows(self, account: Account) -> list[Window]:
        """Return the state of a key's limits, without counting a request."""
        with self._store.read() as connection:
            row = connection.execute(self._sql.look, {"key": account.key_id}).one()
        return self._windows(account, row)

    def apply(self, batch: UsageBatch) -> None:
        """Add a batch to the store, once, however often it is tried, and extend the lease.

        Raises:
            AccountsUnavailable: Whether it was written is not known: try again.
        """
        until = self._store.now + self._lease_s
        with self._store.write() as connection:
            lives = (gateways.c.lease_until > self._store.now).label("lives")
            mine = select(gateways.c.last_batch, lives, self._store.now.label("now"))
            row = connection.execute(mine.where(gateways.c.id == batch.gateway_id).with_for_update()).first()
            if row is None:  # forgotten after a month of silence
                fresh = {"id": batch.gateway_id, "lease_until": 0.0, "last_batch": 0}
                connection.execute(insert(gateways), fresh)
            else:
                self.time.learn(row.now)
            alive = row is not None and row.lives
            if row is None or row.last_batch < batch.number:
                self._write(connection, batch)
                connection.execute(
                    update(gateways)
                    .where(gateways.c.id == batch.gateway_id)
                    .values(last_batch=batch.number, lease_until=until if alive else gateways.c.lease_until)
                )
        self._store.check()  # what went into a deleted file is not written
        self._seen_at = self._clock.monotonic()
        if not alive and batch.gateway_id == self.gateway_id:
            # Its holds may have been given back; what is still to be settled is charged without them.
            self.open_gateway()

    def should_give_sign(self) -> bool:
        """Tell whether a quarter of the lease has passed without a batch."""
        return self._clock.monotonic() - self._seen_at > self._lease_s / 4

    def knows(self, gateway_id: str) -> bool:
        """Tell whether the store remembers a gateway, and so which of its batches it has taken."""
        with self._store.read() as connection:
            return connection.scalar(select(gateways.c.id).where(gateways.c.id == gateway_id)) is not None

    def release_dead(self) -> bool:
        """Give back the holds of gateways whose lease is over; return whether there were any."""
        with self._store.read() as connection:
            late = select(gateways.c.id).where(gateways.c.lease_until <= self._store.now)
            too_long = gateways.c.lease_until > self._store.now + self._lease_s
            set_back = connection.scalar(select(gateways.c.id).where(too_long).limit(1)) is not None
            found = connection.execute(
                select(holds.c.gateway_id, holds.c.key_id).where(holds.c.gateway_id.in_(late)).order_by(holds.c.key_id)
            ).all()
        if set_back:  # the store's clock was: nobody's lease may last until it is there again
            with self._store.write() as connection:
                shorter = update(gateways).where(too_long).values(lease_until=self._store.now + self._lease_s)
                connection.execute(shorter)
        for gateway_id, key_id in found:
            self._release(gateway_id, key_id)
        return bool(found)

    def close_gateway(self) -> None:
        """End the lease and give back all holds; this gateway must not be used any more."""
        with self._store.write() as connection:
            connection.execute(update(gateways).where(gateways.c.id == self.gateway_id).values(lease_until=0.0))
        self.release_dead()

    def _admit(self, account: Account, documents: int, cost: int) -> tuple[Hold | None, list[Window]]:
        facts = admission_facts(account, documents, cost, count=self._count_here)
        with self._store.write() as connection:
            row = connection.execute(self._sql.admit, facts).first() or self._second_look(connection, account, facts)
            hold = None
            if row.balance is not None:
                hold = Hold(account.key_id, self.gateway_id, cost)
                self._hold(connection, account.key_id, self.gateway_id, cost)
            return hold, self._windows(account, row)

    def _second_look(self, connection: Connection, account: Account, facts: dict[str, Any]) -> Any:
        """Raise the reason why the admission was refused; if it fits by now, admit it and return the row."""
        # Locked, so that the reason given is the one that holds.
        state = connection.execute(self._sql.look.with_for_update(), {"key": facts["key"]}).one()
        if state.balance is not None and state.balance < facts["cost"]:
            raise out_of_credit(account.key_id, state.balance, facts["cost"])
        refuse_over_limit(account, self._windows(account, state), facts["new_documents"])
        row = connection.execute(self._sql.admit, facts).first()
        if row is None:  # the checks differ by a rounding
            raise RateLimited(f"API key {account.key_id} has just reached its limit; try again in 1 s", retry_after_s=1)
        return row

    def _windows(self, account: Account, row: Any) -> list[Window]:
        limits = {"requests": account.requests_per_minute, "documents": account.documents_per_minute}
        facts: Mapping[str, Any] = row._mapping
        left_s = WINDOW_S - facts["now"] % WINDOW_S
        return [
            Window(kind, limit, facts[f"current_{kind}"], facts[f"previous_{kind}"], left_s)
            for kind, limit in limits.items()
            if limit is not None and self._count_here
        ]

    def _with_dead_holds_released(self, take: Callable[[], T]) -> T:
        """Call `take`; if the credit does not cover it, give back the holds of dead gateways and try once more."""
        try:
            return take()
        except PaymentRequired:
            if not self.release_dead():
                raise
            return take()

    def _hold(self, connection: Connection, key_id: str, gateway_id: str, nano_usd: int) -> None:
        row = {"gateway_id": gateway_id, "key_id": key_id, "held": nano_usd}
        connection.execute(self._add_hold, row)

    def _write(self, connection: Connection, batch: UsageBatch) -> None:
        # Sorted, so that two gateways that settle the same keys cannot deadlock.
        for (key_id, gateway_id), (held, spent) in sorted(batch.settled.items()):
            self._settle(connection, key_id, gateway_id, held, spent)
        rows = [
            {
                "key_id": key_id,
                "day": day,
                "model": model,
                "tier": tier,
                "requests": sums[0],
                "documents": sums[1],
                "tokens": sums[2],
                "cost": sums[3],
            }
            for (key_id, day, model, tier), sums in sorted(batch.usage.items())
        ]
        for start in range(0, len(rows), _ROWS_PER_STATEMENT):
            connection.execute(self._add_usage, rows[start : start + _ROWS_PER_STATEMENT])

    def _settle(self, connection: Connection, key_id: str, gateway_id: str, held: int, spent: int) -> None:
        """Turn a hold into spent credit; if it was given back meanwhile, charge the balance instead."""
        connection.execute(select(allowances.c.key_id).where(allowances.c.key_id == key_id).with_for_update())
        mine = and_(holds.c.gateway_id == gateway_id, holds.c.key_id == key_id, holds.c.held >= held)
        still_held = connection.execute(update(holds).where(mine).values(held=holds.c.held - held)).rowcount
        back = (held if still_held else 0) - spent
        connection.execute(
            update(allowances)
            .where(allowances.c.key_id == key_id, allowances.c.balance.is_not(None))
            .values(spent=allowances.c.spent + spent, balance=allowances.c.balance + back)
        )

    def _release(self, gateway_id: str, key_id: str) -> None:
        with self._store.write() as connection:
            connection.execute(select(allowances.c.key_id).where(allowances.c.key_id == key_id).with_for_update())
            mine = and_(holds.c.gateway_id == gateway_id, holds.c.key_id == key_id)
            held = connection.scalar(delete(holds).where(mine).returning(holds.c.held))
            if held:  # else another gateway did it first
                connection.execute(
                    update(allowances).where(allowances.c.key_id == key_id).values(balance=allowances.c.balance + held)
                )


def out_of_credit(key_id: str, balance: int, cost: int) -> PaymentRequired:
    """Return the error that states balance, cost and remedy."""
    return PaymentRequired(
        f"API key {key_id} has {usd_from_nano(balance):.6f} USD of credit left and this request costs "
        f"{usd_from_nano(cost):.6f} USD; have credit added (`crossrank keys credit {key_id} AMOUNT`), or send fewer "
        "documents"
    )
