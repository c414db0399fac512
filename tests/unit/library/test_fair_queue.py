"""Whatever load others bring: small requests stay quick, large ones finish, and waiting is bounded. In simulated time."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from numpy.typing import NDArray

from crossrank.errors import Overloaded
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import Batcher
from crossrank.scheduling.fair_queue import LEAST_SHARE, size_of
from tests.simulated_time import simulate

CORES = 2
TOKENS_PER_S = 100_000.0  # of a core
CALL_S = 0.0002
DOCUMENT = 100
# Of a model so slow that few requests overload it.
SLOW_TOKENS_PER_S = 10_000.0
# One document alone on an idle engine.
IDLE_S = CALL_S + DOCUMENT / TOKENS_PER_S


class SimulatedEngine:
    """Takes the time that a CPU engine takes, on two cores, first come first served."""

    name = "simulated"
    precision = "fp32"
    concurrency = CORES
    batch_tokens = 2048
    call_tokens = 0
    row_step = 4

    def __init__(self, pads: bool = False, tokens_per_s: float = TOKENS_PER_S) -> None:
        self.pads = pads
        self.tokens_per_s = tokens_per_s
        self.tokens = 0
        self._cores = asyncio.Semaphore(CORES)

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        async with self._cores:
            await asyncio.sleep(CALL_S + self.padded_tokens(batch) / self.tokens_per_s)
        self.tokens += len(batch.input_ids)
        return np.zeros(len(batch), np.float32)

    def padded_tokens(self, batch: PairBatch) -> int:
        return int(batch.lengths.max()) * len(batch) if self.pads else len(batch.input_ids)

    def ready(self) -> bool:
        return True

    async def close(self) -> None: ...


def pairs(documents: int) -> PairBatch:
    ids = np.zeros(documents * DOCUMENT, np.int32)
    return PairBatch(ids, ids, np.arange(documents + 1, dtype=np.int64) * DOCUMENT)


class Load:
    """What callers of one kind noticed.

    Attributes:
        seconds: Of each answer.
        refused: Seconds after which each refusal came.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.refused: list[float] = []

    async def ask(self, batcher: Batcher, documents: int) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            await batcher.score(pairs(documents))
            self.seconds.append(loop.time() - began)
        except Overloaded as error:
            self.refused.append(loop.time() - began)
            await asyncio.sleep(error.retry_after_s or 0.0)

    async def closed(self, batcher: Batcher, documents: int, until_s: float) -> None:
        """Ask again as soon as answered."""
        while asyncio.get_running_loop().time() < until_s:
            await self.ask(batcher, documents)

    async def open(self, batcher: Batcher, documents: int, until_s: float, a_second: float, seed: int = 1) -> None:
        """Ask at random times, whether answered or not."""
        rng = random.Random(seed)
        asked = []
        while asyncio.get_running_loop().time() < until_s:
            await asyncio.sleep(rng.expovariate(a_second))
            asked.append(asyncio.ensure_future(self.ask(batcher, documents)))
        await asyncio.gather(*asked)

    def quantile(self, share: float) -> float:
        return float(np.quantile(self.seconds, share))


@pytest.mark.parametrize(
    ("clients", "documents", "pads"),
    [(1, 1000, False), (12, 1000, False), (12, 1000, True), (64, 20, False), (400, 50, True)],
)
def test_small_requests_stay_within_ten_times_idle_at_any_load_of_large_ones(
    monkeypatch: pytest.MonkeyPatch, clients: int, documents: int, pads: bool
) -> None:
    small, large = Load(), Load()

    async def run() -> None:
        batcher = Batcher(SimulatedEngine(pads), 1_000_000)
        heavy = [large.closed(batcher, documents, 4.0) for _ in range(clients)]
        await asyncio.gather(small.open(batcher, 1, 4.0, a_second=60), *heavy)

    simulate(run(), monkeypatch)
    assert len(small.seconds) > 150
    assert small.quantile(0.99) < 10 * IDLE_S
    assert len(large.seconds) >= clients
    assert not small.refused + large.refused


def test_large_requests_get_their_share_while_small_ones_overload_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = Load(), Load()

    async def run() -> None:
        batcher = Batcher(SimulatedEngine(tokens_per_s=SLOW_TOKENS_PER_S), 1_000_000, max_queue_s=1.0, timeout_s=60.0)
        five_times = 5 * CORES * SLOW_TOKENS_PER_S / DOCUMENT
        await asyncio.gather(
            small.open(batcher, 1, 4.0, a_second=five_times), *(large.closed(batcher, 20, 4.0) for _ in range(4))
        )

    simulate(run(), monkeypatch)
    # No less than a class is owed: 20 documents are 2,000 tokens, which take 0.1 s alone.
    assert len(large.seconds) * 20 * DOCUMENT > 0.9 * LEAST_SHARE * 4.0 * CORES * SLOW_TOKENS_PER_S
    assert max(large.seconds) < 5.0


