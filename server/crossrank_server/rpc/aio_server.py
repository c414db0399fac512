"""Run gRPC's asyncio server with a loop of its own that takes RPCs.

grpcio decodes the name of a method that does not exist as UTF-8: one RPC with another name ends the whole server.
It also waits for all methods at once, which costs time with each RPC. Nothing public is in between: here that loop gets
nothing to take, each method has a task of its own, and RPCs without a method are refused unread.
Source: https://github.com/grpc/grpc/blob/master/src/python/grpcio/grpc/_cython/_cygrpc/aio/server.pyx.pxi
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
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
        self._server = _AioServer(self._loop, None, (), (), tuple(options), None)
        self._server.max_rpcs = max_rpcs


class _AioServer(cygrpc.AioServer):  # type: ignore[misc]
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.max_rpcs = 0
        self._loop = asyncio.get_running_loop()
        self._handlers: dict[str, grpc.RpcMethodHandler] = {}
        self._rpcs: set[asyncio.Task[None]] = set()
        self._takers: list[asyncio.Task[None]] = []
        self._failed: asyncio.Future[None] = self._loop.create_future()

    def add_registered_method_handlers(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        """Add methods by their full names."""
        super().add_registered_method_handlers(handlers)
        self._handlers.update(handlers)

    def resolve_handler(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        """Return the handler of an RPC, for gRPC."""
        return self._handlers.get(details.method)

    def _make_request_call_future(self, method: bytes | None) -> asyncio.Future[None]:
        """Return what gRPC's loop waits for: the end of the server, or that no more RPCs can be taken."""
        if method is None:
            return self._loop.create_task(self._take(None))
        taker = self._loop.create_task(self._take(method))
        taker.add_done_callback(self._taker_ended)
        self._takers.append(taker)
        return self._failed

    async def _take(self, method: bytes | None) -> None:
        """Take the RPCs of a method, or of none, until the server stops."""
        name = (method or b"").decode()
        while True:
            try:
                rpc = await (self._request_call() if method is None else self._request_registered_call(method))
            except cygrpc._RequestCallError:
                if self.is_running():
                    continue
                raise
            full = len(self._rpcs) >= self.max_rpcs
            work: Coroutine[Any, Any, None] = (
                _refused(rpc) if method is None else cygrpc._handle_rpc(name, self, (), rpc, self._loop, full)
            )
            task = self._loop.create_task(cygrpc._schedule_rpc_coro(work, rpc, self._loop, name))
            self._rpcs.add(task)
            task.add_done_callback(self._rpcs.discard)

    def _taker_ended(self, taker: asyncio.Task[None]) -> None:
        error = None if taker.cancelled() else taker.exception()
        if error is not None and not self._failed.done():
            self._failed.set_exception(error)


async def _refused(rpc: cygrpc.RPCState) -> None:
    context = cygrpc._ServicerContext(rpc, None, None, asyncio.get_running_loop())
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, _UNKNOWN)
