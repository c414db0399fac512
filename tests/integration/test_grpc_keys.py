"""Keys, limits and credit over gRPC: the same refusals as over HTTP, with the same metadata, in front of a real store."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_status import rpc_status

from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto import tei_v1_pb2 as tei
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.key_store import new_key, store_address
from tests.rpc_server import details_of
from tests.server_process import running_server

CODE = grpc.StatusCode
METHODS = {
    "/crossrank.v1.Reranker/Rerank": pb.RerankRequest(query="q", documents=["a"]).SerializeToString(),
    "/tei.v1.Rerank/Rerank": tei.RerankRequest(query="q", texts=["a"]).SerializeToString(),
    "/crossrank.v1.Reranker/ListModels": b"",
    "/tei.v1.Info/Info": b"",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('store')}/s.db")
    yield store
    store.close()


@pytest.fixture(scope="module")
def channel(store: Store) -> Iterator[grpc.Channel]:
    with running_server("--grpc-port", "0", "--store", store_address(store), "--flush-window-s", "0.2") as server:
        with grpc.insecure_channel(server.grpc_target) as channel:
            yield channel
        log = server.log.read_text()
        assert "Traceback" not in log
        assert "cr-" not in log, "a key was logged"


def metadata(token: str | None, **more: str) -> list[tuple[str, str]]:
    return [*([] if token is None else [("authorization", f"Bearer {token}")]), *more.items()]


def rerank(channel: grpc.Channel, token: str | None, documents: int = 2, **more: Any) -> dict[str, str]:
    """Return the trailing metadata of a good answer."""
    request = pb.RerankRequest(query="q", documents=["a"] * documents, **more)
    _, call = RerankerStub(channel).Rerank.with_call(request, metadata=metadata(token))
    return dict(call.trailing_metadata())


def refused(call: Callable[[], Any], status: grpc.StatusCode, code: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the trailing metadata and the details of a refusal; its message under `message`."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    assert raised.value.code() == status
    facts, details = details_of(rpc_status.from_call(raised.value))
    assert facts["code"] == code
    return dict(raised.value.trailing_metadata()), {"message": raised.value.details(), **facts, **details}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("token", "code"), [(None, "missing_api_key"), ("sk-unknown", "invalid_api_key"), ("x" * 4000, "invalid_api_key")]
)
def test_without_a_good_key_every_method_is_unauthenticated(
    channel: grpc.Channel, method: str, token: str | None, code: str
) -> None:
    _, details = refused(
        lambda: channel.unary_unary(method)(METHODS[method], metadata=metadata(token)), CODE.UNAUTHENTICATED, code
    )
    assert (details["http_status"], details["type"]) == ("401", "authentication_error")


@pytest.mark.parametrize("scope", ["rerank", "models", "account"])
def test_a_scope_opens_its_methods_and_no_other(channel: grpc.Channel, store: Store, scope: str) -> None:
    token = new_key(store, scopes=(scope,), requests_per_minute=10)
    for method, message in METHODS.items():
        needed = "rerank" if method.endswith("/Rerank") else "models"

        def call(method: str = method, message: bytes = message) -> Any:
            return channel.unary_unary(method).with_call(message, metadata=metadata(token))

        if needed == scope:
            assert "x-ratelimit-remaining-requests" in dict(call()[1].trailing_metadata())
            continue
        trailers, details = refused(call, CODE.PERMISSION_DENIED, "insufficient_scope")
        assert f"has the scopes {scope}, and this needs {needed}" in details["message"]
        assert trailers["x-ratelimit-limit-requests"] == "10"


def test_spent_credit_says_balance_cost_and_remedy(channel: grpc.Channel, store: Store) -> None:
    token = new_key(store, credit_nano_usd=100_000)  # twelve documents and a half
    rerank(channel, token, 10)
    _, details = refused(lambda: rerank(channel, token, 3), CODE.RESOURCE_EXHAUSTED, "out_of_credit")
    assert (details["http_status"], details["type"]) == ("402", "insufficient_quota")
    assert "0.000020 USD of credit left and this request costs 0.000024 USD" in details["message"]
    rerank(channel, token, 2)


def test_a_limit_says_in_trailing_metadata_and_details_when_to_come_again(channel: grpc.Channel, store: Store) -> None:
    token = new_key(store, requests_per_minute=2, documents_per_minute=10)
    assert [rerank(channel, token)["x-ratelimit-remaining-requests"] for _ in range(2)] == ["1", "0"]
    trailers, details = refused(lambda: rerank(channel, token), CODE.RESOURCE_EXHAUSTED, "rate_limit_exceeded")
    assert details["http_status"] == "429"
    assert 1 <= details["RetryInfo"].retry_delay.ToSeconds() <= 120
    assert trailers["x-ratelimit-remaining-requests"] == "0"
    assert (trailers["x-ratelimit-limit-documents"], trailers["x-ratelimit-remaining-documents"]) == ("10", "6")
    assert 0 < float(trailers["x-ratelimit-reset-requests"].removesuffix("s")) <= 120


def test_errors_before_admission_show_the_limits_too(channel: grpc.Channel, store: Store) -> None:
    token = new_key(store, requests_per_minute=100, documents_per_minute=400)
    rerank(channel, token)
    method = channel.unary_unary("/crossrank.v1.Reranker/Rerank")
    for call, status, code in (
        (lambda: rerank(channel, token, 0), CODE.INVALID_ARGUMENT, "invalid_value"),
        (lambda: rerank(channel, token, model="x"), CODE.NOT_FOUND, "model_not_found"),
        (lambda: method(b"\xff", metadata=metadata(token)), CODE.INVALID_ARGUMENT, "invalid_message"),
    ):
        trailers, _ = refused(call, status, code)
        assert trailers["x-ratelimit-remaining-requests"] == "99"
        assert trailers["x-ratelimit-remaining-documents"] == "398"


def test_each_message_of_a_stream_is_admitted_and_refused_by_itself(channel: grpc.Channel, store: Store) -> None:
    token = new_key(store, documents_per_minute=5)
    request = pb.RerankRequest(query="q", documents=["a"] * 3)
    messages = [pb.RerankStreamRequest(id=str(number), request=request) for number in range(2)]
    call = RerankerStub(channel).RerankStream(iter(messages), metadata=metadata(token))
    kinds = sorted(answer.WhichOneof("outcome") or "" for answer in call)
    assert kinds == ["error", "response"]
    assert dict(call.trailing_metadata())["x-ratelimit-limit-documents"] == "5"
    stream = RerankerStub(channel).RerankStream(iter(()), metadata=metadata("sk-unknown"))
    refused(lambda: list(stream), CODE.UNAUTHENTICATED, "invalid_api_key")


def test_a_stream_of_texts_with_several_queries_is_one_request_to_the_key(channel: grpc.Channel, store: Store) -> None:
    token = new_key(store, requests_per_minute=10)
    method = channel.stream_unary(
        "/tei.v1.Rerank/RerankStream", tei.RerankStreamRequest.SerializeToString, tei.RerankResponse.FromString
    )
    messages = [tei.RerankStreamRequest(query=f"q{number % 2}", text=f"t{number}") for number in range(4)]
    answer, call = method.with_call(iter(messages), metadata=metadata(token))
    assert sorted(rank.index for rank in answer.ranks) == [0, 1, 2, 3]
    assert dict(call.trailing_metadata())["x-ratelimit-remaining-requests"] == "9"
    rerank(channel, token)  # A later flush writes what came before it.
    for _ in range(100):
        rows = usage_by_day(store, UsageFilter(key_id=token.split("-")[1]))
        if rows and rows[0]["requests"] == 2:
            break
        time.sleep(0.05)
    assert [(row["requests"], row["documents"]) for row in rows] == [(2, 6)]
