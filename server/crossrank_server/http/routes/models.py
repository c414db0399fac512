"""The models that are served."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.schema.answers import ERRORS, GET_ERRORS
from crossrank_server.serving.listing import model_entry


class Pricing(BaseModel):
    """What documents cost now, by tier."""

    currency: str
    per_1000_documents: dict[str, float]


class Model(BaseModel):
    """A model that is served; `activation` is what its authors apply to its logits, by name."""

    id: str
    object: str
    created: int
    owned_by: str
    engine: str | None
    precision: str | None
    status: Literal["ready", "warming", "asleep"]
    pinned: bool
    max_length: int
    activation: str
    pricing: Pricing


class ModelList(BaseModel):
    """The models served; the first one is the default."""

    object: str
    data: list[Model]


def models_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    service = handler.service

    @router.get("/v1/models", response_model=ModelList, responses=GET_ERRORS)
    async def models(request: Request) -> Response:
        """List the models served, the default first; engine and precision of one never loaded are null."""
        call = await handler.open(request, "models")
        entries = [model_entry(service, model) for model in service.pool.slots]
        return JsonResponse({"object": "list", "data": entries}, headers=call.response_headers)

    @router.get("/models", response_model=ModelList, responses=GET_ERRORS)
    async def infinity_models(request: Request) -> Response:
        """List the models in infinity's form, whose client knows no other owner and wants `stats`."""
        call = await handler.open(request, "models")
        extra = {"owned_by": "infinity", "backend": "", "capabilities": ["rerank"], "stats": {}}
        entries = [model_entry(service, model) | extra for model in service.pool.slots]
        return JsonResponse({"object": "list", "data": entries}, headers=call.response_headers)

    @router.get("/v1/models/{model_id:path}", response_model=Model, responses=GET_ERRORS | {404: ERRORS[404]})
    async def model(request: Request, model_id: str) -> Response:
        """Describe a model; ids contain slashes."""
        call = await handler.open(request, "models")
        served = service.pool.resolve(model_id)
        found = next(model for model in service.pool.slots if model.id == served)
        return JsonResponse(model_entry(service, found), headers=call.response_headers)

    return router
