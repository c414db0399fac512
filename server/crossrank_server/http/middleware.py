"""Wraps every HTTP request: its id, where its time went, what became of it."""

from __future__ import annotations

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank_server.calls import usable_request_id
from crossrank_server.http.error_handlers import CLIENT_CLOSED_REQUEST, internal_error
from crossrank_server.telemetry.base import OK, Exchange, Observers
from crossrank_server.telemetry.logs import current_request


class ObservingMiddleware:
    """Gives every request an id (the caller's `x-request-id` if usable), answers with it, and tells the observers.

    It answers failures that nothing else caught. Starlette would do so too, but outside of this middleware, and raise
    them once more for the web server to log with their messages.

    Args:
        app: What is wrapped.
        observers: Who is told.
    """

    def __init__(self, app: ASGIApp, observers: Observers) -> None:
        self._app = app
        self._observers = observers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request_id = usable_request_id(headers.get("x-request-id", ""))
        exchange = Exchange("http", scope["method"], request_id, headers, status=str(CLIENT_CLOSED_REQUEST))
        state: dict[str, Any] = scope.setdefault("state", {})
        state |= {"request_id": request_id, "exchange": exchange}
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                exchange.status = str(message["status"])
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        token = current_request.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            response = internal_error(request_id, error)
            exchange.code, exchange.status = "internal_error", str(response.status_code)
            if not started:
                await response(scope, receive, send_with_id)
        finally:
            if not started and exchange.code == OK:
                exchange.code = "cancelled"
            # Set by the router as soon as a route fits.
            exchange.route = getattr(scope.get("route"), "path", exchange.route)
            exchange.call = state.get("call")
            self._observers.finished(exchange)
            current_request.reset(token)
