"""`crossrank serve`: load the models, then listen."""

from __future__ import annotations

import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from crossrank.bundles.catalog import catalog_model
from crossrank.bundles.model_name import split_name
from crossrank.errors import SetupError
from crossrank_server.commands.options import options_from_settings, settings_from_options
from crossrank_server.process.ports import bind_reserved, listen, port_of, reserve
from crossrank_server.process.tls import Tls, on_hangup, open_tls, reload_tls
from crossrank_server.process.workers import Workers, require_shared_ports
from crossrank_server.serving.worker_share import worker_count, worker_settings
from crossrank_server.settings import ServeSettings
from crossrank_server.telemetry.base import COUNTS_VARIABLE
from crossrank_server.telemetry.logs import configure_logging

if TYPE_CHECKING:
    from crossrank_server.rpc.server import RpcServer
    from crossrank_server.serving.service import RerankService

_log = logging.getLogger("crossrank")


@click.command()
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    default=["builtin"],
    show_default=True,
    help="builtin, a bundle directory, a directory as save_pretrained writes it or holding ONNX, or a hub id; "
    "NAME=MODEL gives it another name. Repeat it for several; the first is the default of requests that name none. "
    "All are fetched and checked at start, so that later loads need no network and a wrong name is seen at once; only "
    "the first and those of --pin are loaded then.",
)
@options_from_settings(ServeSettings)
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP, and over gRPC with --grpc-port.

    \b
    Examples:
      crossrank serve
      crossrank serve --model cross-encoder/ms-marco-TinyBERT-L2-v2 --port 9000
      crossrank serve --model mine=./my-bundle --model builtin --precision fp32
      crossrank serve --grpc-port 9000

    \b
    Then:
      curl http://127.0.0.1:8000/v1/rerank -H 'content-type: application/json' \\
        -d '{"query": "how many people live in berlin",
             "documents": ["Berlin has museums.", "Berlin has 3,520,031 inhabitants."]}'
    """  # noqa: D301
    settings = settings_from_options(ServeSettings, options)
    configure_logging(settings.log_level, settings.log_format)
    _refuse_open_to_all(settings)
    tls = open_tls(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
    on_hangup(partial(reload_tls, tls))
    workers = worker_count(settings)
    if workers > 1:
        sys.exit(_run_workers(models, settings, tls, workers))
    # Loading takes most of a second: a port that is taken is reported before, not after.
    with listen(settings.host, settings.port, "--port") as listener:
        grpc_port = None
        if settings.grpc_port is not None:
            # gRPC binds it when the models are loaded.
            with listen(settings.host, settings.grpc_port, "--grpc-port") as probe:
                grpc_port = port_of(probe)
        _state_terms(models)
        _run(models, settings, tls, listener, grpc_port, partial(_announce, settings, listener, grpc_port, tls))


def _run_workers(models: tuple[str, ...], settings: ServeSettings, tls: Tls | None, count: int) -> int:
    require_shared_ports(count)
    with ExitStack() as stack:
        reserved = stack.enter_context(reserve(settings.host, settings.port, "--port"))
        grpc_port = None
        if settings.grpc_port is not None:
            grpc_port = port_of(stack.enter_context(reserve(settings.host, settings.grpc_port, "--grpc-port")))
        try:
            counts = stack.enter_context(TemporaryDirectory(prefix="crossrank-metrics-"))
        except OSError as error:
            raise SetupError(
                f"--workers {count} needs a temporary directory for the counts of /metrics ({error.strerror}): name "
                "one that can be written in TMPDIR, or use --workers 1"
            ) from None
        os.environ[COUNTS_VARIABLE] = counts
        _state_terms(models)
        share = worker_settings(settings, count)

        def work(listening: Callable[[], None]) -> None:
            # It listens when its models are loaded, or its connections would wait for that.
            with bind_reserved(reserved) as listener:
                _run(models, share, tls, listener, grpc_port, listening, shared=True)

        def ended(pid: int) -> None:
            from prometheus_client.multiprocess import mark_process_dead

            mark_process_dead(pid, counts)  # type: ignore[no-untyped-call]

        started = partial(_announce, settings, reserved, grpc_port, tls, workers=count)
        return Workers(count, work, started=started, ended=ended, reload=partial(reload_tls, tls)).run()


def _run(
    models: tuple[str, ...],
    settings: ServeSettings,
    tls: Tls | None,
    listener: socket.socket,
    grpc_port: int | None,
    listening: Callable[[], None],
    *,
    shared: bool = False,
) -> None:
    from crossrank_server.http.app import create_app
    from crossrank_server.http.server import GracefulServer
    from crossrank_server.serving.startup import load_service
    from crossrank_server.telemetry.access_log import AccessLog
    from crossrank_server.telemetry.base import Observers
    from crossrank_server.telemetry.metrics import Metrics
    from crossrank_server.telemetry.shared_metrics import SharedMetrics
    from crossrank_server.telemetry.tracing import tracing_from_environment

    on_hangup(partial(reload_tls, tls))  # in workers too, until the server handles it
    tracing = tracing_from_environment()
    metrics = SharedMetrics() if shared else Metrics()
    # Tracing first: it gives the line of the log its trace id.
    observers = Observers([*([tracing] if tracing else []), metrics, AccessLog()])
    service = load_service(models, settings, observers)
    app = create_app(
        service,
        max_body_bytes=settings.max_body_bytes,
        metrics=metrics,
        cors_origins=settings.cors_origin.split(",") if settings.cors_origin else (),
        allowed_hosts=_allowed_hosts(settings, listener),
    )
    rpc = None if grpc_port is None else _rpc_server(service, settings, grpc_port, tls, shared)

    def began() -> None:
        metrics.begin()
        listening()

    server = GracefulServer(app, service, settings, rpc, tls, listening=began)
    # Until the server handles them, and once it has drained, either signal is a clean end and not a failure.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    try:
        server.run(sockets=[listener])
    finally:
        observers.close()


def _allowed_hosts(settings: ServeSettings, listener: socket.socket) -> list[str] | None:
    """Return the names under which the server may be called; None where any will do."""
    names = settings.allowed_hosts.split(",") if settings.allowed_hosts else []
    if names or ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        return [*names, settings.host]
    return None


def _announce(
    settings: ServeSettings, socket: socket.socket, grpc_port: int | None, tls: Tls | None, workers: int = 1
) -> None:
    host, port = socket.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    processes = f"; {workers} processes" if workers > 1 else ""
    lines = [f"listening on {'https' if tls else 'http'}://{shown}:{port}  (documentation at /docs{processes})"]
    if grpc_port is not None:
        lines.append(f"listening on {'grpcs' if tls else 'grpc'}://{shown}:{grpc_port}")
    for line in lines:
        if settings.log_format == "json":
            _log.info(line)
        else:
            click.echo(line, err=True)


def _state_terms(models: tuple[str, ...]) -> None:
    """Log what the licences of the models forbid, where the catalogue knows of such."""
    for spec in models:
        known = catalog_model(split_name(spec)[1])
        if known is not None and known.terms:
            _log.warning("%s is licensed for %s use: %s", known.model_id, known.licence, known.terms)


def _refuse_open_to_all(settings: ServeSettings) -> None:
    """Refuse to serve without keys on an address that other machines reach, unless `--allow-anonymous` allows it."""
    if settings.store or settings.allow_anonymous:
        return
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError:
        return  # listen reports the error
    if not all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found):
        raise SetupError(
            f"--host {settings.host} can be reached by others and there are no keys: give --store "
            "sqlite:///crossrank.db and make keys with `crossrank keys create`, or --allow-anonymous if anybody who "
            "reaches it may be served"
        )


def _rpc_server(service: RerankService, settings: ServeSettings, port: int, tls: Tls | None, shared: bool) -> RpcServer:
    try:
        from crossrank_server.rpc.server import RpcServer, server_credentials
    except ModuleNotFoundError as error:
        raise SetupError(f"--grpc-port needs {error.name}: pip install 'crossrank[grpc]'") from None
    return RpcServer(
        service,
        max_message_bytes=settings.max_body_bytes,
        host=settings.host,
        port=port,
        credentials=server_credentials(tls) if tls else None,
        share_port=shared,
        client_timeout_s=settings.client_timeout_s,
        idle_timeout_s=settings.idle_timeout_s,
        max_connections=settings.max_connections,
    )
