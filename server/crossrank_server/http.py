"""HTTP: reads requests, hands them to the service, writes answers. Nothing here knows about models or scores."""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from crossrank_server.body import BodyReader, JsonResponse, LingeringResponse
from crossrank_server.errors import CrossrankError, InvalidRequest
from crossrank_server.schema import ErrorResponse, RerankRequest, RerankResponse, parse_request
from crossrank_server.service import Ranking, RerankService

_log = logging.getLogger("crossrank.http")
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}")
_CLIENT_CLOSED_REQUEST = 499

T = TypeVar("T")


class RequestIdMiddleware:
    """Gives every request an id (the caller's `x-request-id` if usable) and answers with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        await self._app(scope, receive, send_with_id)


def create_app(service: RerankService, *, max_body_bytes: int) -> FastAPI:
    """Return the ASGI application in front of a service."""
    app = FastAPIOffline(
        title="crossrank",
        summary="Reranks documents with cross-encoders.",
        description="Scores are sigmoid probabilities in [0, 1]; `raw_scores` gives the model's logits.",
    )
    app.add_middleware(RequestIdMiddleware)
    bodies = BodyReader(max_body_bytes)
    _add_error_handlers(app)
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorResponse} for status in (400, 404, 413, 429, 500, 502, 503, 504)
    }

    @app.post(
        "/v1/rerank",
        response_model=RerankResponse,
        responses=errors,
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": RerankRequest.model_json_schema()}},
            }
        },
    )
    async def rerank(request: Request) -> Response:
        """Order documents by how well they answer a query."""
        async with bodies.read(request) as body:
            fields = parse_request(body)
            ranking = await _unless_disconnected(
                request,
                service.rerank(fields.query, fields.documents, model=fields.model, top_n=fields.top_n),
            )
            return JsonResponse(_response_body(request.state.request_id, fields, ranking))

    @app.get("/v1/models")
    async def models() -> Response:
        """List the models served; the first one is the default."""
        entries = [
            {
                "id": model.id,
                "object": "model",
                "owned_by": "crossrank",
                "engine": model.engine.name,
                "precision": model.engine.precision,
                "max_length": model.bundle.manifest.max_length,
            }
            for model in service.models
        ]
        return JsonResponse({"object": "list", "data": entries})

    @app.head("/health/live", include_in_schema=False)
    @app.get("/health/live")
    async def live() -> Response:
        """Tell that the process answers."""
        return JsonResponse({"status": "live"})

    @app.head("/health/ready", include_in_schema=False)
    @app.get("/health/ready", responses={503: {"description": "not able to score now"}})
    async def ready() -> Response:
        """Tell whether requests can be scored now."""
        if service.ready():
            return JsonResponse({"status": "ready"})
        return JsonResponse({"status": "not ready"}, status_code=503)

    return app


def _response_body(request_id: str, fields: RerankRequest, ranking: Ranking) -> dict[str, Any]:
    results: list[dict[str, Any]] = []
    for index in ranking.order.tolist():
        result = {"index": index, "relevance_score": ranking.score(index, raw=fields.raw_scores)}
        if fields.return_documents:
            result["document"] = {"text": fields.documents[index]}
        results.append(result)
    return {
        "id": f"rr-{request_id}",
        "model": ranking.model,
        "results": results,
        "usage": {"prompt_tokens": ranking.tokens, "total_tokens": ranking.tokens},
        "meta": {"truncated_documents": ranking.truncated, "query_truncated": ranking.query_truncated},
    }


async def _unless_disconnected(request: Request, work: Awaitable[T]) -> T:
    """Await the work, but cancel it when the client goes away: nobody would read the answer."""
    task = asyncio.ensure_future(work)
    # The body has been read, so the only message left is the disconnect.
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def _add_error_handlers(app: FastAPI) -> None:
    def on_error(request: Request, error: Exception) -> Response:
        if isinstance(error, CrossrankError) and error.http_status != 500:
            headers = {} if error.retry_after_s is None else {"retry-after": str(max(1, round(error.retry_after_s)))}
            kind = LingeringResponse if getattr(request.state, "body_unread", False) else JsonResponse
            return kind(error.as_body(), status_code=error.http_status, headers=headers)
        return _internal_error(request, error)

    def on_unexpected(request: Request, error: Exception) -> Response:
        response = _internal_error(request, error)
        # Starlette answers these outside of the middleware that adds the id to all others.
        response.headers["x-request-id"] = request.state.request_id
        return response

    def on_http_exception(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        message = f"{request.method} {request.url.path[:200]}: {error.detail}; the routes are listed at /docs"
        code = {404: "route_not_found", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        body = InvalidRequest(message, code=code).as_body()
        return JsonResponse(body, status_code=error.status_code, headers=error.headers)

    def on_disconnect(request: Request, error: Exception) -> Response:
        _log.info("client closed the request %s", request.state.request_id)
        return Response(status_code=_CLIENT_CLOSED_REQUEST)

    app.add_exception_handler(CrossrankError, on_error)
    app.add_exception_handler(Exception, on_unexpected)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def _internal_error(request: Request, error: Exception) -> Response:
    """Log the failure under an id and show only the id."""
    error_id = uuid.uuid4().hex[:12]
    _log.error("error %s in request %s", error_id, request.state.request_id, exc_info=error)
    code = error.code if isinstance(error, CrossrankError) else "internal_error"
    message = f"the server failed on this request; its log has the cause under error id {error_id}"
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": code}}
    return JsonResponse(body, status_code=500)
