"""The OpenAPI document changes only on purpose."""

from __future__ import annotations

import json

from tests.conftest import ROOT
from tests.openapi_document import rendered_document

GOLDEN = ROOT / "tests" / "golden" / "openapi.json"


def test_the_document_is_the_one_that_was_committed() -> None:
    assert rendered_document() == GOLDEN.read_text(), "the API changed: if on purpose, `make openapi` and commit it"


def test_every_route_of_the_dialects_is_documented() -> None:
    paths = json.loads(GOLDEN.read_text())["paths"]
    posts = {path for path, operations in paths.items() if "post" in operations}
    gets = {path for path, operations in paths.items() if "get" in operations}
    assert posts >= {"/v1/rerank", "/v2/rerank", "/rerank", "/v1/score", "/score", "/v1/ranking"}
    assert gets >= {
        "/v1/models",
        "/v1/models/{model_id}",
        "/models",
        "/info",
        "/health",
        "/ping",
        "/health/live",
        "/health/ready",
        "/v1/health/live",
        "/v1/health/ready",
    }
    assert not any("422" in operation["responses"] for route in paths.values() for operation in route.values())
