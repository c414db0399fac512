"""The machine-readable specification, also under the base that clients know."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler


def specification_routes(handler: HttpHandler) -> APIRouter:
    """Return the route; it needs nothing of the handler."""
    router = APIRouter()

    @router.get("/v1/openapi.json", include_in_schema=False)
    async def specification(request: Request) -> Response:
        """Return the same document as /openapi.json."""
        return JsonResponse(request.app.openapi())

    return router
