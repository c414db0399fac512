"""tei.v1: text-embeddings-inference's messages around the same service."""

from __future__ import annotations

import grpc
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.request import RerankRequest
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_client.proto import tei_v1_pb2 as tei
from crossrank_client.proto.crossrank_v1_pb2_grpc import RerankerStub
from crossrank_server.calls import Call
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import Ranking, RerankService
from tests.rpc_server import GatedEngine, RefusingAccounts, rpc_channel, service_of

TEXTS = ["one", "one two three four", "one two"]


def unary(channel: grpc.aio.Channel, name: str, response: type) -> grpc.aio.UnaryUnaryMultiCallable:
    return channel.unary_unary(f"/tei.v1.{name}", lambda message: message.SerializeToString(), response.FromString)


async def rerank(builtin: Bundle, **fields) -> tei.RerankResponse:
    async with rpc_channel(service_of(builtin, GatedEngine())) as channel:
        return await unary(channel, "Rerank/Rerank", tei.RerankResponse)(tei.RerankRequest(**fields))


async def stream(builtin: Bundle, messages: list[tei.RerankStreamRequest]) -> tei.RerankResponse:
    async with rpc_channel(service_of(builtin, GatedEngine())) as channel:
        method = channel.stream_unary(
            "/tei.v1.Rerank/RerankStream",
            lambda message: message.SerializeToString(),
            tei.RerankResponse.FromString,
        )
        return await method(iter(messages))


async def test_texts_come_back_by_falling_score_with_what_it_took(builtin: Bundle) -> None:
    answer = await rerank(builtin, query="q", texts=TEXTS, truncate=True, raw_scores=True, return_text=True)
    assert [(rank.index, rank.text) for rank in answer.ranks] == [(1, TEXTS[1]), (2, TEXTS[2]), (0, TEXTS[0])]
    tokens = [rank.score for rank in answer.ranks]  # The engine's score is the number of tokens.
    assert tokens == sorted(tokens, reverse=True)
    assert answer.metadata.compute_tokens == sum(tokens)
    assert answer.metadata.compute_chars == len("q") + sum(map(len, TEXTS))
    assert answer.metadata.total_time_ns >= answer.metadata.tokenization_time_ns > 0


async def test_scores_are_probabilities_and_texts_stay_away_unless_asked_for(builtin: Bundle) -> None:
    answer = await rerank(builtin, query="q", texts=TEXTS)
    assert all(0.5 < rank.score <= 1 and not rank.HasField("text") for rank in answer.ranks)


@pytest.mark.parametrize("query", ["q", "another"])
async def test_a_stream_of_texts_is_one_ranking(builtin: Bundle, query: str) -> None:
    # With another query for one of them, that pair is scored by its own and ranked among the rest.
    messages = [
        tei.RerankStreamRequest(query=query if i == 2 else "q", text=text, raw_scores=i == 0, return_text=i == 0)
        for i, text in enumerate(TEXTS)
    ]
    answer = await stream(builtin, messages)
    assert [(rank.index, rank.text) for rank in answer.ranks] == [(1, TEXTS[1]), (2, TEXTS[2]), (0, TEXTS[0])]
    assert min(rank.score for rank in answer.ranks) > 1


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"texts": ["a"]}, "query is empty"),
        ({"query": "q"}, "texts is empty; send at least 1"),
        ({"query": "q", "texts": ["a"] * 51}, "the limit is 50"),
        ({"query": "q", "texts": ["a"], "truncation_direction": 5}, "truncation_direction is 5"),
    ],
    ids=["query", "texts", "too many", "direction"],
)
async def test_a_bad_request_says_what_is_wrong(builtin: Bundle, fields, says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=says) as raised:
        await rerank(builtin, **fields)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(("count", "says"), [(0, "no message; send at least 1"), (51, "over 50 texts")])
async def test_a_stream_with_nothing_or_too_much_is_refused(builtin: Bundle, count: int, says: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match=says) as raised:
        await stream(builtin, [tei.RerankStreamRequest(query=f"q{i}", text="t") for i in range(count)])
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("field", "value"), [("truncate", True), ("truncation_direction", tei.TRUNCATION_DIRECTION_LEFT)]
)
async def test_a_stream_is_truncated_in_one_way(builtin: Bundle, field: str, value: object) -> None:
    messages = [tei.RerankStreamRequest(query="q", text="t"), tei.RerankStreamRequest(query="q", text="t")]
    setattr(messages[1], field, value)
    with pytest.raises(grpc.aio.AioRpcError, match="message 1 of the stream has another truncate or") as raised:
        await stream(builtin, messages)
    assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_info_names_the_default_model_a_reranker(builtin: Bundle) -> None:
    accounts = RefusingAccounts()
    async with rpc_channel(service_of(builtin, GatedEngine(), accounts)) as channel:
        answer = await unary(channel, "Info/Info", tei.InfoResponse)(tei.InfoRequest())
    assert answer.model_id == "crossrank-mini"
    assert answer.model_type == tei.MODEL_TYPE_RERANKER
    assert (answer.max_input_length, answer.max_client_batch_size) == (512, 50)
    assert accounts.tokens == [None]  # It asks for a key where keys are on.


@pytest.mark.parametrize(
    ("side", "crossrank_side", "expected"),
    [
        (tei.TRUNCATION_DIRECTION_LEFT, pb.TRUNCATION_DIRECTION_LEFT, "left"),
        (tei.TRUNCATION_DIRECTION_RIGHT, pb.TRUNCATION_DIRECTION_UNSPECIFIED, None),
    ],
    ids=["left", "as the model's tokenizer"],
)
async def test_a_message_without_a_side_leaves_it_to_the_model(
    builtin: Bundle, side: int, crossrank_side: int, expected: str | None
) -> None:
    asked = []

    class Recording(RerankService):
        async def rerank(self, request: RerankRequest, call: Call) -> Ranking:
            asked.append(request.truncation.direction)
            return await super().rerank(request, call)

    service = Recording(ModelPool([ServedModel(builtin, GatedEngine(), 10_000)]), max_documents=50, timeout_s=30)
    async with rpc_channel(service) as channel:
        message = tei.RerankRequest(query="q", texts=TEXTS, truncation_direction=side)
        await unary(channel, "Rerank/Rerank", tei.RerankResponse)(message)
        request = pb.RerankRequest(query="q", documents=TEXTS, truncation_direction=crossrank_side)
        await RerankerStub(channel).Rerank(request)
    assert asked == [expected, expected]
