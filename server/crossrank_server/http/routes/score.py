"""POST /v1/score, /score: vLLM's pairs, scored in their order."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from crossrank_server.calls import Call
from crossrank_server.errors import InvalidRequest
from crossrank_server.http.gateway import Gateway
from crossrank_server.http.schema.answers import ERRORS, Truncations, Usage, truncations_of, usage_of
from crossrank_server.http.schema.bodies import Options, body_schema
from crossrank_server.http.schema.fields import Texts
from crossrank_server.request import ScoreRequest

# vLLM's names for the two sides of the pairs, the newest last.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreBody(Options):
    """Pairs to score: one query with one text or a list, or two lists of the same length."""

    text_1: Texts | None = Field(None, description="the query, or one for each text_2")
    text_2: Texts | None = Field(None, description="the documents")
    queries: Texts | None = Field(None, description="vLLM's newer name for text_1")
    documents: Texts | None = Field(None, description="vLLM's newer name for text_2")
    data_1: Texts | None = Field(None, description="another of vLLM's names for text_1")
    data_2: Texts | None = Field(None, description="another of vLLM's names for text_2")
    items: Texts | None = Field(None, description="another of vLLM's names for documents")

    def request(self) -> ScoreRequest:
        """Return what is asked of the service.

        Raises:
            InvalidRequest: A side is missing, a query is blank, or the sides do not match.
        """
        for first, second in _SIDES:
            left, right = getattr(self, first), getattr(self, second)
            if left is not None and right is not None:
                return ScoreRequest(_pairs(first, left, second, right), self.model, self.limits(), second)
        raise InvalidRequest(
            "the pairs are missing; send text_1 and text_2, or queries and documents",
            param="text_2" if self.text_1 is not None else "text_1",
            code="missing_field",
        )


def _pairs(first: str, left: list[str] | str, second: str, right: list[str] | str) -> list[tuple[str, str]]:
    lefts = [left] if isinstance(left, str) else left
    rights = [right] if isinstance(right, str) else right
    for i, query in enumerate(lefts):
        if not query.strip():
            raise InvalidRequest(f"{first}[{i}] is empty; send the text of a query", param=f"{first}[{i}]")
    if len(lefts) == 1:
        lefts = lefts * len(rights)
    if len(lefts) != len(rights):
        raise InvalidRequest(
            f"{first} has {len(lefts)} texts and {second} {len(rights)}; send one {first} for all, or as many of each",
            param=second,
        )
    return list(zip(lefts, rights, strict=True))


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


def score_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/score", response_model=ScoreResponse, responses=ERRORS, openapi_extra=body_schema(ScoreBody))
    @router.post("/v1/score", response_model=ScoreResponse, responses=ERRORS, openapi_extra=body_schema(ScoreBody))
    async def score(request: Request) -> Response:
        """Score pairs of texts in their order."""

        async def respond(data: dict[str, Any], call: Call) -> dict[str, Any]:
            body = ScoreBody.read(data)
            scores = await gateway.service.score(body.request(), call)
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

        return await gateway.answer(request, respond)

    return router
