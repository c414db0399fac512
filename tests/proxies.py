"""The proxies of deploy/proxies, run as they stand but for ports, certificates and shorter times."""

from __future__ import annotations

import contextlib
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.deploy_files import DEPLOY, ROOT
from tests.services import free_port

NAME = "rerank.example.org"
ENVOY = ROOT / ".venv-envoy" / "bin" / "envoy"
_START_S = 30.0


@dataclass(frozen=True)
class Proxy:
    """A proxy that listens on 127.0.0.1.

    Attributes:
        port: For HTTPS and gRPC over TLS.
        ca: PEM of the authority that signed its certificate.
    """

    port: int
    ca: bytes

    @property
    def tls(self) -> ssl.SSLContext:
        """What trusts its certificate."""
        return ssl.create_default_context(cadata=self.ca.decode())


@contextlib.contextmanager
def running_proxy(kind: str, http_port: int, grpc_port: int) -> Iterator[Proxy]:
    """Run nginx or Envoy in front of a server until the block ends; skip the test where it is not installed."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/bin") if kind == "nginx" else shutil.which(ENVOY)
    if program is None:
        pytest.skip(
            "nginx is not installed: make services" if kind == "nginx" else "Envoy is not installed: make envoy"
        )
    ca, port = trustme.CA(), free_port()
    with tempfile.TemporaryDirectory(prefix="crossrank-proxy-") as name:
        folder = Path(name)
        leaf = ca.issue_cert(NAME)
        leaf.private_key_pem.write_to_path(folder / "tls.key")
        leaf.cert_chain_pems[0].write_to_path(folder / "tls.crt")
        replaced = {
            "/etc/ssl/crossrank": name,
            "listen 443": f"listen 127.0.0.1:{port}",
            "address: 0.0.0.0, port_value: 443": f"address: 127.0.0.1, port_value: {port}",
            "127.0.0.1:8000": f"127.0.0.1:{http_port}",
            "127.0.0.1:9000": f"127.0.0.1:{grpc_port}",
            "port_value: 8000": f"port_value: {http_port}",
            "port_value: 9000": f"port_value: {grpc_port}",
            "client_body_timeout 10s": "client_body_timeout 1s",
            "request_timeout: 60s": "request_timeout: 1s",
        }
        command = [program, *(_nginx(folder, replaced) if kind == "nginx" else _envoy(folder, replaced))]
        log = folder / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            _wait_for(port, process, log)
            yield Proxy(port, ca.cert_pem.bytes())
        finally:
            process.terminate()
            process.wait(30)


def _nginx(folder: Path, replaced: dict[str, str]) -> list[str]:
    _write(folder / "crossrank.conf", "nginx.conf", replaced)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    main = folder / "main.conf"
    main.write_text(
        f"daemon off;\nworker_processes 1;\npid {folder}/pid;\nerror_log {folder}/error.log;\n"
        f"events {{ worker_connections 1024; }}\nhttp {{\naccess_log off;\n{temporary}include {folder}/crossrank.conf;\n}}\n"
    )
    folder.chmod(0o755)  # Root's workers are another user.
    return ["-e", f"{folder}/error.log", "-c", str(main)]


def _envoy(folder: Path, replaced: dict[str, str]) -> list[str]:
    _write(folder / "envoy.yaml", "envoy.yaml", replaced)
    return ["-c", f"{folder}/envoy.yaml", "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]


def _write(target: Path, name: str, replaced: dict[str, str]) -> None:
    text = (DEPLOY / "proxies" / name).read_text(encoding="utf-8")
    for old, new in replaced.items():
        text = text.replace(old, new)
    target.write_text(text, encoding="utf-8")


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up_at = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < give_up_at, log.read_text()
            time.sleep(0.02)
