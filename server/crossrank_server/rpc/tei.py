"""tei.v1: the reranking part of text-embeddings-inference's interface, which names documents `texts`.

Source: https://github.com/huggingface/text-embeddings-inference (proto/tei.proto, router/src/grpc/server.rs)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from importlib.metadata import version

import grpc

from crossrank_client.proto import tei_v1_pb2 as pb
from crossrank_server.calls import Call
from crossrank_server.errors import InvalidRequest
from crossrank_server.request import RerankRequest, Truncation
from crossrank_server.rpc.gateway import Received, RpcGateway, handlers_of
from crossrank_server.service import Ranking

RERANK = pb.DESCRIPTOR.services_by_name["Rerank"].full_name
INFO = pb.DESCRIPTOR.services_by_name["Info"].full_name


def tei_services(gateway: RpcGateway) -> list[grpc.GenericRpcHandler]:
    """Return the services."""

    async def rerank(message: pb.RerankRequest, call: Call) -> pb.RerankResponse:
        texts = list(message.texts)
        request = _request(message.query, texts, message.truncate, message.truncation_direction)
        ranking = await gateway.service.rerank(request, call)
        places = list(range(len(texts)))
        answer = pb.RerankResponse(metadata=_metadata(call, [message.query, *texts], ranking.tokens))
        _add_ranks(answer, [(ranking, places)], texts if message.return_text else None, message.raw_scores)
        return answer

    async def rerank_stream(received: AsyncIterator[Received[pb.RerankStreamRequest]], call: Call) -> pb.RerankResponse:
        with ExitStack() as held:
            messages: list[pb.RerankStreamRequest] = []
            async for part in received:
                held.enter_context(gateway.held(part))
                messages.append(part.read(call))
                if len(messages) > gateway.service.max_documents:
                    raise InvalidRequest(
                        f"the stream has over {gateway.service.max_documents} texts, which is the limit; "
                        "split it, or raise --max-documents",
                        param="texts",
                        code="too_many_documents",
                    )
            return await _rank(gateway, messages, call)

    async def info(message: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        model = gateway.service.models.models[0]
        return pb.InfoResponse(
            version=version("crossrank"),
            model_id=model.id,
            model_dtype=model.engine.precision or "",
            model_type=pb.MODEL_TYPE_RERANKER,
            max_input_length=model.bundle.manifest.max_length,
            max_client_batch_size=gateway.service.max_documents,
        )

    return [
        handlers_of(
            RERANK,
            {
                "Rerank": gateway.unary(pb.RerankRequest, rerank),
                "RerankStream": gateway.client_stream(pb.RerankStreamRequest, rerank_stream),
            },
        ),
        handlers_of(INFO, {"Info": gateway.unary(pb.InfoRequest, info)}),
    ]


async def _rank(gateway: RpcGateway, messages: list[pb.RerankStreamRequest], call: Call) -> pb.RerankResponse:
    """Rank all messages of a stream together; those with the same query and truncation are scored as one request."""
    if not messages:
        raise InvalidRequest("the stream has no message; send at least 1 text", param="texts")
    groups: dict[tuple[str, bool, int], list[int]] = {}
    for place, message in enumerate(messages):
        groups.setdefault((message.query, message.truncate, message.truncation_direction), []).append(place)
    texts = [message.text for message in messages]
    requests = [
        _request(query, [texts[place] for place in places], truncate, direction)
        for (query, truncate, direction), places in groups.items()
    ]
    rankings = await asyncio.gather(*(gateway.service.rerank(request, call) for request in requests))
    tokens = sum(ranking.tokens for ranking in rankings)
    answer = pb.RerankResponse(metadata=_metadata(call, [*(m.query for m in messages), *texts], tokens))
    first = messages[0]
    ranked = list(zip(rankings, groups.values(), strict=True))
    _add_ranks(answer, ranked, texts if first.return_text else None, first.raw_scores)
    return answer


def _request(query: str, texts: list[str], truncate: bool, direction: int) -> RerankRequest:
    if not query.strip():
        raise InvalidRequest("query is empty; send the text to rank the texts for", param="query")
    if not texts:
        raise InvalidRequest("texts is empty; send at least 1 text", param="texts")
    if direction not in pb.TruncationDirection.values():
        raise InvalidRequest(
            f"truncation_direction is {direction}; send TRUNCATION_DIRECTION_RIGHT or TRUNCATION_DIRECTION_LEFT",
            param="truncation_direction",
        )
    left = direction == pb.TRUNCATION_DIRECTION_LEFT
    return RerankRequest(query, texts, truncation=Truncation(allowed=truncate, direction="left" if left else "right"))


def _add_ranks(
    answer: pb.RerankResponse, rankings: list[tuple[Ranking, list[int]]], texts: list[str] | None, raw: bool
) -> None:
    """Add the ranks of all rankings by falling logit; places are where a ranking's documents stood."""
    ranks = [
        (float(ranking.logits[i]), place, ranking.score(i, raw=raw))
        for ranking, places in rankings
        for i, place in enumerate(places)
    ]
    for _, place, score in sorted(ranks, key=lambda rank: (-rank[0], rank[1])):
        answer.ranks.add(index=place, score=score, text=None if texts is None else texts[place])


def _metadata(call: Call, texts: list[str], tokens: int) -> pb.Metadata:
    stages_ns = {name: round(seconds * 1e9) for name, seconds in call.stages_s.items()}
    return pb.Metadata(
        compute_chars=sum(map(len, texts)),
        compute_tokens=tokens,
        total_time_ns=round((time.perf_counter() - call.started) * 1e9),
        tokenization_time_ns=stages_ns.get("tokenize", 0),
        queue_time_ns=stages_ns.get("queue", 0),
        inference_time_ns=stages_ns.get("inference", 0),
    )
