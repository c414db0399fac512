"""Every family, number of labels and engine gives PyTorch's logits, for texts of the odd kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import pytest

from crossrank.native.library import usable_kernels
from tests import odd_texts
from tests.family_matrix import FAMILIES, NATIVE, Matrix, Member
from tests.server_process import RunningServer, running_server

# The other engines read the whole row of logits, so that one label of each checkpoint is enough.
_LAST_LABELS = [member for member in NATIVE if member.label == member.checkpoint.num_labels - 1]
ENGINES = {
    "auto": [*FAMILIES, *_LAST_LABELS],
    "native": NATIVE,
    "openvino": [*FAMILIES, *_LAST_LABELS],
    "onnxruntime": [*FAMILIES, *_LAST_LABELS],
}
CELLS = [
    pytest.param(engine, member, id=f"{engine}-{member}") for engine, members in ENGINES.items() for member in members
]
TOLERANCE = 1e-4

# torch, transformers and optimum warn of themselves at length.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
    pytest.mark.timeout(900),  # the first one exports all models
]


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Matrix:
    return Matrix(tmp_path_factory.mktemp("families"))


@pytest.fixture(scope="module")
def server_of(matrix: Matrix, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], RunningServer]]:
    """One process for each engine, with all models of the matrix that it serves; started when it is first asked for."""
    servers: dict[str, RunningServer | RuntimeError] = {}
    cache_dir = str(tmp_path_factory.mktemp("cache"))
    with ExitStack() as stack:

        def start(engine: str) -> RunningServer:
            if engine not in servers:
                models = [
                    argument for member in ENGINES[engine] for argument in ("--model", str(matrix.bundle(member)))
                ]
                options = ["--engine", engine, "--precision", "fp32", "--pin", "all", "--cache-dir", cache_dir]
                try:
                    servers[engine] = stack.enter_context(running_server(*models, *options, start_s=300))
                except RuntimeError as error:
                    servers[engine] = error
            server = servers[engine]
            if isinstance(server, RuntimeError):
                raise server
            return server

        yield start


def rerank(server: RunningServer, **body: Any) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/rerank", json=body, timeout=60)


@pytest.mark.parametrize(("engine", "member"), CELLS)
def test_logits_are_those_of_pytorch(
    engine: str, member: Member, matrix: Matrix, server_of: Callable[[str], RunningServer]
) -> None:
    if engine == "native" and not usable_kernels():
        pytest.skip("the native engine was not built")
    server = server_of(engine)
    worst = (0.0, "")
    spread = []
    for expected in matrix.expected(member.checkpoint):
        response = rerank(
            server, model=str(member), query=expected.query, documents=expected.documents, raw_scores=True
        )
        assert response.status_code == 200, f"{expected.query!r}: {response.text}"
        answer = response.json()
        assert answer["meta"]["truncated_documents"] == expected.truncated
        assert answer["meta"]["query_truncated"] == expected.query_truncated
        scores = np.full(len(expected.documents), np.nan)
        for result in answer["results"]:
            scores[result["index"]] = result["relevance_score"]
        logits = expected.logits[:, member.label]
        spread += logits.tolist()
        for score, logit, document in zip(scores, logits, expected.documents, strict=True):
            worst = max(
                worst, (abs(score - float(logit)), f"{expected.query!r} with {document!r}: {score}, not {logit}")
            )
    assert np.std(spread) > 100 * TOLERANCE, "logits that do not differ would prove nothing"
    assert worst[0] <= TOLERANCE, worst[1]


def test_blank_queries_are_refused(server_of: Callable[[str], RunningServer]) -> None:
    """PyTorch would score them; they match every document alike, and are a caller's mistake (README, errors)."""
    for query in odd_texts.BLANK:
        response = rerank(server_of("auto"), query=query, documents=["a"])
        assert response.status_code == 400, response.text
        assert "query" in response.json()["error"]["message"]
