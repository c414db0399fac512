"""POST /v1/score, /score: vLLM's pairs, scored in their order."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from crossrank_server.calls import Call
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.schema.answers import ERRORS, Truncations, Usage, truncations_of, usage_of
from crossrank_server.http.schema.bodies import body_schema
from crossrank_server.http.schema.pairs import ScoreBody


class Score(BaseModel):
    """The score of one pair."""

    index: int
    object: str
    score: float = Field(description="sigmoid of the logit, in float64; the logit with use_activation false")


class ScoreResponse(BaseModel):
    """The scores in the order of the pairs; `meta` counts a pair as a document."""

    id: str
    object: str
    created: int
    model: str
    data: list[Score]
    usage: Usage
    meta: Truncations


def score_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/score", response_model=ScoreResponse, responses=ERRORS, openapi_extra=body_schema(ScoreBody))
    @router.post("/v1/score", response_model=ScoreResponse, responses=ERRORS, openapi_extra=body_schema(ScoreBody))
    async def score(request: Request) -> Response:
        """Score pairs of texts in their order."""

        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any]:
            body = ScoreBody.read(data, handler.service.max_documents)
            del data  # While the request waits, its other fields take no memory.
            scores = await handler.service.score(body.request(), call)
            values = [scores.score(i, raw=body.raw) for i in range(len(scores.logits))]
            return {
                "id": f"score-{call.request_id}",
                "object": "list",
                "created": int(time.time()),
                "model": scores.model,
                "data": [{"index": i, "object": "score", "score": value} for i, value in enumerate(values)],
                "usage": usage_of(scores),
                "meta": truncations_of(scores),
            }

        return await handler.answer(request, respond)

    return router
