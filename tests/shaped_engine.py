"""What every engine of prepared shapes on a GPU keeps: the same scores for all threads, streams and batches."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossrank.engines.shaped import ShapedEngine
from crossrank.packed import PairBatch, take_pairs


def check_threads(engine: ShapedEngine, batches: Sequence[PairBatch]) -> None:
    """Check that each of four threads that share an engine gets the scores of its own batches."""
    expected = [engine.infer(batch) for batch in batches]
    found: dict[int, NDArray[np.float32]] = {}

    def work(number: int) -> None:
        for i in range(number, len(batches), 4):
            found[i] = engine.infer(batches[i])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, logits in enumerate(expected):
        np.testing.assert_array_equal(found[i], logits)


def check_batches(engine: ShapedEngine, batch: PairBatch, limit: float) -> None:
    """Check that logits differ by at most `limit` between a batch and its pairs alone, or some of them."""
    together = engine.infer(batch)
    some = np.random.default_rng(0).permutation(len(batch))[:40]
    for i in some:
        assert abs(engine.infer(take_pairs(batch, np.array([i])))[0] - together[i]) <= limit
    np.testing.assert_allclose(engine.infer(take_pairs(batch, some)), together[some], atol=limit)


def check_streams(engine: ShapedEngine, batch: PairBatch) -> None:
    """Check that logits are the same bits on whichever stream a part of 600 pairs is computed."""
    parts = [take_pairs(batch, np.arange(first, first + 30)) for first in range(0, 600, 30)]
    expected = [engine.infer(part) for part in parts]

    async def score() -> list[NDArray[np.float32]]:
        return await asyncio.gather(*[engine.score(part) for part in parts * 3])

    for logits, first in zip(asyncio.run(score()), expected * 3, strict=True):
        np.testing.assert_array_equal(logits, first)
