"""Add gRPC's standard services, health and reflection, whose own code reads messages without a limit of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from crossrank.errors import CrossrankError, InvalidRequest
from crossrank_server.rpc.errors import DETAILS_KEY, status_from_error
from crossrank_server.rpc.held import Connection
from crossrank_server.rpc.quota import MemoryQuota


class QuotaServer:
    """Stand for a server where generated code adds a service to it: what its methods read and hold is counted.

    Args:
        server: Gets the methods.
        quota: Counts.
    """

    def __init__(self, server: grpc.aio.Server, quota: MemoryQuota) -> None:
        self._server = server
        self._quota = quota

    def add_generic_rpc_handlers(self, handlers: Any) -> None:
        """Do nothing: the same methods are registered by name, too."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, grpc.RpcMethodHandler]) -> None:
        """Add the methods of a service."""
        counted = {name: self._counted(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, counted)

    def _counted(self, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        quota = self._quota

        async def unary_unary(_: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                data = await quota.read(quota.enter(context), context)
                return await handler.unary_unary(_parsed(handler, data or b""), context)
            except CrossrankError as error:
                _refuse(context, error)

        async def unary_stream(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            try:
                connection = quota.enter(context)
                question = _parsed(handler, await quota.read(connection, context) or b"")
                answers = self._waited_for(handler.unary_stream(question, context), connection)
                async for answer in self._until_taken(answers, connection, context):
                    yield answer
            except CrossrankError as error:
                _refuse(context, error)

        async def stream_stream(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async def messages() -> AsyncIterator[Any]:
                while (data := await quota.read(connection, context)) is not None:
                    yield _parsed(handler, data)

            try:
                connection = quota.enter(context)
                answers = handler.stream_stream(messages(), context)
                async for answer in self._until_taken(answers, connection, context):
                    yield answer
            except CrossrankError as error:
                _refuse(context, error)

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)
        method = unary_stream if handler.unary_stream else stream_stream
        return grpc.stream_stream_rpc_method_handler(method, None, handler.response_serializer)

    async def _waited_for(self, answers: AsyncIterator[Any], connection: Connection) -> AsyncIterator[Any]:
        """Yield answers without an end, for which only the caller waits: others may need the room."""
        while True:
            with self._quota.waiting(connection):
                answer = await anext(answers)
            yield answer

    async def _until_taken(
        self, answers: AsyncIterator[Any], connection: Connection, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[Any]:
        """Yield answers, each counted until the caller has taken it."""
        async for answer in answers:
            self._quota.answering(connection, context, answer.ByteSize())
            yield answer
            self._quota.answered(connection, context)


def _parsed(handler: grpc.RpcMethodHandler, data: bytes) -> Any:
    try:
        return handler.request_deserializer(data)
    except DecodeError:
        raise InvalidRequest(
            "the message is not what the .proto of this service describes, or a text in it is not UTF-8",
            code="invalid_message",
        ) from None


def _refuse(context: grpc.aio.ServicerContext, error: CrossrankError) -> None:
    status = status_from_error(error, "")
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(error.message)
