"""The models that are served."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway
from crossrank_server.listing import model_entry


def models_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the models served; the first one is the default."""
        await gateway.open(request)
        entries = [model_entry(model) for model in gateway.service.models.models]
        return JsonResponse({"object": "list", "data": entries})

    return router
