"""The real `crossrank serve` in a process of its own, for tests that need the whole of it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import ssl
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

CROSSRANK = str(Path(sysconfig.get_path("scripts")) / "crossrank")
_LISTENING = re.compile(r"listening on (https?://\S+)")
_LISTENING_GRPC = re.compile(r"listening on (grpcs?://\S+)")
_START_S = 60.0
_STOP_S = 30.0
_LOGGED_WITHIN_S = 10.0


@dataclass(frozen=True)
class RunningServer:
    """A server that answers.

    Attributes:
        base_url: Its address.
        log: The file that holds its stdout and stderr.
        process: For its exit status, or to send it signals.
    """

    base_url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return int(self.base_url.rsplit(":", 1)[1])

    @property
    def grpc_url(self) -> str:
        """Its gRPC address, with --grpc-port."""
        address = _LISTENING_GRPC.search(self.log.read_text())
        assert address, "the server was started without --grpc-port"
        return address[1]

    @property
    def grpc_target(self) -> str:
        """The same for grpc.insecure_channel."""
        return self.grpc_url.removeprefix("grpc://")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def access_line(self, request_id: str) -> dict[str, Any]:
        """Return the line of a request in the log of --log-format json.

        It is waited for: HTTP's is written after the answer, with the time that sending took.
        """
        give_up_at = time.monotonic() + _LOGGED_WITHIN_S
        while True:
            whole_lines = self.log.read_text().rpartition("\n")[0].splitlines()
            lines = [line for line in map(json.loads, whole_lines) if line.get("request_id") == request_id]
            found = [line for line in lines if line["logger"] == "crossrank.access"]
            if found or time.monotonic() > give_up_at:
                (line,) = found
                return dict(line)
            time.sleep(0.02)


@contextlib.contextmanager
def running_server(
    *args: str, env: Mapping[str, str] | None = None, tls: ssl.SSLContext | None = None, start_s: float = _START_S
) -> Iterator[RunningServer]:
    """Run `crossrank serve` on a free port of loopback until the block ends.

    Args:
        args: Further arguments of `serve`.
        env: Added to the environment, from which all other settings (CROSSRANK_*) are removed.
        tls: How it is asked whether it is ready, where it speaks HTTPS.
        start_s: Seconds within which it has to be ready.

    Raises:
        RuntimeError: It did not become ready; the message ends with its log.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("CROSSRANK_")}
    command = [CROSSRANK, "serve", "--port", "0", *args]
    with tempfile.TemporaryDirectory(prefix="crossrank-test-") as folder:
        log = Path(folder) / "server.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**inherited, **(env or {})}
            )
        try:
            yield RunningServer(_wait_until_ready(process, log, tls, start_s), log, process)
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], log: Path, tls: ssl.SSLContext | None, start_s: float) -> str:
    """Return the address once /health/ready answers 200."""
    give_up_at = time.monotonic() + start_s
    while process.poll() is None and time.monotonic() < give_up_at:
        address = _LISTENING.search(log.read_text())
        if address and _ready(address[1], tls):
            return address[1]
        time.sleep(0.02)
    state = "still starting" if process.poll() is None else f"exit status {process.returncode}"
    raise RuntimeError(f"the server is not ready ({state}):\n{log.read_text()}")


def _ready(base_url: str, tls: ssl.SSLContext | None) -> bool:
    try:
        with urlopen(f"{base_url}/health/ready", timeout=5, context=tls) as response:
            return bool(response.status == 200)
    except (URLError, OSError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the process; one that ignores SIGTERM is killed, so that no test leaves a server behind."""
    process.terminate()
    try:
        process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
