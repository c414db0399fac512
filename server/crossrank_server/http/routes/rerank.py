"""POST /v1/rerank: the common core of the rerank APIs in use."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from crossrank_server.calls import Call
from crossrank_server.http.gateway import Gateway
from crossrank_server.http.schema import ErrorResponse, RerankBody, RerankResponse, parse_rerank
from crossrank_server.service import Ranking

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 401, 402, 403, 404, 413, 429, 500, 502, 503, 504)
}


def rerank_routes(gateway: Gateway) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post(
        "/v1/rerank",
        response_model=RerankResponse,
        responses=ERRORS,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": RerankBody.model_json_schema()}},
            }
        },
    )
    async def rerank(request: Request) -> Response:
        """Order documents by how well they answer a query."""

        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any]:
            body = parse_rerank(data)
            ranking = await gateway.service.rerank(body.request(), call)
            return response_from_ranking(call, body, ranking)

        return await gateway.answer(request, respond)

    return router


def response_from_ranking(call: Call, body: RerankBody, ranking: Ranking) -> dict[str, Any]:
    """Return the answer in the form of RerankResponse."""
    results: list[dict[str, Any]] = []
    for index in ranking.order.tolist():
        result = {"index": index, "relevance_score": ranking.score(index, raw=body.raw_scores)}
        if body.return_documents:
            result["document"] = {"text": body.documents[index]}
        results.append(result)
    return {
        "id": f"rr-{call.request_id}",
        "model": ranking.model,
        "results": results,
        "usage": {"prompt_tokens": ranking.tokens, "total_tokens": ranking.tokens},
        "meta": {"truncated_documents": ranking.truncated, "query_truncated": ranking.query_truncated},
    }
