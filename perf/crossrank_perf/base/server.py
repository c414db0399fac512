"""Start servers for a measurement, end them afterwards, and ask servers which models they serve."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crossrank.errors import SetupError

if TYPE_CHECKING:
    pass

_READY_LIMIT_S = 180.0
_STOP_LIMIT_S = 30.0


@dataclass(frozen=True)
class StartedServer:
    """A server started for the measurement.

    Attributes:
        url: Base URL.
        pid: Process id.
        start_to_ready_s: Seconds from the start of the process to the first 200 of /health/ready.
        grpc_url: URL of its gRPC service; empty where it has none.
    """

    url: str
    pid: int
    start_to_ready_s: float
    grpc_url: str = ""


@contextmanager
def started_server(arguments: Sequence[str], *, grpc: bool = False) -> Iterator[StartedServer]:
    """Run `crossrank serve` on a free port of 127.0.0.1, yield it when it is ready, and end it afterwards.

    Args:
        arguments: Further arguments of `crossrank serve`.
        grpc: Serve gRPC too.

    Raises:
        SetupError: The server ended, or was not ready within three minutes; with its last words.
    """
    port, grpc_port = free_ports(2)
    listen = ["--host", "127.0.0.1", "--port", str(port), *(["--grpc-port", str(grpc_port)] if grpc else [])]
    begin = time.perf_counter()
    with running_command(["serve", *listen, *arguments], port, "/health/ready") as pid:
        ready_s = time.perf_counter() - begin
        grpc_url = f"grpc://127.0.0.1:{grpc_port}" if grpc else ""
        yield StartedServer(f"http://127.0.0.1:{port}", pid, ready_s, grpc_url)


@contextmanager
def running_command(arguments: Sequence[str], port: int, health: str) -> Iterator[int]:
    """Run `crossrank` with these arguments, yield its process id once it is ready, and end it afterwards.

    Args:
        arguments: Subcommand and its arguments.
        port: Port of 127.0.0.1 where it answers over HTTP.
        health: Path that answers 200 once it is ready.

    Raises:
        SetupError: It ended, or was not ready within three minutes; the message holds the last line that it printed.
    """
    command = [sys.executable, "-m", "crossrank_server", *arguments]
    with running_server_process(command, f"crossrank {arguments[0]}", port, health) as pid:
        yield pid


@contextmanager
def running_server_process(
    command: Sequence[str], name: str, port: int, health: str, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a command that serves HTTP, yield its process id once it is ready, and end it afterwards.

    Args:
        command: Program and arguments.
        name: Name of the server in messages.
        port: Port of 127.0.0.1 where it answers over HTTP.
        health: Path that answers 200 once it is ready.
        env: Environment variables; defaults to those of this process.

    Raises:
        SetupError: It ended, or was not ready within three minutes; the message holds the last line that it printed.
    """
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=env
            )
        try:
            _wait_ready(process, name, port, health, log)
            yield process.pid
        finally:
            process.terminate()
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def free_ports(count: int) -> list[int]:
    """Return that many different ports of 127.0.0.1 on which nothing listens."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def _wait_ready(process: subprocess.Popen[bytes], name: str, port: int, health: str, log: Path) -> None:
    deadline = time.perf_counter() + _READY_LIMIT_S
    while time.perf_counter() < deadline:
        if process.poll() is not None:
            raise SetupError(f"{name} ended with exit code {process.returncode}: {last_words(log)}")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        try:
            connection.request("GET", health)
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(0.01)
    raise SetupError(f"{name} was not ready after {_READY_LIMIT_S:g} s: {last_words(log)}")


def last_words(log: Path) -> str:
    """Return the last non-empty line of a log, or `it printed nothing`."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")


def key_header() -> dict[str, str]:
    """Return the `authorization` header with the key of CROSSRANK_API_KEY; an empty dict where that is not set."""
    key = os.environ.get("CROSSRANK_API_KEY", "").strip()
    return {"authorization": f"Bearer {key}"} if key else {}


def served_models(url: str, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """Return the entries of GET /v1/models, or of ListModels for a gRPC URL, which name engine and precision.

    Raises:
        SetupError: The server cannot be reached or answers something else.
    """
    if urlsplit(url).scheme in ("grpc", "grpcs"):
        return _models_over_grpc(url, timeout_s)
    import httpx

    try:
        response = httpx.get(f"{url}/v1/models", timeout=timeout_s, headers=key_header())
        response.raise_for_status()
        entries: list[dict[str, Any]] = response.json()["data"]
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise SetupError(f"{url}/v1/models answered {status}: is this a crossrank server? Check --url") from None
    except httpx.HTTPError as error:
        raise SetupError(
            f"no server at {url} ({error}); check --url, or leave it out to have the server started here"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise SetupError(f"{url}/v1/models is not crossrank's list of models: check --url") from None
    return entries


def _models_over_grpc(url: str, timeout_s: float) -> list[dict[str, Any]]:
    from crossrank_client import Client
    from crossrank_client.errors import CrossrankClientError

    try:
        with Client(url, timeout=timeout_s) as client:
            return [{"id": model.id, **model.details} for model in client.models()]
    except CrossrankClientError as error:
        raise SetupError(
            f"no usable answer from {url} ({error}); check --url, or leave it out to have the server started here"
        ) from None
