"""One answer for all protocols: which model, which scores, which order."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank_server.bundle import Bundle
from crossrank_server.catalog import canonical_model_id
from crossrank_server.engines.base import Engine
from crossrank_server.errors import BackendTimeout, InvalidRequest, ModelNotFound
from crossrank_server.pairs import Batcher, EncodedPairs, PairEncoder
from crossrank_server.passage import Passage

# Below this many characters a request is tokenized at once on the event loop: a thread's hand-over costs more.
_INLINE_CHARACTERS = 2_000


@dataclass(frozen=True)
class Ranking:
    """The scored documents of one request.

    Attributes:
        model: Id of the model that scored.
        logits: float32 [documents], in document order.
        order: int64 [returned], document indices by falling logit, ties by index.
        tokens: Tokens scored, special tokens and the repeated query included.
        truncated: Indices of truncated documents.
        query_truncated: Whether the query was truncated.
    """

    model: str
    logits: NDArray[np.float32]
    order: NDArray[np.int64]
    tokens: int
    truncated: list[int]
    query_truncated: bool

    def score(self, index: int, *, raw: bool) -> float:
        """Return a document's logit, or its sigmoid computed in float64, where float32 would saturate at 1."""
        logit = float(self.logits[index])
        return logit if raw else sigmoid(logit)


def sigmoid(logit: float) -> float:
    """Return 1 / (1 + e^-logit) in float64 without overflow."""
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    power = math.exp(logit)
    return power / (1.0 + power)


class ServedModel:
    """A bundle with its encoder, its engine and the queue in front of it.

    Args:
        bundle: The model.
        engine: What computes its logits.
        max_waiting_documents: Beyond this many a request is refused.
        engine_merges: The engine merges concurrent requests itself, as Triton does.
    """

    def __init__(
        self, bundle: Bundle, engine: Engine, max_waiting_documents: int, *, engine_merges: bool = False
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.encoder = PairEncoder(bundle)
        self.batcher: Batcher | Passage = (Passage if engine_merges else Batcher)(engine, max_waiting_documents)

    @property
    def id(self) -> str:
        """The model's id."""
        return self.bundle.manifest.model_id


class RerankService:
    """Ranks documents with the models it holds.

    Args:
        models: The models served; the first one is the default.
        max_documents: Documents in one request.
        timeout_s: Seconds after which a request is given up.
    """

    def __init__(self, models: Iterable[ServedModel], *, max_documents: int, timeout_s: float) -> None:
        self._models = {model.id: model for model in models}
        self._max_documents = max_documents
        self._timeout_s = timeout_s
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="crossrank-tokenize")

    @property
    def models(self) -> list[ServedModel]:
        """The models served, the default first."""
        return list(self._models.values())

    def ready(self) -> bool:
        """Tell whether every model can take requests."""
        return all(model.engine.ready() for model in self.models)

    def model(self, name: str | None) -> ServedModel:
        """Return the model of that id (older spellings accepted), or the default.

        Raises:
            ModelNotFound: It is not served here.
        """
        if not name:
            return self.models[0]
        found = self._models.get(name) or self._models.get(canonical_model_id(name))
        if found is None:
            served = ", ".join(self._models)
            raise ModelNotFound(f"model {name[:200]!r} is not served here; served: {served}", param="model")
        return found

    async def rerank(
        self, query: str, documents: list[str], *, model: str | None = None, top_n: int | None = None
    ) -> Ranking:
        """Score and order the documents.

        Raises:
            InvalidRequest: There are more documents than the limit.
            ModelNotFound: The model is not served here.
            Overloaded, EngineFailure, BackendError, BackendUnavailable: See `Batcher.score` and `Engine.score`.
            BackendTimeout: The time limit passed.
        """
        served = self.model(model)
        if len(documents) > self._max_documents:
            raise InvalidRequest(
                f"documents holds {len(documents)} documents, the limit is {self._max_documents}; split the request, "
                "or raise --max-documents",
                param="documents",
                code="too_many_documents",
            )
        try:
            pairs, logits = await asyncio.wait_for(self._score(served, query, documents), self._timeout_s)
        except asyncio.TimeoutError:
            raise BackendTimeout(
                f"the request took longer than {self._timeout_s:g} s; "
                "send fewer documents, or raise --request-timeout-s"
            ) from None
        # The order is that of the logits: sigmoids of distinct logits may be equal.
        order = np.argsort(-logits, kind="stable")
        return Ranking(
            model=served.id,
            logits=logits,
            order=order[: top_n or None],
            tokens=len(pairs.batch.input_ids),
            truncated=pairs.truncated,
            query_truncated=pairs.query_truncated,
        )

    async def _score(
        self, served: ServedModel, query: str, documents: list[str]
    ) -> tuple[EncodedPairs, NDArray[np.float32]]:
        if len(query) + sum(map(len, documents)) <= _INLINE_CHARACTERS:
            pairs = served.encoder.encode(query, documents)
        else:
            loop = asyncio.get_running_loop()
            pairs = await loop.run_in_executor(self._tokenizers, served.encoder.encode, query, documents)
        return pairs, await served.batcher.score(pairs.batch)

    async def close(self) -> None:
        """Finish the batches under way and release the engines."""
        for model in self.models:
            await model.batcher.close()
            await model.engine.close()
        self._tokenizers.shutdown()
