"""Prepare the command that runs the real tritonserver on this machine's CPU."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crossrank.errors import SetupError
from crossrank_export.triton.home import TritonHome, library_path, prepare_backends, prepare_python, prepare_server


@dataclass(frozen=True)
class Ports:
    """Address and ports of tritonserver."""

    host: str
    http: int
    grpc: int
    metrics: int

    def named(self) -> dict[str, int]:
        """Return the ports by the flag that sets them."""
        return {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}


@dataclass(frozen=True)
class Command:
    """Command line and environment variables of a process."""

    arguments: list[str]
    environment: dict[str, str]


def check_ports(ports: Ports) -> None:
    """Check that the ports are free: tritonserver itself would load all models before it finds out.

    Raises:
        SetupError: A port is taken or given twice, or the address is not of this machine.
    """
    named = ports.named()
    for flag, port in named.items():
        twice = [other for other, value in named.items() if value == port and other != flag]
        if twice:
            raise SetupError(f"{flag} and {twice[0]} are both {port}: give each its own")
        try:
            with socket.socket(socket.AF_INET6 if ":" in ports.host else socket.AF_INET) as probe:
                # As tritonserver sets it: a port in TIME_WAIT is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((ports.host, port))
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise SetupError(f"{flag} {port} on {ports.host} cannot be used ({reason}): choose another") from None


def make_command(
    home: TritonHome, repository: Path, ports: Ports, run_dir: Path, arguments: Sequence[str] = ()
) -> Command:
    """Prepare `run_dir` and return the command that serves `repository`.

    Args:
        home: The installed tritonserver.
        repository: Model repository to serve.
        ports: Address and ports to listen on.
        run_dir: Directory for the backend directory and the environment of the Python stub.
        arguments: Further options of tritonserver, after those set here.

    Raises:
        SetupError: This Python has no shared library.
    """
    prepare_backends(home, run_dir / "backends")
    prepare_python(home, run_dir / "python")
    options = {
        "model-repository": repository.resolve(),
        "backend-directory": (run_dir / "backends").resolve(),
        "http-address": ports.host,
        "grpc-address": ports.host,
        "metrics-address": ports.host,
        "http-port": ports.http,
        "grpc-port": ports.grpc,
        "metrics-port": ports.metrics,
        # Without a GPU there is nothing to pin memory for or to measure.
        "pinned-memory-pool-byte-size": 0,
        "allow-gpu-metrics": "false",
        # A second server on the same port would otherwise take half of the requests.
        "reuse-grpc-port": "false",
        "reuse-http-port": "false",
    }
    environment = dict(os.environ)
    for name in ("PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV"):
        environment.pop(name, None)
    environment["LD_LIBRARY_PATH"] = library_path(home)
    environment["PATH"] = f"{(run_dir / 'python' / 'bin').resolve()}:{environment.get('PATH', '')}"
    server = prepare_server(home, run_dir / "bin")
    # Configurations of this project are complete: no model need be started once to be asked for its own.
    flags = [*(f"--{name}={value}" for name, value in options.items()), "--disable-auto-complete-config"]
    return Command([str(server), *flags, *arguments], environment)
