"""The gateway that the clients are pointed at, and the clients."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.clients.environment import ClientProgram
from tests.clients.ways import DOCUMENTS, MODEL, QUERY, Reference
from tests.scripted_server import Reply, Request, ScriptedServer
from tests.server_process import RunningServer, running_server

_HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


@pytest.fixture(scope="session")
def server() -> Iterator[RunningServer]:
    """`crossrank serve` with the built-in model, without keys."""
    with running_server("--precision", "fp32") as running:
        yield running


@pytest.fixture(scope="session")
def reference(server: RunningServer) -> Reference:
    """What the server itself answers, without any client."""
    body = {"query": QUERY, "documents": DOCUMENTS, "model": MODEL}
    plain, raw = (
        httpx.post(f"{server.base_url}/v1/rerank", json={**body, "raw_scores": raw}).raise_for_status().json()
        for raw in (False, True)
    )
    return Reference(
        order=[r["index"] for r in plain["results"]],
        scores=[r["relevance_score"] for r in plain["results"]],
        logits=[r["relevance_score"] for r in raw["results"]],
        total_tokens=plain["usage"]["total_tokens"],
    )


@pytest.fixture(scope="session")
def program() -> Iterator[Callable[[str, str], ClientProgram]]:
    """Give the program of an environment, started once."""
    running: dict[tuple[str, str], ClientProgram] = {}
    with contextlib.ExitStack() as stack:

        def start(environment: str, name: str) -> ClientProgram:
            if (environment, name) not in running:
                running[environment, name] = stack.enter_context(ClientProgram(environment, name))
            return running[environment, name]

        yield start


def forward_to(server: RunningServer) -> Callable[[Request], Reply]:
    """Return what passes a request on to the server and its answer back, for a ScriptedServer in between."""

    def forward(request: Request) -> Reply:
        headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
        answer = httpx.request(request.method, server.base_url + request.path, headers=headers, content=request.body)
        kept = {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}
        return Reply(answer.status_code, answer.content, kept)

    return forward


@pytest.fixture
def wire(server: RunningServer) -> Iterator[ScriptedServer]:
    """The server behind a recorder of what is asked."""
    with ScriptedServer([forward_to(server)]) as recorder:
        yield recorder
