"""The real application around a real engine, called in process."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI

from crossrank.bundles.bundle import Bundle
from crossrank.engines.base import Engine
from crossrank.engines.select import make_engine
from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService


def make_app(bundle: Bundle, engine: Engine | None = None, **options: Any) -> FastAPI:
    """Return the application with one model, in fp32 on one thread unless an engine is given.

    Args:
        bundle: The model.
        engine: In place of ONNX Runtime.
        options: `strict_names` of the pool; `cors_origins` and `allowed_hosts` of the application; `max_documents` and `accounts` of the
            service.
    """
    served = ServedModel(bundle, engine or make_engine(bundle, "onnxruntime", "fp32", 1), 10_000)
    pool = ModelPool([served], strict_names=options.pop("strict_names", True))
    of_app = {name: options.pop(name) for name in ("cors_origins", "allowed_hosts") if name in options}
    service = RerankService(pool, **{"max_documents": 100, "timeout_s": 60, **options})
    return create_app(service, max_body_bytes=1_000_000, **of_app)


def client_of(app: FastAPI) -> httpx.AsyncClient:
    """Return a client of the application; what breaks inside is answered, not raised."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")
