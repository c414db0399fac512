"""Serve TEI's dialect: `texts` in, a bare sorted list out; GET /info."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from crossrank.engines.base import BatchedEngine
from crossrank_server.calls import Call
from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.schema.answers import GET_ERRORS, results_of
from crossrank_server.http.schema.bodies import Options
from crossrank_server.http.schema.fields import Documents, Query
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService


class TextsBody(Options):
    """Texts to order by how well they answer a query, as Text Embeddings Inference takes them."""

    query: Query = Field(description="what to rank the texts for")
    texts: Documents = Field(description="the candidates")


class Rank(BaseModel):
    """One ranked text."""

    index: int = Field(description="its position in the request")
    score: float = Field(description="sigmoid of the logit, in float64; the logit with raw_scores")
    text: str | None = None


async def rank_texts(service: RerankService, data: dict[str, Any], call: Call) -> list[dict[str, Any]]:
    """Return the answer to a body with `texts`, in the form of a list of Rank.

    TEI's answer has no field for truncation: the header `x-truncated-documents` has the number of truncated texts.

    Raises:
        CrossrankError: See `RerankService.rerank`.
    """
    body = TextsBody.read(data, service.max_documents)
    data.clear()  # While the request waits, its other fields take no memory.
    ranking = await service.rerank(body.rerank_request(body.query, body.texts, "texts"), call)
    if ranking.truncated:
        call.response_headers["x-truncated-documents"] = str(len(ranking.truncated))
    ranks = results_of(ranking, raw=body.raw, score="score")
    if body.with_documents():
        for rank in ranks:
            rank["text"] = body.texts[rank["index"]]
    return ranks


class Info(BaseModel):
    """The default model, in the form of TEI's /info."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    model_type: dict[str, Any]
    max_input_length: int
    max_batch_tokens: int | None
    max_client_batch_size: int
    auto_truncate: bool
    version: str


def tei_routes(handler: HttpHandler) -> APIRouter:
    """Return the route /info."""
    router = APIRouter()

    @router.get("/info", response_model=Info, responses=GET_ERRORS)
    async def info(request: Request) -> Response:
        """Describe the default model as TEI does."""
        call = await handler.open(request, "models")
        model = handler.service.pool.slots[0]
        manifest = model.bundle.manifest
        labels = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
        return JsonResponse(
            {
                "model_id": manifest.model_id,
                "model_sha": manifest.source.revision,
                "model_dtype": model.engine.precision,
                "model_type": {"reranker": labels},
                "max_input_length": manifest.max_length,
                "max_batch_tokens": _batch_tokens(model.served),
                "max_client_batch_size": handler.service.max_documents,
                "auto_truncate": True,
                "version": request.app.version,
            },
            headers=call.response_headers,
        )

    return router


def _batch_tokens(served: ServedModel | None) -> int | None:
    """Return the tokens of a batch; None where the model sleeps, or another server makes the batches."""
    engine = served.engine if served else None
    return engine.batch_tokens if isinstance(engine, BatchedEngine) else None
