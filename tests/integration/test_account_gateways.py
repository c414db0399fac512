"""Several real gateways on one store: one limit, one credit, and usage that a killed gateway cannot spoil."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import func, select, update

from crossrank.bundles.bundle import Bundle
from crossrank_server.accounts.keys import NewKey, create_key, list_keys
from crossrank_server.accounts.metered import MeteredAccounts
from crossrank_server.accounts.prices import Prices
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.tables import gateways, holds
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.http_app import client_of, make_app
from tests.server_process import RunningServer, running_server
from tests.services import running_postgresql
from tests.stepped_clock import SteppedClock
from tests.unit.library.test_batcher import ArithmeticEngine

NANO_A_DOCUMENT = 8_000


@contextlib.contextmanager
def two_gateways(*arguments: str) -> Iterator[tuple[RunningServer, RunningServer]]:
    with running_server(*arguments) as first, running_server(*arguments) as second:
        yield first, second


def send(base_url: str, token: str, documents: int) -> httpx.Response:
    body = {"query": "q", "documents": ["some text"] * documents}
    headers = {"authorization": f"Bearer {token}"}
    return httpx.post(f"{base_url}/v1/rerank", json=body, headers=headers, timeout=60)


def statuses(servers: tuple[RunningServer, RunningServer], token: str, requests: int, documents: int) -> Counter[int]:
    """Send to both at once from eight threads and count the answers."""
    urls = itertools.cycle(server.base_url for server in servers)
    with ThreadPoolExecutor(8) as threads:
        answers = threads.map(lambda url: send(url, token, documents), [next(urls) for _ in range(requests)])
        return Counter(answer.status_code for answer in answers)


def totals(store: Store) -> tuple[int, int]:
    rows = usage_by_day(store, UsageFilter())
    return sum(row["requests"] for row in rows), sum(row["documents"] for row in rows)


def new_key(store: Store, **options: Any) -> str:
    return create_key(store, NewKey(name="n", **options))


@pytest.fixture(params=["sqlite", "postgresql", "postgresql and redis"])
def arguments(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    if request.param == "sqlite":
        return ["--store", f"sqlite:///{tmp_path}/s.db"]
    given = ["--store", request.getfixturevalue("postgresql").new_database()]
    if request.param == "postgresql and redis":
        given += ["--limits-store", request.getfixturevalue("redis_url")]
    return given


def test_two_gateways_enforce_one_credit(arguments: list[str]) -> None:
    store = Store(arguments[1])
    by_credit = new_key(store, credit_nano_usd=50 * NANO_A_DOCUMENT)
    with two_gateways(*arguments, "--flush-window-s", "0.2") as servers:
        if "--limits-store" in arguments:
            # Redis begins a minute with its first request, so that no other one begins meanwhile.
            by_requests = new_key(store, requests_per_minute=40)
            by_documents = new_key(store, documents_per_minute=100)
            assert statuses(servers, by_requests, 60, 1) == {200: 40, 429: 20}
            assert statuses(servers, by_documents, 30, 5) == {200: 20, 429: 10}
        assert statuses(servers, by_credit, 40, 2) == {200: 25, 402: 15}
        time.sleep(0.5)  # the flush window, so that each sees what the other one served
        for server in servers:
            response = httpx.get(f"{server.base_url}/account", headers={"authorization": f"Bearer {by_credit}"})
            assert response.json()["credit"] == {"granted": 0.0004, "spent": 0.0004, "reserved": 0.0}
    limited = (40 + 20, 40 + 100) if "--limits-store" in arguments else (0, 0)
    assert totals(store) == (25 + limited[0], 50 + limited[1])
    store.close()


async def test_two_gateways_enforce_one_limit_in_their_store(store_url: str, builtin: Bundle, tmp_path: Path) -> None:
    # In this process, on a clock that stands: no minute ends meanwhile.
    clock = SteppedClock()
    accounts = [MeteredAccounts(Store(store_url, clock=clock), Prices(), journals=tmp_path) for _ in range(2)]
    store = Store(store_url)
    async with contextlib.AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(client_of(make_app(builtin, ArithmeticEngine(), accounts=each)))
            for each in accounts
        ]
        for options, requests, documents, expected in (
            ({"requests_per_minute": 40}, 60, 1, {200: 40, 429: 20}),
            ({"documents_per_minute": 100}, 30, 5, {200: 20, 429: 10}),
        ):
            headers = {"authorization": f"Bearer {new_key(store, **options)}"}
            body = {"query": "q", "documents": ["some text"] * documents}
            answers = await asyncio.gather(
                *(clients[i % 2].post("/v1/rerank", json=body, headers=headers) for i in range(requests))
            )
            assert Counter(answer.status_code for answer in answers) == expected
    for each in accounts:
        await each.close()
    assert totals(store) == (40 + 20, 40 + 100)
    store.close()


class Load:
    """Sends small requests as fast as they are answered, from four threads, and notes when each was answered."""

    threads = 4

    def __init__(self, base_url: str, token: str) -> None:
        self.answered_at: list[float] = []
        self._url, self._token = base_url, token
        self._threads = [threading.Thread(target=self._send) for _ in range(self.threads)]
        for thread in self._threads:
            thread.start()

    def _send(self) -> None:
        with contextlib.suppress(httpx.TransportError), httpx.Client() as client:
            while True:
                response = client.post(
                    f"{self._url}/v1/rerank",
                    json={"query": "q", "documents": ["a", "b", "c"]},
                    headers={"authorization": f"Bearer {self._token}"},
                )
                assert response.status_code == 200
                self.answered_at.append(time.monotonic())

    def wait(self) -> None:
        for thread in self._threads:
            thread.join(60)


def test_a_killed_gateway_loses_at_most_the_flush_window_and_counts_nothing_twice(store_url: str) -> None:
    window_s = 1.0
    store = Store(store_url)
    token = new_key(store, credit_nano_usd=10**9)
    arguments = ("--store", store_url, "--flush-window-s", str(window_s))
    with running_server(*arguments) as survivor, running_server(*arguments) as victim:
        load = Load(victim.base_url, token)
        time.sleep(3.3)
        killed_at = time.monotonic()
        victim.process.kill()
        load.wait()
        recorded, documents = totals(store)
        answered = len(load.answered_at)
        before_the_window = sum(at <= killed_at - window_s for at in load.answered_at)
        assert before_the_window > 0
        # An answer may be recorded and never reach its client.
        assert before_the_window <= recorded <= answered + load.threads
        assert documents == 3 * recorded
        # What it held comes back when its lease is over, if somebody needs it.
        (key,) = list_keys(store)
        spent = documents * NANO_A_DOCUMENT
        with store.read() as connection:
            held = connection.scalar(select(func.sum(holds.c.held)))
        assert key.balance_usd is not None
        assert round(key.balance_usd * 1e9) == 10**9 - spent - held
        with store.write() as connection:
            oldest = select(func.min(gateways.c.lease_until)).scalar_subquery()
            connection.execute(update(gateways).where(gateways.c.lease_until == oldest).values(lease_until=1.0))
        assert send(survivor.base_url, token, 1).status_code == 200
    (key,) = list_keys(store)
    assert totals(store) == (recorded + 1, documents + 1)
    store.close()


def test_usage_survives_a_store_that_goes_away_and_requests_get_a_503_meanwhile(tmp_path: Path) -> None:
    with running_postgresql() as postgresql:
        url = postgresql.new_database()
        store = Store(url)
        token = new_key(store, credit_nano_usd=10**9, requests_per_minute=1000)
        store.close()
        with running_server("--store", url, "--flush-window-s", "20") as server:
            assert send(server.base_url, token, 3).status_code == 200
            postgresql.stop()
            refused = send(server.base_url, token, 3)
            assert refused.status_code == 503
            error = refused.json()["error"]
            assert (error["code"], error["retry_after_s"]) == ("accounts_unavailable", 2.0)
            assert refused.headers["retry-after"] == "2"
            assert "127.0.0.1" not in refused.text
            time.sleep(5.1)  # the key is no longer trusted
            assert send(server.base_url, token, 3).status_code == 503
            assert httpx.get(f"{server.base_url}/health/ready").status_code == 200
            postgresql.start()
            time.sleep(float(refused.headers["retry-after"]))
            assert send(server.base_url, token, 4).status_code == 200
        store = Store(url)
        assert totals(store) == (2, 7)
        (key,) = list_keys(store)
        assert key.balance_usd == (10**9 - 7 * NANO_A_DOCUMENT) / 1e9
        store.close()


def test_redis_that_goes_away_is_a_503(tmp_path: Path) -> None:
    from tests.services import running_redis

    url = f"sqlite:///{tmp_path}/s.db"
    store = Store(url)
    token = new_key(store, requests_per_minute=1000)
    store.close()
    with contextlib.ExitStack() as redis:
        redis_url = redis.enter_context(running_redis())
        with running_server("--store", url, "--limits-store", redis_url) as server:
            assert send(server.base_url, token, 3).headers["x-ratelimit-remaining-requests"] == "999"
            redis.close()
            refused = send(server.base_url, token, 3)
            assert refused.status_code == 503
            assert "rate limits does not answer" in refused.json()["message"]


def test_gateways_that_start_at_once_make_the_tables_once(store_url: str) -> None:
    with ThreadPoolExecutor(8) as threads:
        stores = list(threads.map(Store, [store_url] * 8))
    create_key(stores[0], NewKey(name="n"))
    assert [key.name for key in list_keys(stores[7])] == ["n"]
    for store in stores:
        store.close()
