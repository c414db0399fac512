"""Serve tei.v1: the reranking part of text-embeddings-inference's interface, which calls documents `texts`.

Source: https://github.com/huggingface/text-embeddings-inference (proto/tei.proto, router/src/grpc/server.rs)
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from importlib.metadata import version

import numpy as np

from crossrank.errors import InvalidRequest
from crossrank.request import RerankRequest, ScoreRequest, Truncation
from crossrank_client.proto import tei_v1_pb2 as pb
from crossrank_server.calls import Call
from crossrank_server.rpc.handler import Method, Received, RpcHandler
from crossrank_server.serving.service import Scores

RERANK = pb.DESCRIPTOR.services_by_name["Rerank"].full_name
INFO = pb.DESCRIPTOR.services_by_name["Info"].full_name


def tei_services(handler: RpcHandler) -> dict[str, dict[str, Method]]:
    """Return the methods of the services, by service and name."""

    async def rerank(message: pb.RerankRequest, call: Call) -> pb.RerankResponse:
        texts = list(message.texts)
        _check_query(message.query)
        if not texts:
            raise InvalidRequest("texts is empty; send at least 1 text", param="texts")
        truncation = _truncation(message.truncate, message.truncation_direction)
        request = RerankRequest(message.query, texts, truncation=truncation, field="texts")
        ranking = await handler.service.rerank(request, call)
        answer = pb.RerankResponse(metadata=_metadata(call, [message.query, *texts], ranking.tokens))
        _add_ranks(answer, ranking, ranking.order.tolist(), texts if message.return_text else None, message.raw_scores)
        return answer

    async def rerank_stream(received: AsyncIterator[Received[pb.RerankStreamRequest]], call: Call) -> pb.RerankResponse:
        with ExitStack() as buffered:
            messages: list[pb.RerankStreamRequest] = []
            async for part in received:
                buffered.enter_context(part.buffered())
                messages.append(part.read(call))
                if len(messages) > handler.service.max_documents:
                    raise InvalidRequest(
                        f"the stream has over {handler.service.max_documents} texts, which is the limit; "
                        "split it, or raise --max-documents",
                        param="texts",
                        code="too_many_documents",
                    )
            return await _rank(handler, messages, call)

    async def info(message: pb.InfoRequest, call: Call) -> pb.InfoResponse:
        model = handler.service.pool.slots[0]
        return pb.InfoResponse(
            version=version("crossrank"),
            model_id=model.id,
            model_dtype=model.engine.precision or "",
            model_type=pb.MODEL_TYPE_RERANKER,
            max_input_length=model.bundle.manifest.max_length,
            max_client_batch_size=handler.service.max_documents,
        )

    return {
        RERANK: {
            "Rerank": handler.unary(pb.RerankRequest, rerank),
            "RerankStream": handler.client_stream(pb.RerankStreamRequest, rerank_stream),
        },
        INFO: {"Info": handler.unary(pb.InfoRequest, info, "models")},
    }


async def _rank(handler: RpcHandler, messages: list[pb.RerankStreamRequest], call: Call) -> pb.RerankResponse:
    """Rank all messages of a stream together, as one request whose texts may have different queries."""
    if not messages:
        raise InvalidRequest("the stream has no message; send at least 1 text", param="texts")
    first = messages[0]
    for place, message in enumerate(messages):
        _check_query(message.query)
        if (message.truncate, message.truncation_direction) != (first.truncate, first.truncation_direction):
            raise InvalidRequest(
                f"message {place} of the stream has another truncate or truncation_direction than the first; send the "
                "same in all messages, or several streams",
                param="truncation_direction" if message.truncate == first.truncate else "truncate",
            )
    texts = [message.text for message in messages]
    queries = [message.query for message in messages]
    truncation = _truncation(first.truncate, first.truncation_direction)
    request = ScoreRequest(list(zip(queries, texts, strict=True)), truncation=truncation, field="texts")
    scores = await handler.service.score(request, call)
    answer = pb.RerankResponse(metadata=_metadata(call, [*queries, *texts], scores.tokens))
    order = np.argsort(-scores.logits, kind="stable").tolist()
    _add_ranks(answer, scores, order, texts if first.return_text else None, first.raw_scores)
    return answer


def _check_query(query: str) -> None:
    if not query.strip():
        raise InvalidRequest("query is empty; send the text to rank the texts for", param="query")


def _truncation(truncate: bool, direction: int) -> Truncation:
    if direction not in pb.TruncationDirection.values():
        raise InvalidRequest(
            f"truncation_direction is {direction}; send TRUNCATION_DIRECTION_RIGHT or TRUNCATION_DIRECTION_LEFT",
            param="truncation_direction",
        )
    # RIGHT is also what a message without the field has: it leaves the side to the model's tokenizer.
    return Truncation(allowed=truncate, direction="left" if direction == pb.TRUNCATION_DIRECTION_LEFT else None)


def _add_ranks(answer: pb.RerankResponse, scores: Scores, order: list[int], texts: list[str] | None, raw: bool) -> None:
    for index in order:
        text = None if texts is None else texts[index]
        answer.ranks.add(index=index, score=scores.score(index, raw=raw), text=text)


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
