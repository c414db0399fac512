"""Score the candidates of topics, with a model in this process or with a server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossrank import CrossEncoder
from crossrank.errors import EngineFailure, SetupError
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.trec import strictly_falling

# Enough topics at a time that tokenizing one overlaps with scoring another.
_TOPICS_AT_A_TIME = 4
# Documents of a request to a server: well below its limit. The scores do not depend on how documents are split.
_REQUEST_DOCUMENTS = 100

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Scores:
    """Scores of the documents of one topic.

    Attributes:
        logits: float64 [documents], in the order of the documents.
        truncated: Number of documents whose pair was truncated.
    """

    logits: NDArray[np.float64]
    truncated: int


class Scorer(Protocol):
    """Scores documents for a query.

    Attributes:
        model: Id of the model; that of a server is known once it has answered.
        engine: Name of the engine, or the server's URL.
        precision: Precision of the engine; empty for a server.
    """

    model: str
    engine: str
    precision: str

    async def score(self, query: str, documents: Sequence[str]) -> Scores:
        """Return the logits of the documents."""
        ...

    async def close(self) -> None:
        """Release threads, memory and connections."""
        ...


@dataclass(frozen=True)
class Reranked:
    """Topics re-ranked by one scorer.

    Attributes:
        name: Name in reports: model and precision, or model and server.
        model: Id of the model.
        engine: See `Scorer`.
        precision: See `Scorer`.
        logits: float64 [candidates] in first-stage order, by query id.
        run: Strictly falling scores by query id and document id.
        truncated: Number of pairs longer than the model's window.
    """

    name: str
    model: str
    engine: str
    precision: str
    logits: dict[str, NDArray[np.float64]]
    run: dict[str, dict[str, float]]
    truncated: int


class InProcessScorer:
    """Scores in this process.

    Args:
        encoder: Model and engine; closed with this.
    """

    def __init__(self, encoder: CrossEncoder) -> None:
        self._encoder = encoder
        self.model = encoder.model_id
        self.engine = encoder.engine
        self.precision = encoder.precision

    async def score(self, query: str, documents: Sequence[str]) -> Scores:
        """See `Scorer.score`."""
        pairs = [(query, document) for document in documents]
        prediction = await self._encoder.apredict(pairs, activation_fn="identity", return_details=True)
        return Scores(prediction.scores.astype(np.float64), int(prediction.truncated.sum()))

    async def close(self) -> None:
        """See `Scorer.close`."""
        await self._encoder.aclose()


class ServerScorer:
    """Scores with a crossrank server, a hundred documents a request."""

    precision = ""

    def __init__(self, url: str, model: str | None) -> None:
        from crossrank_client import AsyncClient

        try:
            self._client = AsyncClient(url)
        except ValueError as error:
            raise SetupError(f"--url {url}: {error}") from None
        self._requested_model = model
        self.model = model or ""
        self.engine = url

    async def score(self, query: str, documents: Sequence[str]) -> Scores:
        """See `Scorer.score`."""
        from crossrank_client.errors import CrossrankClientError

        logits = np.full(len(documents), np.nan)
        truncated = 0
        for start in range(0, len(documents), _REQUEST_DOCUMENTS):
            part = list(documents[start : start + _REQUEST_DOCUMENTS])
            try:
                answer = await self._client.rerank(query, part, raw_scores=True, model=self._requested_model)
            except CrossrankClientError as error:
                raise SetupError(f"{self.engine} did not score the query {query[:60]!r}: {error}") from error
            for result in answer.results:
                logits[start + result.index] = result.relevance_score
            truncated += answer.truncated
            self.model = answer.model
        return Scores(logits, truncated)

    async def close(self) -> None:
        """See `Scorer.close`."""
        await self._client.aclose()


async def rerank_topics(scorer: Scorer, topics: Sequence[Topic], advance: Advance) -> Reranked:
    """Score all candidates of all topics and rank them; ties stay in first-stage order.

    Args:
        scorer: Model or server.
        topics: The queries with their candidates.
        advance: Called with the number of documents scored since its last call.

    Raises:
        EngineFailure: A document got no finite score.
        CrossrankError: The scorer failed; the topics under way are cancelled.
    """
    gate = asyncio.Semaphore(_TOPICS_AT_A_TIME)

    async def score(topic: Topic) -> Scores:
        async with gate:
            scores = await scorer.score(topic.query, topic.documents)
        if not np.isfinite(scores.logits).all():
            docid = topic.docids[int(np.argmin(np.isfinite(scores.logits)))]
            raise EngineFailure(f"document {docid} of query {topic.qid} got no finite score from {scorer.engine}")
        advance(len(topic.documents))
        return scores

    tasks = [asyncio.ensure_future(score(topic)) for topic in topics]
    try:
        scored = await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        raise
    return Reranked(
        name=f"{scorer.model} {scorer.precision or 'at ' + scorer.engine}",
        model=scorer.model,
        engine=scorer.engine,
        precision=scorer.precision,
        logits={topic.qid: scores.logits for topic, scores in zip(topics, scored, strict=True)},
        run={
            topic.qid: strictly_falling(topic.docids, scores.logits.tolist())
            for topic, scores in zip(topics, scored, strict=True)
        },
        truncated=sum(scores.truncated for scores in scored),
    )
