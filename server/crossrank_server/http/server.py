"""Run the web server: uvicorn with a graceful shutdown, and gRPC on the same event loop where it is asked for.

On SIGTERM or SIGINT the server first reports that it is not ready, then (after a delay in which load balancers turn
away) refuses new connections, lets requests under way finish within a grace period, and always writes the usage that
is not written yet. On SIGHUP it reads its TLS files again.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from crossrank_server.http.bounded import BoundedProtocol
from crossrank_server.http.connections import ConnectionLimits, Connections
from crossrank_server.process.ports import descriptors_for
from crossrank_server.process.tls import Tls, on_hangup, reload_tls
from crossrank_server.serving.service import RerankService
from crossrank_server.settings import ServeSettings
from crossrank_server.telemetry.logs import log_loop_failure

_log = logging.getLogger("crossrank")
# Seconds that closing engines, writing usage and sending traces may take.
LAST_RESORT_S = 15.0
# Seconds that a client may take for TLS's handshake.
_HANDSHAKE_S = 10.0
# Seconds between two sweeps over the connections.
_SWEEP_S = 1.0


class OtherPort(Protocol):
    """A port of another protocol, which opens and closes with HTTP's."""

    async def start(self) -> object:
        """Listen."""

    async def stop(self, grace_s: float) -> None:
        """Refuse new requests, and give those under way up to `grace_s` seconds."""


class GracefulServer(uvicorn.Server):
    """Serve until a signal, then drain.

    Args:
        app: The application in front of the service.
        service: Marked as draining first, and closed in the end.
        settings: Read for the times of the shutdown and the limits of connections.
        rpc: The gRPC server; None has none.
        tls: Certificate and key; None speaks plain HTTP.
        last_resort_s: After delay and grace, seconds that closing engines, writing usage and sending traces may take;
            then the process is ended with exit code 1.
        listening: Called once the server listens.
    """

    def __init__(
        self,
        app: FastAPI,
        service: RerankService,
        settings: ServeSettings,
        rpc: OtherPort | None = None,
        tls: Tls | None = None,
        *,
        last_resort_s: float = LAST_RESORT_S,
        listening: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=BoundedProtocol,
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=settings.shutdown_grace_s,
            )
        )
        self._connections = Connections(
            ConnectionLimits(
                max_connections=descriptors_for(settings.max_connections),
                client_timeout_s=settings.client_timeout_s,
                idle_timeout_s=settings.idle_timeout_s,
                max_body_bytes=settings.max_body_bytes,
            )
        )
        self._tls = tls
        self._listeners: list[socket.socket] = []
        self._listens = asyncio.Lock()
        self._relisten: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._service = service
        self._rpc = rpc
        self._listening = listening
        self._grace_s = settings.shutdown_grace_s
        self._delay_s = settings.shutdown_delay_s
        self._end_after_s = settings.shutdown_delay_s + settings.shutdown_grace_s + last_resort_s
        self._drained_at: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to drain; a second SIGTERM changes nothing, a second SIGINT (Ctrl+C) ends without waiting.

        uvicorn's own method also notes the signal, to raise it once more after draining; here a drained server has
        ended well, with exit code 0.
        """
        if self._drained_at is None:
            self._service.draining = True
            self._drained_at = time.monotonic() + self._delay_s
            _end_process_after(self._end_after_s)
        elif sig == signal.SIGINT:
            self.should_exit = self.force_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen on the sockets."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(log_loop_failure)
        if self._rpc is not None:
            await self._rpc.start()
        await self.lifespan.startup()
        self._listeners = sockets or []
        await self._listen()
        on_hangup(partial(loop.call_soon_threadsafe, self._reload))
        self._sweeper = loop.create_task(self._sweep())
        self.started = True
        if self._listening is not None:
            self._listening()

    async def _listen(self) -> None:
        """Accept connections, over TLS with the files of this moment."""
        loop = asyncio.get_running_loop()
        protocol = partial(
            BoundedProtocol,
            self._connections,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        tls = self._tls
        # Copies: closing a server closes its sockets, and those that wait to be accepted must not be lost.
        self.servers = [
            await loop.create_server(
                protocol,
                sock=listener.dup(),
                backlog=self.config.backlog,
                ssl=tls.files.context if tls else None,
                ssl_handshake_timeout=min(_HANDSHAKE_S, self._connections.limits.client_timeout_s) if tls else None,
            )
            for listener in self._listeners
        ]

    def _reload(self) -> None:
        """Read the TLS files again; connections that are open stay as they are."""
        if reload_tls(self._tls):
            self._relisten = asyncio.get_running_loop().create_task(self._listen_again())

    async def _listen_again(self) -> None:
        async with self._listens:
            if not self.should_exit:
                before = self.servers
                await self._listen()
                for server in before:
                    server.close()

    async def _sweep(self) -> None:
        """Close connections whose clients are overdue, without end."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            self._connections.sweep()

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to stop listening; uvicorn calls it ten times a second."""
        if self._drained_at is not None and time.monotonic() >= self._drained_at:
            self.should_exit = True
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new connections, wait for requests under way, and close the service whatever happened."""
        self._connections.draining = True
        try:
            stops = [] if self._rpc is None else [self._rpc.stop(0.0 if self.force_exit else self._grace_s)]
            await asyncio.gather(super().shutdown(sockets), *stops)
        finally:
            if tasks := set(self.server_state.tasks):
                # Requests that are given up release their memory and credit before the service is closed.
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=1.0)
            if self._sweeper is not None:
                self._sweeper.cancel()
            await self._service.close()


def _end_process_after(seconds: float) -> None:
    """End the process even if a thread inside a runtime never returns, for which the interpreter would wait."""

    def end() -> None:
        _log.critical("the server has not ended %g s after the signal: it is ended now", seconds)
        os._exit(1)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
