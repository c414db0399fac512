"""Run the steps that all routes share: check the key, read the body, notice a disconnect, write the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from starlette.requests import ClientDisconnect

from crossrank.errors import CrossrankError
from crossrank.scheduling.tiers import BULK
from crossrank_server.accounts.base import require_scope
from crossrank_server.calls import Call, open_call
from crossrank_server.held import caller_at
from crossrank_server.http.body import BodyReader, HeldResponse
from crossrank_server.http.json_body import check_values, most_values, parse_object
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
        self._most_values = most_values(service.max_documents)

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
        self,
        request: Request,
        respond: Callable[[dict[str, Any], Call], Coroutine[Any, Any, dict[str, Any] | list[Any]]],
    ) -> Response:
        """Answer a POST: `respond` gets the JSON object of the body and returns that of the answer.

        It is cancelled when the client disconnects. `request.state.holding` counts the body; `respond` adds to it for
        an answer that will be larger.

        Raises:
            CrossrankError: What `open_call`, `BodyReader.read`, `parse_object` and `respond` raise.
        """
        request.state.body_unread = True
        call = await self.open(request)
        holding = self.bodies.held.open(_caller(request, call), yields=call.tier == BULK)
        request.state.holding = holding
        try:
            body = await self.bodies.read(request, holding)
            with call.stage("parse"):
                await check_values(body, self._most_values)
                work = respond(parse_object(body), call)
            # From here on the object is all that is kept, and of it what `respond` keeps.
            body.clear()
            content = await _unless_disconnected(request, work)
            with call.stage("respond"):
                response = HeldResponse(content, holding, call.response_headers)
            response.headers["server-timing"] = call.server_timing()
            return response
        except BaseException as error:
            holding.close()
            if isinstance(error, CrossrankError):
                await self.service.accounts.show_limits(call.account, call.response_headers)
            raise


def _caller(request: Request, call: Call) -> str:
    """Return whose the memory is that a request holds: the key's, else the address's."""
    if call.account is not None:
        return f"key {call.account.key_id}"
    return "" if request.client is None else caller_at(request.client.host)


async def _unless_disconnected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what the work returns; it is not begun, or is cancelled, once the client has disconnected."""
    # The body has been read, so the only message left is the disconnect. It is looked for before the work begins.
    gone = asyncio.ensure_future(request.receive())
    begun = False

    async def begin() -> T:
        nonlocal begun
        if gone.done():
            raise ClientDisconnect
        begun = True
        return await work

    task = asyncio.ensure_future(begin())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()
        # An error's traceback holds this frame: with the task in it they would be a circle, which keeps the body.
        del task
        if not begun:
            work.close()
