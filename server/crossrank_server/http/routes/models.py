"""The models that are served."""

from __future__ import annotations

from typing import get_args

from fastapi import APIRouter, Request, Response

from crossrank_server.calls import Tier
from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway


def models_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the models served; the first one is the default."""
        call = await gateway.open(request, "models")
        prices = gateway.service.prices
        entries = [
            {
                "id": model.id,
                "object": "model",
                "owned_by": "crossrank",
                "engine": model.engine.name,
                "precision": model.engine.precision,
                "max_length": model.bundle.manifest.max_length,
                "pricing": {
                    "currency": "USD",
                    "per_1000_documents": {tier: prices.usd_per_1000(model.id, tier) for tier in get_args(Tier)},
                },
            }
            for model in gateway.service.models.models
        ]
        return JsonResponse({"object": "list", "data": entries}, headers=call.response_headers)

    return router
