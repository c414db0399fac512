"""The gateway in front of real tritonservers: repositories, requests with known answers, and load that checks them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import httpx
import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.select import make_engine
from crossrank.text.encoding import PairEncoder
from crossrank_export.triton.spec import Queue, make_spec
from crossrank_export.triton.write import write_repository
from tests.server_process import RunningServer, running_server
from tests.triton_process import RunningTriton

MODEL = "crossrank-mini"
TOLERANCE = 1e-5
_PATIENCE_S = 60.0
_WORDS = (
    "the",
    "of",
    "berlin",
    "people",
    "river",
    "bank",
    "passage",
    "ranking",
    "über",
    "café",
    "東京",
    "3.5",
    "million",
)


@dataclass(frozen=True)
class Question:
    """A request and its answer by the embedded engine.

    Attributes:
        query: The query.
        documents: The documents.
        logits: float32 [documents].
    """

    query: str
    documents: list[str]
    logits: NDArray[np.float32]

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the request."""
        return {"query": self.query, "documents": self.documents, "raw_scores": True}


def write_engine_model(
    bundle: Bundle, out: Path, *, version: int = 1, instances: int = 1, queue: Queue | None = None, **decisions: Any
) -> Path:
    """Write a repository of the engine model alone, in fp32 on the CPU."""
    spec = make_spec(
        bundle.manifest, "cpu", instances=instances, text_instances=0, precision="fp32", queue=queue, **decisions
    )
    write_repository(bundle, spec, out, version)
    return out


def running_gateway(*servers: RunningTriton, args: tuple[str, ...] = ()) -> AbstractContextManager[RunningServer]:
    """Run `crossrank serve --engine triton` in front of these servers."""
    url = ",".join(f"grpc://{server.grpc_url}" for server in servers)
    return running_server("--engine", "triton", "--triton-url", url, *args)


def embedded_logits(bundle: Bundle, requests: list[tuple[str, list[str]]]) -> list[Question]:
    """Return the requests with the logits of the embedded engine."""
    engine: EmbeddedEngine = make_engine(bundle, "auto", "fp32", threads=1)
    encoder = PairEncoder(bundle)
    questions = []
    for query, documents in requests:
        batch = encoder.encode(query, documents).batch
        questions.append(Question(query, documents, engine.infer(batch)))
    return questions


def questions_of(bundle: Bundle, count: int, documents: int = 10, most_words: int = 120) -> list[Question]:
    """Return random requests of mixed lengths."""
    chooser = random.Random(7)

    def text(most: int) -> str:
        return " ".join(chooser.choices(_WORDS, k=chooser.randint(1, most)))

    return embedded_logits(bundle, [(text(12), [text(most_words) for _ in range(documents)]) for _ in range(count)])


def worst_difference(question: Question, answer: dict[str, Any]) -> float:
    """Return the largest difference of a logit from the embedded engine's; NaN if one is missing."""
    logits = np.full(len(question.documents), np.nan)
    for result in answer["results"]:
        logits[result["index"]] = result["relevance_score"]
    return float(np.abs(logits - question.logits).max())


@dataclass
class Answers:
    """What a load got.

    Attributes:
        statuses: How often each HTTP status came.
        worst: Largest difference of a logit from the embedded engine's over all 200s.
        without_retry_after: Refusals (429, 503) that did not say when to come back.
        bodies: One body of each status but 200.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    worst: float = 0.0
    without_retry_after: int = 0
    bodies: dict[int, str] = field(default_factory=dict)

    def add(self, question: Question, response: httpx.Response) -> None:
        """Count one response."""
        self.statuses[response.status_code] += 1
        if response.status_code == 200:
            self.worst = float(np.maximum(self.worst, worst_difference(question, response.json())))
            return
        self.bodies[response.status_code] = response.text
        if response.status_code in (429, 503) and "retry-after" not in response.headers:
            self.without_retry_after += 1


async def ask_all(base_url: str, questions: list[Question], clients: int, timeout_s: float = 60.0) -> Answers:
    """Send every question once, `clients` at a time."""
    answers = Answers()
    waiting = iter(questions)
    async with _http(clients, timeout_s) as http:
        await asyncio.gather(*(_client(http, base_url, waiting, answers) for _ in range(clients)))
    return answers


@contextlib.asynccontextmanager
async def load(base_url: str, questions: list[Question], clients: int = 4) -> AsyncIterator[Answers]:
    """Send questions, over and over, while the block runs; its answers are complete after it."""
    answers = Answers()
    over = asyncio.Event()

    def forever() -> Iterator[Question]:
        while not over.is_set():
            yield from (question for question in questions if not over.is_set())

    waiting = forever()
    async with _http(clients, 60.0) as http:
        tasks = [asyncio.create_task(_client(http, base_url, waiting, answers)) for _ in range(clients)]
        try:
            yield answers
        finally:
            over.set()
            await asyncio.gather(*tasks)


def _http(clients: int, timeout_s: float) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=timeout_s, limits=httpx.Limits(max_connections=clients))


async def _client(http: httpx.AsyncClient, base_url: str, waiting: Iterator[Question], answers: Answers) -> None:
    for question in waiting:
        response = await http.post(f"{base_url}/v1/rerank", json=question.body())
        answers.add(question, response)
        if response.status_code != 200:
            await asyncio.sleep(0.05)


async def eventually(condition: Any, what: str, patience_s: float = _PATIENCE_S) -> float:
    """Wait until the condition holds, and return how many seconds it took."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    while not condition():
        if loop.time() - begin > patience_s:
            raise AssertionError(f"not within {patience_s:g} s: {what}")
        await asyncio.sleep(0.05)
    return loop.time() - begin


def is_ready(gateway: RunningServer) -> bool:
    """Tell what /health/ready says."""
    return httpx.get(f"{gateway.base_url}/health/ready", timeout=10).status_code == 200


@dataclass(frozen=True)
class Statistics:
    """What Triton counted of the engine model.

    Attributes:
        requests: Inferences that succeeded.
        rows: Pairs in them.
        executions: Batches that the model ran.
        failed: Inferences that failed, cancelled ones included.
    """

    requests: int
    rows: int
    executions: int
    failed: int

    def since(self, before: Statistics) -> Statistics:
        """Return the difference."""
        return Statistics(
            self.requests - before.requests,
            self.rows - before.rows,
            self.executions - before.executions,
            self.failed - before.failed,
        )


def statistics(server: RunningTriton) -> Statistics:
    """Read Triton's own statistics."""
    with urlopen(f"{server.http_url}/v2/models/{MODEL}/stats", timeout=10) as response:
        found = json.load(response)["model_stats"][-1]
    times = found["inference_stats"]
    return Statistics(
        requests=times["success"]["count"],
        rows=found["inference_count"],
        executions=found["execution_count"],
        failed=times["fail"]["count"],
    )
