"""Stores of keys and limits that freeze, fill up, turn read-only or vanish: who needs them not is not delayed."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import redis

from crossrank_server.accounts.store import Store
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.faults.outside import others
from tests.frozen import locked, stopped
from tests.key_store import new_key
from tests.server_process import RunningServer, running_server
from tests.services import PostgresServer

# A request waits for one second in all; the rest is for a busy machine.
_WAITS_S = 2.0
_AT_ONCE_S = 0.7
_BACK_WITHIN_S = 10.0


@dataclass
class Gateway:
    """A server with a store, and keys in it: `plain` needs the store only to be looked up."""

    url: str
    server: RunningServer
    plain: str
    prepaid: str
    limited: str
    answered: int = 0

    def send(self, token: str) -> tuple[httpx.Response, float]:
        began = time.monotonic()
        headers = {"authorization": f"Bearer {token}"}
        body = {"query": "q", "documents": ["a", "b"]}
        response = httpx.post(f"{self.server.base_url}/v1/rerank", json=body, headers=headers, timeout=60)
        self.answered += response.status_code == 200
        return response, time.monotonic() - began

    def good(self, *tokens: str) -> None:
        for token in tokens:
            response, _ = self.send(token)
            assert response.status_code == 200, response.text

    def refused(self, token: str, within_s: float) -> str:
        response, took_s = self.send(token)
        assert response.status_code == 503, response.text
        assert took_s < within_s
        error = response.json()["error"]
        assert (error["code"], error["retry_after_s"]) == ("accounts_unavailable", 2.0)
        return str(error["message"])

    def wait_until_good(self, token: str) -> None:
        give_up_at = time.monotonic() + _BACK_WITHIN_S
        while self.send(token)[0].status_code != 200:
            assert time.monotonic() < give_up_at, "the breaker stays open"
            time.sleep(0.05)

    def recorded(self) -> int:
        with contextlib.closing(Store(self.url)) as store:
            return sum(row["requests"] for row in usage_by_day(store, UsageFilter()))

    def wait_until_recorded(self, requests: int) -> None:
        give_up_at = time.monotonic() + _BACK_WITHIN_S
        while (found := self.recorded()) != requests:
            assert time.monotonic() < give_up_at, f"{found} of {requests} requests are recorded"
            time.sleep(0.1)


@contextlib.contextmanager
def running(url: str, cache: Path, *arguments: str) -> Iterator[Gateway]:
    with contextlib.closing(Store(url)) as store:
        plain, prepaid = new_key(store), new_key(store, credit_nano_usd=10**9)
        limited = new_key(store, requests_per_minute=10_000)
    given = ("--store", url, "--flush-window-s", "0.4", "--shutdown-grace-s", "2", "--cache-dir", str(cache))
    with running_server(*given, *arguments) as server:
        gateway = Gateway(url, server, plain, prepaid, limited)
        gateway.good(plain, prepaid, limited)
        yield gateway
        log = server.log.read_text()
        assert "Traceback" not in log
        assert not any(token in log for token in (plain, prepaid, limited)), "a key was logged"


@pytest.fixture(scope="module")
def shared(postgresql: PostgresServer, redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway with keys in PostgreSQL and limits in Redis."""
    cache = tmp_path_factory.mktemp("cache")
    with running(postgresql.new_database(), cache, "--limits-store", redis_url) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One gateway with all in a SQLite file."""
    folder = tmp_path_factory.mktemp("store")
    with running(f"sqlite:///{folder}/s.db", folder / "cache") as gateway:
        yield gateway


def file_of(gateway: Gateway) -> Path:
    return Path(gateway.url.removeprefix("sqlite:///"))


def test_a_frozen_redis_stops_keys_with_limits_alone_and_no_longer_than_it_is_frozen(
    shared: Gateway, redis_url: str
) -> None:
    pid = redis.Redis.from_url(redis_url).info("server")["process_id"]
    with others(shared.server, headers={"authorization": f"Bearer {shared.plain}"}) as seen:
        with stopped(pid):
            assert "rate limits" in shared.refused(shared.limited, _WAITS_S)
            for _ in range(5):
                shared.refused(shared.limited, _AT_ONCE_S)
            shared.good(shared.prepaid)
        shared.wait_until_good(shared.limited)
    shared.answered += len(seen.seconds)
    assert seen.refusals == []
    assert seen.slowest_s < 1.0
    shared.wait_until_recorded(shared.answered)


def test_a_frozen_postgresql_delays_no_key_that_is_known_and_needs_neither_limit_nor_credit(
    shared: Gateway, postgresql: PostgresServer
) -> None:
    shared.good(shared.plain)
    with contextlib.closing(Store(shared.url)) as store:
        unknown_yet = new_key(store)
    with others(shared.server, headers={"authorization": f"Bearer {shared.plain}"}) as seen, stopped(postgresql.pid):
        shared.refused(shared.prepaid, _WAITS_S)
        for _ in range(5):
            shared.refused(shared.prepaid, _AT_ONCE_S)
        shared.refused(unknown_yet, _WAITS_S)
        shared.refused(unknown_yet, _AT_ONCE_S)
        ended = len(seen.seconds)
    assert ended > 10
    # It is trusted for 5 s: these took at most 4.
    assert seen.refusals == [], "the last may be after the trust"
    assert seen.slowest_s < 1.0
    shared.answered += len(seen.seconds)
    for token in (shared.prepaid, unknown_yet, shared.plain):
        shared.wait_until_good(token)
    shared.wait_until_recorded(shared.answered)


def test_a_read_only_postgresql_refuses_credit_and_serves_the_rest(shared: Gateway, postgresql: PostgresServer) -> None:
    def turn(read_only: str) -> None:
        name = shared.url.rpartition("/")[2]
        with psycopg.connect(shared.url.rpartition("/")[0] + "/postgres", autocommit=True) as connection:
            connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only}".encode())
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s AND pid <> pg_backend_pid()",
                (name,),
            )

    turn("on")
    shared.refused(shared.prepaid, _WAITS_S)
    shared.good(shared.plain, shared.limited)
    turn("off")
    shared.wait_until_good(shared.prepaid)
    shared.wait_until_recorded(shared.answered)


def test_a_locked_sqlite_file_delays_no_key_that_needs_neither_limit_nor_credit(local: Gateway) -> None:
    with others(local.server, headers={"authorization": f"Bearer {local.plain}"}) as seen:
        with locked(file_of(local)):
            local.refused(local.limited, _WAITS_S)
            for token in (local.prepaid, local.limited) * 3:
                local.refused(token, _AT_ONCE_S)
            with_new_key = httpx.get(f"{local.server.base_url}/v1/models", headers={"x-api-key": local.limited})
            assert with_new_key.status_code == 200
        local.wait_until_good(local.limited)
        local.good(local.prepaid)
    local.answered += len(seen.seconds)
    assert seen.refusals == []
    assert seen.slowest_s < 1.0
    local.wait_until_recorded(local.answered)


def test_usage_survives_a_full_disk(local: Gateway) -> None:
    pid = local.server.pid
    free = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    # The file that SQLite writes to cannot grow beyond its size; the log has room left.
    full = max(file_of(local).with_name("s.db-wal").stat().st_size, local.server.log.stat().st_size + 20_000)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (full, free[1]))
    try:
        give_up_at = time.monotonic() + _BACK_WITHIN_S
        while local.send(local.prepaid)[0].status_code == 200:  # until what SQLite had reserved is used up
            assert time.monotonic() < give_up_at
        local.good(local.plain, local.plain)
        time.sleep(0.5)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, free)
    local.wait_until_good(local.prepaid)
    local.wait_until_recorded(local.answered)


def test_a_deleted_sqlite_file_is_noticed_within_the_flush_window_and_nothing_goes_into_a_new_one(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    with running(url, tmp_path / "cache") as gateway:
        gateway.wait_until_recorded(gateway.answered)
        away = tmp_path / "away"
        away.mkdir()
        for path in tmp_path.glob("s.db*"):
            path.rename(away / path.name)
        time.sleep(0.8)  # the flush window, and time for a busy machine
        for token in (gateway.plain, gateway.prepaid, gateway.limited):
            assert "the account store is gone" in gateway.refused(token, _AT_ONCE_S)
        assert not (tmp_path / "s.db").exists()
        assert "was deleted or replaced" in gateway.server.log.read_text()
        # A file put in its place is not taken for the store either.
        shutil.copy(away / "s.db", tmp_path / "s.db")
        gateway.refused(gateway.plain, _AT_ONCE_S)
        for path in away.iterdir():
            os.replace(path, tmp_path / path.name)
        gateway.wait_until_good(gateway.prepaid)
        gateway.wait_until_recorded(gateway.answered)


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)])
def freezable(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Callable[[], AbstractContextManager[None]]]:
    """The URL of a store, and what freezes it."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/s.db", lambda: locked(tmp_path / "s.db")
    server: PostgresServer = request.getfixturevalue("postgresql")
    return server.new_database(), lambda: stopped(server.pid)


def test_sigterm_with_a_frozen_store_ends_within_the_grace_and_the_next_start_writes_the_usage_once(
    freezable: tuple[str, Callable[[], AbstractContextManager[None]]], tmp_path: Path
) -> None:
    url, frozen = freezable
    cache = tmp_path / "cache"
    with running(url, cache) as gateway:
        gateway.wait_until_recorded(3)
        with frozen():
            gateway.good(gateway.plain, gateway.plain)
            began = time.monotonic()
            gateway.server.process.send_signal(signal.SIGTERM)
            assert gateway.server.process.wait(30) == 0
            took_s = time.monotonic() - began
        assert took_s < 2 + 5, "the grace and a few seconds"
        log = gateway.server.log.read_text()
        key_id = gateway.plain.split("-")[1]
        assert f"key {key_id} 2 requests 4 documents 0.000032000 USD" in log
    assert gateway.recorded() == 3
    with running(url, cache) as second:
        second.wait_until_recorded(gateway.answered + second.answered)
    assert list((cache / "usage").iterdir()) == []
