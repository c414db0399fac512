"""Run the steps that all routes share: check the key, read the body, notice a disconnect, write the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from crossrank.errors import CrossrankError
from crossrank.scheduling.tiers import BULK
from crossrank_server.accounts.base import require_scope
from crossrank_server.calls import Call, open_call
from crossrank_server.http.body import BodyReader, JsonResponse
from crossrank_server.http.json_body import parse_object
from crossrank_server.serving.service import RerankService

T = TypeVar("T")


class HttpHandler:
    """Handle the requests of all routes.

    Args:
        service: Scores the requests.
        max_body_bytes: Limit for the body of one request.
    """

    def __init__(self, service: RerankService, max_body_bytes: int) -> None:
        self.service = service
        self.bodies = BodyReader(max_body_bytes)

    async def open(self, request: Request, key_scope: str | None = None) -> Call:
        """Open the call of a request; a caller without a good key is refused before the body is read.

        Args:
            request: The request; its headers are read.
            key_scope: The scope that the key must have, for routes that do not call `Accounts.admit`.

        Raises:
            CrossrankError: What `open_call` and `require_scope` raise.
        """
        call = await open_call(self.service.accounts, request.headers, request.state.request_id)
        request.state.call = call
        if key_scope is not None:
            await self.service.accounts.show_limits(call.account, call.response_headers)
            require_scope(call.account, key_scope)
        return call

    async def answer(
        self, request: Request, respond: Callable[[dict[str, Any], Call], Awaitable[dict[str, Any] | list[Any]]]
    ) -> Response:
        """Answer a POST: `respond` gets the JSON object of the body and returns that of the answer.

        It is cancelled when the client disconnects.

        Raises:
            CrossrankError: What `open_call`, `BodyReader.read`, `parse_object` and `respond` raise.
        """
        request.state.body_unread = True
        call = await self.open(request)
        try:
            async with self.bodies.read(request, yields=call.tier == BULK) as body:
                with call.stage("parse"):
                    data = parse_object(body)
                content = await _unless_disconnected(request, respond, data, call)
                with call.stage("respond"):
                    response = JsonResponse(content, headers=call.response_headers)
                response.headers["server-timing"] = call.server_timing()
                return response
        except CrossrankError:
            await self.service.accounts.show_limits(call.account, call.response_headers)
            raise


async def _unless_disconnected(request: Request, respond: Callable[..., Awaitable[T]], *arguments: Any) -> T:
    """Return what `respond` returns; it is not begun, or is cancelled, once the client has disconnected."""
    # The body has been read, so the only message left is the disconnect. It is looked for first.
    gone = asyncio.ensure_future(request.receive())

    async def begin() -> T:
        if gone.done():
            raise ClientDisconnect
        return await respond(*arguments)

    task = asyncio.ensure_future(begin())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
