"""The real application around a real engine, called in process."""

from __future__ import annotations

from typing import Any

import httpx

from crossrank_server.accounts.base import Accounts
from crossrank_server.bundle import Bundle
from crossrank_server.engines.base import Engine
from crossrank_server.engines.select import make_engine
from crossrank_server.http.app import create_app
from crossrank_server.models import ModelPool, ServedModel
from crossrank_server.service import RerankService


def make_service(bundle: Bundle, engine: Engine | None = None, **options: Any) -> RerankService:
    """Return a service with one model, in fp32 on one thread unless an engine is given."""
    engine = engine or make_engine(bundle, "onnxruntime", "fp32", 1)
    accounts: Accounts | None = options.pop("accounts", None)
    strict = options.pop("strict_names", True)
    pool = ModelPool([ServedModel(bundle, engine, 10_000)], strict_names=strict)
    return RerankService(
        pool, max_documents=options.pop("max_documents", 100), timeout_s=60, accounts=accounts, **options
    )


def client_of(service: RerankService) -> httpx.AsyncClient:
    """Return a client of the application; what breaks inside is answered, not raised."""
    transport = httpx.ASGITransport(create_app(service, max_body_bytes=1_000_000), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://test")
