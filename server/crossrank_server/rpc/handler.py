"""Run the steps that all methods share: check the key, limit messages, turn errors into statuses, send trailers."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from crossrank.errors import CrossrankError, InvalidRequest, Overloaded, RequestTooLarge
from crossrank_server.accounts.base import require_scope
from crossrank_server.calls import Call, open_call, usable_request_id
from crossrank_server.rpc.errors import DETAILS_KEY, status_from_error
from crossrank_server.serving.service import RerankService
from crossrank_server.telemetry.base import OK, Exchange
from crossrank_server.telemetry.logs import current_request

Question = TypeVar("Question", bound=Message)

# Full name of the method that the running task answers.
current_method: contextvars.ContextVar[str] = contextvars.ContextVar("current_method")
# Messages of the largest size that may be in memory at a time; small ones are counted by their bytes.
_LARGEST_MESSAGES_BUFFERED = 8


@dataclass(frozen=True)
class Received(Generic[Question]):
    """Hold a message unparsed until its sender is known, so that an error in it can be answered."""

    kind: type[Question]
    data: bytes

    def read(self, call: Call) -> Question:
        """Parse the message.

        Raises:
            InvalidRequest: The data is no message of this kind.
        """
        with call.stage("parse"):
            try:
                message: Question = self.kind.FromString(self.data)
                return message
            except DecodeError:
                raise InvalidRequest(
                    f"the message is no {self.kind.DESCRIPTOR.full_name}, or a text in it is not UTF-8; "
                    "send what its .proto describes",
                    code="invalid_message",
                ) from None


class Rpc:
    """Hold one RPC: its metadata, and the trailing metadata of its answer.

    Attributes:
        request_id: The caller's `x-request-id` if usable, else a new one.
        exchange: The record of the RPC for the observers.
    """

    def __init__(self, service: RerankService, context: grpc.aio.ServicerContext) -> None:
        self._service = service
        self._context = context
        self._method = current_method.get()
        self._metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.request_id = usable_request_id(self._metadata.get("x-request-id", ""))
        self.exchange = self.observe(self.request_id)
        self._trailers: dict[str, str] = {"x-request-id": self.request_id}

    async def identify(self) -> None:
        """Refuse a caller without a good key at once, before there is a message.

        Raises:
            CrossrankError: See `open_call`.
        """
        await open_call(self._service.accounts, self._metadata, self.request_id)

    @contextlib.asynccontextmanager
    async def call(self, exchange: Exchange, key_scope: str | None = None) -> AsyncIterator[Call]:
        """Enter with the opened call; on leaving, keep its headers for the trailing metadata.

        Args:
            exchange: The record of the RPC, or of one message of its stream.
            key_scope: The scope that the key must have, for methods that do not call `Accounts.admit`.

        Raises:
            CrossrankError: See `open_call` and `require_scope`.
        """
        accounts = self._service.accounts
        call = exchange.call = await open_call(accounts, self._metadata, exchange.request_id)
        try:
            if key_scope is not None:
                require_scope(call.account, key_scope)
                await accounts.show_limits(call.account, call.response_headers)
            yield call
        except CrossrankError:
            await accounts.show_limits(call.account, call.response_headers)
            raise
        finally:
            self._trailers.update(call.response_headers)
            if call.tokens:
                self._trailers["server-timing"] = call.server_timing()

    def observe(self, request_id: str) -> Exchange:
        """Return a new record for the observers, of the RPC or of one message of its stream."""
        current_request.set(request_id)  # Each RPC and each message of a stream has a task of its own.
        return Exchange("grpc", self._method, request_id, self._metadata, route=self._method, status="OK")

    def send_trailers(self, status: Status | None = None) -> None:
        """Set the trailing metadata: the headers of the answer and the details of an error."""
        trailers: list[tuple[str, str | bytes]] = list(self._trailers.items())
        if status is not None:
            trailers.append((DETAILS_KEY, status.SerializeToString()))
        self._context.set_trailing_metadata(tuple(trailers))


class RpcHandler:
    """Handle the RPCs of all methods.

    Args:
        service: Scores the requests.
        max_message_bytes: Limit for one message.
    """

    def __init__(self, service: RerankService, max_message_bytes: int) -> None:
        self.service = service
        self._max_message_bytes = max_message_bytes
        self._max_buffered_bytes = _LARGEST_MESSAGES_BUFFERED * max_message_bytes
        self._buffered_bytes = 0

    def unary(
        self,
        kind: type[Question],
        respond: Callable[[Question, Call], Awaitable[Message]],
        key_scope: str | None = None,
    ) -> grpc.RpcMethodHandler:
        """Return a method that answers one message with one; it is cancelled when its RPC is, or at the deadline."""

        async def method(received: Received[Question], context: grpc.aio.ServicerContext) -> Message | None:
            async with self._rpc(context) as rpc, rpc.call(rpc.exchange, key_scope) as call:
                with self.buffered(received):
                    return await respond(received.read(call), call)

        return grpc.unary_unary_rpc_method_handler(method, _reader(kind), _written)

    def client_stream(
        self, kind: type[Question], respond: Callable[[AsyncIterator[Received[Question]], Call], Awaitable[Message]]
    ) -> grpc.RpcMethodHandler:
        """Return a method that answers a stream of messages with one."""

        async def method(
            received: AsyncIterator[Received[Question]], context: grpc.aio.ServicerContext
        ) -> Message | None:
            async with self._rpc(context) as rpc, rpc.call(rpc.exchange) as call:
                return await respond(received, call)

        return grpc.stream_unary_rpc_method_handler(method, _reader(kind), _written)

    def bidirectional(
        self,
        kind: type[Question],
        respond: Callable[[AsyncIterator[Received[Question]], Rpc], AsyncGenerator[Message, None]],
    ) -> grpc.RpcMethodHandler:
        """Return a method that answers a stream of messages with a stream."""

        async def method(
            received: AsyncIterator[Received[Question]], context: grpc.aio.ServicerContext
        ) -> AsyncIterator[Message]:
            async with self._rpc(context, tell_success=False) as rpc:
                await rpc.identify()
                async with contextlib.aclosing(respond(received, rpc)) as answers:
                    async for answer in answers:
                        yield answer

        return grpc.stream_stream_rpc_method_handler(method, _reader(kind), _written)

    @contextlib.contextmanager
    def buffered(self, received: Received[Any]) -> Iterator[None]:
        """Count a message as in memory until the block ends.

        Raises:
            RequestTooLarge: The message is over its limit.
            Overloaded: The messages of all requests under way are over their common limit.
        """
        size = len(received.data)
        if size > self._max_message_bytes:
            raise RequestTooLarge(
                f"the message has {size} bytes, the limit is {self._max_message_bytes}; split the request, "
                "or raise --max-body-bytes",
                param="body",
            )
        self._buffered_bytes += size
        try:
            if self._buffered_bytes > self._max_buffered_bytes:
                raise Overloaded(
                    f"requests under way hold {self._buffered_bytes} bytes, the limit is {self._max_buffered_bytes}; "
                    "try again in a second, or send smaller requests",
                    retry_after_s=1.0,
                )
            yield
        finally:
            self._buffered_bytes -= size

    @contextlib.asynccontextmanager
    async def _rpc(self, context: grpc.aio.ServicerContext, *, tell_success: bool = True) -> AsyncIterator[Rpc]:
        """Enter with the RPC; on leaving, send its trailing metadata, and the status of an error raised within.

        Args:
            context: gRPC's context of the RPC.
            tell_success: Notify the observers of a success, too; of a stream they are notified of each message.
        """
        rpc = Rpc(self.service, context)
        exchange = rpc.exchange
        try:
            yield rpc
            rpc.send_trailers()
        except Exception as error:
            status = status_from_error(error, rpc.request_id)
            fail_exchange(exchange, error, status)
            rpc.send_trailers(status)
            context.set_code(_CODES[status.code])
            context.set_details(status.message)
        except asyncio.CancelledError:
            fail_exchange(exchange)
            raise
        finally:
            if tell_success or exchange.code != OK:
                self.service.observers.finished(exchange)


class MethodInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Remember which method is called, as gRPC does not pass it to handlers."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """Note the method in the task of the RPC, and continue."""
        current_method.set(handler_call_details.method)
        return await continuation(handler_call_details)


def handlers_of(name: str, methods: Mapping[str, grpc.RpcMethodHandler]) -> grpc.GenericRpcHandler:
    """Return the handlers of a service, to be added to a server."""
    return grpc.method_handlers_generic_handler(name, methods)


def fail_exchange(exchange: Exchange, error: Exception | None = None, status: Status | None = None) -> None:
    """Record how a request failed; without an error it was cancelled, by its caller or its deadline."""
    if error is None or status is None:
        exchange.status, exchange.code = "CANCELLED", "client_closed_request"
        return
    exchange.status = _CODES[status.code].name
    exchange.code = error.code if isinstance(error, CrossrankError) else "internal_error"


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _reader(kind: type[Question]) -> Callable[[bytes], Received[Question]]:
    return lambda data: Received(kind, data)


def _written(answer: Message) -> bytes:
    return bytes(answer.SerializeToString())
