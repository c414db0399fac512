"""Health, for load balancers and Kubernetes; no key is needed."""

from __future__ import annotations

from fastapi import APIRouter, Response

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.gateway import Gateway


def health_routes(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.head("/health/live", include_in_schema=False)
    @router.get("/health/live")
    async def live() -> Response:
        """Tell that the process answers."""
        return JsonResponse({"status": "live"})

    @router.head("/health/ready", include_in_schema=False)
    @router.get("/health/ready", responses={503: {"description": "not able to score now"}})
    async def ready() -> Response:
        """Tell whether requests can be scored now."""
        if gateway.service.ready():
            return JsonResponse({"status": "ready"})
        return JsonResponse({"status": "not ready"}, status_code=503)

    return router
