"""Give every HTTP request an id, and notify the observers of its outcome."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank.errors import BackendUnavailable, shown_error
from crossrank_server.calls import usable_request_id
from crossrank_server.http.error_handlers import error_response
from crossrank_server.telemetry.base import Exchange, Observers
from crossrank_server.telemetry.logs import current_request

_SHUTTING_DOWN = BackendUnavailable(
    "the server is shutting down and the request was not done in time: send it again", retry_after_s=1.0
)


# An answer is data: no browser may run it as a page or a script, or show it in a frame. Pages have their own policy.
# Source: https://cheatsheetseries.owasp.org/cheatsheets/REST_Security_Cheat_Sheet.html#security-headers
_POLICY = b"content-security-policy"
_SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]
_DATA_HEADERS = [*_SECURITY_HEADERS, (_POLICY, b"default-src 'none'; frame-ancestors 'none'")]


class ObservingMiddleware:
    """Give every request an id (the caller's `x-request-id` if usable), answer with it, and notify the observers.

    It also answers exceptions that nothing else caught. Starlette would do so outside of this middleware, and raise
    them once more for the web server to log with their messages.

    Args:
        app: The wrapped application.
        observers: Notified of every request.
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
        exchange = Exchange("http", scope["method"], request_id, headers)
        state: dict[str, Any] = scope.setdefault("state", {})
        state |= {"request_id": request_id, "exchange": exchange}
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                exchange.status = str(message["status"])
                sent = message["headers"]
                more = _SECURITY_HEADERS if any(name == _POLICY for name, _ in sent) else _DATA_HEADERS
                message["headers"] = [*sent, *more, (b"x-request-id", request_id.encode())]
            await send(message)

        token = current_request.set(request_id)
        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            exchange.code, exchange.status = "internal_error", "500"
            response = error_response(shown_error(error, request_id))
            if not started:
                await response(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The web server cancels the requests under way when its grace period after SIGTERM is over.
            exchange.code, exchange.status = _SHUTTING_DOWN.code, str(_SHUTTING_DOWN.http_status)
            if started:
                raise
            await error_response(_SHUTTING_DOWN)(scope, receive, send_with_id)
        finally:
            # Set by the router once a route matches.
            exchange.route = getattr(scope.get("route"), "path", exchange.route)
            exchange.call = state.get("call")
            self._observers.finished(exchange)
            current_request.reset(token)
