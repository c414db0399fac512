"""TLS handshakes that are dropped, slow or no TLS, and certificates that are replaced while the server runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import psutil
import pytest
import trustme

from crossrank_client.proto.crossrank_v1_pb2 import RerankRequest
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from tests.faults.outside import SMALL, descriptors, watched
from tests.server_process import RunningServer, running_server


@dataclass(frozen=True)
class Files:
    """A server's certificate and key, and those who sign them."""

    cert: Path
    key: Path
    authorities: Path
    old: trustme.CA
    new: trustme.CA

    @property
    def flags(self) -> tuple[str, ...]:
        return ("--tls-cert", str(self.cert), "--tls-key", str(self.key))

    def sign(self, authority: trustme.CA) -> None:
        """Write a new pair."""
        pair = authority.issue_cert("127.0.0.1", "localhost")
        self.key.write_bytes(pair.private_key_pem.bytes())
        self.cert.write_bytes(b"".join(blob.bytes() for blob in pair.cert_chain_pems))

    def context(self) -> ssl.SSLContext:
        """Return a client's, which trusts both authorities."""
        return ssl.create_default_context(cafile=str(self.authorities))


@pytest.fixture
def files(tmp_path: Path) -> Files:
    old, new = trustme.CA(organization_name="the old one"), trustme.CA(organization_name="the new one")
    files = Files(tmp_path / "cert", tmp_path / "key", tmp_path / "authorities", old, new)
    files.authorities.write_bytes(old.cert_pem.bytes() + new.cert_pem.bytes())
    files.sign(old)
    return files


def until(condition: Callable[[], object], what: str) -> None:
    give_up_at = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain: {what}"
        time.sleep(0.05)


def issuer(address: tuple[str, int], context: ssl.SSLContext, protocol: str) -> str:
    """Return who has signed what a port presents."""
    context.set_alpn_protocols([protocol])
    with (
        socket.create_connection(address, 10) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
    ):
        certificate = connection.getpeercert() or {}
    names = dict(name for part in certificate["issuer"] for name in part)
    return str(names["organizationName"])


def issuers(server: RunningServer, files: Files) -> set[str]:
    """Return those of both ports, over several connections, which reach all workers."""
    rpc_port = int(server.grpc_url.rsplit(":", 1)[1])
    ports = [(server.port, "http/1.1"), (rpc_port, "h2")]
    return {issuer(("127.0.0.1", port), files.context(), name) for port, name in ports for _ in range(8)}


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_sighup_reads_certificates_again_and_loses_no_connection(files: Files, workers: str):
    with (
        running_server(*files.flags, "--grpc-port", "0", "--workers", workers, tls=files.context()) as server,
        httpx.Client(base_url=server.base_url, verify=files.context()) as client,
    ):
        if workers == "2":
            until(lambda: len(psutil.Process(server.pid).children()) == 2, "both workers have begun")
            until(lambda: server.log.read_text().count("Started server process") == 2, "both workers serve")
        assert client.get("/health").status_code == 200
        assert issuers(server, files) == {"the old one"}

        files.cert.write_bytes(b"no certificate")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "those in use stay" in server.log.read_text(), "it is refused")
        assert server.log.read_text().count("those in use stay") == 1
        assert issuers(server, files) == {"the old one"}

        files.sign(files.new)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: issuers(server, files) == {"the new one"}, "it is taken")
        assert client.post("/v1/rerank", json=SMALL).status_code == 200, "over the connection from before"
        if workers == "2":
            victim = psutil.Process(server.pid).children()[0]
            os.kill(victim.pid, signal.SIGKILL)
            until(lambda: server.log.read_text().count("Started server process") == 3, "a new worker serves")
            assert issuers(server, files) == {"the new one"}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log.read_text()


def test_sighup_without_tls_is_ignored_and_leaves_no_files(tmp_path: Path):
    with running_server("--workers", "2", env={"TMPDIR": str(tmp_path)}) as server:
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "it is ignored" in server.log.read_text(), "it is logged")
        assert httpx.get(f"{server.base_url}/health").status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, ssl.SSLContext]]:
    folder, authority = tmp_path_factory.mktemp("tls"), trustme.CA()
    files = Files(folder / "cert", folder / "key", folder / "authorities", authority, authority)
    files.authorities.write_bytes(authority.cert_pem.bytes())
    files.sign(authority)
    settings = {"CROSSRANK_MAX_CONNECTIONS": "20", "CROSSRANK_CLIENT_TIMEOUT_S": "2"}
    with running_server(*files.flags, tls=files.context(), env=settings) as server:
        yield server, files.context()


HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


@pytest.mark.parametrize("sent", [b"", HELLO, b"GET / HTTP/1.1\r\n\r\n"], ids=["nothing", "a part", "no TLS"])
def test_handshakes_without_an_end_neither_count_nor_stay(tls_server, sent):
    server, context = tls_server
    before = descriptors(server.pid)
    slowest_s = 0.0
    with watched(server) as watch, contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10)).sendall(sent)
        for _ in range(5):
            began = time.monotonic()
            answer = httpx.post(f"{server.base_url}/v1/rerank", json=SMALL, verify=context)
            assert answer.status_code == 200
            slowest_s = max(slowest_s, time.monotonic() - began)
        until(lambda: descriptors(server.pid) < before + 10, "they are closed, though their clients stay")
    assert slowest_s < 1
    assert watch.grown_mb < 50
    assert "Traceback" not in server.log.read_text()


def test_a_client_of_tls_that_never_says_goodbye_is_forgotten(tls_server):
    server, context = tls_server
    before = descriptors(server.pid)
    with contextlib.ExitStack() as stack:
        for _ in range(10):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), 10))
            connection = context.wrap_socket(plain, server_hostname="127.0.0.1")
            stack.enter_context(connection)
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        until(lambda: descriptors(server.pid) < before + 5, "they are closed")


def test_nobody_may_renegotiate(tls_server):
    server, _ = tls_server
    # openssl's client asks for it where a line is R; Python's cannot.
    with psutil.Popen(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-tls1_2"], stdin=-1, stdout=-1, stderr=-2
    ) as client:
        output, _ = client.communicate(b"R\n", timeout=20)
    assert b"RENEGOTIATING" in output
    assert b"no renegotiation" in output


def test_junk_in_place_of_handshakes_does_not_end_the_grpc_server(files: Files) -> None:
    files.sign(files.old)
    with running_server("--model", "builtin", "--grpc-port", "0", *files.flags, tls=files.context()) as server:
        target = server.grpc_url.removeprefix("grpcs://")
        port = int(target.rpartition(":")[2])

        def attack(_: int) -> None:
            held: deque[socket.socket] = deque()
            for number in range(2000):
                connection = socket.create_connection(("127.0.0.1", port), 10)
                with contextlib.suppress(OSError):
                    # A record that is none, and one of which only the head comes.
                    connection.sendall(bytes(range(200)) if number % 2 else b"\x16\x03\x01\x02\x00\x01")
                if number % 2:
                    connection.close()
                    continue
                held.append(connection)
                if len(held) > 50:
                    held.popleft().close()
            for connection in held:
                connection.close()

        with ThreadPoolExecutor(4) as threads:
            attacks = threads.map(attack, range(4))
            files.sign(files.new)
            server.process.send_signal(signal.SIGHUP)
            list(attacks)
        assert server.process.poll() is None
        credentials = grpc.ssl_channel_credentials(files.authorities.read_bytes())
        with grpc.secure_channel(target, credentials) as channel:
            answer = RerankerStub(channel).Rerank(RerankRequest(query="q", documents=["a"]), timeout=20)
        assert answer.results
