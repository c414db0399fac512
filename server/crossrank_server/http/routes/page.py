"""Serve the page at `/`, its files, and the state that it shows. No key is needed; the state holds no secret."""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Any, get_args

from fastapi import APIRouter, Request, Response

from crossrank.bundles.catalog import CatalogModel, catalog_model
from crossrank.scheduling.tiers import Tier
from crossrank_server.accounts.prices import Prices
from crossrank_server.http.body import JsonResponse
from crossrank_server.http.handler import HttpHandler
from crossrank_server.serving.slot import ModelSlot

_MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_HEADERS = {
    # Nothing from elsewhere, nothing inline, no sink that parses text as HTML.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
}
_GZIP = re.compile(r"(?:^|,)\s*(?:x-)?gzip\s*(?:;\s*q=(?!0(?:\.0*)?\s*(?:,|$))[\d.]+\s*)?(?:,|$)", re.IGNORECASE)


@dataclass(frozen=True)
class PageFile:
    """Hold a file in two forms, plain and compressed, each with its ETag."""

    media_type: str
    plain: bytes
    zipped: bytes
    digest: str

    def response(self, request: Request) -> Response:
        """Answer with the form that the client accepts, or with 304 if it has it already."""
        zipped = bool(_GZIP.search(request.headers.get("accept-encoding", "")))
        etag = f'"{self.digest}{"-gzip" if zipped else ""}"'
        # no-cache: kept by the browser, and used once the server has confirmed that it is current.
        headers = {**_HEADERS, "etag": etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if etag in known or "*" in known:
            return Response(status_code=304, headers=headers)
        if zipped:
            headers["content-encoding"] = "gzip"
        return Response(self.zipped if zipped else self.plain, headers=headers, media_type=self.media_type)


def load_page() -> dict[str, PageFile]:
    """Return the page's files by name, compressed once."""
    loaded = {}
    for file in (files("crossrank_server") / "http" / "page").iterdir():
        media_type = _MEDIA_TYPES.get(file.name.rpartition(".")[2])
        if media_type:
            plain = file.read_bytes()
            digest = hashlib.sha256(plain).hexdigest()[:16]
            loaded[file.name] = PageFile(media_type, plain, gzip.compress(plain, 9, mtime=0), digest)
    return loaded


def page_routes(handler: HttpHandler) -> APIRouter:
    """Return the routes."""
    router = APIRouter(include_in_schema=False)

    def add(path: str, file: PageFile) -> None:
        async def send(request: Request) -> Response:
            return file.response(request)

        router.add_api_route(path, send, methods=["GET", "HEAD"], response_model=None)

    for name, file in load_page().items():
        add("/" if name == "index.html" else f"/page/{name}", file)

    @router.get("/page/state.json")
    async def state() -> Response:
        """Return the models, their status, and the published figures of each."""
        service = handler.service
        content = {
            "version": version("crossrank"),
            "ready": service.ready(),
            "models": [model_state(model, service.prices) for model in service.pool.slots],
        }
        return JsonResponse(content, headers={"cache-control": "no-store"})

    return router


def model_state(model: ModelSlot, prices: Prices) -> dict[str, Any]:
    """Return the state of a model; its card is None where the catalogue does not have it."""
    known = catalog_model(model.id)
    return {
        "id": model.id,
        "status": "not ready" if model.served and not model.served.engine.ready() else model.status,
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "max_length": model.bundle.manifest.max_length,
        "usd_per_1000_docs": {tier: prices.usd_per_1000(model.id, tier) for tier in get_args(Tier)},
        "price_basis": prices.basis(model.id),
        "card": None if known is None else card(known),
    }


def card(model: CatalogModel) -> dict[str, Any]:
    """Return the catalogue's figures of a model."""
    names = ("layers", "hidden", "ndcg_at_10", "mrr_at_10", "docs_per_s_v100", "licence", "terms", "protocol", "note")
    return {name: getattr(model, name) for name in names}
