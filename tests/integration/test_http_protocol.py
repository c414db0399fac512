"""HTTP/1.1 as clients, proxies and hostile senders write it, against the real server: nothing is lost, nothing hangs."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.raw_http import Answer, connected, request
from tests.server_process import RunningServer, running_server

# Its text looks like what a server must not look for in a body.
QUERY = "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\nGET /health HTTP/1.1\r\n\r\n"
BODY = json.dumps({"query": QUERY, "documents": ["Berlin has museums.", "3.5 million live in Berlin."]}).encode()
RAW_BODY = BODY.replace(b"\\r\\n", b"\r\n")  # no JSON, and the same trap without the backslashes
MAX_BODY_BYTES = 100_000

OFFERS = {
    "none": [],
    "h2c": [
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA",
    ],
    "h2c, lower case": ["connection: upgrade", "upgrade: h2c"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: AAAA"],
    "several": ["Connection: keep-alive, Upgrade", "Upgrade: TLS/1.0, h2c", "Upgrade: IRC/6.9"],
    "without Connection": ["Upgrade: h2c"],
}
every_offer = pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server(
        "--precision", "fp32", "--max-body-bytes", str(MAX_BODY_BYTES), "--log-format", "json"
    ) as process:
        yield process
        assert httpx.get(f"{process.base_url}/health/ready").status_code == 200


@pytest.fixture(scope="module")
def results(server: RunningServer) -> list[dict[str, float]]:
    """What the request gets from a client library."""
    answer = httpx.post(f"{server.base_url}/v1/rerank", content=BODY)
    return list(answer.raise_for_status().json()["results"])


def segments(head: bytes, body: bytes, way: str) -> list[bytes]:
    whole = head + body
    return {
        "whole": [whole],
        "head first": [head, body],
        "body in parts": [head + body[:10], body[10:20], body[20:]],
        "head in parts": [whole[:30], whole[30 : len(head) - 1], whole[len(head) - 1 :]],
        "byte by byte": [whole[i : i + 1] for i in range(len(whole))],
    }[way]


def assert_refused(answer: Answer, status: int, words: str) -> None:
    assert answer.status == status
    assert answer.headers["connection"] == "close"
    body = answer.json()
    assert set(body) == {"error", "error_type", "message", "detail"}
    assert words in body["message"]


@every_offer
@pytest.mark.parametrize("way", ["whole", "head first", "body in parts", "head in parts", "byte by byte"])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_an_offer_to_upgrade_is_ignored_and_the_connection_goes_on(server, results, offer, way, chunked):
    with connected(server.port) as connection:
        for _ in range(2):
            connection.send(*segments(*request("/v1/rerank", BODY, *offer, chunked=chunked), way))
            answer = connection.answer()
            assert answer.status == 200
            assert answer.json()["results"] == results
        connection.send(*request("/health"))
        assert connection.answer().status == 200


@every_offer
def test_pipelined_requests_are_answered_in_their_order(server, results, offer):
    requests = [request("/v1/rerank", BODY, *offer, f"X-Request-Id: {i}", chunked=i % 2 == 1) for i in range(5)]
    requests.insert(2, request("/health", None, *offer, "X-Request-Id: health"))
    with connected(server.port) as connection:
        connection.send(b"".join(head + body for head, body in requests))
        answers = [connection.answer() for _ in requests]
    assert [answer.headers["x-request-id"] for answer in answers] == ["0", "1", "health", "2", "3", "4"]
    assert all(answer.status == 200 for answer in answers)
    assert all(answer.json()["results"] == results for answer in answers if b"results" in answer.body)


def test_the_work_for_pipelined_requests_is_dropped_when_the_client_goes(server):
    long = json.dumps({"query": "q", "documents": ["some words of a text " * 20] * 200}).encode()
    requests = [request("/v1/rerank", body, f"X-Request-Id: gone-{i}") for i, body in enumerate((long, BODY))]
    with connected(server.port) as connection:
        connection.send(b"".join(head + body for head, body in requests))
    assert server.access_line("gone-0")["code"] == "client_closed_request"


@every_offer
def test_what_a_body_holds_is_not_taken_for_a_request(server, offer):
    with connected(server.port) as connection:
        connection.send(*request("/v1/rerank", RAW_BODY, *offer), *request("/v1/models", None, *offer))
        assert connection.answer().status == 400
        assert connection.answer().json()["object"] == "list"
        connection.send(*request("/health", None, "Connection: close"))
        assert connection.answer().status == 200
        assert connection.closed()


@every_offer
def test_an_offer_does_not_change_what_else_the_head_says(server, results, offer):
    with connected(server.port) as connection:
        head, body = request("/v1/rerank", BODY, *offer, "Expect: 100-continue")
        connection.send(head)
        assert connection.answer().status == 100
        connection.send(body)
        assert connection.answer().json()["results"] == results
        connection.send(request("/v1/rerank", b"x" * (MAX_BODY_BYTES + 1), *offer)[0])
        assert_refused(connection.answer(), 413, f"{MAX_BODY_BYTES + 1} bytes, the limit is {MAX_BODY_BYTES}")


def test_an_offer_with_connection_close_is_answered_and_closed(server, results):
    with connected(server.port) as connection:
        connection.send(*request("/v1/rerank", BODY, "Connection: close, Upgrade", "Upgrade: h2c"))
        answer = connection.answer()
        assert answer.json()["results"] == results
        assert connection.closed()


@pytest.mark.parametrize(
    ("sent", "status", "words"),
    [
        (
            b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n\x16\x03\x01",
            501,
            "which this server is not",
        ),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", 505, "does not speak HTTP/2"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "Invalid method"),
        (b"BREW /v1/rerank HTTP/1.1\r\nHost: x\r\n\r\n", 400, "Invalid method"),
        (b"GET /health HTTP/3.0\r\nHost: x\r\n\r\n", 400, "Invalid HTTP version"),
        (b"GET nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 400, "HTTP"),
        (
            b"POST /v1/rerank HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "can't be present",
        ),
        (b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400, "chunk size"),
        (
            b"POST /v1/rerank HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            400,
            "chunk size",
        ),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else "",
)
@pytest.mark.parametrize("before", [0, 1, 2])
def test_what_is_no_http_is_refused_after_the_answers_to_the_requests_before_it(server, sent, status, words, before):
    head, body = request("/v1/rerank", BODY)
    with connected(server.port) as connection:
        connection.send((head + body) * before + sent)
        for _ in range(before):
            assert connection.answer().status == 200
        assert_refused(connection.answer(), status, words)
        # What else it sends is neither read as a request nor the cause of a reset.
        connection.send(head + body)
        assert connection.closed()


@pytest.mark.parametrize(
    ("begin", "status", "words"),
    [
        (b"GET /health HTTP/1.1\r\nX: ", 431, "the limit; send fewer"),
        (b"GET /", 414, "the limit; send a body"),
        (
            b"POST /v1/rerank HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: ",
            431,
            "the limit; send fewer",
        ),
    ],
    ids=["header", "target", "trailer"],
)
def test_a_head_or_trailer_without_an_end_is_refused(server, begin, status, words):
    with connected(server.port) as connection:
        connection.send(begin)
        # Twice the limit and what one segment may have, in segments of their own.
        for _ in range(800):
            connection.send(b"a" * 1000)
        assert_refused(connection.answer(), status, words)


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (request("/health", None, *[f"X-{i}: 1" for i in range(99)])[0], 200),  # and Host
        (request("/health", None, *[f"X-{i}: 1" for i in range(100)])[0], 431),
        (request("/health", None, "X: " + 65_000 * "a")[0], 200),
        (request("/health", None, "X: " + 65_536 * "a")[0], 431),
        (request("/health?" + 65_000 * "a")[0], 200),
        (request("/health?" + 65_536 * "a")[0], 414),
    ],
    ids=["100 headers", "101 headers", "65 kB header", "66 kB header", "65 kB target", "66 kB target"],
)
def test_a_head_has_at_most_100_headers_and_65536_bytes_however_it_comes(server, head, status):
    for parts in ([head], [head[:70_000], head[70_000:]], [head[i : i + 1000] for i in range(0, len(head), 1000)]):
        with connected(server.port) as connection:
            connection.send(*parts)
            answer = connection.answer()
            assert answer.status == status
            if status != 200:
                assert_refused(answer, status, "which is the limit")


def test_too_many_pipelined_requests_are_refused_after_the_answers_to_those_within_the_limit(server):
    with connected(server.port) as connection:
        connection.send(b"".join(request("/health")[0] for _ in range(1000)))
        answers = [connection.answer() for _ in range(34)]
    assert [answer.status for answer in answers] == 33 * [200] + [429]
    assert_refused(answers[-1], 429, "over 32 requests wait on this connection")


def test_fields_of_a_trailer_are_no_headers(server):
    head, body = request("/v1/rerank", BODY, chunked=True)
    with connected(server.port) as connection:
        connection.send(head + body.removesuffix(b"\r\n") + b"X-Request-Id: from-the-trailer\r\n\r\n")
        answer = connection.answer()
        assert answer.status == 200
        assert answer.headers["x-request-id"] != "from-the-trailer"


@pytest.mark.parametrize("more", [[], ["Connection: keep-alive"], ["Expect: 100-continue"]], ids=str)
def test_http_1_0_is_answered_without_what_it_does_not_know(server, results, more):
    with connected(server.port) as connection:
        connection.send(*request("/v1/rerank", BODY, *more, version="1.0"))
        answer = connection.answer()
        assert answer.json()["results"] == results
        assert "transfer-encoding" not in answer.headers
        assert connection.closed()


def test_a_body_over_the_limit_is_refused_without_asking_for_it(server):
    with connected(server.port) as connection:
        connection.send(request("/v1/rerank", b"x" * (MAX_BODY_BYTES + 1), "Expect: 100-continue")[0])
        assert_refused(connection.answer(), 413, "the limit is")


@pytest.mark.parametrize("expect", ["200-ok", "100-continue, meaning", "100-continue=yes"])
@pytest.mark.parametrize("body", [None, BODY], ids=["GET", "POST"])
def test_an_unknown_expectation_is_refused_and_named(server, expect, body):
    with connected(server.port) as connection:
        connection.send(request("/v1/rerank", body, f"Expect: {expect}")[0])
        answer = connection.answer()
        assert_refused(answer, 417, f"expect is '{expect}'")
        assert answer.json()["error"]["code"] == "expectation_failed"
    assert server.access_line(answer.headers["x-request-id"])["code"] == "expectation_failed"


@pytest.mark.parametrize(
    "target",
    [
        "/v1/rerank/",
        "/v1/rerank///",
        "//v1//rerank",
        "/v1%2Frerank",
        "/%76%31/%72erank",
        "/v1/rerank?key=value",
        "/v1/rerank/?key=value",
        "http://test/v1/rerank",
        "http://test:80//v1/rerank/?key=value",
        "https://elsewhere.example/v1/rerank",
        "/v3/rerank",
        "/v3/rerank/",
    ],
)
def test_a_target_is_understood_in_all_its_forms(server, results, target):
    with connected(server.port) as connection:
        connection.send(*request(target, BODY))
        answer = connection.answer()
        assert answer.status == 200
        assert answer.json()["results"] == results
        assert answer.json()["meta"]["api_version"] == {"version": "1"}


@pytest.mark.parametrize("target", ["/v2/rerank", "/v2/rerank/", "//v2/rerank", "http://test/v2%2Frerank/"])
def test_the_version_is_that_of_the_path_in_all_its_forms(server, target):
    with connected(server.port) as connection:
        connection.send(*request(target, BODY))
        assert connection.answer().json()["meta"]["api_version"] == {"version": "2"}


@pytest.mark.parametrize("target", ["/", "//", "http://test", "http://test/", "http://test?key=value"])
def test_an_empty_path_is_the_root(server, target):
    with connected(server.port) as connection:
        connection.send(*request(target))
        answer = connection.answer()
        assert answer.status == 200
        assert answer.headers["content-type"].startswith("text/html")


def test_options_of_the_whole_server_are_answered(server):
    with connected(server.port) as connection:
        connection.send(*request("*", method="OPTIONS"))
        assert connection.answer().status == 204


def test_head_is_logged_under_its_route(server):
    answer = httpx.head(f"{server.base_url}/v1/models/")
    assert answer.status_code == 200
    assert server.access_line(answer.headers["x-request-id"])["route"] == "/v1/models"
