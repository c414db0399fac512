"""Client and AsyncClient: the same calls, waiting for each answer or awaiting many at a time."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from types import ModuleType, TracebackType
from typing import TypeVar

from typing_extensions import Unpack

from crossrank_client.endpoint import Endpoint
from crossrank_client.many import DEFAULT_BATCH_SIZE, DEFAULT_CONCURRENCY, Batches, Progress, Run
from crossrank_client.operations import CheckReady, ListModels, ReadAccount, RerankOptions, rerank_from_arguments
from crossrank_client.results import Account, Model, RerankResponse
from crossrank_client.retries import RetryPolicy
from crossrank_client.transport import AsyncHttpTransport, AsyncTransport, HttpTransport, Transport

DEFAULT_BASE_URL = "http://127.0.0.1:8000"
# Longer than a server's own limit (60 s), so that its answer says what happened.
DEFAULT_TIMEOUT_S = 75.0
DEFAULT_MAX_RETRIES = 3
DEFAULT_MAX_RETRY_WAIT_S = 30.0

SomeClient = TypeVar("SomeClient", bound="Client")
SomeAsyncClient = TypeVar("SomeAsyncClient", bound="AsyncClient")


class _ConfiguredClient(ABC):
    """Hold the configuration that both clients share.

    Args:
        base_url: Address of the server; `CROSSRANK_BASE_URL` if omitted, else http://127.0.0.1:8000. With grpc:// or
            grpcs:// (TLS) in place of http:// or https:// it is spoken to over gRPC, which
            `pip install 'crossrank-client[grpc]'` adds.
        api_key: Sent as a bearer token; `CROSSRANK_API_KEY` if omitted. Empty: none is sent.
        timeout: Seconds to wait for one step (connecting, sending, the answer) of one attempt; over gRPC for one
            attempt.
        max_retries: Further attempts after 429, 503 or a failed connection, with growing pauses, or as long as the
            server's Retry-After says.
        max_retry_wait_s: Seconds after which a call begins no further attempt, whatever the server asks for.
        ca_file: PEM of the authorities to trust in place of the usual ones.
        client_cert: PEM files of the certificate to present and of its key, where the server wants one.

    Raises:
        ValueError: An option is out of range.
        ImportError: The address selects gRPC, which is not installed.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        max_retries: int = DEFAULT_MAX_RETRIES,
        max_retry_wait_s: float = DEFAULT_MAX_RETRY_WAIT_S,
        ca_file: str | None = None,
        client_cert: tuple[str, str] | None = None,
    ) -> None:
        self._endpoint = Endpoint(
            base_url or os.environ.get("CROSSRANK_BASE_URL") or DEFAULT_BASE_URL,
            os.environ.get("CROSSRANK_API_KEY", "") if api_key is None else api_key,
            timeout,
            RetryPolicy(max_retries, max_retry_wait_s),
            ca_file,
            client_cert,
        )
        self._connect()

    @abstractmethod
    def _connect(self) -> None:
        """Set up the transport to the endpoint."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._endpoint.base_url!r})"


class Client(_ConfiguredClient):
    """Call a crossrank server and wait for the answer; safe to share among threads. Close it, or use it with `with`.

    Example:
        with Client("http://127.0.0.1:8000") as client:
            response = client.rerank("how many live in berlin", ["It has museums.", "3.5 million live there."])
            print(response.results[0].index, response.results[0].relevance_score)
    """

    _transport: Transport

    def _connect(self) -> None:
        grpc = self._endpoint.is_grpc
        self._transport = (_grpc_transport().GrpcTransport if grpc else HttpTransport)(self._endpoint)

    def rerank(
        self, query: str, documents: Iterable[str], *, timeout: float | None = None, **options: Unpack[RerankOptions]
    ) -> RerankResponse:
        """Order documents by how well they answer a query.

        Args:
            query: The text to rank the documents for.
            documents: The candidates: any iterable of strings, read once.
            timeout: Seconds, in place of the client's.
            options: `top_n`, `return_documents`, `raw_scores`, `model` and more: see RerankOptions.

        Raises:
            BadRequest: The server cannot score the request; `param` names the field. No documents are such a case.
            CrossrankClientError: See crossrank_client.errors for the tree.
            TypeError: The documents are a single string, or no iterable; or there is no such option.
        """
        return self._transport.send(rerank_from_arguments(query, documents, **options), timeout)

    def rerank_many(
        self,
        query: str,
        documents: Iterable[str],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_progress: Progress | None = None,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Order more documents than one request may have, in batches, into one ranking as if they had been one request.

        Args:
            query: The text to rank the documents for.
            documents: The candidates: any iterable of strings, read once.
            batch_size: Documents of one request.
            concurrency: Requests under way at a time.
            on_progress: Called with (documents answered, documents in all) after each batch.
            timeout: Seconds for each request, in place of the client's.
            options: See RerankOptions.

        Raises:
            PartialFailure: A batch failed after its retries; no further one was begun. It holds the answers so far.
            InvalidResponse: The batches were scored by different models.
            TypeError, ValueError: The arguments cannot be used.
        """
        batches = Batches(rerank_from_arguments(query, documents, **options), batch_size)
        run = Run(batches.requests(), concurrency, on_progress, parts_of_one=True)
        with batches.failure_placed():
            return batches.merged(run.run(lambda request: self._transport.send(request, timeout)))

    def rerank_each(
        self,
        requests: Iterable[tuple[str, Iterable[str]]],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_progress: Progress | None = None,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[RerankResponse]:
        """Order the documents of many queries, each by itself; the answers are in the order of the requests.

        Args:
            requests: Query and documents of each.
            concurrency: Requests under way at a time.
            on_progress: Called with (documents answered, documents in all) after each request.
            timeout: Seconds for each request, in place of the client's.
            options: See RerankOptions; the same for all.

        Raises:
            PartialFailure: A request failed after its retries. It holds the answers to all others, unless the failure
                concerns them too (no connection, no credit, ...): then no further one was begun.
            TypeError, ValueError: The arguments cannot be used.
        """
        each = [rerank_from_arguments(query, documents, **options) for query, documents in requests]
        run = Run(each, concurrency, on_progress, parts_of_one=False)
        return run.run(lambda request: self._transport.send(request, timeout))

    def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Return the models the server offers; the first is its default."""
        return self._transport.send(ListModels(), timeout)

    def account(self, *, timeout: float | None = None) -> Account:
        """Return scopes, limits, credit and usage of the key; over gRPC raise NotSupported."""
        return self._transport.send(ReadAccount(), timeout)

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
        grpc = self._endpoint.is_grpc
        self._transport = (_grpc_transport().AsyncGrpcTransport if grpc else AsyncHttpTransport)(self._endpoint)

    async def rerank(
        self, query: str, documents: Iterable[str], *, timeout: float | None = None, **options: Unpack[RerankOptions]
    ) -> RerankResponse:
        """Order documents by how well they answer a query; see Client.rerank."""
        return await self._transport.send(rerank_from_arguments(query, documents, **options), timeout)

    async def rerank_many(
        self,
        query: str,
        documents: Iterable[str],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_progress: Progress | None = None,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> RerankResponse:
        """Order more documents than one request may have; see Client.rerank_many."""
        batches = Batches(rerank_from_arguments(query, documents, **options), batch_size)
        run = Run(batches.requests(), concurrency, on_progress, parts_of_one=True)
        with batches.failure_placed():
            return batches.merged(await run.arun(lambda request: self._transport.send(request, timeout)))

    async def rerank_each(
        self,
        requests: Iterable[tuple[str, Iterable[str]]],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_progress: Progress | None = None,
        timeout: float | None = None,
        **options: Unpack[RerankOptions],
    ) -> list[RerankResponse]:
        """Order the documents of many queries, each by itself; see Client.rerank_each."""
        each = [rerank_from_arguments(query, documents, **options) for query, documents in requests]
        run = Run(each, concurrency, on_progress, parts_of_one=False)
        return await run.arun(lambda request: self._transport.send(request, timeout))

    async def models(self, *, timeout: float | None = None) -> tuple[Model, ...]:
        """Return the models the server offers; the first is its default."""
        return await self._transport.send(ListModels(), timeout)

    async def account(self, *, timeout: float | None = None) -> Account:
        """Return scopes, limits, credit and usage of the key; see Client.account."""
        return await self._transport.send(ReadAccount(), timeout)

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


def _grpc_transport() -> ModuleType:
    try:
        from crossrank_client import grpc_transport
    except ModuleNotFoundError as error:
        raise ImportError(f"grpc:// addresses need {error.name}: pip install 'crossrank-client[grpc]'") from error
    return grpc_transport
