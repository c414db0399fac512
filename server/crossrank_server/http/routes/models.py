"""The models that are served."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway


def models_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/v1/models")
    async def models(request: Request) -> Response:
        """List the models served, the default first; engine and precision of one never loaded are null."""
        await gateway.open(request)
        entries = [
            {
                "id": model.id,
                "object": "model",
                "owned_by": "crossrank",
                "engine": model.engine.name,
                "precision": model.engine.precision,
                "status": model.status,
                "pinned": model.pinned,
                "max_length": model.bundle.manifest.max_length,
            }
            for model in gateway.service.models.models
        ]
        return JsonResponse({"object": "list", "data": entries})

    return router
