"""Accounts with keys, from the event loop: what a request costs whatever becomes of it."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from crossrank.errors import BackendUnavailable, Forbidden, InvalidRequest, PaymentRequired, Unauthorized
from crossrank_server.accounts.base import Account, OpenAccounts, require_scope
from crossrank_server.accounts.key_cache import TRUST_S
from crossrank_server.accounts.keys import NewKey, create_key, revoke_key
from crossrank_server.accounts.metered import MeteredAccounts
from crossrank_server.accounts.prices import Prices
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.threads import begin_request
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.stepped_clock import SteppedClock

MODEL = "crossrank-mini"  # 8,000 nano-dollars a document


@pytest.fixture
def store(tmp_path: Path, clock: SteppedClock) -> Store:
    return Store(f"sqlite:///{tmp_path}/s.db", clock=clock)


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest_asyncio.fixture
async def accounts(store: Store, tmp_path: Path) -> AsyncIterator[MeteredAccounts]:
    accounts = MeteredAccounts(store, Prices(), journals=tmp_path / "usage", timeout_s=5.0)
    yield accounts
    await accounts.close()


async def account_of(accounts: MeteredAccounts, store: Store, **options: Any) -> Account:
    account = await accounts.identify(create_key(store, NewKey(name="n", **options)))
    assert account is not None
    return account


def admit(accounts: MeteredAccounts, account: Account, documents: int, **options: Any) -> Any:
    request: dict[str, Any] = {"model": MODEL, "tier": "realtime", "headers": {}, **options}
    return accounts.admit(account, documents=documents, **request)


async def figures(accounts: MeteredAccounts, account: Account) -> tuple[float, float, float, int, int]:
    """Return balance, spent, reserved, requests and documents."""
    begin_request(5.0)
    statement = await accounts.statement(account)
    assert statement is not None
    credit, total = statement["credit"], statement["usage"]["total"]
    return statement["balance"], credit["spent"], credit["reserved"], total["requests"], total["documents"]


async def test_an_answered_request_is_recorded_and_its_cost_told(accounts: MeteredAccounts, store: Store) -> None:
    account = await account_of(accounts, store, credit_nano_usd=10**7)
    async with admit(accounts, account, 100) as charge:
        assert (await figures(accounts, account))[:3] == (0.0092, 0.0, 0.0008)
        charge.tokens = 1234
    assert charge.cost_usd == 0.0008
    assert await figures(accounts, account) == (0.0092, 0.0008, 0.0, 1, 100)
    async with admit(accounts, account, 100, tier="batch") as charge:
        pass
    assert charge.cost_usd == 0.0004
    rows = usage_by_day(store, UsageFilter(), by_model=True)
    assert [(row["tier"], row["documents"], row["tokens"], row["cost_usd"]) for row in rows] == [
        ("batch", 100, 0, 0.0004),
        ("realtime", 100, 1234, 0.0008),
    ] or len(rows) == 1  # the second one may not be flushed yet


async def test_a_failed_request_costs_nothing(accounts: MeteredAccounts, store: Store) -> None:
    account = await account_of(accounts, store, credit_nano_usd=10**7)
    for failure in (RuntimeError, asyncio.CancelledError):
        with contextlib.suppress(RuntimeError, asyncio.CancelledError):
            async with admit(accounts, account, 100):
                raise failure
    assert await figures(accounts, account) == (0.01, 0.0, 0.0, 0, 0)


async def test_chunks_are_billed_if_the_credit_covers_them_before_they_are_scored(
    accounts: MeteredAccounts, store: Store
) -> None:
    account = await account_of(accounts, store, credit_nano_usd=80_000)  # ten documents
    async with admit(accounts, account, 2) as charge:
        await charge.raise_to(9)
        assert (await figures(accounts, account))[2] == 0.000072
    assert charge.documents == 9
    assert await figures(accounts, account) == (0.000008, 0.000072, 0.0, 1, 9)
    with pytest.raises(PaymentRequired, match=r"0\.000000 USD of credit left and this request costs 0\.000024"):
        async with admit(accounts, account, 1) as charge:
            await charge.raise_to(4)
    assert await figures(accounts, account) == (0.000008, 0.000072, 0.0, 1, 9)


async def test_documents_set_without_asking_are_billed_all_the_same(accounts: MeteredAccounts, store: Store) -> None:
    account = await account_of(accounts, store, credit_nano_usd=80_000)
    async with admit(accounts, account, 2) as charge:
        charge.documents = 12
    assert await figures(accounts, account) == (-0.000016, 0.000096, 0.0, 1, 12)
    with pytest.raises(PaymentRequired, match=r"has -0\.000016 USD"):
        async with admit(accounts, account, 1):
            pytest.fail("a key in debt was admitted")


async def test_a_request_given_up_while_it_waits_for_the_store_leaves_nothing_held(
    accounts: MeteredAccounts, store: Store, tmp_path: Path
) -> None:
    account = await account_of(accounts, store, credit_nano_usd=10**7)
    other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # holds up every admission

    async def request() -> None:
        async with admit(accounts, account, 100):
            pytest.fail("it was admitted")

    task = asyncio.create_task(request())
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    other.execute("ROLLBACK")
    other.close()
    for _ in range(100):
        if not (await figures(accounts, account))[2]:
            break
    assert await figures(accounts, account) == (0.01, 0.0, 0.0, 0, 0)


async def test_a_locked_store_is_a_503_and_usage_is_kept_until_it_opens(
    accounts: MeteredAccounts, store: Store, tmp_path: Path
) -> None:
    account = await account_of(accounts, store, credit_nano_usd=10**7)
    begin_request(0.5)
    async with admit(accounts, account, 100):
        other = sqlite3.connect(tmp_path / "s.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
    with pytest.raises(BackendUnavailable) as refused:  # after the half second that this request may wait
        async with admit(accounts, account, 100):
            pytest.fail("it was admitted")
    assert (refused.value.code, refused.value.retry_after_s) == ("accounts_unavailable", 2.0)
    other.execute("ROLLBACK")
    other.close()
    assert await figures(accounts, account) == (0.0092, 0.0008, 0.0, 1, 100)


async def test_a_revoked_key_is_refused_when_the_trust_in_it_is_over(
    accounts: MeteredAccounts, store: Store, clock: SteppedClock
) -> None:
    key = create_key(store, NewKey(name="n"))
    await accounts.identify(key)
    revoke_key(store, key)
    assert await accounts.identify(key) is not None
    clock.advance(TRUST_S - 0.1)
    assert await accounts.identify(key) is not None
    clock.advance(0.2)
    with pytest.raises(Unauthorized, match="was revoked"):
        await accounts.identify(key)


async def test_a_key_expires_though_it_is_trusted(accounts: MeteredAccounts, store: Store, clock: SteppedClock) -> None:
    key = create_key(store, NewKey(name="n", expires_at=clock.time() + TRUST_S / 2))
    await accounts.identify(key)
    clock.advance(TRUST_S / 2)
    with pytest.raises(Unauthorized, match="expired on"):
        await accounts.identify(key)


async def test_no_key_is_told_how_to_send_one(accounts: MeteredAccounts) -> None:
    with pytest.raises(Unauthorized, match="send it as `Authorization: Bearer") as refused:
        await accounts.identify(None)
    assert refused.value.code == "missing_api_key"


async def test_scope_and_the_whole_limit_are_checked_before_any_credit_is_taken(
    accounts: MeteredAccounts, store: Store
) -> None:
    reader = await account_of(accounts, store, scopes=("account",), credit_nano_usd=10**7)
    limited = await account_of(accounts, store, documents_per_minute=10, credit_nano_usd=10**7)
    headers: dict[str, str] = {}
    with pytest.raises(Forbidden, match=r"has the scopes account, and this needs rerank"):
        async with admit(accounts, reader, 1):
            pytest.fail("it was admitted")
    with pytest.raises(InvalidRequest, match="11 documents"):
        async with admit(accounts, limited, 11, headers=headers):
            pytest.fail("it was admitted")
    assert headers["x-ratelimit-remaining-documents"] == "10"
    assert (await figures(accounts, reader))[0] == (await figures(accounts, limited))[0] == 0.01


async def test_closing_writes_what_was_recorded_and_may_be_repeated(store: Store, tmp_path: Path) -> None:
    accounts = MeteredAccounts(store, Prices(), journals=tmp_path / "usage", flush_window_s=60)
    account = await account_of(accounts, store)
    async with admit(accounts, account, 3):
        pass
    assert usage_by_day(store, UsageFilter()) == []
    await accounts.close()
    await accounts.close()
    reopened = Store(f"sqlite:///{tmp_path}/s.db")
    assert [row["documents"] for row in usage_by_day(reopened, UsageFilter())] == [3]
    reopened.close()


async def test_without_keys_everybody_may_do_everything() -> None:
    accounts = OpenAccounts()
    assert await accounts.identify("anything") is None
    require_scope(None, "metrics")
    assert await accounts.statement(None) is None
