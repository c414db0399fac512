"""Client and AsyncClient: the same calls, waiting for each answer or awaiting many at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import TracebackType
from typing import TypeVar

from crossrank_client.operations import CheckReady, ListModels, rerank_from_arguments
from crossrank_client.results import Model, RerankResponse
from crossrank_client.retries import RetryPolicy
from crossrank_client.transport import AsyncHttpTransport, AsyncTransport, Endpoint, HttpTransport, Transport

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
# Longer than a server's own limit (60 s), so that its answer says what happened.
DEFAULT_TIMEOUT_S = 75.0
DEFAULT_MAX_RETRIES = 3
DEFAULT_MAX_RETRY_WAIT_S = 30.0

SomeClient = TypeVar("SomeClient", bound="Client")
SomeAsyncClient = TypeVar("SomeAsyncClient", bound="AsyncClient")


class _ConfiguredClient(ABC):
    """What both clients are told.

    Args:
        base_url: Address of the server; `CROSSRANK_BASE_URL` if omitted, else http://127.0.0.1:8000.
        api_key: Sent as a bearer token; `CROSSRANK_API_KEY` if omitted. Empty: none is sent.
        timeout: Seconds to wait for one step (connecting, sending, the answer) of one attempt.
        max_retries: Further attempts after 429, 503 or a failed connection, with growing pauses, or as long as the
            server's Retry-After says.
        max_retry_wait_s: Seconds after which a call begins no further attempt, whatever the server asks for.

    Raises:
        ValueError: An option is out of range.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        max_retry_wait_s: float = DEFAULT_MAX_RETRY_WAIT_S,
    ) -> None:
        self._endpoint = Endpoint(
            base_url or os.environ.get("CROSSRANK_BASE_URL") or DEFAULT_BASE_URL,
            os.environ.get("CROSSRANK_API_KEY", "") if api_key is None else api_key,
            timeout,
            RetryPolicy(max_retries, max_retry_wait_s),
        )
        self._connect()

    @abstractmethod
    def _connect(self) -> None:
        """Set up the transport to the endpoint."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint.base_url!r})"


class Client(_ConfiguredClient):
    """Asks a crossrank server and waits for the answer; may be shared by threads. Close it, or use it with `with`.

    Example:
        with Client("http://127.0.0.1:8000") as client:
            response = client.rerank("how many live in berlin", ["It has museums.", "3.5 million live there."])
            print(response.results[0].index, response.results[0].relevance_score)
    """

    _transport: Transport

    def _connect(self) -> None:
        self._transport = HttpTransport(self._endpoint)

    def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        raw_scores: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> RerankResponse:
        """Order documents by how well they answer a query.

        Args:
            query: What to rank for.
            documents: The candidates: any iterable of strings, read once.
            top_n: How many of the best to return; all if omitted.
            return_documents: Repeat each document's text in its result.
            raw_scores: Give the model's logits, not their sigmoid.
            model: One of `models()`; the server's first if omitted.
            timeout: Seconds, in place of the client's.

        Raises:
            BadRequest: The server cannot score the request; `param` names the field. No documents are such a case.
            CrossrankClientError: See crossrank_client.errors for the tree.
            TypeError: The documents are a single string, or no iterable.
        """
        operation = rerank_from_arguments(
            query,
            documents,
            top_n=top_n,
            return_documents=return_documents,
            raw_scores=raw_scores,
            model=model,
        )
        return self._transport.send(operation, timeout)

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Return the models the server offers; the first is its default."""
        return self._transport.send(ListModels(), timeout)

    def ready(self, *, timeout: float | None = None) -> bool:
        """Tell whether the server can score now; without a server at the address, raise ConnectionFailed."""
        return self._transport.send(CheckReady(), timeout)

    def close(self) -> None:
        """Close the connections."""
        self._transport.close()

    def __enter__(self: SomeClient) -> SomeClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncClient(_ConfiguredClient):
    """Client for asyncio: the same arguments, answers and errors, awaited. One event loop each.

    Example:
        async with AsyncClient() as client:
            responses = await asyncio.gather(*(client.rerank(query, documents) for query in queries))
    """

    _transport: AsyncTransport

    def _connect(self) -> None:
        self._transport = AsyncHttpTransport(self._endpoint)

    async def rerank(
        self,
        query: str,
        documents: Iterable[str],
        *,
        top_n: int | None = None,
        return_documents: bool = False,
        raw_scores: bool = False,
        model: str | None = None,
        timeout: float | None = None,
    ) -> RerankResponse:
        """Order documents by how well they answer a query; see Client.rerank."""
        operation = rerank_from_arguments(
            query,
            documents,
            top_n=top_n,
            return_documents=return_documents,
            raw_scores=raw_scores,
            model=model,
        )
        return await self._transport.send(operation, timeout)

    async def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Return the models the server offers; the first is its default."""
        return await self._transport.send(ListModels(), timeout)

    async def ready(self, *, timeout: float | None = None) -> bool:
        """Tell whether the server can score now; without a server at the address, raise ConnectionFailed."""
        return await self._transport.send(CheckReady(), timeout)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._transport.aclose()

    async def __aenter__(self: SomeAsyncClient) -> SomeAsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
