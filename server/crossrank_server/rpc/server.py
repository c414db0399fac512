"""Run the gRPC server: services, health, reflection and graceful shutdown, on the event loop of the web server."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from crossrank.errors import SetupError
from crossrank_server.process.tls import TlsFiles
from crossrank_server.rpc.aio_server import AioServer
from crossrank_server.rpc.handler import RpcHandler
from crossrank_server.rpc.quota import MAX_RPCS, REFUSED_WITH_REASON, MemoryQuota
from crossrank_server.rpc.reranker import RERANKER, reranker_service
from crossrank_server.rpc.standard import QuotaServer
from crossrank_server.rpc.tei import INFO, RERANK, tei_services
from crossrank_server.serving.service import RerankService

# Seconds within which a message must be whole.
_MESSAGE_TIMEOUT_S = 30.0
# RPCs under way on one connection.
_MAX_STREAMS = 100
_MAX_CONNECTIONS = 1000
# Seconds until a connection without an RPC is closed, until any is, and what its RPCs may take then.
_IDLE_S = 300
_AGE_S, _AGE_GRACE_S = 3600, 600
_HANDSHAKE_S = 10
# Seconds between two checks of readiness for clients that watch it.
_WATCH_S = 0.2
_SERVICES = (RERANKER, RERANK, INFO)


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return what `grpc.aio.Server.add_secure_port` takes; gRPC speaks no version of TLS below 1.2."""
    return grpc.ssl_server_credentials(
        [(tls.key, tls.cert)],
        root_certificates=tls.client_ca,
        require_client_auth=tls.client_ca is not None,
    )


class RpcServer:
    """Serve a RerankService over gRPC.

    Args:
        service: Scores the requests.
        max_message_bytes: Limit for one message.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        credentials: For TLS; None speaks plain text.
        share_port: Let other processes of this user listen on the port too.
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
    ) -> None:
        self._service = service
        self._max_message_bytes = max_message_bytes
        self._address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self._credentials = credentials
        self._share_port = share_port
        self._server: grpc.aio.Server | None = None
        self._health: health.aio.HealthServicer | None = None
        self._watch: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Listen, on the running event loop, and return the port.

        Raises:
            SetupError: The port is taken.
        """
        quota = MemoryQuota(self._max_message_bytes, _MESSAGE_TIMEOUT_S)
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
                ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
                ("grpc.max_connection_idle_ms", _IDLE_S * 1000),
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
        handler = RpcHandler(self._service, quota)
        for service, methods in {**reranker_service(handler), **tei_services(handler)}.items():
            named = {name: method(f"/{service}/{name}") for name, method in methods.items()}
            self._server.add_registered_method_handlers(service, named)
        self._health = _Health(self._service)
        standard = QuotaServer(self._server, quota)
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
        self._watch = asyncio.get_running_loop().create_task(self._health.watch_service())
        return int(port)

    async def stop(self, grace_s: float) -> None:
        """Report that nothing is served, refuse new RPCs, and give those under way up to `grace_s` seconds."""
        if self._server is None or self._health is None or self._watch is None:
            return
        self._watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._watch
        await self._health.enter_graceful_shutdown()
        await self._server.stop(grace_s)


class _Health(health.aio.HealthServicer):  # type: ignore[misc]
    """Serve the standard health service: every service is ready when requests can be scored."""

    def __init__(self, service: RerankService) -> None:
        super().__init__()
        self._service = service

    async def Check(  # noqa: N802
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the state of this moment."""
        await self._update()
        return await super().Check(request, context)

    async def watch_service(self) -> None:
        """Update the state for clients that watch it, without end."""
        while True:
            await self._update()
            await asyncio.sleep(_WATCH_S)

    async def _update(self) -> None:
        status = health_pb2.HealthCheckResponse
        now = status.SERVING if self._service.ready() else status.NOT_SERVING
        for name in ("", *_SERVICES):
            await self.set(name, now)
