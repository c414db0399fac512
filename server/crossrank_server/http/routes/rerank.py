"""Serve POST /v1/rerank, /v2/rerank, /rerank: Cohere's, Jina's, Voyage's, vLLM's, infinity's and TEI's schemas."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response

from crossrank_server.calls import Call
from crossrank_server.http.dialects import DOCUMENTED_PATHS, PATHS, Dialect, dialect_of
from crossrank_server.http.handler import HttpHandler
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


def rerank_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    async def rerank(request: Request) -> Response:
        """Order documents by how well they answer a query; a body with `texts` gets TEI's bare list."""

        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any] | list[Any]:
            if "texts" in data and "documents" not in data:
                return await rank_texts(handler.service, data, call)
            body = RerankBody.read(data, handler.service.max_documents)
            dialect = dialect_of(request.scope["path"], body.model_fields_set)
            sent = data["documents"] if body.with_documents(default=dialect.returns_documents) else None
            if sent is not None:
                request.state.holding.add((_most_copies(dialect, body) - 1) * request.state.holding.size)
            del data  # While the request waits, its other fields take no memory.
            ranking = await handler.service.rerank(body.request(), call)
            return response_from_ranking(dialect, call, sent, body, ranking)

        return await handler.answer(request, respond)

    for path in PATHS:
        router.add_api_route(
            path,
            rerank,
            methods=["POST"],
            response_model=RerankResponse | list[Rank],
            responses=ERRORS,
            openapi_extra=body_schema(RerankBody, TextsBody),
            include_in_schema=path in DOCUMENTED_PATHS,
        )
    return router


def _most_copies(dialect: Dialect, body: RerankBody) -> int:
    """Return how often an answer that repeats the documents may hold what the request holds of them once."""
    # Beside the fields to rank on stands the text that they make.
    return (2 if body.rank_fields else 1) * (2 if dialect.results_in_data else 1)


def response_from_ranking(
    dialect: Dialect, call: Call, sent: list[Any] | None, body: RerankBody, ranking: Ranking
) -> dict[str, Any]:
    """Build the answer in the form of RerankResponse.

    Args:
        dialect: What the client expects beside the common core.
        call: For the id.
        sent: The documents as they were sent, whose further fields are returned with them; None returns no documents.
        body: The request.
        ranking: The scored documents.
    """
    results = results_of(ranking, raw=body.raw)
    if sent is not None:
        for result in results:
            text = body.documents[result["index"]]
            result["document"] = text if dialect.documents_as_strings else document_object(sent[result["index"]], text)
    return {
        "id": f"rr-{call.request_id}",
        "object": "list" if dialect.results_in_data else "rerank",
        "created": int(time.time()),
        "model": ranking.model,
        "provider": "crossrank",
        "results": results,
        **({"data": results} if dialect.results_in_data else {}),
        "usage": usage_of(ranking),
        "meta": meta_of(ranking, dialect.api_version),
    }
