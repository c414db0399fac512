"""Normalize requests before routing: HEAD, superfluous slashes, and the header Expect."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank.errors import ExpectationFailed
from crossrank_server.http.body import LingeringResponse
from crossrank_server.http.error_handlers import error_response

_SLASHES = re.compile(r"//+")


class FormsMiddleware:
    """Answer HEAD as GET without the body, ignore superfluous slashes of a path, refuse unknown expectations.

    Clients that join a base URL and a path send `//v1/rerank` or `/v1/rerank/`; a redirect would cost them the body or
    the key.

    Sources:
        https://www.rfc-editor.org/rfc/rfc9110#name-head
        https://www.rfc-editor.org/rfc/rfc9110#name-expect
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if len(path) > 1 and (path[-1] == "/" or "//" in path):
            scope["path"] = _SLASHES.sub("/", path).rstrip("/") or "/"
        expected = next((value.decode("latin-1").strip() for name, value in scope["headers"] if name == b"expect"), "")
        if expected.lower() not in ("", "100-continue"):
            error = ExpectationFailed(
                f"expect is {expected[:40]!r}; this server knows 100-continue only: leave the header out",
                param="expect",
            )
            scope["state"]["exchange"].code = error.code
            await error_response(error, kind=LingeringResponse)(scope, receive, send)
            return
        if scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def send_head(message: Message) -> None:
            await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send_head)
        finally:
            # For the observers.
            scope["route"] = as_get.get("route")
