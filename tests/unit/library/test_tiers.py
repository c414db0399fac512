"""The tier `batch` takes cores that are idle, and realtime requests do not notice more than the batch under way."""

from __future__ import annotations

import asyncio
import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crossrank.errors import Overloaded
from crossrank.scheduling.batcher import Batcher
from crossrank.scheduling.cores import Cores
from crossrank.scheduling.passthrough import Passthrough
from tests.unit.library.test_batcher import ArithmeticEngine, expected, pairs


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from(["realtime", "batch"]), st.lists(st.integers(3, 512), min_size=1, max_size=40)),
        min_size=1,
        max_size=12,
    ),
    concurrency=st.integers(1, 4),
    models=st.integers(1, 3),
)
def test_every_request_of_every_tier_gets_its_own_scores_and_cores_are_counted_right(
    requests: list[tuple[str, list[int]]], concurrency: int, models: int
) -> None:
    async def run() -> None:
        cores = Cores()
        batchers = [Batcher(ArithmeticEngine(concurrency), 10_000, 10_000, cores) for _ in range(models)]
        asked = [(pairs(*lengths, seed=i), tier) for i, (tier, lengths) in enumerate(requests)]
        answers = await asyncio.gather(
            *(b.score(batch, tier=tier) for (batch, tier), b in zip(asked, itertools.cycle(batchers), strict=False))
        )
        for (batch, _), answer in zip(asked, answers, strict=True):
            np.testing.assert_array_equal(answer, expected(batch))
        await asyncio.sleep(0)
        assert cores.running == 0

    asyncio.run(run())


def lengths_of(engine: ArithmeticEngine) -> list[set[int]]:
    return [set(batch.lengths.tolist()) for batch in engine.batches]


@pytest.mark.parametrize("concurrency", [1, 2, 4])
async def test_batch_work_takes_every_core_and_no_place_ahead_of_one(concurrency: int) -> None:
    engine = ArithmeticEngine(concurrency, batch_tokens=1000)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    batch = asyncio.ensure_future(batcher.score(pairs(*[100] * 100), tier="batch"))
    await asyncio.sleep(0.01)
    assert engine.under_way == concurrency
    realtime = asyncio.ensure_future(batcher.score(pairs(90)))
    await asyncio.sleep(0.01)
    # It is next for the first core that is free.
    assert engine.under_way == concurrency + 1
    assert lengths_of(engine)[-1] == {90}
    engine.gate.set()
    await asyncio.gather(realtime, batch)
    assert engine.most_under_way <= concurrency + 1


async def test_a_realtime_batch_is_not_filled_up_with_pairs_of_the_batch_tier() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=4096)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    work = [asyncio.ensure_future(batcher.score(pairs(*[50] * 60), tier="batch")) for _ in range(3)]
    work += [asyncio.ensure_future(batcher.score(pairs(49))) for _ in range(6)]
    await asyncio.sleep(0.01)
    engine.gate.set()
    await asyncio.gather(*work)
    assert all(len(lengths) == 1 for lengths in lengths_of(engine))
    # One of the batch tier was under way; then all realtime ones; then the rest.
    order = [lengths.pop() for lengths in lengths_of(engine)]
    assert order[0] == 50
    assert order[1:] == sorted(order[1:])


async def test_the_cores_that_realtime_leaves_idle_do_batch_work_meanwhile() -> None:
    engine = ArithmeticEngine(concurrency=2, batch_tokens=1000)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    realtime = asyncio.ensure_future(batcher.score(pairs(90)))
    batch = asyncio.ensure_future(batcher.score(pairs(*[100] * 40), tier="batch"))
    await asyncio.sleep(0.01)
    assert lengths_of(engine) == [{90}, {100}]
    engine.gate.set()
    await asyncio.gather(realtime, batch)


async def test_the_batch_tier_waits_while_another_model_keeps_the_cores_busy_and_models_take_turns() -> None:
    cores = Cores()
    busy, first, second = (ArithmeticEngine(concurrency=1, batch_tokens=100) for _ in range(3))
    batchers = [Batcher(engine, 1000, 1000, cores) for engine in (busy, first, second)]
    busy.gate.clear()
    realtime = asyncio.ensure_future(batchers[0].score(pairs(90)))
    await asyncio.sleep(0.01)
    order: list[str] = []
    for engine, name in ((first, "first"), (second, "second")):
        engine.batches = Named(order, name)  # type: ignore[assignment]
    work = [asyncio.ensure_future(batcher.score(pairs(*[100] * 5), tier="batch")) for batcher in batchers[1:]]
    await asyncio.sleep(0.01)
    assert order == []
    busy.gate.set()
    await asyncio.gather(realtime, *work)
    assert order == ["first", "second"] * 5


class Named(list):  # type: ignore[type-arg]
    def __init__(self, order: list[str], name: str) -> None:
        self.order, self.name = order, name

    def append(self, _: object) -> None:
        self.order.append(self.name)


