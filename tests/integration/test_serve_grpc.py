"""`crossrank serve --grpc-port`: both protocols of one process, its messages, and its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from crossrank_client import BadRequest, Client, RerankOptions
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto import tei_v1_pb2 as tei
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from tests.server_process import RunningServer, running_server

LONG = ["a document of some length " * 30] * 300


# Its answer stands at the end, beyond the model's window.
FAR = "museums and parks " * 400 + "Berlin has 3,520,031 inhabitants."
QUERY = "how many people live in berlin"
DOCUMENTS = ["Berlin has museums.", FAR, "word " * 700]


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--grpc-port", "0", "--precision", "fp32") as running:
        yield running


@pytest.mark.parametrize(
    "options",
    [
        {"max_chunks_per_doc": 4},
        {"max_tokens_per_doc": 9},
        {"truncation_direction": "left"},
        {"truncation_direction": "left", "max_tokens_per_doc": 20, "raw_scores": True},
    ],
    ids=lambda options: "-".join(options),
)
def test_truncation_gives_the_same_answer_over_both_protocols(server: RunningServer, options: RerankOptions) -> None:
    with Client(server.base_url) as http, Client(server.grpc_url) as rpc:
        plain, asked, answered = (
            http.rerank(QUERY, DOCUMENTS),
            http.rerank(QUERY, DOCUMENTS, **options),
            rpc.rerank(QUERY, DOCUMENTS, **options),
        )
    assert asked.results == answered.results != plain.results
    assert (asked.usage, asked.truncated_documents) == (answered.usage, answered.truncated_documents)


def test_a_pair_that_may_not_be_truncated_is_refused_alike_over_both_protocols(server: RunningServer) -> None:
    refusals = []
    for url in (server.base_url, server.grpc_url):
        with Client(url) as client, pytest.raises(BadRequest) as refused:
            client.rerank(QUERY, DOCUMENTS, truncate=False)
        refusals.append((refused.value.message, refused.value.param, refused.value.code))
    assert refusals[0] == refusals[1]
    assert refusals[0][1] == "documents[1]"


@pytest.mark.parametrize("streamed", [False, True], ids=["Rerank", "RerankStream"])
@pytest.mark.parametrize("direction", ["left", "right"])
def test_texts_are_truncated_or_refused_as_over_http(server: RunningServer, streamed: bool, direction: str) -> None:
    def ask(truncate: bool) -> tei.RerankResponse:
        side = tei.TruncationDirection.Value(f"TRUNCATION_DIRECTION_{direction.upper()}")
        common = {"query": QUERY, "truncate": truncate, "truncation_direction": side}
        with grpc.insecure_channel(server.grpc_target) as channel:
            if streamed:
                parts = iter([tei.RerankStreamRequest(text=text, **common) for text in DOCUMENTS])
                name, multi, question = "RerankStream", channel.stream_unary, parts
            else:
                name, multi, question = "Rerank", channel.unary_unary, tei.RerankRequest(texts=DOCUMENTS, **common)
            method = multi(
                f"/tei.v1.Rerank/{name}", lambda message: message.SerializeToString(), tei.RerankResponse.FromString
            )
            return method(question)

    body = {"query": QUERY, "texts": DOCUMENTS, "truncation_direction": direction}
    expected = httpx.post(f"{server.base_url}/rerank", json={**body, "truncate": True}, timeout=60).json()
    ranks = ask(True).ranks
    assert [rank.index for rank in ranks] == [rank["index"] for rank in expected]
    assert [rank.score for rank in ranks] == pytest.approx([rank["score"] for rank in expected], abs=1e-6)
    refused = httpx.post(f"{server.base_url}/rerank", json={**body, "truncate": False}, timeout=60)
    with pytest.raises(grpc.RpcError) as raised:
        ask(False)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == refused.json()["message"]
    assert "texts[1]" in raised.value.details()


def test_every_protocol_and_interface_gives_the_same_order_and_scores() -> None:
    documents = ["Berlin has museums.", "Berlin has 3,520,031 inhabitants.", "", "word " * 1500, "日本語"]
    query = "how many people live in berlin"
    with running_server("--grpc-port", "0", "--precision", "fp32") as server:
        with Client(server.base_url) as client:
            http = client.rerank(query, documents)
        with grpc.insecure_channel(server.grpc_target) as channel:
            request = pb.RerankRequest(query=query, documents=documents)
            (streamed,) = RerankerStub(channel).RerankStream(iter([pb.RerankStreamRequest(id="1", request=request)]))
            texts = channel.unary_unary("/tei.v1.Rerank/Rerank", response_deserializer=tei.RerankResponse.FromString)(
                tei.RerankRequest(query=query, texts=documents, truncate=True).SerializeToString()
            )
    expected = [(result.index, result.relevance_score) for result in http.results]
    assert [(result.index, result.relevance_score) for result in streamed.response.results] == expected
    assert list(streamed.response.meta.truncated_documents) == list(http.truncated_documents) == [3]
    assert [rank.index for rank in texts.ranks] == [index for index, _ in expected]
    assert all(abs(rank.score - score) < 1e-6 for rank, (_, score) in zip(texts.ranks, expected, strict=True))


def test_sigterm_says_not_serving_and_lets_requests_of_both_protocols_finish() -> None:
    with running_server("--grpc-port", "0", "--shutdown-grace-s", "100") as server, ThreadPoolExecutor(2) as pool:
        with grpc.insecure_channel(server.grpc_target) as channel, Client(server.base_url) as http:
            statuses = []
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
            seen = threading.Thread(target=lambda: statuses.append(next(watch).status))
            seen.start()
            rpc = pool.submit(RerankerStub(channel).Rerank, pb.RerankRequest(query="q", documents=LONG))
            web = pool.submit(http.rerank, "q", LONG)
            RerankerStub(channel).ListModels(pb.ListModelsRequest())
            os.kill(server.pid, signal.SIGTERM)
            seen.join(20)
            assert statuses == [health_pb2.HealthCheckResponse.NOT_SERVING]
            watch.cancel()
            assert len(rpc.result(60).results) == len(web.result(60).results) == 300
        assert server.process.wait(30) == 0
        log = server.log.read_text()
        assert "Traceback" not in log, log


def serve(*args: str, prelude: str = "") -> subprocess.CompletedProcess[str]:
    code = f"import sys\n{prelude}\nfrom crossrank_server.cli import main\nmain()"
    command = [sys.executable, "-c", code, "serve", "--port", "0", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_a_taken_port_is_one_line_on_stderr() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = serve("--grpc-port", str(port))
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith(f"error: cannot listen on 127.0.0.1:{port}: Address already in use")
    assert line.endswith("; choose another with --host or --grpc-port")


def test_without_grpc_installed_the_flag_says_what_to_install() -> None:
    run = serve("--grpc-port", "0", prelude="sys.modules['grpc'] = None")
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == "error: --grpc-port needs grpc: pip install 'crossrank[grpc]'"
