"""Run the gRPC server: services, health, reflection and graceful shutdown, on the event loop of the web server."""

from __future__ import annotations

import asyncio
import contextlib

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from crossrank.errors import SetupError
from crossrank_server.process.tls import Tls
from crossrank_server.rpc.handler import MethodInterceptor, RpcHandler
from crossrank_server.rpc.reranker import RERANKER, reranker_service
from crossrank_server.rpc.tei import INFO, RERANK, tei_services
from crossrank_server.serving.service import RerankService

# A message up to this many times the limit is still read, so that its sender is told the limit and the remedy and a
# stream lives on; what is larger is refused by gRPC itself, in its own words.
_REFUSED_WITH_REASON = 4
# Seconds between two checks of readiness for clients that watch it.
_WATCH_S = 0.2
_SERVICES = (RERANKER, RERANK, INFO)


def server_credentials(tls: Tls) -> grpc.ServerCredentials:
    """Return what `grpc.aio.Server.add_secure_port` takes; gRPC speaks no version of TLS below 1.2.

    Connections that begin after the files were read again are given the new ones.
    """

    def configuration() -> grpc.ServerCertificateConfiguration:
        files = tls.files
        return grpc.ssl_server_certificate_configuration([(files.key, files.cert)], root_certificates=files.client_ca)

    asks_for_certificate = tls.files.client_ca is not None
    return grpc.dynamic_ssl_server_credentials(configuration(), configuration, asks_for_certificate)


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
        self._server = grpc.aio.server(
            interceptors=[MethodInterceptor()],
            options=[
                ("grpc.max_receive_message_length", _REFUSED_WITH_REASON * self._max_message_bytes),
                ("grpc.max_send_message_length", -1),
                # By default two servers could share a port without an error.
                ("grpc.so_reuseport", int(self._share_port)),
                # Clients may ping a silent connection every 10 seconds; the server does so every minute.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
            ],
        )
        handler = RpcHandler(self._service, self._max_message_bytes)
        self._server.add_generic_rpc_handlers((reranker_service(handler), *tei_services(handler)))
        self._health = _Health(self._service)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
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
