"""Generated requests, most of them a little wrong: none gets a 5xx, none leaves memory, descriptors or texts behind.

FAULTS_REQUESTS is how many go over HTTP, a tenth as many over gRPC. The same seed makes the same requests.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from crossrank_client.proto import crossrank_v1_pb2 as pb
from tests.faults.outside import watched
from tests.raw_http import connected, request
from tests.server_process import RunningServer, running_server

REQUESTS = int(os.environ.get("FAULTS_REQUESTS", "20000"))
SEED = int(os.environ.get("FAULTS_SEED", "16"))

# In every text, so that it would be found in the log.
CANARY = "zebrafish"
EXPECTED = {"query": "capital of france", "documents": ["Paris is the capital of France.", "Bread is baked."]}
PATHS = (
    *("/v1/rerank", "/v2/rerank", "/rerank", "/voyage/v1/rerank", "/v1/score", "/score", "/v1/ranking"),
    *("/v1/retrieval/crossrank-mini/reranking",),
)
OTHER_PATHS = (
    "/v1/models",
    "/models/x",
    "/v1/account",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/info",
    "/",
    "/health",
    "*",
)
FIELDS = (
    *(
        "query",
        "documents",
        "texts",
        "inputs",
        "text_1",
        "text_2",
        "queries",
        "items",
        "passages",
        "model",
        "top_n",
        "top_k",
    ),
    *("return_documents", "return_text", "raw_scores", "truncate", "truncation", "truncation_direction", "rank_fields"),
    *(
        "max_tokens_per_doc",
        "max_chunks_per_doc",
        "max_tokens_per_query",
        "use_activation",
        "activation",
        "user",
        "priority",
    ),
    *(
        "truncate_prompt_tokens",
        "encoding_format",
        "text",
        "content",
        "data_1",
        "data_2",
        "additional_data",
        "mm_processor_kwargs",
    ),
)
NUMBERS: tuple[Any, ...] = (
    *(0, 1, -1, 2, 7, 512, 2**31 - 1, 2**31, -(2**31), 2**53, 2**63 - 1, 2**63, -(2**63) - 1, 10**30),
    *(0.5, -0.0, 1e308, 5e-324, 1.0, float("nan"), float("inf")),
)
ODD = (
    *(
        "\x00",
        "\ud800",
        "\udfff",
        "\U0010ffff",
        "\ufeff",
        "\u202e",
        "\u200d",
        "e\u0301" * 9,
        "\u0130",
        "\ufdfa",
        "\u1e9e",
    ),
    *("[MASK]", "[SEP]", "[CLS]", "##", "<s>", "\n", "\r\n", "\t", "\x7f", "\x85", "\u2028", "%s%n", "{}", "\\", '"'),
    *(
        "\u4e00" * 40,
        "\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u0b95\u0bcd",
        "a" * 500,
        "1" * 60,
        "\ue000",
        "\ufffe",
    ),
)
HEADERS = (
    *(
        "Expect: 100-continue",
        "Connection: close",
        "Accept: text/html",
        "X-Tier: batch",
        "X-Tier: \xff",
        "Prefer: wait=1",
    ),
    *(
        "X-Request-Id: \xe9",
        "X-Request-Id: " + "x" * 300,
        "traceparent: 00-x",
        "Content-Encoding: gzip",
        "Authorization: Bearer x",
    ),
    *("Authorization: Basic \xff", "Content-Type: text/plain", "Content-Type: application/json; charset=utf-16"),
    *(
        "Origin: http://evil",
        "Sec-Fetch-Site: cross-site",
        "X-Request-Timeout: nan",
        "X-Deadline-Ms: -1",
        "Host: other",
        "Upgrade: h2c",
    ),
)
METHODS = (
    *("/crossrank.v1.Reranker/Rerank", "/crossrank.v1.Reranker/RerankStream", "/crossrank.v1.Reranker/ListModels"),
    *("/tei.v1.Rerank/Rerank", "/tei.v1.Rerank/RerankStream", "/tei.v1.Info/Info", "/grpc.health.v1.Health/Check"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
)


class Requests:
    """Make requests of a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def text(self) -> str:
        """Return a text, that holds CANARY."""
        return "".join([CANARY, *self._random.choices((*ODD, " ", " word", "Paris"), k=self._random.randrange(8))])

    def value(self, depth: int = 0) -> Any:
        """Return any JSON value."""
        kind = self._random.randrange(12 if depth < 4 else 8)
        if kind < 4:
            return self.text()
        if kind < 7:
            return self._random.choice((*NUMBERS, True, False, None))
        if kind < 8:
            return self._random.choice(("", " ", "right", "Left", "sigmoid", "none", "crossrank-mini", [], {}))
        if kind < 10:
            return [self.value(depth + 1) for _ in range(self._random.randrange(5))]
        return {self._random.choice(FIELDS): self.value(depth + 1) for _ in range(self._random.randrange(4))}

    def good(self, path: str) -> dict[str, Any]:
        """Return an object that is right for many of the paths."""
        texts = [self.text() for _ in range(self._random.randrange(1, 6))]
        if "score" in path:
            return self._random.choice(
                ({"text_1": self.text(), "text_2": texts}, {"queries": texts, "documents": texts})
            )
        if "ranking" in path:
            return {"query": {"text": self.text()}, "passages": [{"text": text} for text in texts]}
        if path == "/predict":
            return {"inputs": self._random.choice((texts[:2], [[text, text] for text in texts]))}
        return {"query": self.text(), self._random.choice(("documents", "texts")): texts}

    def body(self, path: str) -> bytes:
        """Return a body, JSON in most cases."""
        content: Any = self.good(path)
        for _ in range(self._random.choice((0, 0, 1, 2, 3))):
            name = self._random.choice(FIELDS)
            content[name] = self._random.choice(NUMBERS[:9]) if self._random.random() < 0.5 else self.value()
        if self._random.random() < 0.03:
            content = self.value()
        ascii_only = self._random.random() < 0.5
        data = bytearray(json.dumps(content, ensure_ascii=ascii_only).encode("utf-8", "surrogatepass"))
        if self._random.random() < 0.2:
            for _ in range(self._random.randrange(1, 4)):
                place = self._random.randrange(len(data) + 1)
                data[place : place + self._random.randrange(3)] = self._random.choice(
                    (
                        b"",
                        b"\xff",
                        b"\xc0\x80",
                        b'"',
                        b"\\u",
                        b"[",
                        b"}",
                        b"\\ud834",
                        b"1e999",
                        b",,",
                        b"\x00",
                        b"{" * 30,
                    )
                )
        return bytes(data)

    def http(self) -> bytes:
        """Return a request of HTTP/1.1."""
        path = self._random.choice(PATHS if self._random.random() < 0.95 else OTHER_PATHS)
        body = self.body(path)
        method = self._random.choices(("POST", "GET", "HEAD", "OPTIONS", "PUT", "BREW"), (80, 2, 1, 1, 1, 0.3))[0]
        if self._random.random() < 0.03:
            path += self._random.choice(("/", "?a=%ff", "?" + "q" * 3000, "/../x", "%00", "//", "\xe9", "#x"))
        lines = [
            f"{method} {path} HTTP/1.1",
            "Host: localhost",
            *self._random.choices(HEADERS, k=int(self._random.random() * 1.3)),
        ]
        if self._random.random() < 0.15:
            lines.append("Transfer-Encoding: chunked")
            cut = self._random.randrange(len(body) + 1)
            body = (
                b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:], b"") if part)
                + b"0\r\n\r\n"
            )
        else:
            lines.append(f"Content-Length: {len(body)}")
        data = bytearray("".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n" + body)
        if self._random.random() < 0.02:
            for _ in range(3):
                data[self._random.randrange(len(data))] = self._random.randrange(256)
        return bytes(data)

    def grpc(self) -> tuple[str, bytes]:
        """Return method and message of an RPC."""
        message = pb.RerankRequest(query=self.text().encode(errors="replace").decode())
        message.documents.extend(
            self.text().encode(errors="replace").decode() for _ in range(self._random.randrange(6))
        )
        for field in ("top_n", "max_tokens_per_doc", "max_chunks_per_doc"):
            if self._random.random() < 0.3:
                setattr(message, field, self._random.choice((0, 1, 2, 512, 2**31 - 1)))
        data = bytearray(message.SerializeToString())
        for _ in range(self._random.choice((0, 0, 1, 5))):
            data[self._random.randrange(len(data))] = self._random.randrange(256)
        if self._random.random() < 0.1:
            data = bytearray(self._random.randbytes(self._random.randrange(200)))
        return self._random.choice(METHODS), bytes(data)


class Sender:
    """Send requests on a connection that is opened again when the server has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket: socket.socket | None = None

    def status(self, data: bytes) -> int:
        """Return the status of the first answer, 0 if the server waits for more; the connection is then given up."""
        if self._socket is None:
            self._socket = socket.create_connection(("127.0.0.1", self._port), 20)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._socket.sendall(data)
            received = b""
            while b"\r\n\r\n" not in received or received.startswith(b"HTTP/1.1 100"):
                if received.startswith(b"HTTP/1.1 100") and b"\r\n\r\n" in received:
                    received = received.partition(b"\r\n\r\n")[2]
                    continue
                if not select.select([self._socket], [], [], 0.25)[0]:
                    self.close()
                    return 0
                segment = self._socket.recv(1 << 20)
                if not segment:
                    self.close()
                    return -1
                received += segment
        except ConnectionError:
            self.close()
            return -1
        head, _, rest = received.partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        size = int(fields.get(b"content-length", 0))
        if data.startswith(b"HEAD") or b" 204 " in head[:14]:
            size = 0
        while len(rest) < size:
            segment = self._socket.recv(1 << 20)
            if not segment:
                break
            rest += segment
        if fields.get(b"connection") == b"close" or len(rest) != size:
            self.close()
            rest = rest[:size]
        status = int(head.split()[1])
        if status >= 400 and size:
            assert set(json.loads(rest)) >= {"error", "message", "detail"} or b"probe" in rest, (data, rest)
        return status

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None


def score(server: RunningServer) -> bytes:
    """Return the results of one request, as bytes."""
    body = json.dumps(EXPECTED).encode()
    with connected(server.port) as connection:
        connection.send(*request("/v1/rerank", body))
        return connection.answer().body.partition(b'"results":')[2].partition(b"]")[0]


@pytest.fixture
def server() -> Iterator[RunningServer]:
    """Give a server that must be what it was, and have logged no text and no traceback."""
    with running_server("--model", "builtin", "--grpc-port", "0") as running:
        before = score(running)
        yield running
        assert score(running) == before
        with running.log.open() as lines:
            assert [line for line in lines if CANARY in line or "Traceback" in line or " ERROR " in line] == []


def send_all(count: int, server: RunningServer, send: Callable[[], object]) -> Counter[object]:
    """Return how often `send` returned what, while memory and descriptors of the server stay flat."""
    seen: Counter[object] = Counter()
    seen.update(send() for _ in range(count // 10))
    with watched(server) as watch:
        seen.update(send() for _ in range(count - count // 10))
    assert watch.grown_mb < 30
    assert watch.end_descriptors <= watch.start_descriptors + 40
    return seen


@pytest.mark.slow
@pytest.mark.timeout(0)  # As long as FAULTS_REQUESTS takes: about a millisecond each.
def test_generated_requests_over_http_are_answered_or_refused(server: RunningServer) -> None:
    requests = Requests(SEED)
    with contextlib.closing(Sender(server.port)) as sender:
        seen = send_all(REQUESTS, server, lambda: sender.status(requests.http()))
    unanswered = seen.pop(0, 0) + seen.pop(-1, 0)
    assert set(seen) <= {200, 204, 400, 403, 404, 405, 408, 413, 414, 415, 417, 431, 501, 505}
    assert unanswered < REQUESTS / 1000
    assert seen[200] > REQUESTS / 10


@pytest.mark.slow
@pytest.mark.timeout(0)  # As long as FAULTS_REQUESTS takes: about a millisecond each.
def test_generated_requests_over_grpc_are_answered_or_refused(server: RunningServer) -> None:
    requests = Requests(SEED)
    with grpc.insecure_channel(server.grpc_target) as channel:

        def send() -> str:
            method, message = requests.grpc()
            try:
                channel.stream_stream(method)(iter([message]), timeout=10).next()
            except StopIteration:
                return "OK"
            except grpc.RpcError as error:
                return str(error.code().name)
            return "OK"

        seen = send_all(REQUESTS // 10, server, send)
    assert set(seen) <= {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert seen["OK"] > REQUESTS / 50