async def test_a_realtime_text_that_is_tokenized_takes_a_core_and_goes_first_when_it_is_ready() -> None:
    cores = Cores()
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100)
    batcher = Batcher(engine, 1000, 1000, cores)
    with cores.tokenizing("realtime"):
        batch = asyncio.ensure_future(batcher.score(pairs(*[100] * 3), tier="batch"))
        await asyncio.sleep(0.01)
        assert engine.batches == []
    await batcher.score(pairs(90))
    await batch
    assert lengths_of(engine) == [{90}, {100}, {100}, {100}]


async def test_batch_work_goes_on_after_a_realtime_text_that_could_not_be_tokenized() -> None:
    cores = Cores()
    batcher = Batcher(ArithmeticEngine(concurrency=1), 1000, 1000, cores)
    with contextlib.suppress(ValueError), cores.tokenizing("realtime"):
        batch = asyncio.ensure_future(batcher.score(pairs(9), tier="batch"))
        await asyncio.sleep(0.01)
        raise ValueError
    with cores.tokenizing("batch"):
        np.testing.assert_array_equal(await asyncio.wait_for(batch, 10), expected(pairs(9)))


async def test_waiting_batch_work_takes_no_place_of_realtime_work() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100)
    batcher = Batcher(engine, 10, 20)
    engine.gate.clear()
    work = [asyncio.ensure_future(batcher.score(pairs(*[100] * 20), tier="batch"))]
    await asyncio.sleep(0)
    with pytest.raises(
        Overloaded, match=r"19 documents wait and this request adds 5; the queue of tier batch holds 20"
    ) as refused:
        await batcher.score(pairs(*[100] * 5), tier="batch")
    assert refused.value.retry_after_s == 5.0
    work.append(asyncio.ensure_future(batcher.score(pairs(*[100] * 10))))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded, match=r"the queue of tier realtime holds 10"):
        await batcher.score(pairs(*[100] * 5))
    engine.gate.set()
    await asyncio.gather(*work)


async def test_a_small_batch_job_does_not_wait_for_a_large_one() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=1000)
    batcher = Batcher(engine, 10_000)
    large = asyncio.ensure_future(batcher.score(pairs(*[100] * 1000), tier="batch"))
    await asyncio.sleep(0)
    await batcher.score(pairs(37), tier="batch")
    assert len(engine.batches) <= 3
    assert not large.done()
    await large


async def test_cancelled_batch_jobs_leave_nothing_behind() -> None:
    engine = ArithmeticEngine(concurrency=1, batch_tokens=100)
    batcher = Batcher(engine, 1000)
    engine.gate.clear()
    cancelled = asyncio.ensure_future(batcher.score(pairs(*[100] * 50), tier="batch"))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.sleep(0.01)
    engine.gate.set()
    await batcher.score(pairs(5), tier="batch")
    assert lengths_of(engine) == [{100}, {5}]


async def test_triton_gets_batch_work_only_while_no_realtime_request_is_under_way() -> None:
    engine = ArithmeticEngine()
    passthrough = Passthrough(engine, 1000, 1000)
    engine.gate.clear()
    realtime = asyncio.ensure_future(passthrough.score(pairs(90)))
    await asyncio.sleep(0)
    batch = [asyncio.ensure_future(passthrough.score(pairs(*[100 + i] * 100), tier="batch")) for i in range(5)]
    await asyncio.sleep(0.01)
    assert lengths_of(engine) == [{90}]
    realtime.cancel()
    await asyncio.sleep(0.01)
    # A limited number of pairs, first come, first served.
    assert lengths_of(engine) == [{90}, {100}, {101}]
    another = asyncio.ensure_future(passthrough.score(pairs(91)))
    await asyncio.sleep(0)
    assert lengths_of(engine)[-1] == {91}
    batch[2].cancel()
    engine.gate.set()
    stages: dict[str, float] = {}
    await passthrough.score(pairs(30), tier="batch", stages_s=stages)
    assert stages.keys() == {"queue", "inference"}
    await asyncio.gather(another, *batch[:2], *batch[3:])
    assert [lengths.pop() for lengths in lengths_of(engine)] == [90, 100, 101, 91, 103, 104, 30]
    np.testing.assert_array_equal(batch[4].result(), expected(pairs(*[104] * 100)))


async def test_triton_is_given_a_large_batch_request_alone_and_its_own_limit_holds() -> None:
    engine = ArithmeticEngine()
    passthrough = Passthrough(engine, 10, 500)
    engine.gate.clear()
    work = [asyncio.ensure_future(passthrough.score(pairs(*[9] * size), tier="batch")) for size in (300, 100)]
    await asyncio.sleep(0.01)
    assert [len(batch) for batch in engine.batches] == [300]
    with pytest.raises(
        Overloaded, match=r"400 documents are under way and this request adds 101; the queue of tier batch holds 500"
    ):
        await passthrough.score(pairs(*[9] * 101), tier="batch")
    work.append(asyncio.ensure_future(passthrough.score(pairs(*[9] * 10))))
    await asyncio.sleep(0)
    engine.gate.set()
    await asyncio.gather(*work)
    assert [len(batch) for batch in engine.batches] == [300, 10, 100]
