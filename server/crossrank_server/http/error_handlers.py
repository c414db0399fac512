"""Answer every failure with the one error body; the cause of an internal error is logged under an id."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from crossrank.errors import CrossrankError, InvalidRequest, shown_error
from crossrank_server.http.body import JsonResponse, LingeringResponse
from crossrank_server.http.codings import CODINGS

_NONE: Mapping[str, str] = MappingProxyType({})
# nginx's status for a client that did not wait for its answer.
CLIENT_CLOSED_REQUEST = 499


def add_error_handlers(app: FastAPI) -> None:
    """Answer the exceptions that routes raise on purpose; the middleware answers all others."""
    app.add_exception_handler(CrossrankError, _on_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)


def _on_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CrossrankError)
    request.state.exchange.code = error.code
    error = shown_error(error, request.state.request_id)
    call = getattr(request.state, "call", None)
    kind = LingeringResponse if getattr(request.state, "body_unread", False) else JsonResponse
    return error_response(error, call.response_headers if call else {}, kind)


def error_response(
    error: CrossrankError, more_headers: Mapping[str, str] = _NONE, kind: type[JsonResponse] = JsonResponse
) -> Response:
    """Return the answer for an error."""
    headers = dict(more_headers)
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    if error.http_status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.http_status == 415:
        headers["accept-encoding"] = ", ".join(CODINGS)
    return kind(error.as_body(), status_code=error.http_status, headers=headers)


def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    allowed = (error.headers or {}).get("Allow", "")
    if allowed:
        methods = {*allowed.split(", "), "OPTIONS", *(["HEAD"] if "GET" in allowed else [])}
        error.headers = {**(error.headers or {}), "Allow": ", ".join(sorted(methods))}
    path = request.scope["path"]
    if request.method == "OPTIONS" and (error.status_code == 405 or path == "*"):
        return Response(status_code=204, headers=error.headers)
    message = f"{request.method} {path[:200]}: {error.detail}; the routes are listed at /docs"
    code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
    request.state.exchange.code = code
    body = InvalidRequest(message, code=code).as_body()
    return JsonResponse(body, status_code=error.status_code, headers=error.headers)


def _on_disconnect(request: Request, error: Exception) -> Response:
    # The protocol has answered where it gave the client up; this is what is logged.
    refusal = getattr(request.state, "refusal", None)
    request.state.exchange.code = refusal.code if refusal else "client_closed_request"
    return Response(status_code=refusal.http_status if refusal else CLIENT_CLOSED_REQUEST)
