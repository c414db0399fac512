"""Scores for topics: by an engine in this process, on the server's own path, or by a server's URL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import EngineFailure, SetupError
from crossrank.request import RerankRequest
from crossrank_perf.base.topics import Topic
from crossrank_perf.eval.trec import strictly_falling
from crossrank_server.calls import Call
from crossrank_server.settings import ServeSettings

# Enough topics at a time that tokenizing one overlaps with scoring another.
_TOPICS_AT_A_TIME = 4
# Well below any server's limit; the scores do not depend on how the documents are split.
_REQUEST_DOCUMENTS = 100
_UNLIMITED = 1 << 40

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Scores:
    """The logits of one topic's documents, float64 [documents] in their order, and how many were truncated."""

    logits: NDArray[np.float64]
    truncated: int


class Scorer(Protocol):
    """Scores documents for a query.

    Attributes:
        model: Id of the model; a server's is known once it has answered.
        engine: `openvino`, `onnxruntime`, or the server's URL.
        precision: The arithmetic, or `` where a server decides.
    """

    model: str
    engine: str
    precision: str

    async def score(self, query: str, documents: Sequence[str]) -> Scores:
        """Return the documents' logits."""
        ...

    async def close(self) -> None:
        """Release threads, memory and connections."""
        ...


@dataclass(frozen=True)
class Reranked:
    """What one scorer made of the topics.

    Attributes:
        name: Model and precision, or model and server: how reports call it.
        model: Id of the model.
        engine: See Scorer.
        precision: See Scorer.
        logits: qid -> float64 [candidates], in first-stage order.
        run: qid -> docid -> strictly falling score.
        truncated: Pairs longer than the model's window.
    """

    name: str
    model: str
    engine: str
    precision: str
    logits: dict[str, NDArray[np.float64]]
    run: dict[str, dict[str, float]]
    truncated: int


class InProcessScorer:
    """Tokenizes, batches and scores as `crossrank serve` does, without its limits."""

    def __init__(self, model: str, precision: str, settings: ServeSettings) -> None:
        from crossrank.engines.select import make_engine
        from crossrank.resolve import resolve_model
        from crossrank_server.serving.pool import ModelPool
        from crossrank_server.serving.served import ServedModel
        from crossrank_server.serving.service import RerankService

        bundle = resolve_model(model, cache_dir=settings.cache_dir, offline=settings.offline, label=settings.label)
        engine = make_engine(bundle, settings.engine, precision, settings.threads or None)  # type: ignore[arg-type]
        self.model = bundle.manifest.model_id
        self.engine = engine.name
        self.precision = engine.precision
        served = ServedModel(bundle, engine, _UNLIMITED)
        self._service = RerankService(ModelPool([served]), max_documents=_UNLIMITED, timeout_s=1e9)

    async def score(self, query: str, documents: Sequence[str]) -> Scores:
        """See Scorer.score."""
        ranking = await self._service.rerank(RerankRequest(query, list(documents)), Call())
        return Scores(ranking.logits.astype(np.float64), len(ranking.truncated))

    async def close(self) -> None:
        """See Scorer.close."""
        await self._service.close()


class ServerScorer:
    """Asks a crossrank server for raw scores, a hundred documents a request."""

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
        """See Scorer.score."""
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
        """See Scorer.close."""
        await self._client.aclose()


async def rerank_topics(scorer: Scorer, topics: Sequence[Topic], advance: Advance) -> Reranked:
    """Score all candidates of all topics and rank them; ties stay in first-stage order.

    Args:
        scorer: What scores.
        topics: The queries with their candidates.
        advance: Called with the number of documents scored since it was last called.

    Raises:
        EngineFailure: A document got no finite score.
        CrossrankError: Whatever the scorer raises; the topics under way are given up.
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
