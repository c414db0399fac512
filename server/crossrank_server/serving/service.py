"""Score a request, whatever protocol it came by: admission, model, tokens, scores, order."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import operator
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.cross_encoder.activations import sigmoid
from crossrank.errors import BackendTimeout, InvalidRequest
from crossrank.request import RerankRequest, ScoreRequest, Truncation
from crossrank.scheduling.tiers import BULK, REALTIME, Tier
from crossrank.text.encoding import EncodedPairs, PairEncoder
from crossrank_server.accounts.base import Accounts, Charge, OpenAccounts
from crossrank_server.accounts.prices import Prices
from crossrank_server.calls import Call
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.telemetry.base import Observers

_log = logging.getLogger("crossrank")

# Seconds that engines may take to close.
_CLOSE_S = 5.0
# Limit of chunks of one request, as a multiple of the limit of documents: Cohere allows 10,000 for 1,000 documents.
# Source: https://docs.cohere.com/v1/docs/reranking-best-practices
_CHUNKS_PER_DOCUMENT = 10

# Texts of a request are large from this multiple of what is tokenized at once: native code takes some 50 ms for them.
_LARGE_TEXTS = 20

# Up to so many characters, a request is encoded in some 100 us, and begins at once.
_SHORT_CHARACTERS = 2_000

# A query and the documents to score with it.
Group = tuple[str, list[str]]


@dataclass(frozen=True)
class Scores:
    """The scored pairs of one request.

    Attributes:
        model: Id of the model that scored.
        logits: float32 [pairs], in the order of the request.
        tokens: Tokens scored, special tokens and the repeated query included.
        billed: Number of documents billed; each chunk of a document counts as one.
        cost_usd: Cost of the request; None where usage is not metered.
        truncated: Indices of truncated documents.
        query_truncated: Whether a query was truncated.
    """

    model: str
    logits: NDArray[np.float32]
    tokens: int
    billed: int
    cost_usd: float | None
    truncated: list[int]
    query_truncated: bool

    def score(self, index: int, *, raw: bool) -> float:
        """Return a document's logit, or its sigmoid computed in float64, where float32 would saturate at 1."""
        logit = float(self.logits[index])
        return logit if raw else sigmoid(logit)


@dataclass(frozen=True)
class Ranking(Scores):
    """The scored documents of one request and their order.

    Attributes:
        order: int64 [returned], document indices by falling logit, ties by index.
    """

    order: NDArray[np.int64]


