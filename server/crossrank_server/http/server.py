"""The web server: uvicorn, with gRPC beside it on the same event loop where that is asked for."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from crossrank_server.service import RerankService
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank_server.rpc.server import RpcServer


class GracefulServer(uvicorn.Server):
    """Lets requests of both protocols finish within one grace, then closes the service.

    Args:
        app: The application in front of the service.
        service: Is closed in the end.
        settings: `shutdown_grace_s`.
        rpc: The gRPC port; None has none.
    """

    def __init__(self, app: FastAPI, service: RerankService, settings: ServeSettings, rpc: RpcServer | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="httptools",
                log_config=None,
                access_log=False,
                timeout_keep_alive=75,
                timeout_graceful_shutdown=settings.shutdown_grace_s,
            )
        )
        self._service = service
        self._grace_s = settings.shutdown_grace_s
        self._rpc = rpc

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        if self._rpc is not None:
            await self._rpc.start()
        await super().startup(sockets)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, wait for those under way, and close the service whatever happened."""
        try:
            stops = [] if self._rpc is None else [self._rpc.stop(self._grace_s)]
            await asyncio.gather(super().shutdown(sockets), *stops)
        finally:
            await self._service.close()
