"""The real tritonserver in a process of its own, for tests that need it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from crossrank.errors import SetupError
from crossrank_export.triton.home import find_home

CROSSRANK = str(Path(sysconfig.get_path("scripts")) / "crossrank")
_START_S = 120.0
_STOP_S = 60.0


@dataclass(frozen=True)
class RunningTriton:
    """A tritonserver that is ready.

    Attributes:
        grpc_url: `host:port`, as tritonclient takes it.
        http_url: `http://host:port`.
        metrics_url: Where Prometheus reads.
        repository: The model repository it serves.
        log: The file that holds its stdout and stderr.
        process: The tritonserver itself; its pid is that of the command that started it.
    """

    grpc_url: str
    http_url: str
    metrics_url: str
    repository: Path
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


def require_triton() -> None:
    """Skip the calling test, saying what to install, where there is no tritonserver."""
    try:
        find_home()
    except SetupError as error:
        pytest.skip(error.message)


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nothing listens on, all different."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment without settings of crossrank but where its tritonserver lies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("CROSSRANK_") or name == "CROSSRANK_TRITON_HOME"
    }
    return {**kept, **(extra or {})}


@contextlib.contextmanager
def running_triton(
    *args: str, ports: list[int] | None = None, repository: Path | None = None, wait: bool = True
) -> Iterator[RunningTriton]:
    """Run `crossrank triton` on loopback until the block ends.

    Args:
        args: Further arguments of `crossrank triton`, tritonserver's own after `--`.
        ports: HTTP, gRPC and metrics; free ones if omitted. Given to start a server again where it was.
        repository: Serve this one instead of a fresh one for `--model`.
        wait: Until it is ready.

    Raises:
        RuntimeError: It did not become ready; the message ends with its log.
    """
    require_triton()
    http, grpc, metrics = ports or free_ports(3)
    with tempfile.TemporaryDirectory(prefix="crossrank-triton-") as folder:
        run_dir = Path(folder) / "run"
        command = [CROSSRANK, "triton", "--run-dir", str(run_dir)]
        command += ["--http-port", str(http), "--grpc-port", str(grpc), "--metrics-port", str(metrics)]
        if repository is not None:
            command += ["--repository", str(repository)]
        log = Path(folder) / "triton.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, *args], stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment()
            )
        server = RunningTriton(
            grpc_url=f"127.0.0.1:{grpc}",
            http_url=f"http://127.0.0.1:{http}",
            metrics_url=f"http://127.0.0.1:{metrics}/metrics",
            repository=repository or run_dir / "model_repository",
            log=log,
            process=process,
        )
        try:
            if wait:
                wait_until_ready(server)
            yield server
        finally:
            stop(server)


def wait_until_ready(server: RunningTriton) -> None:
    """Return once the server and all its models are ready.

    Raises:
        RuntimeError: They are not in time, or the process ended.
    """
    give_up_at = time.monotonic() + _START_S
    while server.process.poll() is None and time.monotonic() < give_up_at:
        try:
            with urlopen(f"{server.http_url}/v2/health/ready", timeout=5) as response:
                if response.status == 200:
                    return
        except (URLError, OSError):
            pass
        time.sleep(0.05)
    code = server.process.poll()
    state = "still starting" if code is None else f"exit status {code}"
    raise RuntimeError(f"tritonserver is not ready ({state}):\n{server.log.read_text()}")


def stop(server: RunningTriton) -> None:
    """End the server; one that ignores SIGTERM is killed, so that no test leaves one behind."""
    if server.process.poll() is None:
        server.process.terminate()
    try:
        server.process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        server.process.kill()
        server.process.wait()
