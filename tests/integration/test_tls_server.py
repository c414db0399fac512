"""TLS and mutual TLS with the real server over HTTP, and the same files for a real gRPC server."""

from __future__ import annotations

import asyncio
import socket
import ssl
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import httpx
import pytest
import trustme

from crossrank_client import AsyncClient, Client, ConnectionFailed
from crossrank_server.process.tls import open_tls
from crossrank_server.rpc.server import server_credentials
from tests.server_process import running_server

BODY = {"query": "q", "documents": ["a", "b"]}


@dataclass(frozen=True)
class Keys:
    """Files of a server and a client, each with an authority of its own."""

    cert: str
    key: str
    server_ca: str
    client_cert: str
    client_ca: str

    def context(self, *, with_certificate: bool = False) -> ssl.SSLContext:
        """Return a client's context."""
        context = ssl.create_default_context(cafile=self.server_ca)
        if with_certificate:
            context.load_cert_chain(self.client_cert)
        return context


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    folder = tmp_path_factory.mktemp("keys")
    server_ca, client_ca = trustme.CA(), trustme.CA()
    server, client = server_ca.issue_cert("127.0.0.1", "localhost"), client_ca.issue_cert("client@example.org")
    files = Keys(*(str(folder / name) for name in ("cert", "key", "server_ca", "client", "client_ca")))
    server.private_key_pem.write_to_path(files.key)
    Path(files.cert).write_bytes(b"".join(blob.bytes() for blob in server.cert_chain_pems))
    server_ca.cert_pem.write_to_path(files.server_ca)
    client.private_key_and_cert_chain_pem.write_to_path(files.client_cert)
    client_ca.cert_pem.write_to_path(files.client_ca)
    return files


@pytest.fixture(scope="module")
def tls_url(keys: Keys) -> Iterator[str]:
    with running_server("--tls-cert", keys.cert, "--tls-key", keys.key, tls=keys.context()) as server:
        yield server.base_url


@pytest.fixture(scope="module")
def mtls_url(keys: Keys) -> Iterator[str]:
    args = ("--tls-cert", keys.cert, "--tls-key", keys.key, "--tls-client-ca", keys.client_ca)
    with running_server(*args, tls=keys.context(with_certificate=True)) as server:
        yield server.base_url


def post(url: str, context: ssl.SSLContext) -> httpx.Response:
    return httpx.post(f"{url}/v1/rerank", json=BODY, verify=context)


def test_https_answers_a_caller_that_trusts_the_authority(keys: Keys, tls_url: str):
    assert tls_url.startswith("https://")
    assert post(tls_url, keys.context()).status_code == 200
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        post(tls_url, ssl.create_default_context())


def test_plain_http_is_not_answered_on_that_port(tls_url: str):
    with pytest.raises(httpx.HTTPError):
        httpx.get(tls_url.replace("https://", "http://") + "/health/live")


@pytest.mark.parametrize(("version", "accepted"), [("TLSv1_1", False), ("TLSv1_2", True), ("TLSv1_3", True)])
def test_versions_below_1_2_are_refused(keys: Keys, tls_url: str, version: str, accepted: bool):
    context = keys.context()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # that is the point
        context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    context.set_ciphers("ALL:@SECLEVEL=0")  # this side would speak 1.1
    address = tls_url.removeprefix("https://").split(":")
    with socket.create_connection((address[0], int(address[1])), 30) as plain:
        if accepted:
            with context.wrap_socket(plain, server_hostname=address[0]) as connection:
                assert connection.version() == version.replace("_", ".")
        else:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(plain, server_hostname=address[0])


def test_mutual_tls_answers_only_who_has_a_certificate_of_the_authority(keys: Keys, mtls_url: str):
    assert post(mtls_url, keys.context(with_certificate=True)).status_code == 200
    with pytest.raises(httpx.TransportError):
        post(mtls_url, keys.context())
    strange = keys.context()
    trustme.CA().issue_cert("client@example.org").configure_cert(strange)
    with pytest.raises(httpx.TransportError):
        post(mtls_url, strange)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_the_clients_trust_ca_file_and_present_client_cert(keys: Keys, tls_url: str, mtls_url: str, kind: type):
    def documents_ranked(url: str, **options) -> int:
        async def awaited() -> int:
            async with AsyncClient(url, max_retries=0, **options) as client:
                return len((await client.rerank(**BODY)).results)

        if kind is AsyncClient:
            return asyncio.run(awaited())
        with Client(url, max_retries=0, **options) as client:
            return len(client.rerank(**BODY).results)

    own = (keys.client_cert, keys.client_cert)  # certificate and key are in one file
    assert documents_ranked(tls_url, ca_file=keys.server_ca) == 2
    assert documents_ranked(mtls_url, ca_file=keys.server_ca, client_cert=own) == 2
    with pytest.raises(ConnectionFailed, match="CERTIFICATE_VERIFY_FAILED"):
        documents_ranked(tls_url)
    with pytest.raises(ConnectionFailed):
        documents_ranked(mtls_url, ca_file=keys.server_ca)


def ask_grpc(port: int, credentials: grpc.ChannelCredentials) -> bytes:
    with grpc.secure_channel(f"localhost:{port}", credentials) as channel:
        answer: bytes = channel.unary_unary("/t.T/Echo")(b"hello", timeout=10)
        return answer


@pytest.mark.parametrize("mutual", [False, True])
def test_grpc_takes_the_same_files(keys: Keys, mutual: bool):
    tls = open_tls(keys.cert, keys.key, keys.client_ca if mutual else "")
    assert tls is not None
    handler = grpc.method_handlers_generic_handler("t.T", {"Echo": grpc.unary_unary_rpc_method_handler(lambda r, _: r)})
    server = grpc.server(ThreadPoolExecutor(1), handlers=[handler])
    port = server.add_secure_port("127.0.0.1:0", server_credentials(tls))
    server.start()
    try:
        roots = Path(keys.server_ca).read_bytes()
        own = Path(keys.client_cert).read_bytes()
        assert ask_grpc(port, grpc.ssl_channel_credentials(roots, own, own)) == b"hello"
        if mutual:
            with pytest.raises(grpc.RpcError) as refused:
                ask_grpc(port, grpc.ssl_channel_credentials(roots))
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
        else:
            assert ask_grpc(port, grpc.ssl_channel_credentials(roots)) == b"hello"
    finally:
        server.stop(None).wait()
