"""The table of errors: every one has its status on every protocol, and OpenAPI documents it."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.errors import CrossrankError, InvalidInput, SetupError
from crossrank_server.http.app import create_app
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.service import RerankService


def answered() -> Iterator[type[CrossrankError]]:
    """Every error that a request can end with; those of the start-up and of CrossEncoder's arguments never do."""
    waiting = list(CrossrankError.__subclasses__())
    while waiting:
        error = waiting.pop()
        waiting += error.__subclasses__()
        if not issubclass(error, (SetupError, InvalidInput)):
            yield error


@pytest.mark.parametrize("error", list(answered()), ids=lambda error: error.__name__)
def test_every_error_has_a_documented_http_status_and_a_grpc_status(
    error: type[CrossrankError], builtin: Bundle
) -> None:
    app = create_app(RerankService(ModelPool([]), max_documents=1, timeout_s=1), max_body_bytes=1)
    documented = app.openapi()["paths"]["/v1/rerank"]["post"]["responses"]
    assert str(error.http_status) in documented
    assert error.grpc_status in grpc.StatusCode.__members__
    body = error("what happened", param="query", retry_after_s=3.0).as_body()
    assert body["message"] == body["detail"] == "what happened"
    assert body["error"] == {
        "message": "what happened",
        "type": error.error_type,
        "param": "query",
        "code": error.default_code,
        "retry_after_s": 3.0,
    }


def test_the_tree_in_the_docstring_names_every_error_with_its_status() -> None:
    from crossrank import errors

    lines = (errors.__doc__ or "").splitlines()
    for error in answered():
        (line,) = [line for line in lines if error.__name__ in line]
        assert str(error.http_status) in line
