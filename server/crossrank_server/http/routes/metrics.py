"""Serve GET /metrics, for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from crossrank_server.http.handler import HttpHandler
from crossrank_server.serving.state import StateCollector
from crossrank_server.telemetry.metrics import Metrics


def metrics_routes(handler: HttpHandler, metrics: Metrics) -> APIRouter:
    """Return the route; where keys are on, it needs a key with the scope `metrics`."""
    router = APIRouter()
    metrics.watch(StateCollector(handler.service, lambda: handler.bodies.held.total))

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def exposition(request: Request) -> Response:
        """Give the metrics in Prometheus' text format, or as OpenMetrics where the Accept header asks for it."""
        call = await handler.open(request, "metrics")
        body, content_type = metrics.exposition(request.headers.get("accept", ""))
        return Response(body, headers={**call.response_headers, "content-type": content_type})

    return router
