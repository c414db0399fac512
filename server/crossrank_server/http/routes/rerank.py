"""POST /v1/rerank, /v2/rerank, /rerank: Cohere's, Jina's, Voyage's, vLLM's and infinity's schema, and TEI's."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from crossrank_server.calls import Call
from crossrank_server.http.gateway import Gateway
from crossrank_server.http.routes.tei import Rank, TextsBody, rank_texts
from crossrank_server.http.schema.answers import (
    ERRORS,
    RerankResponse,
    document_object,
    meta_of,
    results_of,
    usage_of,
)
from crossrank_server.http.schema.bodies import RerankBody, body_schema
from crossrank_server.serving.service import Ranking

# Beside /v1, /v2 and /rerank itself: what clients make of a base URL that ends in /v1, llama.cpp's names, and that of
# OpenVINO Model Server.
_ALIASES = ("/v1/v1/rerank", "/v1/v2/rerank", "/v1/reranking", "/reranking", "/v3/rerank")
# A request with no other field, unless to Cohere's /v2, may come from one of Voyage's clients, which read `data`.
_VOYAGE_FIELDS = {"query", "documents", "model", "top_k", "return_documents", "truncation"}


def rerank_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    async def rerank(request: Request) -> Response:
        """Order documents by how well they answer a query; a body with `texts` gets TEI's bare list."""

        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any] | list[Any]:
            if "texts" in data and "documents" not in data:
                return await rank_texts(gateway.service, data, call)
            body = RerankBody.read(data)
            ranking = await gateway.service.rerank(body.request(), call)
            return response_from_ranking(request.scope["path"], call, data, body, ranking)

        return await gateway.answer(request, respond)

    for path in ("/v1/rerank", "/v2/rerank", "/rerank", *_ALIASES):
        router.add_api_route(
            path,
            rerank,
            methods=["POST"],
            response_model=RerankResponse | list[Rank],
            responses=ERRORS,
            openapi_extra=body_schema(RerankBody, TextsBody),
            include_in_schema=path not in _ALIASES,
        )
    return router


def response_from_ranking(
    path: str, call: Call, data: dict[str, Any], body: RerankBody, ranking: Ranking
) -> dict[str, Any]:
    """Return the answer in the form of RerankResponse."""
    results = results_of(ranking, raw=body.raw)
    # vLLM's clients expect the documents unasked; vLLM is called by this path too.
    if body.with_documents(default=path == "/rerank"):
        given = data["documents"]
        # Only infinity's client sends raw_scores here, and it expects plain strings.
        plain = path == "/rerank" and "raw_scores" in data
        for result in results:
            text = body.documents[result["index"]]
            result["document"] = text if plain else document_object(given[result["index"]], text)
    version = "2" if path.endswith("/v2/rerank") else "1"
    voyage = version == "1" and data.keys() <= _VOYAGE_FIELDS
    return {
        "id": f"rr-{call.request_id}",
        "object": "list" if voyage else "rerank",
        "created": int(time.time()),
        "model": ranking.model,
        "provider": "crossrank",
        "results": results,
        **({"data": results} if voyage else {}),
        "usage": usage_of(ranking),
        "meta": meta_of(ranking, version),
    }
