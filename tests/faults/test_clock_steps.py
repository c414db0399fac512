"""Clocks that are set ahead and back: the store's decides, and a step costs a key minutes at most, not the hour."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis
from sqlalchemy import select

from crossrank.errors import RateLimited
from crossrank_server.accounts.base import Account
from crossrank_server.accounts.ledger import Ledger
from crossrank_server.accounts.redis_limits import RedisLimits
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import allowances, gateways
from tests.key_store import find_account, new_key
from tests.server_process import RunningServer, running_server
from tests.services import PostgresServer
from tests.stepped_clock import SteppedClock

HOUR_S = 3600.0
_STEPPING = """
import time
_real = time.time
def _stepped():
    with open({path!r}) as file:
        return _real() + float(file.read() or 0)
time.time = _stepped
"""


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock()


@pytest.fixture
def store(store_url: str, clock: SteppedClock) -> Iterator[Store]:
    """A store whose own clock can be stepped."""
    with contextlib.closing(Store(store_url, clock=clock)) as store:
        yield store


def use_up(ledger: Ledger, account: Account) -> int:
    """Return how many requests are admitted until the limit is reached."""
    for count in range(1000):
        try:
            ledger.admit(account, 1, 0)
        except RateLimited:
            return count
    raise AssertionError("there is no limit")


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S, 90.0, -90.0, 7 * 86_400.0], ids=str)
def test_a_store_whose_clock_is_stepped_and_put_right_refuses_no_key_for_longer_than_its_window(
    store: Store, clock: SteppedClock, step_s: float
) -> None:
    account = find_account(store, new_key(store, requests_per_minute=10))
    ledgers = [Ledger(store), Ledger(store)]
    clock.step(step_s)
    admitted = use_up(ledgers[0], account)
    clock.step(-step_s)
    # A step may open a new minute, as waiting does, and no more than one.
    assert use_up(ledgers[1], account) in (0, 10)
    assert use_up(ledgers[0], account) == 0
    assert admitted == 10
    clock.advance(180)
    assert use_up(ledgers[0], account) + use_up(ledgers[1], account) == 10


def test_a_lease_lasts_no_longer_after_the_clock_of_the_store_is_set_back(store: Store, clock: SteppedClock) -> None:
    account = find_account(store, new_key(store, credit_nano_usd=100))
    clock.step(HOUR_S)
    dead = Ledger(store)
    dead.admit(account, 1, 100)  # and then its process is killed
    clock.step(-HOUR_S)
    survivor = Ledger(store)
    clock.advance(70)
    hold, _ = survivor.admit(account, 1, 100)
    assert hold is not None
    with store.read() as connection:
        assert max(connection.scalars(select(gateways.c.lease_until))) <= clock.time() + 60


def test_redis_whose_clock_was_set_back_keeps_its_counts_and_no_window_lasts_for_the_hour(redis_url: str) -> None:
    account = Account("0123456789ab", "n", frozenset(), requests_per_minute=10)
    limits = RedisLimits(redis_url)
    for _ in range(10):
        limits.hit(account, 1)
    server = redis.Redis.from_url(redis_url)
    for name in server.scan_iter("*0123456789ab*"):
        # Redis keeps the moment of expiry: this is what an hour's step back leaves.
        server.pexpire(name, server.pttl(name) + round(HOUR_S * 1000))
    with pytest.raises(RateLimited) as refused:
        limits.hit(account, 1)
    assert 1 <= (refused.value.retry_after_s or 0) <= 120
    (window,) = limits.windows(account)
    assert window.remaining == 0
    assert window.reset_s <= 120
    assert all(server.ttl(name) <= 121 for name in server.scan_iter("*0123456789ab*"))


@contextlib.contextmanager
def stepped_server(folder: Path, url: str, step_s: float) -> Iterator[RunningServer]:
    """Run a server whose own clock is wrong by `step_s` seconds."""
    (folder / "step").write_text(str(step_s))
    (folder / "sitecustomize.py").write_text(_STEPPING.format(path=str(folder / "step")))
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
    with running_server("--store", url, "--flush-window-s", "0.2", env={"PYTHONPATH": path}) as server:
        yield server


def status(server: RunningServer, token: str) -> int:
    body = {"query": "q", "documents": ["a"]}
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(f"{server.base_url}/v1/rerank", json=body, headers=headers, timeout=30).status_code


def test_gateways_whose_clocks_differ_share_one_limit_and_go_by_the_clock_of_the_store(
    postgresql: PostgresServer, tmp_path: Path
) -> None:
    url = postgresql.new_database()
    store = Store(url)
    limited = new_key(store, requests_per_minute=10)
    ends_soon = new_key(store, expires_at=time.time() + HOUR_S / 2)
    folders = [tmp_path / "ahead", tmp_path / "right"]
    for folder in folders:
        folder.mkdir()
    with stepped_server(folders[0], url, HOUR_S) as ahead, stepped_server(folders[1], url, 0.0) as right:
        minute = time.time() // 60
        answers = [status(server, limited) for _ in range(8) for server in (ahead, right)]
        if time.time() // 60 == minute:  # else a part of the limit was free again
            assert answers == [200] * 10 + [429] * 6
        assert status(ahead, ends_soon) == 200
        (folders[0] / "step").write_text("0")  # its clock is put right
        with store.read() as connection:
            (window,) = connection.scalars(select(allowances.c.window).where(allowances.c.requests > 0))
        assert abs(window - time.time() // 60) <= 1
        time.sleep(0.5)
        with store.read() as connection:
            assert max(connection.scalars(select(gateways.c.lease_until))) < time.time() + 61
    store.close()
