"""Requests share batches, and each gets its own scores back."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from crossrank.errors import EngineFailure, Overloaded
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import Batcher


class ArithmeticEngine:
    """Scores a pair with a number that depends on all its tokens, so that a mix-up cannot go unseen."""

    name = "arithmetic"
    precision = "fp32"

    def __init__(self, concurrency: int = 2, batch_tokens: int = 256, pads: bool = True, call_tokens: int = 0) -> None:
        self.concurrency = concurrency
        self.batch_tokens = batch_tokens
        self.call_tokens = call_tokens
        self.pads = pads
        self.row_step = 4
        self.batches: list[PairBatch] = []
        self.under_way = self.most_under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def score(self, batch: PairBatch) -> NDArray[np.float32]:
        self.batches.append(batch)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.under_way -= 1
        return expected(batch)

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def ready(self) -> bool:
        return True

    async def close(self) -> None: ...


def expected(batch: PairBatch) -> NDArray[np.float32]:
    spans = [slice(a, b) for a, b in zip(batch.offsets[:-1], batch.offsets[1:], strict=True)]
    return np.array(
        [batch.input_ids[s] @ (1 + np.arange(s.stop - s.start)) + batch.token_type_ids[s].sum() for s in spans],
        np.float32,
    )


def pairs(*lengths: int, seed: int = 0) -> PairBatch:
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    return PairBatch(
        rng.integers(0, 1000, total).astype(np.int32),
        rng.integers(0, 2, total).astype(np.int32),
        np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
    )


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.lists(st.integers(3, 512), min_size=1, max_size=40), min_size=1, max_size=12),
    concurrency=st.integers(1, 4),
    batch_tokens=st.sampled_from([1, 128, 4096]),
    pads=st.booleans(),
)
def test_every_request_gets_its_own_scores_in_order(
    requests: list[list[int]], concurrency: int, batch_tokens: int, pads: bool
) -> None:
    async def run() -> None:
        engine = ArithmeticEngine(concurrency, batch_tokens, pads)
        batcher = Batcher(engine, 10_000)
        batches = [pairs(*lengths, seed=i) for i, lengths in enumerate(requests)]
        answers = await asyncio.gather(*(batcher.score(batch) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            np.testing.assert_array_equal(answer, expected(batch))
        assert engine.most_under_way <= concurrency + max(1, concurrency // 2)
        assert sum(len(batch) for batch in engine.batches) == sum(map(len, requests))

    asyncio.run(run())


async def test_small_requests_are_merged_while_the_engine_is_busy() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=4096)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    waiting = [asyncio.ensure_future(batcher.score(pairs(20, seed=i))) for i in range(30)]
    await asyncio.sleep(0.01)
    engine.gate.set()
    await asyncio.gather(*waiting)
    # One runs, one is ready to follow, and all that came meanwhile are together.
    assert [len(batch) for batch in engine.batches] == [1, 1, 28]


async def test_a_batch_stays_within_the_token_budget_and_a_narrow_range_of_lengths() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=1024)
    lengths = np.random.default_rng(1).integers(10, 300, 200).tolist()
    await Batcher(engine, 1000).score(pairs(*lengths))
    for batch in engine.batches:
        longest = int(batch.lengths.max())
        assert longest * len(batch) <= 1024 or len(batch) == 1
        assert batch.lengths.min() >= int(longest * 0.75)


async def test_an_engine_that_does_not_pad_gets_documents_of_all_lengths_until_the_budget_is_spent() -> None:
    engine = ArithmeticEngine(concurrency=2, batch_tokens=2000, pads=False)
    await Batcher(engine, 1000).score(pairs(*[10, 500] * 50))
    for batch in engine.batches:
        # The last one taken may reach over: a remainder of a few tokens would be a batch of its own.
        assert int(batch.lengths[1:].sum()) < 2000
        assert {10, 500} == set(batch.lengths.tolist())
    # Towards the end they shrink, so that both cores are done together.
    sizes = [len(batch.input_ids) for batch in engine.batches]
    assert sizes[-1] < sizes[0] / 2
    assert min(sizes) >= 512


@pytest.mark.parametrize("pads", [True, False])
async def test_one_request_alone_is_spread_over_all_cores(pads: bool) -> None:
    engine = ArithmeticEngine(concurrency=2, batch_tokens=100_000, pads=pads)
    await Batcher(engine, 1000).score(pairs(*[100] * 100))
    assert engine.most_under_way == 2
    assert [len(batch) for batch in engine.batches] == ([52, 48] if pads else [50, 50])


@pytest.mark.parametrize(
    ("call_tokens", "sizes"),
    [
        (0, [12, 48, 40]),  # similar lengths only
        (2000, [12, 88]),  # the padding of the shortest is worth less than a call, that of all but the longest is not
        (7000, [100]),  # that of all of them
    ],
)
async def test_padding_is_cheaper_than_a_call_where_the_engine_says_so(call_tokens: int, sizes: list[int]) -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100_000, call_tokens=call_tokens)
    batch = pairs(*[20] * 40, *[60] * 48, *[120] * 12)
    np.testing.assert_array_equal(await Batcher(engine, 1000).score(batch), expected(batch))
    assert [len(batch) for batch in engine.batches] == sizes


async def test_a_batch_is_not_halved_for_less_than_two_calls() -> None:
    for call_tokens, sizes in ((0, [52, 48]), (3000, [60, 40]), (5000, [100])):
        engine = ArithmeticEngine(concurrency=2, batch_tokens=100_000, call_tokens=call_tokens)
        await Batcher(engine, 1000).score(pairs(*[100] * 100))
        assert [len(batch) for batch in engine.batches] == sizes


async def test_a_single_document_does_not_wait_for_a_thousand() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=1000)
    batcher = Batcher(engine, 10_000)
    large = asyncio.ensure_future(batcher.score(pairs(*[100] * 1000)))
    await asyncio.sleep(0)
    small = asyncio.ensure_future(batcher.score(pairs(37)))
    await small
    assert len(engine.batches) <= 4
    assert not large.done()
    await large


async def test_the_waiting_pairs_of_a_cancelled_request_are_dropped() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    cancelled = asyncio.ensure_future(batcher.score(pairs(*[100] * 50)))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    kept = pairs(20, 30, seed=2)
    waiting = asyncio.ensure_future(batcher.score(kept))
    await asyncio.sleep(0.01)
    engine.gate.set()
    np.testing.assert_array_equal(await waiting, expected(kept))
    assert sum(len(batch) for batch in engine.batches) == 4


async def test_a_request_over_the_queue_is_refused_with_a_time_to_retry() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100)
    batcher = Batcher(engine, 10)
    engine.gate.clear()
    first = asyncio.ensure_future(batcher.score(pairs(*[100] * 10)))
    await asyncio.sleep(0)
    with pytest.raises(
        Overloaded, match=r"8 documents wait and this request adds 3; the queue of tier realtime holds 10"
    ) as refused:
        await batcher.score(pairs(5, 5, 5))
    assert refused.value.retry_after_s == 1.0
    engine.gate.set()
    np.testing.assert_array_equal(await first, expected(pairs(*[100] * 10)))


async def test_an_engine_that_raises_fails_only_the_requests_in_its_batch() -> None:
    class Broken(ArithmeticEngine):
        async def score(self, batch: PairBatch) -> NDArray[np.float32]:
            if batch.lengths.max() == 77:
                raise EngineFailure("out of order")
            return await super().score(batch)

    batcher = Batcher(Broken(concurrency=1, batch_tokens=50), 1000)
    good = pairs(10, 20, 30)
    answers = await asyncio.gather(batcher.score(good), batcher.score(pairs(77, 5)), return_exceptions=True)
    np.testing.assert_array_equal(answers[0], expected(good))
    assert isinstance(answers[1], EngineFailure)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
async def test_a_score_that_is_not_finite_is_an_engine_failure(value: float) -> None:
    class Nonsense(ArithmeticEngine):
        async def score(self, batch: PairBatch) -> NDArray[np.float32]:
            return np.where(batch.lengths == 13, np.float32(value), await super().score(batch))

    batcher = Batcher(Nonsense(concurrency=1, batch_tokens=10_000), 1000)
    good = pairs(12, 12)
    answers = await asyncio.gather(batcher.score(good), batcher.score(pairs(13)), return_exceptions=True)
    np.testing.assert_array_equal(answers[0], expected(good))
    assert isinstance(answers[1], EngineFailure)


async def test_a_wrong_number_of_scores_is_an_engine_failure_and_never_a_score() -> None:
    class Miscounting(ArithmeticEngine):
        async def score(self, batch: PairBatch) -> NDArray[np.float32]:
            return (await super().score(batch))[:1]

    batcher = Batcher(Miscounting(), 100)
    with pytest.raises(EngineFailure, match="scores for"):
        await asyncio.wait_for(batcher.score(pairs(3, 4, 5)), 5)