def test_overload_of_small_requests_is_refused_by_the_time_they_would_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    small = Load()
    engines = []

    async def run() -> None:
        engines.append(SimulatedEngine(tokens_per_s=SLOW_TOKENS_PER_S))
        batcher = Batcher(engines[0], 1_000_000, max_queue_s=0.5)
        await small.open(batcher, 1, 5.0, a_second=5 * CORES * SLOW_TOKENS_PER_S / DOCUMENT)

    simulate(run(), monkeypatch)
    # No answer waits longer than the bound (the rate is not known for the first tenth of a second), refusals come at
    # once, and the engine is kept as busy as it can be.
    late = [seconds for seconds in small.seconds if seconds > 0.6]
    assert len(late) < 0.02 * len(small.seconds)
    assert max(small.seconds) < 1.5
    assert set(small.refused) == {0.0}
    assert engines[0].tokens > 0.85 * 5.0 * CORES * SLOW_TOKENS_PER_S


def test_a_refusal_says_the_wait_and_what_may_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        batcher = Batcher(SimulatedEngine(), 1_000_000, max_queue_s=0.5, timeout_s=2.0)
        # A backlog of five seconds, whose rate is known after one.
        waiting = [asyncio.ensure_future(batcher.score(pairs(10))) for _ in range(1000)]
        await asyncio.sleep(1.0)
        with pytest.raises(
            Overloaded, match=r"take 4\.\d s, and this one may wait 0\.5 s: try again in 4 s"
        ) as refused:
            await batcher.score(pairs(10))
        assert refused.value.retry_after_s == 5.0
        # A smaller request than those that wait goes before them.
        await batcher.score(pairs(1))
        # A request that takes 0.5 s itself may wait longer, but has to be answered within two seconds.
        with pytest.raises(Overloaded, match=r"this one may wait 1\.\d s"):
            await batcher.score(pairs(1000))
        await asyncio.gather(*waiting)
        # Nothing waits: a request that takes longer than its deadline is tried all the same.
        await batcher.score(pairs(5000))

    simulate(run(), monkeypatch)


def test_requests_of_a_size_are_served_in_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[int] = []

    async def run() -> None:
        batcher = Batcher(SimulatedEngine(), 1_000_000)

        async def ask(number: int) -> None:
            await batcher.score(pairs(50 + number % 3))
            done.append(number)

        await asyncio.gather(*map(ask, range(40)))

    simulate(run(), monkeypatch)
    late = [abs(place - number) for place, number in enumerate(done)]
    assert max(late) <= CORES + 1


@pytest.mark.parametrize("load", [(8, 0, 0), (2, 2, 2)], ids=str)
def test_every_size_finishes_beside_every_mix(monkeypatch: pytest.MonkeyPatch, load: tuple[int, ...]) -> None:
    """The largest requests of all, beside many clients that never stop."""
    largest = Load()

    async def run() -> None:
        batcher = Batcher(SimulatedEngine(tokens_per_s=SLOW_TOKENS_PER_S), 1_000_000)
        noise = _closed(batcher, zip(load, (1, 10, 100), strict=True), 20.0)
        await asyncio.gather(largest.closed(batcher, 700, 6.0), *noise)

    simulate(run(), monkeypatch)
    # 700 documents alone take 3.5 s.
    assert max(largest.seconds) < 3.5 / LEAST_SHARE


def _closed(batcher: Batcher, kinds: Iterable[tuple[int, int]], until_s: float) -> list[asyncio.Future[None]]:
    load = Load()
    start: Callable[[int], asyncio.Future[None]] = lambda documents: asyncio.ensure_future(  # noqa: E731
        load.closed(batcher, documents, until_s)
    )
    return [start(documents) for clients, documents in kinds for _ in range(clients)]


def test_size_classes_grow_fourfold() -> None:
    assert [size_of(tokens) for tokens in (0, 1, 256, 257, 1024, 1025, 4096, 16_384, 65_536, 65_537, 1 << 40)] == [
        *[0] * 3, *[1] * 2, *[2] * 2, 3, 4, *[5] * 2
    ]  # fmt: skip
