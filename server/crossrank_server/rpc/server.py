"""Run the gRPC server: services, health, reflection and graceful shutdown, on the event loop of the web server."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from crossrank.errors import SetupError
from crossrank_server.process.tls import Tls
from crossrank_server.rpc.aio_server import AioServer
from crossrank_server.rpc.handler import RpcHandler
from crossrank_server.rpc.quota import MAX_RPCS, REFUSED_WITH_REASON, MemoryQuota
from crossrank_server.rpc.reranker import RERANKER, reranker_service
from crossrank_server.rpc.standard import QuotaServer
from crossrank_server.rpc.tei import INFO, RERANK, tei_services
from crossrank_server.serving.service import RerankService

# RPCs under way on one connection. Calls that begin before a client has learned the limit fail beyond it, so that a
# usual burst must fit.
_MAX_STREAMS = 1000
# Seconds until a connection is to be replaced by a new one, and what its RPCs may take then.
_AGE_S, _AGE_GRACE_S = 3600, 600
_HANDSHAKE_S = 10
# Seconds between two counts of the open connections.
_COUNT_S = 0.25
# Seconds between two checks of readiness for clients that watch it.
_WATCH_S = 0.2
_SERVICES = (RERANKER, RERANK, INFO)


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return what `grpc.aio.Server.add_secure_port` takes; gRPC speaks no version of TLS below 1.2.

    Connections that begin after the files were read again are given the new ones.
    """
    in_use = tls.files

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(in_use.key, in_use.cert)], root_certificates=in_use.client_ca
        )

    def new_configuration() -> grpc.ServerCertificateConfiguration | None:
        # Asked at each connection. None, which keeps the one in use, must be the answer where nothing is new: gRPC
        # replaces what handshakes under way still read, and two hundred bytes of junk a connection end the process.
        nonlocal in_use
        if tls.files is in_use:
            return None
        in_use = tls.files
        return configuration()

    asks_for_certificate = in_use.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), new_configuration, asks_for_certificate)


class RpcServer:
    """Serve a RerankService over gRPC.

    Args:
        service: Scores the requests.
        max_message_bytes: Limit for one message.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        credentials: For TLS; None speaks plain text.
        share_port: Let other processes of this user listen on the port too.
        client_timeout_s: Seconds within which a message must be whole, and an answer be taken.
        idle_timeout_s: Seconds for which a connection is kept open without an RPC.
        max_connections: Open connections; beyond it idle ones make room.
    """

    def __init__(
        self,
        service: RerankService,
        *,
        max_message_bytes: int,
        host: str,
        port: int,
        credentials: grpc.ServerCredentials | None = None,
        share_port: bool = False,
        client_timeout_s: float = 30.0,
        idle_timeout_s: float = 75.0,
        max_connections: int = 4096,
    ) -> None:
        self._service = service
        self._quota = MemoryQuota(max_message_bytes, client_timeout_s)
        self._idle_timeout_s = idle_timeout_s
        self._max_connections = max_connections
        self._max_message_bytes = max_message_bytes
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._credentials = credentials
        self._share_port = share_port
        self._server: grpc.aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> int:
        """Listen, on the running event loop, and return the port.

        Raises:
            SetupError: The port is taken.
        """
        self._server = AioServer(
            [
                ("grpc.max_receive_message_length", REFUSED_WITH_REASON * self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # By default two servers could share a port without an error.
                ("grpc.so_reuseport", int(self._share_port)),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                # RPCs that Python has not taken yet: gRPC cancels further ones, without a word.
                ("grpc.server.max_pending_requests", 2 * MAX_RPCS),
                ("grpc.server.max_pending_requests_hard_limit", 4 * MAX_RPCS),
                # Beyond the limit idle ones make room; beyond this, gRPC closes new ones at once.
                ("grpc.max_allowed_incoming_connections", 2 * self._max_connections),
                ("grpc.max_connection_idle_ms", round(self._idle_timeout_s * 1000)),
                ("grpc.max_connection_age_ms", _AGE_S * 1000),
                ("grpc.max_connection_age_grace_ms", _AGE_GRACE_S * 1000),
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_S * 1000),
                # Clients may ping a silent connection every 10 seconds; the server does so every minute.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
            2 * MAX_RPCS,  # The quota refuses first, in our words; this is for what does not pass through it.
        )
        handler = RpcHandler(self._service, self._quota)
        for service, methods in {**reranker_service(handler), **tei_services(handler)}.items():
            named = {name: method(f"/{service}/{name}") for name, method in methods.items()}
            self._server.add_registered_method_handlers(service, named)
        self._health = _Health(self._service)
        standard = QuotaServer(self._server, self._quota)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, standard)
        names = (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(reflection.aio.ReflectionServicer(names), standard)
        try:
            if self._credentials is None:
                port = self._server.add_insecure_port(self._address)
            else:
                port = self._server.add_secure_port(self._address, self._credentials)
        except RuntimeError as error:
            raise SetupError(
                f"cannot listen for gRPC on {self._address}: {error}; choose another with --host or --grpc-port"
            ) from None
        await self._server.start()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(work) for work in (self._health.watch_service(), self._bound(int(port)))]
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Report that nothing is served, refuse new RPCs, and give those under way up to `grace_s` seconds.

        Those that wait for their caller have fewer: see `MemoryQuota.drain`.
        """
        if self._server is None or self._health is None:
            return
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._health.enter_graceful_shutdown()
        self._quota.drain()
        await self._server.stop(grace_s)

    async def _bound(self, port: int) -> None:
        """Keep the connections within their limit, without end."""
        while True:
            await asyncio.sleep(_COUNT_S)
            self._quota.bound_connections(port, self._max_connections)


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Serve the standard health service: every service is ready when requests can be scored."""

    def __init__(self, service: RerankService) -> None:
        super().__init__()
        self._service = service
        # Replaced each time it is set.
        self._changed = asyncio.Event()
        self._shown: int | None = None

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the state of this moment."""
        await self._update()
        return await super().Check(request, context)

    async def Watch(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Yield the state now and each time that it changes.

        The package's own method holds a lock while it sends, so that a watcher that reads nothing would stop everybody
        else who watches, and forgets all watchers of a service as one of them leaves.
        """
        sent: int | None = None
        while True:
            changed = self._changed
            status = self._server_status.get(request.service, health_pb2.HealthCheckResponse.SERVICE_UNKNOWN)
            if status != sent:
                yield health_pb2.HealthCheckResponse(status=status)
                sent = status
            await changed.wait()

    async def enter_graceful_shutdown(self) -> None:
        """Show that nothing is served from now on."""
        await super().enter_graceful_shutdown()
        self._wake_watchers()

    async def watch_service(self) -> None:
        """Update the state for clients that watch it, without end."""
        while True:
            await self._update()
            await asyncio.sleep(_WATCH_S)

    async def _update(self) -> None:
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._service.ready() else status.NOT_SERVING
        if now == self._shown:
            return  # Showing it again would wake everybody who watches.
        self._shown = now
        for name in ("", *_SERVICES):
            await self.set(name, now)
        self._wake_watchers()

    def _wake_watchers(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
