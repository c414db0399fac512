"""Compute the logits of texts with a model in memory, for threads and event loops."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.cross_encoder.inputs import Group
from crossrank.cross_encoder.results import Scored
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.request import Truncation
from crossrank.scheduling.background import BackgroundBatcher
from crossrank.text.encoding import EncodedPairs, PairEncoder

Result = TypeVar("Result")

# Pairs and characters tokenized at a time: this bounds memory, and scoring begins before all texts are tokenized.
_PART_PAIRS = 1024
_PART_CHARACTERS = 4_000_000
# Parts tokenized or scored at the same time.
_PARTS_AHEAD = 2
# Maximum pairs of a call that are tokenized in the calling thread.
_INLINE_PAIRS = 16


class LoadedModel:
    """Hold a bundle in memory with its encoder and engine, and score texts with it.

    Args:
        bundle: The model.
        engine: Computes the logits; closed together with this object.

    Raises:
        BundleError: The bundle's tokenizer cannot be read.
    """

    def __init__(self, bundle: Bundle, engine: EmbeddedEngine) -> None:
        self.bundle = bundle
        self.engine = engine
        self._encoder = PairEncoder(bundle)
        self._background = BackgroundBatcher(engine)
        self._calls = 0
        self._changed = threading.Condition()
        self._closing = False

    def score(
        self, groups: Sequence[Group], truncation: Truncation, advance: Callable[[int], None] | None = None
    ) -> Scored:
        """Return the logits of all pairs, in order; the calling thread waits for them.

        Args:
            groups: (query, documents) each.
            truncation: Rules for long texts.
            advance: Called in another thread with the number of pairs scored since the last call.

        Raises:
            EngineFailure: The engine broke, or a logit is not finite.
            RuntimeError: The model is closed.
        """
        if not any(documents for _, documents in groups):
            return _joined([])
        with self._call():
            if self._inline(groups) and advance is None:
                encoded = self._encoder.encode_groups(groups, truncation)
                return _scored(encoded, self._background.score(encoded.batch))
            return self._background.run(self._score_parts(groups, truncation, advance))

    def start(
        self,
        prepare: Callable[[], Sequence[Group]],
        truncation: Truncation,
        finish: Callable[[Scored], Result],
    ) -> Future[Result]:
        """Score pairs without a waiting thread; `prepare` and `finish` are called in worker threads.

        Args:
            prepare: Returns the groups.
            truncation: Rules for long texts.
            finish: Makes the result of the scored pairs.

        Returns:
            A future of the result; cancelling it drops the pairs that are not scored yet.

        Raises:
            RuntimeError: The model is closed.
        """

        async def work() -> Result:
            groups = await self._background.in_worker(prepare)
            scored = await self._score_parts(groups, truncation, None)
            return await self._background.in_worker(finish, scored)

        self._enter()
        future = self._background.start(work())
        future.add_done_callback(lambda _: self._leave())
        return future

    def close(self) -> None:
        """Wait for running calls, then release threads and memory."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._calls)
        self._background.close()

    def stop(self) -> None:
        """Tell the background thread to end, without waiting for it."""
        self._background.stop()

    def _inline(self, groups: Sequence[Group]) -> bool:
        if sum(len(documents) for _, documents in groups) > _INLINE_PAIRS:
            return False
        characters = sum(len(query) + sum(map(len, documents)) for query, documents in groups)
        return characters <= self._encoder.inline_characters

    async def _score_parts(
        self, groups: Sequence[Group], truncation: Truncation, advance: Callable[[int], None] | None
    ) -> Scored:
        under_way: deque[tuple[EncodedPairs, asyncio.Task[NDArray[np.float32]]]] = deque()
        scored: list[Scored] = []

        async def take() -> None:
            encoded, logits = under_way.popleft()
            scored.append(_scored(encoded, await logits))
            if advance is not None:
                advance(len(encoded.batch))

        try:
            for part in _parts(groups):
                encoded = await self._background.in_worker(self._encoder.encode_groups, part, truncation)
                under_way.append((encoded, asyncio.ensure_future(self._background.merge(encoded.batch))))
                if len(under_way) == _PARTS_AHEAD:
                    await take()
            while under_way:
                await take()
        finally:
            for _, task in under_way:
                task.cancel()
        return scored[0] if len(scored) == 1 else _joined(scored)

    @contextmanager
    def _call(self) -> Iterator[None]:
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def _enter(self) -> None:
        with self._changed:
            if self._closing:
                raise RuntimeError(f"{self.bundle.manifest.model_id} is closed: open it with a new CrossEncoder")
            self._calls += 1

    def _leave(self) -> None:
        with self._changed:
            self._calls -= 1
            if self._closing:
                self._changed.notify_all()


def _parts(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Yield groups in parts of bounded size, in order; each part repeats the query of the documents that it has."""
    part: list[Group] = []
    pairs = characters = 0
    for query, documents in groups:
        start = 0
        for stop, document in enumerate(documents, 1):
            pairs += 1
            characters += len(document)
            if pairs >= _PART_PAIRS or characters >= _PART_CHARACTERS:
                yield [*part, (query, documents[start:stop])]
                part, start, pairs, characters = [], stop, 0, 0
        if start < len(documents):
            part.append((query, documents[start:]))
    if part:
        yield part


def _scored(encoded: EncodedPairs, logits: NDArray[np.float32]) -> Scored:
    truncated = np.zeros(len(logits), np.bool_)
    truncated[encoded.over_window] = True
    return Scored(logits, encoded.batch.lengths, truncated)


def _joined(parts: Sequence[Scored]) -> Scored:
    return Scored(
        np.concatenate([np.empty(0, np.float32), *(part.logits for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.tokens for part in parts)]),
        np.concatenate([np.empty(0, np.bool_), *(part.truncated for part in parts)]),
    )
