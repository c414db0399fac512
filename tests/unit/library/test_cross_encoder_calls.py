"""Many callers of one CrossEncoder: threads and event loops share batches, and nobody waits for what is not theirs."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from crossrank import CrossEncoder
from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.select import make_engine
from crossrank.errors import EngineFailure, InvalidInput
from crossrank.native.library import NativeContext, usable_kernels
from crossrank.packed import PairBatch
from crossrank.scheduling.background import BackgroundBatcher
from crossrank.text.encoding import PairEncoder

QUERY = "how many people live in Berlin"
DOCUMENTS = [f"document {i} of the city, {'with more words ' * (i % 5)}and its {i * 7} people" for i in range(300)]
PAIRS = [(QUERY, document) for document in DOCUMENTS]


@pytest.fixture(scope="module")
def encoder() -> Iterator[CrossEncoder]:
    with CrossEncoder("builtin", precision="fp32", threads=2) as encoder:
        yield encoder


@pytest.fixture(scope="module")
def alone(encoder: CrossEncoder) -> Any:
    return np.array([encoder.predict(pair) for pair in PAIRS])


def same(encoder: CrossEncoder, scores: Any, expected: Any) -> bool:
    """Tell whether scores are equal: to the last bit with engine native, which pads nothing."""
    return np.array_equal(scores, expected) if encoder.engine == "native" else np.allclose(scores, expected, atol=1e-6)


def test_threads_get_the_scores_that_they_would_get_alone(encoder: CrossEncoder, alone: Any) -> None:
    together = threading.Barrier(16)

    def call(number: int) -> list[bool]:
        together.wait(30)
        results = []
        for turn in range(8):
            chosen = range(number, len(PAIRS), 16 * (turn + 1))
            results.append(same(encoder, encoder.predict([PAIRS[i] for i in chosen]), alone[list(chosen)]))
            results.append(same(encoder, encoder.predict(PAIRS[number + turn]), alone[number + turn]))
        ranks = encoder.rank(QUERY, DOCUMENTS[:40])
        results.append(same(encoder, [ranks[i]["score"] for i in range(40)], sorted(alone[:40], reverse=True)))
        return results

    with ThreadPoolExecutor(16) as pool:
        assert all(all(results) for results in pool.map(call, range(16)))


async def test_event_loops_and_threads_share_one(encoder: CrossEncoder, alone: Any) -> None:
    parts = [slice(start, start + 30) for start in range(0, 300, 30)]
    in_threads = [asyncio.to_thread(encoder.predict, PAIRS[part]) for part in parts]
    in_loop = [encoder.apredict(PAIRS[part]) for part in parts]
    scores = await asyncio.gather(*in_threads, *in_loop)
    for part, own in zip(parts * 2, scores, strict=True):
        assert same(encoder, own, alone[part])
    results = await asyncio.gather(*(encoder.arank(QUERY, DOCUMENTS[part], top_k=3) for part in parts))
    assert results == [encoder.rank(QUERY, DOCUMENTS[part], top_k=3) for part in parts]


async def test_async_calls_return_what_the_others_do(encoder: CrossEncoder, alone: Any) -> None:
    single = await encoder.apredict(PAIRS[0])
    assert isinstance(single, np.float32)
    assert same(encoder, single, alone[0])
    assert same(encoder, await encoder.apredict(iter(PAIRS[:20])), alone[:20])
    assert (await encoder.apredict([])).shape == (0,)
    assert await encoder.arank(QUERY, []) == []
    details = await encoder.apredict(PAIRS[:3], return_details=True)
    assert details.truncated.tolist() == [False] * 3
    with pytest.warns(DeprecationWarning, match="sentences"):
        assert same(encoder, await encoder.apredict(sentences=PAIRS[:3]), alone[:3])


async def test_the_event_loop_goes_on_while_texts_are_tokenized_and_scored(encoder: CrossEncoder) -> None:
    # A long activation stands for long work in whatever thread it is called: the loop must not be that thread.
    released = threading.Event()
    threads = []

    def activation(logits: Any) -> Any:
        threads.append(threading.current_thread())
        assert released.wait(60)
        return logits

    call = asyncio.ensure_future(encoder.apredict(PAIRS, activation_fn=activation))
    turns = 0
    while not threads:
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 1
    assert not call.done()
    released.set()
    assert (await call).shape == (300,)
    assert threads[0] is not threading.current_thread()


async def test_the_event_loop_goes_on_while_a_copy_opens_its_model(encoder: CrossEncoder, alone: Any) -> None:
    copy = pickle.loads(pickle.dumps(encoder))
    calls = [
        asyncio.ensure_future(copy.apredict(PAIRS[:3])),
        asyncio.ensure_future(copy.arank("who lives here", ["people", "a cat"])),
    ]
    # Opening takes hundreds of milliseconds; what is scored, two or three.
    turns = 0
    while not any(call.done() for call in calls):
        turns += 1
        await asyncio.sleep(0.001)
    assert turns > 20
    assert same(encoder, await calls[0], alone[:3])
    assert len(await calls[1]) == 2
    await copy.aclose()


async def test_a_cancelled_call_leaves_the_queue(builtin: Bundle) -> None:
    with CrossEncoder("builtin", precision="fp32", threads=1) as encoder:
        big = asyncio.ensure_future(encoder.apredict(PAIRS * 100))
        await asyncio.sleep(0.05)
        big.cancel()
        with pytest.raises(asyncio.CancelledError):
            await big
        # Closing waits for what is under way: no more than a batch.
        assert (await encoder.apredict(PAIRS[:2])).shape == (2,)


@pytest.fixture
def native(builtin: Bundle) -> Iterator[tuple[BackgroundBatcher, PairEncoder, list[int]]]:
    if not usable_kernels():
        pytest.skip("the native encoder was not built: no C++ compiler")
    engine = make_engine(builtin, "auto", "fp32", threads=1)
    sizes: list[int] = []
    background = BackgroundBatcher(engine, on_batch=lambda batch, _: sizes.append(len(batch)))
    yield background, PairEncoder(builtin), sizes
    background.close()


def test_calls_that_wait_are_scored_together(native: tuple[BackgroundBatcher, PairEncoder, list[int]]) -> None:
    background, encoder, sizes = native
    batches = [encoder.encode(QUERY, [document]).batch for document in DOCUMENTS[:24]]
    expected = [background.score(batch) for batch in batches]
    assert sizes == []  # a small batch is scored at once while nothing else is under way
    waiting, released = threading.Event(), threading.Event()

    async def occupy() -> None:
        waiting.set()
        released.wait(60)  # it is the loop that is kept from running

    occupied = background.start(occupy())
    assert waiting.wait(60)
    futures = [background.start(background.merge(batch)) for batch in batches]
    released.set()
    scores = [future.result(60) for future in futures]
    occupied.result(60)
    assert np.array_equal(scores, expected)
    assert sum(sizes) == 24
    assert len(sizes) < 8


def test_a_small_batch_does_not_go_ahead_of_those_that_wait(
    native: tuple[BackgroundBatcher, PairEncoder, list[int]],
) -> None:
    background, encoder, sizes = native
    long = encoder.encode(QUERY, DOCUMENTS).batch
    short = encoder.encode(QUERY, DOCUMENTS[:1]).batch
    future = background.start(background.merge(long))
    assert np.isfinite(background.score(short)).all()
    future.result(60)
    assert sum(sizes) in (300, 301)


# --- failures ---------------------------------------------------------------------------------------------------


class Failing:
    """An engine of the seam that fails once it is told to."""

    name, precision = "failing", "fp32"
    concurrency, batch_tokens, call_tokens, pads, row_step = 1, 2048, 0, False, 4

    def __init__(self) -> None:
        self.answer: Any = EngineFailure("it broke")

    def padded_tokens(self, batch: PairBatch) -> int:
        return len(batch.input_ids)

    def infer(self, batch: PairBatch) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.full(len(batch), self.answer, np.float32)

    async def score(self, batch: PairBatch) -> Any:
        return self.infer(batch)

    def ready(self) -> bool:
        return True

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("documents", [1, 100], ids=["small", "large"])
def test_a_failure_of_the_engine_reaches_the_caller_and_nobody_else(builtin: Bundle, documents: int) -> None:
    engine: Any = Failing()
    background = BackgroundBatcher(engine)
    batch = PairEncoder(builtin).encode(QUERY, DOCUMENTS[:documents]).batch
    with pytest.raises(EngineFailure, match="it broke"):
        background.score(batch)
    engine.answer = np.nan
    with pytest.raises(EngineFailure, match="not a finite number"):
        background.score(batch)
    engine.answer = 1.0
    assert background.score(batch).tolist() == [1.0] * documents
    background.close()


async def test_an_error_in_one_call_is_not_anothers(encoder: CrossEncoder, alone: Any) -> None:
    def broken(_: Any) -> Any:
        raise KeyError("mine")

    calls = [
        encoder.apredict(PAIRS[:50]),
        encoder.apredict([("a", None)]),  # type: ignore[list-item]
        encoder.apredict(PAIRS[:5], activation_fn=broken),
        encoder.apredict(PAIRS[50:100]),
    ]
    first, second, third, fourth = await asyncio.gather(*calls, return_exceptions=True)
    assert same(encoder, first, alone[:50])
    assert isinstance(second, InvalidInput)
    assert isinstance(third, KeyError)
    assert same(encoder, fourth, alone[50:100])


# --- closing ----------------------------------------------------------------------------------------------------


async def test_a_closed_encoder_says_so() -> None:
    async with CrossEncoder("builtin", precision="fp32") as encoder:
        encoder.predict(PAIRS[:2])
    encoder.close()
    await encoder.aclose()
    for call in (lambda: encoder.predict(PAIRS[0]), lambda: encoder.rank(QUERY, ["a"]), lambda: encoder.max_length):
        with pytest.raises(RuntimeError, match="builtin is closed: open it with a new CrossEncoder"):
            call()
    with pytest.raises(RuntimeError, match="is closed"):
        await encoder.apredict(PAIRS[0])


def test_close_waits_for_the_calls_under_way() -> None:
    encoder = CrossEncoder("builtin", precision="fp32", threads=2)
    started, released, closed = threading.Event(), threading.Event(), threading.Event()

    class Held(str):
        def isascii(self) -> bool:
            started.set()
            assert released.wait(60)
            return super().isascii()

    async def call() -> Any:
        return await encoder.apredict([*PAIRS[1:], ("q", Held("d"))])

    with ThreadPoolExecutor(2) as pool:
        scores = pool.submit(asyncio.run, call())
        assert started.wait(60)
        closing = pool.submit(lambda: (encoder.close(), closed.set()))
        time.sleep(0.05)
        assert not closed.is_set()
        released.set()
        assert scores.result(60).shape == (300,)
        closing.result(60)
    with pytest.raises(RuntimeError, match="is closed"):
        encoder.predict(PAIRS[0])


def crossrank_threads() -> Counter[str]:
    return Counter(thread.name for thread in threading.enumerate() if thread.name.startswith("crossrank-"))


def engines() -> int:
    return sum(issubclass(type(each), EmbeddedEngine) for each in gc.get_objects())


def test_an_encoder_that_nobody_holds_leaves_no_thread_and_no_engine() -> None:
    gc.collect()
    threads, loaded = crossrank_threads(), engines()
    encoder = CrossEncoder("builtin", precision="fp32", threads=1)
    encoder.predict(PAIRS)
    assert "crossrank-batches" in crossrank_threads() - threads
    assert engines() == loaded + 1
    del encoder
    deadline = time.monotonic() + 30
    while crossrank_threads() != threads or engines() != loaded:
        assert time.monotonic() < deadline, crossrank_threads()
        time.sleep(0.01)
        gc.collect()


def test_one_caller_with_one_pair_at_a_time_needs_no_loop() -> None:
    before = crossrank_threads()
    encoder = CrossEncoder("builtin", precision="fp32", threads=1)
    encoder.predict(PAIRS[0])
    assert "crossrank-batches" not in crossrank_threads() - before
    encoder.close()
    assert crossrank_threads() == before


def test_threads_that_called_once_keep_no_buffers() -> None:
    if not usable_kernels():
        pytest.skip("the native encoder was not built: no C++ compiler")

    def contexts() -> int:
        gc.collect()
        return sum(type(each) is NativeContext for each in gc.get_objects())

    before = contexts()
    together = threading.Barrier(12)

    def call(pair: Any) -> Any:
        together.wait(30)  # each in a thread of its own
        return encoder.predict(pair)

    with (
        CrossEncoder("builtin", precision="fp32", engine="native", threads=1) as encoder,
        ThreadPoolExecutor(12) as pool,
    ):
        list(pool.map(call, PAIRS[:12]))
        # One for the calling thread whose turn it is, one for the engine's own.
        assert contexts() - before <= 2
