"""`crossrank serve`: load the models, then listen."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import sys
from typing import Any

import click

from crossrank_server.errors import SetupError
from crossrank_server.options import options_from_settings, settings_from_options
from crossrank_server.settings import ServeSettings


@click.command()
@click.option(
    "--model",
    "-m",
    "models",
    multiple=True,
    default=["builtin"],
    show_default=True,
    help="builtin, a bundle directory, a Hugging Face directory holding ONNX, or a hub id. Repeat it for several; "
    "the first is the default of requests that name none. All are fetched and checked at start, so that later loads "
    "need no network and a wrong name is seen at once; only the first and those of --pin are loaded then.",
)
@options_from_settings(ServeSettings)
def serve(models: tuple[str, ...], **options: Any) -> None:
    """Serve models over HTTP.

    \b
    Examples:
      crossrank serve
      crossrank serve --model cross-encoder/ms-marco-TinyBERT-L2-v2 --port 9000
      crossrank serve --model ./my-bundle --model builtin --precision fp32

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
    _refuse_open_to_all(settings)
    # Loading takes most of a second: a taken port is said before it, not after.
    listener = _listen(settings.host, settings.port)
    try:
        _run(models, settings, listener)
    finally:
        listener.close()


def _run(models: tuple[str, ...], settings: ServeSettings, listener: socket.socket) -> None:
    import uvicorn

    from crossrank_server.http.app import create_app
    from crossrank_server.startup import load_service

    service = load_service(models, settings)
    app = create_app(service, max_body_bytes=settings.max_body_bytes)
    app.router.add_event_handler("shutdown", service.close)
    config = uvicorn.Config(
        app,
        http="httptools",
        log_config=None,
        access_log=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    # uvicorn raises the signal that stopped it once more when it has drained: that is a clean end, not a failure.
    # So is one that comes before uvicorn listens to signals.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    click.echo(f"listening on http://{shown}:{port}  (documentation at /docs)", err=True)
    uvicorn.Server(config).run(sockets=[listener])


def _refuse_open_to_all(settings: ServeSettings) -> None:
    """Refuse to serve anybody who reaches an address beyond this machine, unless that is wanted."""
    if settings.store or settings.allow_anonymous:
        return
    try:
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
    except OSError:
        return  # _listen says what is wrong
    if not all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback for *_, address in found):
        raise SetupError(
            f"--host {settings.host} can be reached by others and there are no keys: give --store "
            "sqlite:///crossrank.db and make keys with `crossrank keys create`, or --allow-anonymous if anybody who "
            "reaches it may be served"
        )


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror or str(error)
        raise SetupError(f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port") from None
