"""The gateway on real tritonservers that are well: same scores, merged executions, balance, refusals at start-up."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import httpx
import pytest

from crossrank.bundles.bundle import Bundle
from tests.conftest import Topic
from tests.server_process import RunningServer, running_server
from tests.triton_gateway import (
    MODEL,
    TOLERANCE,
    Question,
    ask_all,
    embedded_logits,
    eventually,
    questions_of,
    running_gateway,
    statistics,
    write_engine_model,
)
from tests.triton_process import (
    CROSSRANK,
    RunningTriton,
    environment,
    free_ports,
    require_triton,
    running_triton,
    wait_until_ready,
)

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def servers(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningTriton]]:
    """Two that serve the same repository."""
    require_triton()
    repository = write_engine_model(builtin, tmp_path_factory.mktemp("triton") / "repository")
    with (
        running_triton(repository=repository, wait=False) as first,
        running_triton(repository=repository) as second,
    ):
        wait_until_ready(first)
        yield [first, second]


@pytest.fixture(scope="module")
def single(servers: list[RunningTriton]) -> Iterator[RunningServer]:
    with running_gateway(servers[0]) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def double(servers: list[RunningTriton]) -> Iterator[RunningServer]:
    with running_gateway(*servers) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def questions(builtin: Bundle) -> list[Question]:
    return questions_of(builtin, 64)


async def test_scores_on_dl19_are_those_of_the_embedded_engine(
    single: RunningServer, builtin: Bundle, dl19: list[Topic]
) -> None:
    topics = embedded_logits(builtin, [(topic.query, topic.passages) for topic in dl19])
    answers = await ask_all(single.base_url, topics, clients=4)
    assert answers.statuses == {200: len(topics)}
    assert answers.worst <= TOLERANCE


async def test_several_processes_score_as_one_and_say_that_they_are_ready(
    servers: list[RunningTriton], questions: list[Question]
) -> None:
    def gauges() -> str:
        return httpx.get(f"{gateway.base_url}/metrics").text

    with running_gateway(servers[0], args=("--workers", "2")) as gateway:
        await eventually(lambda: gauges().count("process_cpu_seconds_total{") == 2, "two processes serve")
        answers = await ask_all(gateway.base_url, questions, clients=8)
        assert answers.statuses == {200: len(questions)}
        assert answers.worst <= TOLERANCE
        assert "crossrank_ready 1.0" in gauges()
        asked = sum(len(question.documents) for question in questions)
        assert f'crossrank_documents_total{{model="{MODEL}",tier="realtime"}} {float(asked)}' in gauges()


async def test_texts_beyond_the_window_and_empty_ones_score_as_embedded(single: RunningServer, builtin: Bundle) -> None:
    documents = ["", "word", "long text " * 2000, "中文 " * 700, "a" * 20_000]
    asked = embedded_logits(builtin, [("q", documents), ("a very long query " * 400, documents)])
    answers = await ask_all(single.base_url, asked, clients=1)
    assert answers.statuses == {200: 2}
    assert answers.worst <= TOLERANCE


async def test_triton_merges_the_inferences_of_16_clients_and_gets_every_pair_once(
    single: RunningServer, servers: list[RunningTriton], questions: list[Question]
) -> None:
    before = statistics(servers[0])
    answers = await ask_all(single.base_url, questions * 3, clients=16)
    counted = statistics(servers[0]).since(before)
    print(f"{len(questions) * 3} requests: {counted}")
    assert answers.statuses == {200: len(questions) * 3}
    assert answers.worst <= TOLERANCE
    assert counted.rows == sum(len(question.documents) for question in questions * 3)
    # Ten documents of any length are one inference, as the CPU's engine model drops padding.
    assert counted.requests == len(questions) * 3
    assert counted.failed == 0
    assert counted.executions <= counted.requests / 2


async def test_two_servers_answer_as_one_and_share_the_work(
    double: RunningServer, servers: list[RunningTriton], questions: list[Question]
) -> None:
    before = [statistics(server) for server in servers]
    answers = await ask_all(double.base_url, questions * 2, clients=8)
    rows = [statistics(server).since(earlier).rows for server, earlier in zip(servers, before, strict=True)]
    print(f"rows of each: {rows}")
    assert answers.statuses == {200: len(questions) * 2}
    assert answers.worst <= TOLERANCE
    assert sum(rows) == sum(len(question.documents) for question in questions * 2)
    assert min(rows) >= 0.3 * sum(rows)


async def test_a_client_that_hangs_up_takes_its_inferences_back(
    single: RunningServer, servers: list[RunningTriton], builtin: Bundle
) -> None:
    before = statistics(servers[0])
    body = {"query": "q", "documents": ["some words of a long document " * 100] * 1000}
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.ReadTimeout):
            await http.post(f"{single.base_url}/v1/rerank", json=body, timeout=httpx.Timeout(60, read=1.0))
    # Whatever Triton had begun is finished before this one is answered, as its queue is first come, first served.
    after = questions_of(builtin, 1)
    answers = await ask_all(single.base_url, after, clients=1)
    assert answers.statuses == {200: 1}
    await asyncio.sleep(0.2)
    counted = statistics(servers[0]).since(before)
    print(f"of 1000 documents {counted.rows} were scored, {counted.failed} inferences were taken back")
    assert counted.failed > 0
    assert counted.rows < 1000


def test_readiness_and_the_model_list_tell_of_triton(single: RunningServer) -> None:
    assert httpx.get(f"{single.base_url}/health/ready").status_code == 200
    listed = httpx.get(f"{single.base_url}/v1/models").json()["data"][0]
    assert (listed["id"], listed["engine"], listed["precision"]) == (MODEL, "triton", "fp32")


def refused(*args: str) -> str:
    """Return what `crossrank serve` says on stderr when it refuses to start."""
    command = [CROSSRANK, "serve", "--port", "0", "--engine", "triton", *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment(), check=False)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_model_that_triton_does_not_have_is_refused_at_start(servers: list[RunningTriton]) -> None:
    message = refused("--triton-url", f"grpc://{servers[0].grpc_url}", "--triton-model", "nope")
    assert "does not serve nope; it has: crossrank-mini (ready)" in message


def test_a_precision_that_triton_does_not_compute_in_is_refused_at_start(servers: list[RunningTriton]) -> None:
    message = refused("--triton-url", servers[0].grpc_url, "--precision", "bf16")
    assert "was set up with fp32" in message


def test_an_address_without_triton_is_refused_after_the_wait() -> None:
    port = free_ports(1)[0]
    message = refused("--triton-url", f"grpc://127.0.0.1:{port}", "--triton-wait-s", "0.5")
    assert f"no Triton is ready after 0.5 s (127.0.0.1:{port}: " in message
    assert "--triton-url" in message


async def test_one_address_without_triton_does_not_keep_the_gateway_from_starting(
    servers: list[RunningTriton], questions: list[Question]
) -> None:
    dead = free_ports(1)[0]
    url = f"grpc://127.0.0.1:{dead},{servers[1].grpc_url}"
    with running_server("--engine", "triton", "--triton-url", url) as gateway:
        answers = await ask_all(gateway.base_url, questions[:16], clients=4)
        await eventually(lambda: "starting without Triton" in gateway.log.read_text(), "the log names it")
    assert answers.statuses == {200: 16}
