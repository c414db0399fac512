"""Add gRPC's standard services, health and reflection, whose own code reads messages without a limit of ours."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc

from crossrank.errors import CrossrankError
from crossrank_server.rpc.errors import DETAILS_KEY, status_from_error
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
        read, quota = handler.request_deserializer, self._quota

        async def unary_unary(_: Any, context: grpc.aio.ServicerContext) -> Any:
            try:
                data = await quota.read(quota.enter(context), context)
                return await handler.unary_unary(read(data or b""), context)
            except CrossrankError as error:
                _refuse(context, error)

        async def unary_stream(_: Any, context: grpc.aio.ServicerContext) -> None:
            try:
                connection = quota.enter(context)
                question = read(await quota.read(connection, context) or b"")
                with quota.waiting(connection):
                    await handler.unary_stream(question, context)
            except CrossrankError as error:
                _refuse(context, error)

        async def stream_stream(_: Any, context: grpc.aio.ServicerContext) -> AsyncIterator[Any]:
            async def messages() -> AsyncIterator[Any]:
                while (data := await quota.read(connection, context)) is not None:
                    yield read(data)

            try:
                connection = quota.enter(context)
                async for answer in handler.stream_stream(messages(), context):
                    yield answer
            except CrossrankError as error:
                _refuse(context, error)

        if handler.unary_unary:
            return grpc.stream_unary_rpc_method_handler(unary_unary, None, handler.response_serializer)
        method = unary_stream if handler.unary_stream else stream_stream
        return grpc.stream_stream_rpc_method_handler(method, None, handler.response_serializer)


def _refuse(context: grpc.aio.ServicerContext, error: CrossrankError) -> None:
    status = status_from_error(error, "")
    context.set_trailing_metadata(((DETAILS_KEY, status.SerializeToString()),))
    context.set_code(grpc.StatusCode[error.grpc_status])
    context.set_details(error.message)
