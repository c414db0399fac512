"""Send many requests, few at a time: batches of one long list of documents, or separate requests."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace

from crossrank_client.errors import BadRequest, CrossrankClientError, InvalidResponse, PartialFailure, TooLarge
from crossrank_client.operations import Rerank
from crossrank_client.results import RerankResponse, RerankResult, Usage

DEFAULT_BATCH_SIZE = 250
DEFAULT_CONCURRENCY = 4

Progress = Callable[[int, int], None]
# Errors of one request that say nothing about the others.
_OWN_FAULTS = (BadRequest, TooLarge)


@dataclass
class Run:
    """Send requests, and hold the outcome of each.

    Attributes:
        requests: The requests, in the order of the caller.
        concurrency: Limit of requests under way at a time.
        on_progress: Called with (documents answered, documents in all) after each answer.
        parts_of_one: The requests are useless without each other, so that any failure ends the run.
    """

    requests: Sequence[Rerank]
    concurrency: int
    on_progress: Progress | None
    parts_of_one: bool
    _responses: dict[int, RerankResponse] = field(default_factory=dict)
    _failures: dict[int, CrossrankClientError] = field(default_factory=dict)
    _ended: bool = False

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency is {self.concurrency}; pass 1 or more")
        self._total = sum(len(request.documents) for request in self.requests)
        self._answered = 0

    def run(self, send: Callable[[Rerank], RerankResponse]) -> list[RerankResponse]:
        """Send the requests from several threads; `on_progress` is called in this one.

        Raises:
            PartialFailure: A request failed.
        """

        def attempt(i: int) -> tuple[int, RerankResponse | None]:
            if not self._ended:
                with self._noted_failure(i):
                    return i, send(self.requests[i])
            return i, None

        with ThreadPoolExecutor(self.concurrency, thread_name_prefix="crossrank-client") as pool:
            try:
                for future in as_completed([pool.submit(attempt, i) for i in range(len(self.requests))]):
                    i, response = future.result()
                    if response is not None:
                        self._note(i, response)
            finally:
                # After an interrupt, say, the waiting requests are not begun any more.
                pool.shutdown(wait=False, cancel_futures=True)
        return self._answers()

    async def arun(self, send: Callable[[Rerank], Awaitable[RerankResponse]]) -> list[RerankResponse]:
        """Send the requests from several tasks.

        Raises:
            PartialFailure: A request failed.
        """
        waiting = iter(enumerate(self.requests))

        async def work() -> None:
            for i, request in waiting:
                if self._ended:
                    return
                with self._noted_failure(i):
                    self._note(i, await send(request))

        tasks = [asyncio.ensure_future(work()) for _ in range(min(self.concurrency, len(self.requests)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return self._answers()

    def _note(self, i: int, response: RerankResponse) -> None:
        self._responses[i] = response
        self._answered += len(self.requests[i].documents)
        if self.on_progress is not None:
            self.on_progress(self._answered, self._total)

    @contextlib.contextmanager
    def _noted_failure(self, i: int) -> Iterator[None]:
        try:
            yield
        except CrossrankClientError as error:
            self._failures[i] = error
            self._ended |= self.parts_of_one or not isinstance(error, _OWN_FAULTS)

    def _answers(self) -> list[RerankResponse]:
        if self._failures:
            raise PartialFailure(self._responses, self._failures, len(self.requests))
        return [self._responses[i] for i in range(len(self.requests))]


@dataclass(frozen=True)
class Batches:
    """Split a request with more documents than a server accepts into several, and merge their answers.

    Attributes:
        whole: The request.
        batch_size: Documents of one batch.
    """

    whole: Rerank
    batch_size: int

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size is {self.batch_size}; pass 1 or more")

    def requests(self) -> list[Rerank]:
        """Return the batches. They ask for logits, which order documents where rounded sigmoids may be equal."""
        documents = self.whole.documents
        # An empty list is one batch: the server says what is wrong with it.
        starts = range(0, max(len(documents), 1), self.batch_size)
        return [
            replace(self.whole, documents=documents[start : start + self.batch_size], raw_scores=True)
            for start in starts
        ]

    def placed(self, number: int, response: RerankResponse) -> RerankResponse:
        """Return the answer to a batch, with indices into all documents."""
        start = number * self.batch_size
        return replace(
            response,
            results=tuple(replace(result, index=start + result.index) for result in response.results),
            truncated_documents=tuple(start + index for index in response.truncated_documents),
        )

    def merged(self, responses: Iterable[RerankResponse]) -> RerankResponse:
        """Merge the answers into that of the whole request, in one order by logit.

        Raises:
            InvalidResponse: They are of different models, whose logits do not compare.
        """
        parts = [self.placed(number, response) for number, response in enumerate(responses)]
        if len(models := sorted({part.model for part in parts})) > 1:
            raise InvalidResponse(f"batches were scored by different models: {', '.join(models)}; name one with model=")
        ranked = sorted(
            (result for part in parts for result in part.results),
            key=lambda result: (-result.relevance_score, result.index),
        )
        scored = ranked if self.whole.raw_scores else [_as_probability(result) for result in ranked]
        return RerankResponse(
            id=",".join(part.id for part in parts),
            model=models[0],
            results=tuple(scored[: self.whole.top_n or None]),
            usage=Usage(
                sum(part.usage.prompt_tokens for part in parts), sum(part.usage.total_tokens for part in parts)
            ),
            truncated_documents=tuple(index for part in parts for index in part.truncated_documents),
            query_truncated=any(part.query_truncated for part in parts),
        )

    @contextlib.contextmanager
    def failure_placed(self) -> Iterator[None]:
        """Give the answers within a PartialFailure indices into all documents."""
        try:
            yield
        except PartialFailure as failure:
            placed = {number: self.placed(number, response) for number, response in failure.responses.items()}
            raise PartialFailure(placed, failure.failures, failure.total) from None


def _as_probability(result: RerankResult) -> RerankResult:
    logit = result.relevance_score
    power = math.exp(-abs(logit))
    return replace(result, relevance_score=(1.0 if logit >= 0 else power) / (1.0 + power))
