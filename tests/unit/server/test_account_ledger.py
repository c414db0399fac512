"""Credit and usage under everything that can happen to gateways: nothing is overspent, nothing counted twice."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import func, select, update

from crossrank.errors import AccountsUnavailable, PaymentRequired, RateLimited, SetupError
from crossrank_server.accounts.base import Account, unavailable
from crossrank_server.accounts.journal import Journal, replay
from crossrank_server.accounts.keys import NewKey, add_credit, create_key
from crossrank_server.accounts.ledger import Hold, Ledger, UsageBatch
from crossrank_server.accounts.meter import Meter
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances, gateways, holds, usage
from tests.key_store import find_account
from tests.stepped_clock import SteppedClock

PRICE = 7  # nano-dollars a document


def new_account(store: Store, **options: object) -> Account:
    return find_account(store, create_key(store, NewKey(name="n", **options)))  # type: ignore[arg-type]


def end_lease(store: Store, gateway_id: str) -> None:
    with store.write() as connection:
        connection.execute(update(gateways).where(gateways.c.id == gateway_id).values(lease_until=1.0))


@dataclass
class UnderWay:
    hold: Hold
    documents: int


class LosesAnswers(Ledger):
    """A ledger whose connection breaks after the store has committed, so that the writer cannot know."""

    lose_next = False
    frozen = False

    def apply(self, batch: UsageBatch) -> None:
        if self.frozen:
            raise unavailable("frozen")
        super().apply(batch)
        if self.lose_next:
            self.lose_next = False
            raise ConnectionResetError


class Gateway:
    """What one process knows: gone when it dies."""

    def __init__(self, store: Store, journals: Path) -> None:
        self.ledger = LosesAnswers(store)
        self.journal = Journal(journals)
        self.meter = Meter(self.ledger, self.journal)
        self.under_way: list[UnderWay] = []
        self.unflushed = 0  # documents recorded and not known to be written
        self.saved = 0  # of them, in the journal


class CreditMachine(RuleBasedStateMachine):
    """Two gateways, one prepaid key."""

    @initialize()
    def open(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.store = Store(f"sqlite:///{Path(self.folder.name)}/s.db")
        self.account = new_account(self.store, credit_nano_usd=1000)
        self.granted = 1000
        self.journals = Path(self.folder.name) / "usage"
        self.gateways = [self.new_gateway(), self.new_gateway()]
        self.served = 0  # documents answered
        self.lost = 0  # of them, unwritten when their gateway died
        self.in_debt = False  # whether a living gateway lost its lease, so that served documents may exceed the credit

    def new_gateway(self) -> Gateway:
        """A process that starts, and so takes up what those left that have ended."""
        gateway = Gateway(self.store, self.journals)
        replay(self.journals, gateway.ledger)
        return gateway

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    which = st.integers(0, 1)

    @rule(which=which, documents=st.integers(1, 60))
    def send(self, which: int, documents: int) -> None:
        gateway = self.gateways[which]
        before = self.balance()
        cost = documents * PRICE
        try:
            hold, _ = gateway.ledger.admit(self.account, documents, cost)
        except PaymentRequired:
            assert self.balance() < cost
            return
        assert hold is not None
        assert hold.nano_usd == cost
        assert self.balance() >= 0
        assert before >= cost or self.balance() >= 0  # credit of the dead may have been given back for it
        gateway.under_way.append(UnderWay(hold, documents))

    @precondition(lambda self: any(gateway.under_way for gateway in self.gateways))
    @rule(which=which, chunks=st.integers(0, 20), data=st.data())
    def enlarge(self, which: int, chunks: int, data: st.DataObject) -> None:
        gateway = self.gateways[which]
        if not gateway.under_way:
            return
        request = gateway.under_way[0]
        try:
            request.hold = gateway.ledger.take_more(request.hold, chunks * PRICE)
        except PaymentRequired:
            return
        request.documents += chunks

    @rule(which=which)
    def answer(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.under_way:
            request = gateway.under_way.pop(0)
            self.served += request.documents
            gateway.unflushed += request.documents
            gateway.meter.record(
                self.account.key_id,
                "m",
                "realtime",
                documents=request.documents,
                tokens=3 * request.documents,
                cost=request.documents * PRICE,
                hold=request.hold,
            )

    @rule(which=which)
    def fail(self, which: int) -> None:
        gateway = self.gateways[which]
        if gateway.under_way:
            gateway.meter.release(gateway.under_way.pop().hold)

    @rule(which=which)
    def flush(self, which: int) -> None:
        gateway = self.gateways[which]
        gateway.meter.flush()
        gateway.unflushed = gateway.saved = 0

    @rule(which=which)
    def flush_without_hearing_of_it(self, which: int) -> None:
        gateway = self.gateways[which]
        gateway.ledger.lose_next = True
        try:
            gateway.meter.flush()
        except ConnectionResetError:
            return
        gateway.ledger.lose_next = False
        gateway.unflushed = gateway.saved = 0

    @rule(which=which)
    def die(self, which: int) -> None:
        """Kill -9: what is under way and what is not written is gone, the holds are left behind."""
        gateway = self.gateways[which]
        end_lease(self.store, gateway.ledger.gateway_id)
        self.lost += gateway.unflushed
        self.gateways[which] = self.new_gateway()

    @rule(which=which)
    def freeze_and_save(self, which: int) -> None:
        """A store that takes nothing: what is recorded goes to the journal, and more is recorded after it."""
        gateway = self.gateways[which]
        gateway.ledger.frozen = True
        with contextlib.suppress(AccountsUnavailable):  # raised if there is anything to write
            gateway.meter.flush()
        gateway.ledger.frozen = False
        gateway.meter.keep()
        gateway.saved = gateway.unflushed

    @rule(which=which)
    def die_with_a_journal(self, which: int) -> None:
        """Kill -9 after something was saved: the next start writes it."""
        gateway = self.gateways[which]
        end_lease(self.store, gateway.ledger.gateway_id)
        self.lost += gateway.unflushed - gateway.saved
        gateway.journal._lock.release()  # as the end of its process does
        self.gateways[which] = self.new_gateway()
        self.in_debt = True

    @rule(which=which)
    def sleep_too_long(self, which: int) -> None:
        """A process that was stopped and goes on to answer: others gave back what it holds."""
        end_lease(self.store, self.gateways[which].ledger.gateway_id)
        self.gateways[1 - which].ledger.release_dead()
        self.in_debt = True
        self.answer(which)
        self.flush(which)

    @rule(nano_usd=st.integers(-400, 400))
    def top_up(self, nano_usd: int) -> None:
        try:
            add_credit(self.store, self.account.key_id, nano_usd)
        except SetupError:
            assert self.balance() + nano_usd < 0
        else:
            self.granted += nano_usd

    def balance(self) -> int:
        with self.store.read() as connection:
            return int(connection.scalar(select(allowances.c.balance)) or 0)

    @invariant()
    def money_is_neither_made_nor_lost(self) -> None:
        with self.store.read() as connection:
            row = connection.execute(select(allowances)).one()
            held = connection.scalar(select(func.coalesce(func.sum(holds.c.held), 0)))
            documents, tokens, cost = connection.execute(
                select(*(func.coalesce(func.sum(usage.c[name]), 0) for name in ("documents", "tokens", "cost")))
            ).one()
        assert row.granted == self.granted
        assert row.granted == row.spent + row.balance + held
        assert row.spent == cost == documents * PRICE
        assert tokens == 3 * documents
        unwritten = sum(gateway.unflushed for gateway in self.gateways)
        # What nobody heard of may be written or not: never twice.
        assert self.served - unwritten - self.lost <= documents <= self.served
        if not self.in_debt:
            assert row.balance >= 0

    @rule()
    def all_is_settled_when_all_is_quiet(self) -> None:
        for gateway in self.gateways:
            while gateway.under_way:
                gateway.meter.release(gateway.under_way.pop().hold)
            gateway.meter.flush()
            gateway.unflushed = gateway.saved = 0
            gateway.ledger.close_gateway()
        with self.store.read() as connection:
            assert connection.scalar(select(func.count()).select_from(holds).where(holds.c.held != 0)) == 0
        self.gateways = [self.new_gateway(), self.new_gateway()]


CreditMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestCredit = CreditMachine.TestCase


def test_a_batch_counts_once_however_often_it_is_written(store_url: str) -> None:
    store = Store(store_url)
    account = new_account(store)
    ledger = Ledger(store)
    today = datetime.now(timezone.utc).date()
    batch = UsageBatch(ledger.gateway_id, 1, usage={(account.key_id, today, "m", "batch"): [2, 30, 400, 210]})
    for _ in range(3):
        ledger.apply(batch)
    ledger.apply(UsageBatch(ledger.gateway_id, 2, usage={(account.key_id, today, "m", "batch"): [1, 1, 1, 7]}))
    ledger.apply(batch)
    with store.read() as connection:
        (row,) = connection.execute(select(usage)).all()
    assert (row.requests, row.documents, row.tokens, row.cost) == (3, 31, 401, 217)
    store.close()


def test_a_gateway_that_was_taken_for_dead_is_charged_once_for_what_it_still_answers(
    store_url: str, tmp_path: Path
) -> None:
    store = Store(store_url)
    account = new_account(store, credit_nano_usd=1000)
    sleeper, other = Gateway(store, tmp_path), Gateway(store, tmp_path)
    hold, _ = sleeper.ledger.admit(account, 1, 600)
    end_lease(store, sleeper.ledger.gateway_id)
    other.ledger.admit(account, 1, 900)  # needs what the sleeper holds, and gets it
    sleeper.meter.record(account.key_id, "m", "realtime", documents=1, tokens=1, cost=600, hold=hold)
    sleeper.meter.flush()
    with store.read() as connection:
        row = connection.execute(select(allowances)).one()
        held = connection.scalar(select(func.sum(holds.c.held)))
    assert (row.granted, row.spent, row.balance, held) == (1000, 600, 1000 - 600 - 900, 900)
    # It goes on under another name, so that its old one has no holds that nobody would give back.
    assert hold is not None
    assert sleeper.ledger.gateway_id != hold.gateway_id
    store.close()


def test_limits_and_credit_are_taken_together_or_not_at_all(store_url: str) -> None:
    store = Store(store_url, clock=SteppedClock())
    account = new_account(store, requests_per_minute=100, documents_per_minute=50, credit_nano_usd=300)
    ledger = Ledger(store)
    _, (requests, documents) = ledger.admit(account, 30, 200)
    assert (requests.remaining, documents.remaining) == (99, 20)
    with pytest.raises(PaymentRequired, match=r"0\.000000 USD of credit left"):
        ledger.admit(account, 1, 200)
    with pytest.raises(RateLimited) as refused:
        ledger.admit(account, 30, 100)
    assert 1 <= (refused.value.retry_after_s or 0) <= 120
    requests, documents = ledger.windows(account)
    assert (requests.remaining, documents.remaining) == (99, 20)
    with store.read() as connection:
        assert connection.scalar(select(allowances.c.balance)) == 100
    store.close()


def test_the_previous_minute_counts_by_the_share_that_lies_in_the_last_sixty_seconds(store_url: str) -> None:
    clock = SteppedClock()
    store = Store(store_url, clock=clock)
    account = new_account(store, requests_per_minute=100)
    ledger = Ledger(store)
    for _ in range(10):
        ledger.admit(account, 1, 0)
    clock.advance(60)
    (window,) = ledger.windows(account)
    assert (window.current, window.previous, window.left_s) == (0, 10, 50.0)
    assert window.remaining == 91  # 10 * 50 / 60 of the ten, rounded up
    _, (window,) = ledger.admit(account, 1, 0)
    assert (window.current, window.previous) == (1, 10)
    clock.advance(120)
    _, (window,) = ledger.admit(account, 1, 0)
    assert (window.current, window.previous) == (1, 0)
    # Another gateway whose clock is ahead has opened the next minute: nothing is forgotten.
    clock.advance(-60)
    _, (window,) = ledger.admit(account, 1, 0)
    assert window.current == 2
    store.close()


def test_a_key_without_credit_becomes_prepaid_by_its_first_credit(store_url: str) -> None:
    store = Store(store_url)
    account = new_account(store)
    assert not account.prepaid
    assert add_credit(store, account.key_id, 500) == (500, 500)
    ledger = Ledger(store)
    hold, _ = ledger.admit(account, 1, 400)
    assert hold == Hold(account.key_id, ledger.gateway_id, 400)
    with pytest.raises(SetupError, match="cannot be taken"):
        add_credit(store, account.key_id, -200)
    with pytest.raises(SetupError, match="there is no key"):
        add_credit(store, "000000000000", 1)
    store.close()
