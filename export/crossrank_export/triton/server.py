"""The real tritonserver on this machine, serving a repository on the CPU."""

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
    """Where tritonserver listens."""

    host: str
    http: int
    grpc: int
    metrics: int

    def named(self) -> dict[str, int]:
        """Return each port by its flag."""
        return {"--http-port": self.http, "--grpc-port": self.grpc, "--metrics-port": self.metrics}


@dataclass(frozen=True)
class Command:
    """What is executed, with its environment."""

    arguments: list[str]
    environment: dict[str, str]


def check_ports(ports: Ports) -> None:
    """Refuse ports that something listens on already: tritonserver would load all models before it finds out.

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
                # As tritonserver does; a port in TIME_WAIT is free.
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
        repository: The model repository.
        ports: Where to listen.
        run_dir: Gets the backend directory and the environment of the Python stub.
        arguments: Further options of tritonserver, after ours.

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
        # There is no GPU to pin memory for or to measure.
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
    # Our configurations are complete: no model need be started once more to be asked for its own.
    flags = [*(f"--{name}={value}" for name, value in options.items()), "--disable-auto-complete-config"]
    return Command([str(server), *flags, *arguments], environment)
