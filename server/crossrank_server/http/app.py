"""Build the ASGI application: routes, middleware and error handlers around a service."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from crossrank_server.http.cross_origin import allow_origins
from crossrank_server.http.error_handlers import add_error_handlers
from crossrank_server.http.forms import FormsMiddleware
from crossrank_server.http.handler import HttpHandler
from crossrank_server.http.local_only import LocalOnly
from crossrank_server.http.middleware import ObservingMiddleware
from crossrank_server.http.openapi import openapi_document
from crossrank_server.http.routes.account import account_routes
from crossrank_server.http.routes.documentation import documentation_routes
from crossrank_server.http.routes.health import health_routes
from crossrank_server.http.routes.metrics import metrics_routes
from crossrank_server.http.routes.models import models_routes
from crossrank_server.http.routes.page import page_routes
from crossrank_server.http.routes.ranking import ranking_routes
from crossrank_server.http.routes.rerank import rerank_routes
from crossrank_server.http.routes.score import score_routes
from crossrank_server.http.routes.specification import specification_routes
from crossrank_server.http.routes.tei import tei_routes
from crossrank_server.serving.service import RerankService
from crossrank_server.telemetry.metrics import Metrics


def create_app(
    service: RerankService,
    *,
    max_body_bytes: int,
    metrics: Metrics | None = None,
    cors_origins: Sequence[str] = (),
    allowed_hosts: Sequence[str] | None = None,
) -> FastAPI:
    """Return the ASGI application in front of a service.

    Args:
        service: Scores the requests.
        max_body_bytes: Limit for the body of one request.
        metrics: The observer of the service that GET /metrics shows.
        cors_origins: Origins whose pages may call it by script; `*` is all.
        allowed_hosts: Names under which it is called, beside localhost and addresses; pages of other websites are
            refused then (`LocalOnly`). None checks neither.
    """
    app = FastAPIOffline(
        title="crossrank",
        version=version("crossrank"),
        summary="Reranks documents with cross-encoders.",
        description="Scores are sigmoid probabilities in [0, 1]; `raw_scores` gives the model's logits.",
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
    )
    # Each wraps those before it.
    local_only = None if allowed_hosts is None else LocalOnly(allowed_hosts, cors_origins)
    app.add_middleware(FormsMiddleware, local_only=local_only)
    app.add_middleware(ObservingMiddleware, observers=service.observers)
    if cors_origins:
        allow_origins(app, cors_origins)
    add_error_handlers(app)
    handler = HttpHandler(service, max_body_bytes)
    for routes in (
        rerank_routes,
        tei_routes,
        score_routes,
        ranking_routes,
        models_routes,
        account_routes,
        health_routes,
        specification_routes,
        documentation_routes,
        page_routes,
    ):
        app.include_router(routes(handler))
    app.include_router(metrics_routes(handler, metrics or Metrics()))
    app.openapi = cache(partial(openapi_document, app))  # type: ignore[method-assign]
    return app
