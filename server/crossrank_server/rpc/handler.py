"""Run the steps that all methods share: check the key, limit messages, turn errors into statuses, send trailers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status

from crossrank.errors import CrossrankError, InvalidRequest
from crossrank.scheduling.tiers import BULK
from crossrank_server.accounts.base import require_scope
from crossrank_server.calls import Call, open_call, usable_request_id
from crossrank_server.held import Holding
from crossrank_server.rpc.errors import DETAILS_KEY, status_from_error
from crossrank_server.rpc.held import NO_CONNECTION
from crossrank_server.rpc.quota import MemoryQuota
from crossrank_server.serving.service import RerankService
from crossrank_server.telemetry.base import OK, Exchange
from crossrank_server.telemetry.logs import current_request

Question = TypeVar("Question", bound=Message)

# Seconds within which gRPC tells that an RPC was cancelled which ended without a message.
_CANCELLED_WITHIN_S = 0.05

# gRPC writes tracebacks about metadata that is not UTF-8, with its bytes, and about callers who leave while they are
# answered: the access log has a line for each.
_NOT_LOGGED = ("Invalid encoding", "ExecuteBatchError")
logging.getLogger("grpc._cython.cygrpc").addFilter(lambda record: not str(record.msg).startswith(_NOT_LOGGED))

# Makes the handler of a method that is told its full name, as gRPC does not pass that to handlers.
Method = Callable[[str], grpc.RpcMethodHandler]


@dataclass(frozen=True)
class Received(Generic[Question]):
    """Hold a message unparsed until its sender is known, so that an error in it can be answered."""

    kind: type[Question]
    data: bytes
    rpc: Rpc

    def buffered(self) -> contextlib.AbstractContextManager[None]:
        """Count the message as in memory within a block; see `Rpc.buffered`."""
        return self.rpc.buffered(len(self.data))

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
        context: gRPC's own.
        connection: What its connection makes the server hold.
        request_id: The caller's `x-request-id` if usable, else a new one.
        exchange: The record of the RPC for the observers.
    """

    def __init__(
        self, service: RerankService, quota: MemoryQuota, context: grpc.aio.ServicerContext, method: str
    ) -> None:
        self._service = service
        self._quota = quota
        self._holding: Holding | None = None
        self.context = context
        self.connection = NO_CONNECTION
        self._method = method
        self._metadata = {key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        self.request_id = usable_request_id(self._metadata.get("x-request-id", ""))
        self.exchange = self.observe(self.request_id)
        self._trailers: dict[str, str] = {"x-request-id": self.request_id}

    def enter(self) -> None:
        """Count the RPC.

        Raises:
            Overloaded: See `MemoryQuota.enter`.
            InvalidRequest: The metadata is not what gRPC allows.
        """
        self.connection = self._quota.enter(self.context)
        for key, value in self._metadata.items():
            if not value.isascii():
                raise InvalidRequest(
                    f"the metadata {key[:40]!a} is not ASCII; send it under a name that ends in -bin, or leave it out",
                    code="invalid_metadata",
                )

    async def identify(self) -> None:
        """Refuse a caller without a good key at once, before there is a message.

        Raises:
            CrossrankError: See `open_call`.
        """
        await self._open_call(self.request_id)

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
        call = exchange.call = await self._open_call(exchange.request_id)
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

    def buffered(self, size: int) -> contextlib.AbstractContextManager[None]:
        """Count a message of the caller as in memory within a block.

        Args:
            size: Bytes of the message.

        Raises:
            RequestTooLarge, Overloaded: See `MemoryQuota.buffered`.
        """
        assert self._holding is not None, "the caller is known before its messages are read"
        return self._quota.buffered(self._holding, size)

    async def _open_call(self, request_id: str) -> Call:
        call = await open_call(self._service.accounts, self._metadata, request_id)
        if self._holding is None:
            key = call.account and f"key {call.account.key_id}"
            self._holding = self._quota.held.open(key or self.connection.caller, yields=call.tier == BULK)
        return call

    def observe(self, request_id: str) -> Exchange:
        """Return a new record for the observers, of the RPC or of one message of its stream."""
        current_request.set(request_id)  # Each RPC and each message of a stream has a task of its own.
        return Exchange("grpc", self._method, request_id, self._metadata, route=self._method, status="OK")

    def send_trailers(self, status: Status | None = None) -> None:
        """Set the trailing metadata: the headers of the answer and the details of an error."""
        trailers: list[tuple[str, str | bytes]] = list(self._trailers.items())
        if status is not None:
            trailers.append((DETAILS_KEY, status.SerializeToString()))
        self.context.set_trailing_metadata(tuple(trailers))


class RpcHandler:
    """Handle the RPCs of all methods.

    Args:
        service: Scores the requests.
        quota: Bounds what callers make the server hold.
    """

    def __init__(self, service: RerankService, quota: MemoryQuota) -> None:
        self.service = service
        self.quota = quota

    def unary(
        self,
        kind: type[Question],
        respond: Callable[[Question, Call], Awaitable[Message]],
        key_scope: str | None = None,
    ) -> Method:
        """Return a method that answers one message with one; it is cancelled when its RPC is, or at the deadline.

        The caller is known before its message is read: gRPC itself would read all of it first.
        """

        def named(name: str) -> grpc.RpcMethodHandler:
            async def method(_: Any, context: grpc.aio.ServicerContext) -> bytes | None:
                async with self._rpc(context, name) as rpc:
                    rpc.enter()
                    async with rpc.call(rpc.exchange, key_scope) as call:
                        received = await self._only_message(rpc, kind)
                        with received.buffered():
                            message = received.read(call)
                            del received  # It need not be in memory twice.
                            return self._counted(rpc, await respond(message, call))

            return grpc.stream_unary_rpc_method_handler(method)

        return named

    def client_stream(
        self, kind: type[Question], respond: Callable[[AsyncIterator[Received[Question]], Call], Awaitable[Message]]
    ) -> Method:
        """Return a method that answers a stream of messages with one."""

        def named(name: str) -> grpc.RpcMethodHandler:
            async def method(_: Any, context: grpc.aio.ServicerContext) -> bytes | None:
                async with self._rpc(context, name) as rpc:
                    rpc.enter()
                    async with rpc.call(rpc.exchange) as call:
                        return self._counted(rpc, await respond(self._messages(rpc, kind, due=True), call))

            return grpc.stream_unary_rpc_method_handler(method)

        return named

    def bidirectional(
        self,
        kind: type[Question],
        respond: Callable[[AsyncIterator[Received[Question]], Rpc], AsyncGenerator[Message, None]],
    ) -> Method:
        """Return a method that answers a stream of messages with a stream."""

        def named(name: str) -> grpc.RpcMethodHandler:
            async def method(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
                async with self._rpc(context, name, tell_success=False) as rpc:
                    rpc.enter()
                    await rpc.identify()
                    async with contextlib.aclosing(respond(self._messages(rpc, kind, due=False), rpc)) as answers:
                        async for answer in answers:
                            yield self._counted(rpc, answer)
                            self.quota.answered(rpc.connection, context)

            return grpc.stream_stream_rpc_method_handler(method)

        return named

    async def _only_message(self, rpc: Rpc, kind: type[Question]) -> Received[Question]:
        data = await self.quota.read(rpc.connection, rpc.context)
        if data is None:
            await asyncio.sleep(_CANCELLED_WITHIN_S)
            raise InvalidRequest("the call has no message; send one", code="invalid_message")
        return Received(kind, data, rpc)

    async def _messages(self, rpc: Rpc, kind: type[Question], *, due: bool) -> AsyncIterator[Received[Question]]:
        while (data := await self.quota.read(rpc.connection, rpc.context, due=due)) is not None:
            yield Received(kind, data, rpc)

    def _counted(self, rpc: Rpc, answer: Message) -> bytes:
        data = bytes(answer.SerializeToString())
        self.quota.answering(rpc.connection, rpc.context, len(data))
        return data

    @contextlib.asynccontextmanager
    async def _rpc(
        self, context: grpc.aio.ServicerContext, method: str, *, tell_success: bool = True
    ) -> AsyncIterator[Rpc]:
        """Enter with the RPC; on leaving, send its trailing metadata, and the status of an error raised within.

        Args:
            context: gRPC's context of the RPC.
            method: Full name.
            tell_success: Notify the observers of a success, too; of a stream they are notified of each message.
        """
        rpc = Rpc(self.service, self.quota, context, method)
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


def fail_exchange(exchange: Exchange, error: Exception | None = None, status: Status | None = None) -> None:
    """Record how a request failed; without an error it was cancelled, by its caller or its deadline."""
    if error is None or status is None:
        exchange.status, exchange.code = "CANCELLED", "client_closed_request"
        return
    exchange.status = _CODES[status.code].name
    exchange.code = error.code if isinstance(error, CrossrankError) else "internal_error"


_CODES: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
