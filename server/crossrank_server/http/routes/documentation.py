"""Serve the reference of the API for people: GET /docs (Swagger UI) and /redoc, which load nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re

from fastapi import APIRouter, Request, Response
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.responses import HTMLResponse

from crossrank_server.http.handler import HttpHandler

# Where fastapi_offline serves the scripts of both.
STATIC = "/static-offline-docs"
_OPENAPI = "/openapi.json"
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def documentation_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes; they need nothing of the handler."""
    router = APIRouter(include_in_schema=False)

    @router.get("/docs")
    async def swagger(request: Request) -> Response:
        """Return the page that tries the API out."""
        root = request.scope.get("root_path", "")
        return _with_policy(
            get_swagger_ui_html(
                openapi_url=f"{root}{_OPENAPI}",
                title="crossrank - Swagger UI",
                swagger_js_url=f"{root}{STATIC}/swagger-ui-bundle.js",
                swagger_css_url=f"{root}{STATIC}/swagger-ui.css",
                swagger_favicon_url=f"{root}{STATIC}/favicon.png",
            )
        )

    @router.get("/redoc")
    async def redoc(request: Request) -> Response:
        """Return the page to read."""
        root = request.scope.get("root_path", "")
        return _with_policy(
            get_redoc_html(
                openapi_url=f"{root}{_OPENAPI}",
                title="crossrank - ReDoc",
                redoc_js_url=f"{root}{STATIC}/redoc.standalone.js",
                redoc_favicon_url=f"{root}{STATIC}/favicon.png",
                with_google_fonts=False,
            )
        )

    return router


def _with_policy(page: HTMLResponse) -> Response:
    """Allow a page the scripts that it has now, inline ones by their hashes, and nothing from elsewhere."""
    scripts = _INLINE_SCRIPT.findall(bytes(page.body))
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(script).digest()).decode()}'" for script in scripts)
    page.headers["content-security-policy"] = (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
        "font-src 'self' data:; connect-src 'self'; worker-src blob:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )
    return page
