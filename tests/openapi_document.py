"""Prints the OpenAPI document of the server; `make openapi` keeps it in tests/golden."""

from __future__ import annotations

import json

from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.service import RerankService


def rendered_document() -> str:
    """Return the document as JSON text, its version left out: releases do not change the API."""
    service = RerankService(ModelPool([]), max_documents=1, timeout_s=1)
    document = create_app(service, max_body_bytes=1).openapi()
    document["info"].pop("version")
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(rendered_document(), end="")
