"""The models that are served."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway
from crossrank_server.http.schema.answers import ERRORS, GET_ERRORS
from crossrank_server.models import ServedModel


class Model(BaseModel):
    """A model that is served."""

    id: str
    object: str
    created: int
    owned_by: str
    engine: str
    precision: str
    max_length: int


class ModelList(BaseModel):
    """The models served; the first one is the default."""

    object: str
    data: list[Model]


def models_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    started = int(time.time())

    def entry(model: ServedModel) -> dict[str, Any]:
        return {
            "id": model.id,
            "object": "model",
            "created": started,
            "owned_by": "crossrank",
            "engine": model.engine.name,
            "precision": model.engine.precision,
            "max_length": model.bundle.manifest.max_length,
        }

    @router.get("/v1/models", response_model=ModelList, responses=GET_ERRORS)
    async def models(request: Request) -> Response:
        """List the models served; the first one is the default."""
        await gateway.open(request)
        entries = [entry(model) for model in gateway.service.models.models]
        return JsonResponse({"object": "list", "data": entries})

    @router.get("/models", response_model=ModelList, responses=GET_ERRORS)
    async def infinity_models(request: Request) -> Response:
        """List the models in infinity's form, whose client knows no other owner and wants `stats`."""
        await gateway.open(request)
        extra = {"owned_by": "infinity", "backend": "", "capabilities": ["rerank"], "stats": {}}
        entries = [entry(model) | extra for model in gateway.service.models.models]
        return JsonResponse({"object": "list", "data": entries})

    @router.get("/v1/models/{model_id:path}", response_model=Model, responses=GET_ERRORS | {404: ERRORS[404]})
    async def model(request: Request, model_id: str) -> Response:
        """Describe a model; ids contain slashes."""
        await gateway.open(request)
        pool = gateway.service.models
        served = pool.resolve(model_id)
        return JsonResponse(next(entry(model) for model in pool.models if model.id == served))

    return router
