"""gRPC is counted, logged, traced, encrypted and drained as HTTP is, by the real server."""

from __future__ import annotations

import re
import signal
import ssl
from collections.abc import Iterator
from pathlib import Path

import grpc
import httpx
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto import crossrank_v1_pb2_grpc as rpc
from tests.otlp_collector import Collector, running_collector
from tests.server_process import RunningServer, running_server

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
RERANK = "/crossrank.v1.Reranker/Rerank"
STREAM = "/crossrank.v1.Reranker/RerankStream"
SECRET = "the merger is on friday"
GOOD = pb.RerankRequest(query=SECRET, documents=["a", "b"])


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with running_collector() as running:
        yield running


@pytest.fixture(scope="module")
def server(collector: Collector) -> Iterator[RunningServer]:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "50"}
    with running_server("--grpc-port", "0", "--log-format", "json", env=env) as process:
        yield process


def address(server: RunningServer) -> str:
    found = re.search(r"listening on grpcs?://([\d.:]+)", server.log.read_text())
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def stub(server: RunningServer) -> Iterator[rpc.RerankerStub]:
    with grpc.insecure_channel(address(server)) as channel:
        yield rpc.RerankerStub(channel)


def counted(server: RunningServer, **labels: str) -> float:
    text = httpx.get(f"{server.base_url}/metrics").text
    found = [
        float(value)
        for given, value in re.findall(r"^crossrank_requests_total\{(.*)\} (\S+)$", text, re.MULTILINE)
        if {f'{name}="{value}"' for name, value in labels.items()} <= set(given.split(","))
    ]
    return sum(found)


def test_a_call_is_counted_logged_and_traced_below_its_caller(server, stub, collector):
    metadata = (("x-request-id", "g-1"), ("traceparent", f"00-{TRACE}-{PARENT}-01"))
    answer, rpc_call = stub.Rerank.with_call(GOOD, metadata=metadata)
    assert re.search(r"queue;dur=\S+, inference;dur=", dict(rpc_call.trailing_metadata())["server-timing"])
    labels = {"protocol": "grpc", "route": RERANK, "status": "OK", "code": "ok", "model": "crossrank-mini"}
    assert counted(server, **labels) >= 1
    line = server.access_line("g-1")
    expected = {
        "protocol": "grpc",
        "route": RERANK,
        "documents": 2,
        "tokens": answer.usage.total_tokens,
        "level": "INFO",
    }
    assert expected.items() <= line.items()
    assert {"tokenize", "queue", "inference"} <= set(line["stages_ms"])
    assert line["trace_id"] == TRACE
    for _ in range(50):
        spans = [span for span in collector.spans if span.name == RERANK and span.parent_span_id.hex() == PARENT]
        if spans:
            break
        collector.wait_for(len(collector.spans) + 1)
    attributes = {a.key: a.value.string_value for a in spans[0].attributes}
    assert spans[0].trace_id.hex() == TRACE
    assert attributes["rpc.system.name"] == "grpc"
    assert attributes["rpc.method"] == "crossrank.v1.Reranker/Rerank"
    assert attributes["rpc.response.status_code"] == "OK"


def test_errors_are_counted_by_status_and_code_and_their_messages_not_logged(server, stub):
    with pytest.raises(grpc.RpcError):
        stub.Rerank(pb.RerankRequest(query="q", documents=["d"], model=SECRET), metadata=(("x-request-id", "g-2"),))
    assert counted(server, protocol="grpc", route=RERANK, status="NOT_FOUND", code="model_not_found", model="") == 1
    assert server.access_line("g-2")["code"] == "model_not_found"
    assert "merger" not in server.log.read_text()


def test_each_message_of_a_stream_is_counted(server, stub):
    messages = [pb.RerankStreamRequest(id="1", request=GOOD), pb.RerankStreamRequest(id="2")]
    answers = list(stub.RerankStream(iter(messages), metadata=(("x-request-id", "g-3"),)))
    assert {answer.id for answer in answers} == {"1", "2"}
    assert counted(server, route=STREAM, status="OK", code="ok") == 1
    assert counted(server, route=STREAM, status="INVALID_ARGUMENT") == 1
    assert server.access_line("g-3.1")["documents"] == 2


def test_methods_that_do_not_exist_make_no_series(server):
    with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary("/made.up.Service/Method")(b"")
    assert "made.up" not in httpx.get(f"{server.base_url}/metrics").text


def test_health_says_not_serving_while_the_server_drains():
    with running_server("--grpc-port", "0", "--shutdown-delay-s", "3") as server:
        with grpc.insecure_channel(address(server)) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest()
            assert health.Check(request).status == health_pb2.HealthCheckResponse.SERVING
            server.process.send_signal(signal.SIGTERM)
            for _ in range(200):
                status = health.Check(request).status
                if status == health_pb2.HealthCheckResponse.NOT_SERVING:
                    break
            assert status == health_pb2.HealthCheckResponse.NOT_SERVING
            assert rpc.RerankerStub(channel).Rerank(GOOD).usage.total_tokens > 0, "calls are still answered"
        assert server.process.wait(40) == 0


def test_one_certificate_serves_both_protocols(tmp_path: Path):
    ca = trustme.CA()
    leaf = ca.issue_cert("127.0.0.1", "localhost")
    leaf.private_key_pem.write_to_path(tmp_path / "key")
    leaf.cert_chain_pems[0].write_to_path(tmp_path / "cert")
    ca.cert_pem.write_to_path(tmp_path / "ca")
    args = ("--grpc-port", "0", "--tls-cert", str(tmp_path / "cert"), "--tls-key", str(tmp_path / "key"))
    with running_server(*args, tls=ssl.create_default_context(cafile=str(tmp_path / "ca"))) as server:
        credentials = grpc.ssl_channel_credentials(ca.cert_pem.bytes())
        with grpc.secure_channel(address(server), credentials) as channel:
            assert rpc.RerankerStub(channel).Rerank(GOOD, timeout=20).usage.total_tokens > 0
        with grpc.insecure_channel(address(server)) as channel, pytest.raises(grpc.RpcError) as refused:
            rpc.RerankerStub(channel).Rerank(GOOD, timeout=20)
        assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
