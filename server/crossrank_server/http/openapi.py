"""Build the OpenAPI document: FastAPI's of the routes, with API keys and without FastAPI's own errors."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from crossrank_server.http.schema.bodies import body_components

_BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "An API key, where the server asks for one; `x-api-key` is read too.",
}


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Return the document of an application's routes."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, description=app.description, routes=app.routes
    )
    for operations in document["paths"].values():
        for operation in operations.values():
            # FastAPI's own refusals: every route here reads its body itself and answers with the one error body.
            operation["responses"].pop("422", None)
            # Keys are off by default: an empty requirement makes them optional.
            if "401" in operation["responses"]:
                operation["security"] = [{"bearer": []}, {}]
    components = document["components"]
    components["schemas"] |= body_components()
    for name in ("HTTPValidationError", "ValidationError"):
        components["schemas"].pop(name, None)
    components["securitySchemes"] = {"bearer": _BEARER}
    return document
