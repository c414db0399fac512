"""Health, for load balancers and Kubernetes, by the names of every server; no key is needed."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel

from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler


class Health(BaseModel):
    """Whether the server can score."""

    status: str
    object: str
    message: str
    unix: float


def health_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    not_ready: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "not able to score now"}}

    async def live() -> Response:
        """Tell that the process answers."""
        return _health("live", "Service is live.")

    async def ready() -> Response:
        """Tell whether requests can be scored now."""
        if handler.service.ready():
            return _health("ready", "Service is ready.")
        return _health("not ready", "Service is not ready.", 503)

    # NVIDIA NIM has /v1/health/..; TEI, vLLM, infinity and llama.cpp have /health; SageMaker asks /ping.
    for path in ("/health/live", "/v1/health/live"):
        router.add_api_route(path, live, response_model=Health)
    for path in ("/health/ready", "/v1/health/ready", "/health", "/ping"):
        router.add_api_route(path, ready, response_model=Health, responses=not_ready)
    return router


def _health(status: str, message: str, code: int = 200) -> Response:
    content = {"status": status, "object": "health.response", "message": message, "unix": time.time()}
    return JsonResponse(content, status_code=code)
