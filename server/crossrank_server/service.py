"""One answer for all protocols: who may ask, which model, which scores, which order."""

from __future__ import annotations

import asyncio
import logging
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank_server.accounts.base import Accounts, OpenAccounts
from crossrank_server.calls import Call
from crossrank_server.errors import BackendTimeout, InvalidRequest
from crossrank_server.models import ModelPool, ServedModel
from crossrank_server.pairs import EncodedPairs
from crossrank_server.request import RerankRequest
from crossrank_server.telemetry.base import Observers

_log = logging.getLogger("crossrank")

# Seconds that engines may take to end.
_CLOSE_S = 5.0
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
        billed: Documents billed.
        truncated: Indices of truncated documents.
        query_truncated: Whether the query was truncated.
    """

    model: str
    logits: NDArray[np.float32]
    order: NDArray[np.int64]
    tokens: int
    billed: int
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


class RerankService:
    """Ranks documents with the models of a pool.

    Args:
        models: The models served.
        max_documents: Documents in one request.
        timeout_s: Seconds after which a request is given up.
        accounts: Who may ask, and what it costs.
        observers: Who is told of requests.

    Attributes:
        draining: The server is about to end: it is not ready for more, but answers what still comes.
    """

    def __init__(
        self,
        models: ModelPool,
        *,
        max_documents: int,
        timeout_s: float,
        accounts: Accounts | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.models = models
        self.accounts = accounts or OpenAccounts()
        self.observers = observers or Observers()
        self.draining = False
        self.max_documents = max_documents
        self._timeout_s = timeout_s
        self._tokenizers = ThreadPoolExecutor(2, thread_name_prefix="crossrank-tokenize")

    def ready(self) -> bool:
        """Tell whether requests can be scored now."""
        return not self.draining and self.models.ready()

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """Score and order the documents.

        Raises:
            InvalidRequest: There are more documents than the limit.
            ModelNotFound: The model is not served here.
            Forbidden, PaymentRequired, RateLimited: See `Accounts.admit`.
            Overloaded, EngineFailure, BackendError, BackendUnavailable: See `Batcher.score` and `Engine.score`.
            BackendTimeout: The time limit passed.
        """
        if len(request.documents) > self.max_documents:
            raise InvalidRequest(
                f"documents holds {len(request.documents)} documents, the limit is {self.max_documents}; "
                "split the request, or raise --max-documents",
                param="documents",
                code="too_many_documents",
            )
        model_id = self.models.resolve(request.model)
        call.model = model_id
        call.documents += len(request.documents)
        async with (
            self.accounts.admit(
                call.account,
                model=model_id,
                tier=call.tier,
                documents=len(request.documents),
                headers=call.response_headers,
            ) as charge,
            self.models.awake(model_id, call.wait_s) as served,
        ):
            try:
                pairs, logits = await asyncio.wait_for(self._score(served, request, call), self._timeout_s)
            except asyncio.TimeoutError:
                raise BackendTimeout(
                    f"the request took longer than {self._timeout_s:g} s; "
                    "send fewer documents, or raise --request-timeout-s"
                ) from None
            charge.tokens = len(pairs.batch.input_ids)
            # A call may be made of several requests.
            call.tokens += charge.tokens
            call.truncated_documents += len(pairs.truncated)
            call.query_truncated |= pairs.query_truncated
        # The order is that of the logits: sigmoids of distinct logits may be equal.
        order = np.argsort(-logits, kind="stable")
        return Ranking(
            model=model_id,
            logits=logits,
            order=order[: request.top_n or None],
            tokens=charge.tokens,
            billed=charge.documents,
            truncated=pairs.truncated,
            query_truncated=pairs.query_truncated,
        )

    async def _score(
        self, served: ServedModel, request: RerankRequest, call: Call
    ) -> tuple[EncodedPairs, NDArray[np.float32]]:
        query, documents = request.query, request.documents
        with call.stage("tokenize"):
            if len(query) + sum(map(len, documents)) <= _INLINE_CHARACTERS:
                pairs = served.encoder.encode(query, documents)
            else:
                loop = asyncio.get_running_loop()
                pairs = await loop.run_in_executor(self._tokenizers, served.encoder.encode, query, documents)
        return pairs, await served.batcher.score(pairs.batch, tier=call.tier, stages_s=call.stages_s)

    async def close(self) -> None:
        """Finish what is under way, release the engines, write what is not written yet."""
        try:
            # Usage is written even if an engine does not come to an end.
            await asyncio.wait_for(self.models.close(), _CLOSE_S)
        except asyncio.TimeoutError:
            _log.error("an engine has not stopped after %g s and is left behind", _CLOSE_S)
        finally:
            await self.accounts.close()
            self._tokenizers.shutdown(wait=False)
