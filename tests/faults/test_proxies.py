"""nginx and Envoy as deploy/proxies configures them, in front of the real server: what passes, and what does not."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator

import grpc
import pytest

from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from tests.faults.outside import MB, SMALL, others, watched
from tests.proxies import NAME, Proxy, running_proxy
from tests.server_process import RunningServer, running_server

REQUEST = pb.RerankRequest(query=SMALL["query"], documents=SMALL["documents"])


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--model", "builtin", "--grpc-port", "0", "--allowed-hosts", NAME) as running:
        yield running


@pytest.fixture(scope="module", params=["nginx", "envoy"])
def proxy(request: pytest.FixtureRequest, server: RunningServer) -> Iterator[Proxy]:
    with running_proxy(request.param, server.port, int(server.grpc_target.rpartition(":")[2])) as running:
        yield running


def ask(
    proxy: Proxy, target: str, body: bytes | None = None, host: str = NAME, origin: str = ""
) -> tuple[int, dict[str, str], bytes]:
    """Send one request over HTTPS to the proxy under a name, and return status, headers and body of the answer."""
    plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
    connection = http.client.HTTPConnection(host)
    connection.sock = proxy.tls.wrap_socket(plain, server_hostname=NAME)
    headers = {"content-type": "application/json", "x-request-id": "through"}
    headers |= {"origin": origin} if origin else {}
    connection.request("GET" if body is None else "POST", target, body, headers)
    answer = connection.getresponse()
    found = answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
    connection.close()
    return found


def channel(proxy: Proxy) -> grpc.Channel:
    options = [("grpc.ssl_target_name_override", NAME), ("grpc.default_authority", NAME)]
    return grpc.secure_channel(f"127.0.0.1:{proxy.port}", grpc.ssl_channel_credentials(proxy.ca), options)


def test_http_passes_with_its_headers(proxy: Proxy) -> None:
    status, headers, body = ask(proxy, "/v1/rerank", json.dumps(SMALL).encode())
    assert status == 200
    assert headers["x-request-id"] == "through"
    assert [result["index"] for result in json.loads(body)["results"]] == [0, 1]
    assert ask(proxy, "/health/ready")[0] == 200


def test_the_page_of_the_server_may_call_it_and_others_may_not(proxy: Proxy) -> None:
    body = json.dumps(SMALL).encode()
    assert ask(proxy, "/v1/rerank", body, origin=f"https://{NAME}")[0] == 200
    assert ask(proxy, "/v1/rerank", body, origin="https://other.example.net")[0] == 403


def test_a_large_body_passes_and_so_does_its_answer(proxy: Proxy) -> None:
    question = {"query": "q", "documents": ["x" * 9_000] * 1000, "return_documents": True}
    status, _, body = ask(proxy, "/v1/rerank", json.dumps(question).encode())
    assert status == 200
    assert len(body) > 9 * MB


def test_grpc_passes_and_a_stream_is_answered_while_it_is_open(proxy: Proxy) -> None:
    with channel(proxy) as opened:
        stub = RerankerStub(opened)
        answer = stub.Rerank(REQUEST, timeout=20)
        assert [result.index for result in answer.results] == [0, 1]
        asked = iter([pb.RerankStreamRequest(id=str(number), request=REQUEST) for number in range(3)])
        assert {answer.id for answer in stub.RerankStream(asked, timeout=20)} == {"0", "1", "2"}


def test_the_servers_own_refusal_passes_over_grpc(proxy: Proxy) -> None:
    with channel(proxy) as opened, pytest.raises(grpc.RpcError) as refused:
        RerankerStub(opened).Rerank(pb.RerankRequest(query=" ", documents=["a"]), timeout=20)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "grpc-status-details-bin" in dict(refused.value.trailing_metadata())


def test_a_body_over_the_limit_is_refused_in_the_words_of_the_server(proxy: Proxy) -> None:
    status, _, body = ask(proxy, "/v1/rerank", b" " * 10_100_000)
    error = json.loads(body)["error"]
    assert status == 413
    assert error["code"] == "request_too_large"
    assert "the limit, 10000000 bytes; split the request" in error["message"]


def test_bodies_that_are_never_finished_do_not_reach_the_server(server: RunningServer, proxy: Proxy) -> None:
    head = f"POST /v1/rerank HTTP/1.1\r\nHost: {NAME}\r\nContent-Length: 9900000\r\n\r\n".encode()
    opened = []
    with others(server) as seen, watched(server) as watch:
        for _ in range(30):
            plain = socket.create_connection(("127.0.0.1", proxy.port), timeout=30)
            connection = proxy.tls.wrap_socket(plain, server_hostname=NAME)
            connection.sendall(head + b" " * 2 * MB)
            opened.append(connection)
        began = time.monotonic()
        # The proxy gives them up by itself.
        answers = {connection.recv(1000)[:12] for connection in opened}
        assert answers <= {b"HTTP/1.1 408", b""}
        assert time.monotonic() - began < 10
    for connection in opened:
        connection.close()
    assert watch.grown_mb < 30
    assert seen.refusals == []
    assert seen.slowest_s < 1


def test_other_names_and_the_metrics_are_not_served(proxy: Proxy) -> None:
    assert ask(proxy, "/health/ready", host="rebound.example.net")[0] in (404, 421)
    assert ask(proxy, "/metrics")[0] == 404


@pytest.mark.parametrize("kind", ["nginx", "envoy"])
def test_a_server_that_is_down_is_told_as_the_server_would(kind: str) -> None:
    with running_proxy(kind, 1, 1) as proxy:
        status, headers, body = ask(proxy, "/v1/rerank", json.dumps(SMALL).encode())
        assert (status, headers["retry-after"]) == (503, "1")
        assert json.loads(body)["error"]["code"] == "backend_unavailable"
        with channel(proxy) as opened, pytest.raises(grpc.RpcError) as refused:
            RerankerStub(opened).Rerank(REQUEST, timeout=20)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
