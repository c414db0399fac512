"""Carry operations over gRPC: one connection for all calls, kept alive."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Generic, TypeVar

import grpc

from crossrank_client.endpoint import Endpoint
from crossrank_client.grpc_errors import error_from_rpc, was_never_sent
from crossrank_client.grpc_messages import GrpcCall, grpc_call_from_operation
from crossrank_client.operations import Operation
from crossrank_client.retries import Attempts

Answer = TypeVar("Answer")

_OPTIONS = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A dead connection is found while a call waits, not when its deadline passes.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Attempts to connect follow the pauses of the retry policy, not slower ones of gRPC's.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.primary_user_agent", "crossrank-client"),
)


class GrpcTransport:
    """Send operations over one channel; safe to use from several threads."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel = _channel(grpc, endpoint)

    def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        call = _Call(self._endpoint, operation, timeout_s)
        while True:
            try:
                return call.rpc.read(call.on(self._channel))
            except grpc.RpcError as error:
                pause_s = call.pause_s(error)
            time.sleep(pause_s)

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()


class AsyncGrpcTransport:
    """Send operations over one channel, for one event loop."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        self._channel: Any = None

    async def send(self, operation: Operation[Answer], timeout_s: float | None) -> Answer:
        """Return the answer, or raise a CrossrankClientError."""
        if self._channel is None:  # A channel belongs to the event loop that it was made in.
            self._channel = _channel(grpc.aio, self._endpoint)
        call = _Call(self._endpoint, operation, timeout_s)
        while True:
            try:
                return call.rpc.read(await call.on(self._channel))
            except grpc.RpcError as error:
                pause_s = call.pause_s(error)
            await asyncio.sleep(pause_s)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._channel is not None:
            await self._channel.close()


class _Call(Generic[Answer]):
    """Hold one operation and its attempts."""

    def __init__(self, endpoint: Endpoint, operation: Operation[Answer], timeout_s: float | None) -> None:
        self.rpc: GrpcCall[Answer] = grpc_call_from_operation(operation)
        self._endpoint = endpoint
        self._limit_s = endpoint.limit_s(operation, timeout_s)
        self._metadata = tuple({**endpoint.headers, **operation.headers}.items())
        self._attempts = Attempts(endpoint.policy_for(operation))

    def on(self, channel: Any) -> Any:
        """Begin an attempt; return the answer, or an awaitable of it with an asyncio channel."""
        method = channel.unary_unary(
            self.rpc.method,
            request_serializer=type(self.rpc.request).SerializeToString,
            response_deserializer=self.rpc.response.FromString,
        )
        return method(self.rpc.request, timeout=self._limit_s, metadata=self._metadata)

    def pause_s(self, failed: Any) -> float:
        """Return the seconds to wait before the next attempt; raise the error if there is none."""
        error = error_from_rpc(failed, self._endpoint.base_url, self._limit_s)
        pause_s = self._attempts.pause_s(error, never_sent=was_never_sent(failed))
        if pause_s is None:
            raise error from failed
        return pause_s


def _channel(api: Any, endpoint: Endpoint) -> Any:
    """Return a channel of `grpc` or of `grpc.aio`."""
    scheme, _, target = endpoint.base_url.partition("://")
    options = [*_OPTIONS, ("grpc.enable_http_proxy", 0 if endpoint.is_loopback else 1)]
    if scheme == "grpc":
        return api.insecure_channel(target, options=options)
    cert, key = endpoint.client_cert or (None, None)
    credentials = grpc.ssl_channel_credentials(_content(endpoint.ca_file), _content(key), _content(cert))
    return api.secure_channel(target, credentials, options=options)


def _content(path: str | None) -> bytes | None:
    if path is None:
        return None
    with open(path, "rb") as file:
        return file.read()
