"""Turn a failed RPC into the error that HTTP has for it."""

from __future__ import annotations

from typing import Any

import grpc
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from google.rpc.status_pb2 import Status

from crossrank_client.errors import ConnectionFailed, CrossrankClientError, TimedOut, api_error

_DETAILS_KEY = "grpc-status-details-bin"
# For answers of a proxy, which have no details.
_HTTP_STATUS = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.UNIMPLEMENTED: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
}
_UNREACHED = (
    "failed to connect",
    "connections to all backends failing",
    "dns resolution failed",
    "name resolution failure",
    "address lookup failed",
)
# HTTP/2's REFUSED_STREAM: more streams than the server allows were begun before it had said how many.
# Source: https://www.rfc-editor.org/rfc/rfc9113#section-8.7
_REFUSED_STREAM = "received rst_stream with error code 7"


def error_from_rpc(error: Any, base_url: str, limit_s: float) -> CrossrankClientError:
    """Return the error for a failed RPC.

    Args:
        error: `grpc.RpcError` of a call, or `grpc.aio.AioRpcError`.
        base_url: Address of the server.
        limit_s: The deadline of the call.
    """
    code, message = error.code(), error.details() or ""
    trailers = dict(error.trailing_metadata() or ())
    info, request, retry = _details(trailers)
    if info.domain == "crossrank":
        return api_error(
            int(info.metadata["http_status"]),
            message,
            info.metadata,
            request_id=request.request_id or None,
            retry_after_s=retry.retry_delay.ToMilliseconds() / 1e3 if retry.HasField("retry_delay") else None,
        )
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return TimedOut(f"{base_url} did not answer (deadline, timeout {limit_s:g} s); raise timeout")
    if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED):
        return ConnectionFailed(f"no answer from {base_url}: {message}; is the server running?")
    status = _HTTP_STATUS.get(code, 500)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than max" in message:
        # gRPC's own error for a message that is far over the server's limit.
        return api_error(413, message, {"param": "body", "code": "request_too_large"}, request_id=_id(trailers))
    return api_error(status, f"{code.name}: {message}", {}, request_id=_id(trailers))


def was_never_sent(error: Any) -> bool:
    """Tell whether there was no connection, or the server has refused the RPC before it did anything with it."""
    message = (error.details() or "").lower()
    unread = message.startswith(_UNREACHED) or _REFUSED_STREAM in message
    return error.code() is grpc.StatusCode.UNAVAILABLE and unread


def _details(trailers: dict[str, Any]) -> tuple[ErrorInfo, RequestInfo, RetryInfo]:
    status = Status.FromString(trailers.get(_DETAILS_KEY, b""))
    found = ErrorInfo(), RequestInfo(), RetryInfo()
    for detail in status.details:
        for kind in found:
            detail.Unpack(kind)
    return found


def _id(trailers: dict[str, Any]) -> str | None:
    value = trailers.get("x-request-id")
    return value if isinstance(value, str) else None