class RerankService:
    """Rank documents with the models of a pool.

    Args:
        pool: The models served.
        max_documents: Limit of documents in one request.
        timeout_s: Seconds after which a request is given up; the wait for a model to be loaded does not count.
        bulk_timeout_s: The same for bulk requests (tier `batch`), which wait for idle cores; defaults to
            `timeout_s`.
        accounts: Check keys and limits, and record usage; by default anybody is served.
        prices: The price list that is shown to callers.
        observers: Notified of every request.

    Attributes:
        draining: The server is shutting down: it reports that it is not ready, but still answers requests.
    """

    def __init__(
        self,
        pool: ModelPool,
        *,
        max_documents: int,
        timeout_s: float,
        bulk_timeout_s: float | None = None,
        accounts: Accounts | None = None,
        prices: Prices | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.pool = pool
        self.accounts = accounts or OpenAccounts()
        self.prices = prices or Prices()
        self.observers = observers or Observers()
        self.draining = False
        self.max_documents = max_documents
        bulk_s = timeout_s if bulk_timeout_s is None else bulk_timeout_s
        self._timeout_s = {REALTIME: timeout_s, BULK: bulk_s}
        # Bulk texts and large ones have a thread of their own, so that others do not queue behind them.
        self._tokenizers = {
            "large": ThreadPoolExecutor(1, thread_name_prefix="crossrank-tokenize-large"),
            REALTIME: ThreadPoolExecutor(2, thread_name_prefix="crossrank-tokenize"),
            BULK: ThreadPoolExecutor(1, thread_name_prefix="crossrank-tokenize-bulk"),
        }

    def ready(self) -> bool:
        """Tell whether requests can be scored now."""
        return not self.draining and self.pool.ready()

    async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
        """Score and order the documents.

        Raises:
            CrossrankError: See `score`.
        """
        groups = [(request.query, request.documents)]
        scores = await self._score(request.model, groups, request.truncation, request.field, call)
        # The order is that of the logits: sigmoids of distinct logits may be equal.
        order = np.argsort(-scores.logits, kind="stable")
        return Ranking(**vars(scores), order=order[: request.top_n or None])

    async def score(self, request: ScoreRequest, call: Call) -> Scores:
        """Score the pairs, in their order; a query that several neighbouring pairs share is tokenized once.

        Raises:
            InvalidRequest: There are more documents or chunks than the limit, or a pair over the window may not be
                truncated.
            ModelNotFound: The model is not served here.
            ModelWarming: The model was asleep; see `Residency.awake`.
            Forbidden, PaymentRequired, RateLimited: See `Accounts.admit`.
            Overloaded, EngineFailure, BackendError, BackendUnavailable: See `Batcher.score` and `Engine.score`.
            BackendTimeout: The time limit passed.
        """
        neighbours = itertools.groupby(request.pairs, key=operator.itemgetter(0))
        groups = [(query, [document for _, document in pairs]) for query, pairs in neighbours]
        return await self._score(request.model, groups, request.truncation, request.field, call)

    async def _score(
        self, model: str | None, groups: list[Group], truncation: Truncation, field: str, call: Call
    ) -> Scores:
        documents = sum(len(documents) for _, documents in groups)
        if documents > self.max_documents:
            raise too_many_documents(field, documents, self.max_documents)
        model_id = self.pool.resolve(model)
        call.model = model_id
        call.documents += documents
        if call.wait_s:
            call.response_headers["preference-applied"] = f"wait={call.wait_s:.0f}"
        async with (
            self.accounts.admit(
                call.account,
                model=model_id,
                tier=call.tier,
                documents=documents,
                headers=call.response_headers,
            ) as charge,
            self.pool.awake(model_id, call.wait_s) as served,
        ):
            try:
                pairs, logits = await asyncio.wait_for(
                    self._encode_and_score(served, groups, truncation, field, call, charge), self._timeout_s[call.tier]
                )
            except asyncio.TimeoutError:
                raise _timeout(call.tier, self._timeout_s[call.tier]) from None
            charge.tokens = len(pairs.batch.input_ids)
            # A stream scores several requests in one call.
            call.tokens += charge.tokens
            call.truncated_documents += len(pairs.truncated)
            call.query_truncated |= pairs.query_truncated
        return Scores(
            model=model_id,
            logits=pairs.document_logits(logits),
            tokens=charge.tokens,
            billed=charge.documents,
            cost_usd=charge.cost_usd if call.account else None,
            truncated=pairs.truncated,
            query_truncated=pairs.query_truncated,
        )

    async def _encode_and_score(
        self,
        served: ServedModel,
        groups: list[Group],
        truncation: Truncation,
        field: str,
        call: Call,
        charge: Charge,
    ) -> tuple[EncodedPairs, NDArray[np.float32]]:
        documents = sum(len(documents) for _, documents in groups)
        served.batcher.check_room(documents, documents, call.tier)
        with call.stage("tokenize"), served.cores.tokenizing(call.tier):
            pairs = await self._encode(served.encoder, groups, truncation, field, call.tier)
        if len(pairs.batch) > charge.documents:
            await charge.raise_to(len(pairs.batch))
        return pairs, await served.batcher.score(pairs.batch, tier=call.tier, stages_s=call.stages_s)

    async def _encode(
        self, encoder: PairEncoder, groups: list[Group], truncation: Truncation, field: str, tier: Tier
    ) -> EncodedPairs:
        """Encode pairs: a few characters at once, more in a thread; the work ends soon after its caller is gone."""
        characters = sum(len(query) + sum(map(len, documents)) for query, documents in groups)
        encode = functools.partial(
            encoder.encode_groups, groups, truncation, field, max_pairs=_CHUNKS_PER_DOCUMENT * self.max_documents
        )
        if characters > _SHORT_CHARACTERS:
            # Smaller requests go first, and a caller that has hung up is noticed.
            await asyncio.sleep(0)
        if characters <= encoder.inline_characters:
            return encode()
        abandoned = threading.Event()
        large = tier == REALTIME and characters > _LARGE_TEXTS * encoder.inline_characters
        threads = self._tokenizers["large" if large else tier]
        try:
            return await asyncio.get_running_loop().run_in_executor(
                threads, functools.partial(encode, proceed=functools.partial(_proceed, abandoned))
            )
        except asyncio.CancelledError:
            abandoned.set()
            raise

    async def close(self) -> None:
        """Finish the batches under way, release the engines, and write the usage that is not written yet."""
        try:
            # Usage is written even if an engine does not close.
            await asyncio.wait_for(self.pool.close(), _CLOSE_S)
        except asyncio.TimeoutError:
            _log.error("an engine has not stopped after %g s and is left behind", _CLOSE_S)
        finally:
            await self.accounts.close()
            for tokenizers in self._tokenizers.values():
                tokenizers.shutdown(wait=False)


class _AbandonedError(Exception):
    """Nobody waits for the work any more."""


def _proceed(abandoned: threading.Event) -> None:
    if abandoned.is_set():
        raise _AbandonedError


def too_many_documents(field: str, documents: int, limit: int) -> InvalidRequest:
    """Return the error for a request with more documents than the limit; `field` is the dialect's name of them."""
    return InvalidRequest(
        f"{field} holds {documents} documents, the limit is {limit}; split the request, or raise --max-documents",
        param=field,
        code="too_many_documents",
    )


def _timeout(tier: Tier, timeout_s: float) -> BackendTimeout:
    if tier == BULK:
        return BackendTimeout(
            f"the request of the tier batch took longer than {timeout_s:g} s, as it waits for idle cores; send it "
            "again later, without x-tier, or raise --batch-timeout-s"
        )
    return BackendTimeout(
        f"the request took longer than {timeout_s:g} s; send fewer documents, or raise --request-timeout-s"
    )
