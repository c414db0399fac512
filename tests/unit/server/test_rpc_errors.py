"""Every error of the table over gRPC: its status, and details that say what HTTP says of the same error."""

from __future__ import annotations

import logging

import grpc
import httpx
import pytest
from grpc_status import rpc_status

from crossrank.bundles.bundle import Bundle
from crossrank.errors import CrossrankError, ModelNotFound, Unauthorized
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from crossrank_server.http.app import create_app
from tests.rpc_server import GatedEngine, RefusingAccounts, details_of, rpc_channel, service_of
from tests.unit.server.test_errors import answered

REQUEST = pb.RerankRequest(query="q", documents=["a", "b"])
RERANK = "/crossrank.v1.Reranker/Rerank"


async def refusal(builtin: Bundle, call, accounts: RefusingAccounts | None = None) -> grpc.aio.AioRpcError:
    async with rpc_channel(service_of(builtin, GatedEngine(), accounts)) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(channel)
    return raised.value


@pytest.mark.parametrize("kind", list(answered()), ids=lambda error: error.__name__)
async def test_an_error_says_the_same_over_both_protocols(builtin: Bundle, kind: type[CrossrankError]) -> None:
    error = kind("what happened; what to do", param="query", retry_after_s=2.5)
    when = "identify" if kind is Unauthorized else "admit"
    accounts = RefusingAccounts(**{when: error})
    rpc_error = await refusal(builtin, lambda channel: RerankerStub(channel).Rerank(REQUEST), accounts)

    app = create_app(service_of(builtin, GatedEngine(), accounts), max_body_bytes=10_000)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        response = await client.post("/v1/rerank", json={"query": "q", "documents": ["a", "b"]})
    body = response.json()["error"]

    status = rpc_status.from_call(rpc_error)  # Raises if status and details do not agree.
    assert status is not None
    facts, details = details_of(status)
    assert rpc_error.code() == grpc.StatusCode[kind.grpc_status]
    assert facts["http_status"] == str(response.status_code) == str(kind.http_status)
    assert (facts["type"], facts["code"], facts.get("param")) == (body["type"], body["code"], body["param"])
    assert details["ErrorInfo"].reason == body["code"].upper()
    trailers = dict(rpc_error.trailing_metadata())
    assert details["RequestInfo"].request_id == trailers["x-request-id"]
    if kind.http_status == 500:
        assert "what happened" not in rpc_error.details()
        return
    assert rpc_error.details() == status.message == body["message"]
    assert details["BadRequest"].field_violations[0].field == "query"
    assert details["RetryInfo"].retry_delay.ToMilliseconds() == 2500 == body["retry_after_s"] * 1000


async def test_what_breaks_inside_shows_an_id_that_the_log_explains(
    builtin: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    accounts = RefusingAccounts(admit=RuntimeError("secret path"))
    with caplog.at_level(logging.ERROR):
        error = await refusal(builtin, lambda channel: RerankerStub(channel).Rerank(REQUEST), accounts)
    assert error.code() == grpc.StatusCode.INTERNAL
    assert "secret" not in error.details()
    assert error.details().rsplit(" ", 1)[1] in caplog.text
    assert "secret path" in caplog.text


@pytest.mark.parametrize(
    ("request_", "param", "says"),
    [
        (pb.RerankRequest(documents=["a"]), "query", "query is empty; send"),
        (pb.RerankRequest(query=" \t", documents=["a"]), "query", "query is empty; send"),
        (pb.RerankRequest(query="q"), "documents", "documents is empty; send at least 1"),
        (pb.RerankRequest(query="q", documents=["a"] * 51), "documents", "51 documents, the limit is 50"),
        (pb.RerankRequest(query="q", documents=["a"], truncation_direction=7), "truncation_direction", "is 7; send"),
    ],
    ids=["no query", "blank query", "no documents", "too many", "direction"],
)
async def test_a_bad_request_names_the_field_the_value_and_the_remedy(builtin, request_, param, says) -> None:
    error = await refusal(builtin, lambda channel: RerankerStub(channel).Rerank(request_))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert says in error.details()
    facts, details = details_of(rpc_status.from_call(error))
    assert facts["param"] == details["BadRequest"].field_violations[0].field == param


async def test_an_unknown_model_is_not_found(builtin: Bundle) -> None:
    request = pb.RerankRequest(query="q", documents=["a"], model="gpt-9")
    error = await refusal(builtin, lambda channel: RerankerStub(channel).Rerank(request))
    assert error.code() == grpc.StatusCode.NOT_FOUND
    assert details_of(rpc_status.from_call(error))[0]["code"] == ModelNotFound.default_code


@pytest.mark.parametrize("data", [b"\xff", b"\x0a\x02\xff\xff", b"\x12\x05ab"], ids=["tag", "not UTF-8", "cut off"])
async def test_bytes_that_are_no_message_are_an_invalid_argument(builtin: Bundle, data: bytes) -> None:
    error = await refusal(builtin, lambda channel: channel.unary_unary(RERANK)(data))
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "is no crossrank.v1.RerankRequest, or a text in it is not UTF-8" in error.details()
    assert details_of(rpc_status.from_call(error))[0]["code"] == "invalid_message"


async def test_a_message_over_the_limit_is_refused_with_both_sizes_and_one_far_over_it_too(builtin: Bundle) -> None:
    large = pb.RerankRequest(query="q", documents=["x" * 20_000])
    error = await refusal(builtin, lambda channel: RerankerStub(channel).Rerank(large))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert f"{large.ByteSize()} bytes, the limit is 20000; split the request" in error.details()
    assert details_of(rpc_status.from_call(error))[0]["code"] == "request_too_large"
    error = await refusal(builtin, lambda channel: channel.unary_unary(RERANK)(b"x" * 40_001))
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max (40001 vs. 40000)" in error.details()


async def test_a_method_that_does_not_exist_is_unimplemented(builtin: Bundle) -> None:
    error = await refusal(builtin, lambda channel: channel.unary_unary("/tei.v1.Embed/Embed")(b""))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED
