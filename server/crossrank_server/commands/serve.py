"""`crossrank serve`: load the models, then listen."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import click

from crossrank_server.errors import SetupError
from crossrank_server.options import options_from_settings, settings_from_options
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank_server.rpc.server import RpcServer
    from crossrank_server.service import RerankService


@click.command()
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    default=["builtin"],
    show_default=True,
    help="builtin, a bundle directory, a Hugging Face directory holding ONNX, or a hub id. Repeat it for several; "
    "the first is the default of requests that name none.",
)
@options_from_settings(ServeSettings)
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP, and over gRPC with --grpc-port.

    \b
    Examples:
      crossrank serve
      crossrank serve --model cross-encoder/ms-marco-TinyBERT-L2-v2 --port 9000
      crossrank serve --model ./my-bundle --model builtin --precision fp32
      crossrank serve --grpc-port 9000

    \b
    Then:
      curl http://127.0.0.1:8000/v1/rerank -H 'content-type: application/json' \\
        -d '{"query": "how many people live in berlin",
             "documents": ["Berlin has museums.", "Berlin has 3,520,031 inhabitants."]}'
    """  # noqa: D301
    settings = settings_from_options(ServeSettings, options)
    logging.basicConfig(
        stream=sys.stderr,
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    # Loading takes most of a second: a taken port is said before it, not after.
    listener = _listen(settings.host, settings.port, "--port")
    try:
        grpc_port = None if settings.grpc_port is None else _usable_port(settings.host, settings.grpc_port)
        _run(models, settings, listener, grpc_port)
    finally:
        listener.close()


def _run(models: tuple[str, ...], settings: ServeSettings, listener: socket.socket, grpc_port: int | None) -> None:
    from crossrank_server.http.app import create_app
    from crossrank_server.http.server import GracefulServer
    from crossrank_server.startup import load_service

    service = load_service(models, settings)
    app = create_app(service, max_body_bytes=settings.max_body_bytes)
    rpc = None if grpc_port is None else _rpc_server(service, settings, grpc_port)
    server = GracefulServer(app, service, settings, rpc)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    # uvicorn raises the signal that stopped it once more when it has drained: that is a clean end, not a failure.
    # So is one that comes before uvicorn listens to signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    click.echo(f"listening on http://{shown}:{port}  (documentation at /docs)", err=True)
    if rpc is not None:
        click.echo(f"listening on grpc://{shown}:{grpc_port}", err=True)
    server.run(sockets=[listener])


def _rpc_server(service: RerankService, settings: ServeSettings, port: int) -> RpcServer:
    try:
        from crossrank_server.rpc.server import RpcServer
    except ModuleNotFoundError as error:
        raise SetupError(f"--grpc-port needs {error.name}: pip install 'crossrank[grpc]'") from None
    return RpcServer(service, max_message_bytes=settings.max_body_bytes, host=settings.host, port=port)


def _usable_port(host: str, port: int) -> int:
    """Return the port, or a free one in place of 0, which gRPC binds when the models are loaded."""
    with _listen(host, port, "--grpc-port") as probe:
        return int(probe.getsockname()[1])


def _listen(host: str, port: int, flag: str) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --host or {flag}") from None
