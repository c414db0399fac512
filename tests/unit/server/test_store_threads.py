"""Calls to a store: one time limit for each request, and a breaker that opens by a freeze and closes by itself."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from crossrank.errors import AccountsUnavailable
from crossrank_server.accounts.base import unavailable
from crossrank_server.accounts.threads import StoreThreads, begin_request

Make = Callable[..., StoreThreads]


class FrozenStore:
    """Answers nothing until it is thawed."""

    def __init__(self) -> None:
        self.thawed = threading.Event()
        self.calls = 0

    def call(self) -> str:
        self.calls += 1
        self.thawed.wait(10)
        return "answer"

    def probe(self) -> None:
        if not self.thawed.wait(0.05):
            raise unavailable("frozen")


@pytest.fixture
def store() -> Iterator[FrozenStore]:
    store = FrozenStore()
    yield store
    store.thawed.set()


def threads_of(store: FrozenStore, count: int = 1, timeout_s: float = 0.3) -> StoreThreads:
    return StoreThreads("tests", count, timeout_s=timeout_s, probe=store.probe)


async def test_the_breaker_opens_after_the_time_limit_refuses_at_once_and_closes_by_itself(
    store: FrozenStore, caplog: pytest.LogCaptureFixture
) -> None:
    threads = threads_of(store)
    begin_request(0.3)
    with pytest.raises(AccountsUnavailable, match="the account store does not answer"):
        await threads.run(store.call)
    for _ in range(100):
        with pytest.raises(AccountsUnavailable):
            await threads.run(store.call)
    assert store.calls == 1, "a refused call reached the store"
    store.thawed.set()
    begin_request(5.0)
    give_up_at = time.monotonic() + 10
    while True:
        try:
            assert await threads.run(lambda: 1) == 1
            break
        except AccountsUnavailable:
            assert time.monotonic() < give_up_at
            await asyncio.sleep(0.02)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"], "not a line for each refusal"
    threads.close()


async def test_all_calls_of_a_request_share_its_time(store: FrozenStore) -> None:
    quick, frozen = threads_of(FrozenStore(), timeout_s=5.0), threads_of(store, timeout_s=5.0)
    begin_request(0.4)
    await quick.run(lambda: time.sleep(0.3))
    began = time.monotonic()
    with pytest.raises(AccountsUnavailable):
        await asyncio.create_task(frozen.run(store.call))  # in a task of the same request
    assert time.monotonic() - began < 0.3
    with pytest.raises(AccountsUnavailable):
        await quick.run(lambda: None)
    # Neither store is known to be frozen: this request had no time left, the next one has.
    begin_request(5.0)
    await quick.run(lambda: None)
    quick.close()
    frozen.close()


async def test_a_call_that_nobody_waits_for_is_not_made_and_one_under_way_is_undone(store: FrozenStore) -> None:
    threads = threads_of(store, timeout_s=5.0)
    undone: list[str] = []
    under_way = asyncio.create_task(threads.run(store.call, undone.append))
    waiting = asyncio.create_task(threads.run(store.call, undone.append))
    await asyncio.sleep(0.1)
    for task in (under_way, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    store.thawed.set()
    await threads.run(lambda: None)
    assert (store.calls, undone) == (1, ["answer"])
    threads.close()


async def test_a_full_queue_in_front_of_the_store_is_refused_at_once(
    store: FrozenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crossrank_server.accounts.threads._MAX_WAITING", 3)
    threads = threads_of(store, timeout_s=5.0)
    waiting = [asyncio.create_task(threads.run(store.call)) for _ in range(3)]
    await asyncio.sleep(0.05)
    with pytest.raises(AccountsUnavailable, match="does not answer") as refused:
        await threads.run(lambda: None)
    assert refused.value.reason == "3 calls wait for it"
    store.thawed.set()
    await asyncio.gather(*waiting)
    await threads.run(lambda: None)
    threads.close()


async def test_a_store_that_is_slow_and_answers_is_not_taken_for_frozen(store: FrozenStore) -> None:
    threads = threads_of(store, timeout_s=0.3)

    async def request() -> bool:
        begin_request(0.3)
        try:
            await threads.run(lambda: time.sleep(0.05))
        except AccountsUnavailable as refusal:
            return refusal.reason != "no answer within 0.3 s"
        return True

    answers = await asyncio.gather(*(request() for _ in range(20)))
    # Those at the end of the queue were given up, and no other request was refused for that.
    assert 1 <= sum(answers) < 20
    begin_request(5.0)
    await threads.run(lambda: None)
    threads.close()
