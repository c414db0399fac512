"""Normalize requests before routing (HEAD, superfluous slashes), and refuse some by their headers (Expect, Host)."""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank.errors import CrossrankError, ExpectationFailed, InvalidRequest
from crossrank_server.http.body import LingeringResponse
from crossrank_server.http.error_handlers import error_response
from crossrank_server.http.local_only import LocalOnly

_SLASHES = re.compile(r"//+")
_READ = frozenset((b"host", b"expect", b"origin", b"sec-fetch-site"))


class FormsMiddleware:
    """Answer HEAD as GET without the body, ignore superfluous slashes of a path, check the headers Host and Expect.

    Clients that join a base URL and a path send `//v1/rerank` or `/v1/rerank/`; a redirect would cost them the body or
    the key.

    Args:
        app: The wrapped application.
        local_only: Refuses requests of pages of other websites; None refuses none.

    Sources:
        https://www.rfc-editor.org/rfc/rfc9110#name-head
        https://www.rfc-editor.org/rfc/rfc9110#name-expect
        https://www.rfc-editor.org/rfc/rfc9112#section-3.2 (one Host, and no other number)
    """

    def __init__(self, app: ASGIApp, local_only: LocalOnly | None = None) -> None:
        self._app = app
        self._local_only = local_only

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if len(path) > 1 and (path[-1] == "/" or "//" in path):
            scope["path"] = _SLASHES.sub("/", path).rstrip("/") or "/"
        try:
            self._check_headers(scope)
        except CrossrankError as error:
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

    def _check_headers(self, scope: Scope) -> None:
        """Refuse a request by its headers.

        Raises:
            InvalidRequest: It has no Host or several.
            ExpectationFailed: It expects what is not known here.
            Forbidden: See `LocalOnly.check`.
        """
        found: dict[bytes, str] = {}
        hosts = 0
        for name, value in scope["headers"]:
            if name in _READ:
                found[name] = value.decode("latin-1").strip()
                hosts += name == b"host"
        if hosts > 1 or (hosts == 0 and scope["http_version"] != "1.0"):
            raise InvalidRequest(
                f"the request has {hosts} headers Host; send exactly one", param="host", code="invalid_host"
            )
        expected = found.get(b"expect", "")
        if expected.lower() not in ("", "100-continue"):
            raise ExpectationFailed(
                f"expect is {expected[:40]!r}; this server knows 100-continue only: leave the header out",
                param="expect",
            )
        if self._local_only is not None:
            self._local_only.check(
                scope["method"], found.get(b"host"), found.get(b"origin"), found.get(b"sec-fetch-site")
            )
