"""POST /v1/ranking: NVIDIA NIM's passages and logits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from crossrank_server.calls import Call
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.schema.answers import ERRORS, Truncations, Usage, results_of, truncations_of, usage_of
from crossrank_server.http.schema.bodies import Options, body_schema
from crossrank_server.http.schema.fields import Documents, Query


class RankingBody(Options):
    """Passages to order by how well they answer a query, as NVIDIA NIM takes them."""

    query: Query = Field(description="an object with a text, or a string", examples=[{"text": "who wrote hamlet"}])
    passages: Documents = Field(description="the candidates: objects with a text, or strings")


class PassageRank(BaseModel):
    """One ranked passage."""

    index: int = Field(description="its position in the request")
    logit: float


class RankingResponse(BaseModel):
    """The passages by falling logit."""

    rankings: list[PassageRank]
    usage: Usage
    meta: Truncations


def ranking_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes; the one with the model in its path is that of NVIDIA's hosted models."""
    router = APIRouter()

    async def answer(request: Request, model: str | None) -> Response:
        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any]:
            body = RankingBody.read({"model": model, **data}, handler.service.max_documents)
            del data  # While the request waits, its other fields take no memory.
            ranking = await handler.service.rerank(body.rerank_request(body.query, body.passages, "passages"), call)
            return {
                "rankings": results_of(ranking, raw=True, score="logit"),
                "usage": usage_of(ranking),
                "meta": truncations_of(ranking),
            }

        return await handler.answer(request, respond)

    schema = body_schema(RankingBody)

    @router.post("/v1/ranking", response_model=RankingResponse, responses=ERRORS, openapi_extra=schema)
    async def ranking(request: Request) -> Response:
        """Order passages by how well they answer a query; scores are logits."""
        return await answer(request, None)

    @router.post(
        "/v1/retrieval/{model:path}/reranking", response_model=RankingResponse, responses=ERRORS, openapi_extra=schema
    )
    async def reranking(request: Request, model: str) -> Response:
        """Order passages with the model of the path, unless the body names one."""
        return await answer(request, model)

    return router
