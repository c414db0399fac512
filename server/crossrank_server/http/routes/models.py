"""The models that are served."""

from __future__ import annotations

import time
from typing import Any, Literal, get_args

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from crossrank_server.calls import Tier
from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway
from crossrank_server.http.schema.answers import ERRORS, GET_ERRORS
from crossrank_server.residency import ModelSlot


class Pricing(BaseModel):
    """What documents cost now, by tier."""

    currency: str
    per_1000_documents: dict[str, float]


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    engine: str | None
    precision: str | None
    status: Literal["ready", "warming", "asleep"]
    pinned: bool
    max_length: int
    pricing: Pricing


class ModelList(BaseModel):
    """The models served; the first one is the default."""

    object: str
    data: list[Model]


def models_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    started = int(time.time())
    prices = gateway.service.prices

    def entry(model: ModelSlot) -> dict[str, Any]:
        return {
            "id": model.id,
            "object": "model",
            "created": started,
            "owned_by": "crossrank",
            "engine": model.engine.name,
            "precision": model.engine.precision,
            "status": model.status,
            "pinned": model.pinned,
            "max_length": model.bundle.manifest.max_length,
            "pricing": {
                "currency": "USD",
                "per_1000_documents": {tier: prices.usd_per_1000(model.id, tier) for tier in get_args(Tier)},
            },
        }

    @router.get("/v1/models", response_model=ModelList, responses=GET_ERRORS)
    async def models(request: Request) -> Response:
        """List the models served, the default first; engine and precision of one never loaded are null."""
        call = await gateway.open(request, "models")
        entries = [entry(model) for model in gateway.service.models.models]
        return JsonResponse({"object": "list", "data": entries}, headers=call.response_headers)

    @router.get("/models", response_model=ModelList, responses=GET_ERRORS)
    async def infinity_models(request: Request) -> Response:
        """List the models in infinity's form, whose client knows no other owner and wants `stats`."""
        call = await gateway.open(request, "models")
        extra = {"owned_by": "infinity", "backend": "", "capabilities": ["rerank"], "stats": {}}
        entries = [entry(model) | extra for model in gateway.service.models.models]
        return JsonResponse({"object": "list", "data": entries}, headers=call.response_headers)

    @router.get("/v1/models/{model_id:path}", response_model=Model, responses=GET_ERRORS | {404: ERRORS[404]})
    async def model(request: Request, model_id: str) -> Response:
        """Describe a model; ids contain slashes."""
        call = await gateway.open(request, "models")
        pool = gateway.service.models
        served = pool.resolve(model_id)
        found = next(entry(model) for model in pool.models if model.id == served)
        return JsonResponse(found, headers=call.response_headers)

    return router
