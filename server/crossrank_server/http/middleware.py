"""Wraps every HTTP request: its id, and where its time went."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank_server.calls import usable_request_id


class RequestIdMiddleware:
    """Gives every request an id (the caller's `x-request-id` if usable) and answers with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = scope.setdefault("state", {})["request_id"] = usable_request_id(given)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)
