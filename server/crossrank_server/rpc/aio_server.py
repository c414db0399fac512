"""Run gRPC's asyncio server without its reading of the names of methods that do not exist.

grpcio decodes such a name as UTF-8 in its main loop, so that one RPC with another name ends the whole server. Nothing
public of it is in between: the loop's source of RPCs is replaced by one that answers those without a method itself.
Source: https://github.com/grpc/grpc/blob/master/src/python/grpcio/grpc/_cython/_cygrpc/aio/server.pyx.pxi
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
from grpc._cython import cygrpc
from grpc.aio._server import Server

_UNKNOWN = "no such method; the services and methods of this server are told by its reflection"


class AioServer(Server):  # type: ignore[misc]
    """A server on the running event loop; only methods that are registered with it are found.

    Args:
        options: As grpc.aio.server takes them.
        max_rpcs: Limit of RPCs under way; further ones are refused in gRPC's words.
    """

    def __init__(self, options: Sequence[tuple[str, int]], max_rpcs: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = _AioServer(self._loop, None, (), (), tuple(options), max_rpcs)


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]
    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[Any]:
        """Return what the main loop awaits: the next RPC of a method; of unknown methods there never is one."""
        if method is not None:
            future: asyncio.Future[Any] = super()._make_request_call_future(method)
            return future
        return asyncio.get_running_loop().create_task(self._refuse_unknown())

    async def _refuse_unknown(self) -> None:
        """Refuse the RPCs of methods that do not exist, until the server stops and `_request_call` raises."""
        refusals = set()
        while True:
            rpc = await self._request_call()
            refusal = asyncio.get_running_loop().create_task(_refuse(rpc))
            refusals.add(refusal)
            refusal.add_done_callback(refusals.discard)


async def _refuse(rpc: cygrpc.RPCState) -> None:
    context = cygrpc._ServicerContext(rpc, None, None, asyncio.get_running_loop())
    try:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, _UNKNOWN)
    except (grpc.aio.AbortError, grpc.aio.BaseError):
        return  # Always the first; the second if the caller has left.
