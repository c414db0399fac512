"""Serve crossrank.v1.Reranker: read the messages of requests, build those of answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from crossrank.errors import InvalidRequest
from crossrank.request import RerankRequest, Truncation, TruncationDirection
from crossrank_client.proto import crossrank_v1_pb2 as pb
from crossrank_server.calls import Call
from crossrank_server.rpc.errors import status_from_error
from crossrank_server.rpc.handler import Method, Received, Rpc, RpcHandler, fail_exchange
from crossrank_server.rpc.stream import pipelined
from crossrank_server.serving.listing import model_entry
from crossrank_server.serving.service import Ranking

RERANKER = pb.DESCRIPTOR.services_by_name["Reranker"].full_name

# Enough to keep the engine busy while answers travel; more would let one stream fill the queue.
_MOST_UNDER_WAY = 16
_DIRECTIONS: dict[int, TruncationDirection] = {
    pb.TRUNCATION_DIRECTION_RIGHT: "right",
    pb.TRUNCATION_DIRECTION_LEFT: "left",
}


def reranker_service(handler: RpcHandler) -> dict[str, dict[str, Method]]:
    """Return the methods of the service, by service and name."""

    async def rerank(message: pb.RerankRequest, call: Call) -> pb.RerankResponse:
        ranking = await handler.service.rerank(_request(message), call)
        with call.stage("respond"):
            return _response(message, ranking, call)

    async def list_models(message: pb.ListModelsRequest, call: Call) -> pb.ListModelsResponse:
        answer = pb.ListModelsResponse()
        for model in handler.service.pool.slots:
            entry = model_entry(handler.service, model)
            answer.models.add(id=entry.pop("id")).details.update(entry)
        return answer

    async def rerank_stream(
        received: AsyncIterator[Received[pb.RerankStreamRequest]], rpc: Rpc
    ) -> AsyncGenerator[pb.RerankStreamResponse, None]:
        numbers = iter(range(1, 2**63))

        async def answer(received: Received[pb.RerankStreamRequest]) -> pb.RerankStreamResponse:
            request_id = f"{rpc.request_id}.{next(numbers)}"
            response = pb.RerankStreamResponse()
            exchange = rpc.observe(request_id)
            try:
                async with rpc.call(exchange) as call:
                    message = received.read(call)
                    response.id = message.id
                    with received.buffered():
                        response.response.CopyFrom(await rerank(message.request, call))
            except Exception as error:
                status = status_from_error(error, request_id)
                fail_exchange(exchange, error, status)
                response.error.CopyFrom(status)
            except asyncio.CancelledError:
                fail_exchange(exchange)
                raise
            finally:
                handler.service.observers.finished(exchange)
            return response

        async for response in pipelined(received, answer, _MOST_UNDER_WAY):
            yield response

    return {
        RERANKER: {
            "Rerank": handler.unary(pb.RerankRequest, rerank),
            "RerankStream": handler.bidirectional(pb.RerankStreamRequest, rerank_stream),
            "ListModels": handler.unary(pb.ListModelsRequest, list_models, "models"),
        }
    }


def _request(message: pb.RerankRequest) -> RerankRequest:
    if not message.query.strip():
        raise InvalidRequest("query is empty; send the text to rank the documents for", param="query")
    if not message.documents:
        raise InvalidRequest("documents is empty; send at least 1 document", param="documents")
    if message.truncation_direction not in pb.TruncationDirection.values():
        raise InvalidRequest(
            f"truncation_direction is {message.truncation_direction}; "
            "send TRUNCATION_DIRECTION_RIGHT or TRUNCATION_DIRECTION_LEFT, or leave it out",
            param="truncation_direction",
        )
    return RerankRequest(
        query=message.query,
        documents=list(message.documents),
        model=message.model or None,
        top_n=message.top_n or None,
        truncation=Truncation(
            allowed=message.truncate if message.HasField("truncate") else True,
            direction=_DIRECTIONS.get(message.truncation_direction),
            max_tokens_per_doc=message.max_tokens_per_doc or None,
            max_chunks_per_doc=message.max_chunks_per_doc or 1,
        ),
    )


def _response(message: pb.RerankRequest, ranking: Ranking, call: Call) -> pb.RerankResponse:
    answer = pb.RerankResponse(
        id=f"rr-{call.request_id}",
        model=ranking.model,
        usage=pb.Usage(prompt_tokens=ranking.tokens, total_tokens=ranking.tokens),
        meta=pb.Meta(truncated_documents=ranking.truncated, query_truncated=ranking.query_truncated),
    )
    for index in ranking.order.tolist():
        result = answer.results.add(index=index, relevance_score=ranking.score(index, raw=message.raw_scores))
        if message.return_documents:
            result.document = message.documents[index]
    return answer
