"""The gateway when tritonservers die, stall, overflow or change their model under load: right answers or honest ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank_export.triton.spec import Queue
from tests.triton_gateway import (
    MODEL,
    TOLERANCE,
    Question,
    ask_all,
    eventually,
    is_ready,
    load,
    questions_of,
    running_gateway,
    statistics,
    write_engine_model,
)
from tests.triton_process import RunningTriton, free_ports, require_triton, running_triton, wait_until_ready

pytestmark = pytest.mark.triton


@pytest.fixture(scope="module")
def repository(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    require_triton()
    return write_engine_model(builtin, tmp_path_factory.mktemp("triton") / "repository")


@pytest.fixture(scope="module")
def questions(builtin: Bundle) -> list[Question]:
    return questions_of(builtin, 32)


@contextlib.contextmanager
def two_servers(repository: Path, ports: list[int]) -> Iterator[tuple[RunningTriton, RunningTriton]]:
    """The second one on known ports, so that it can be started again where it was."""
    with (
        running_triton(repository=repository, wait=False) as first,
        running_triton(repository=repository, ports=ports) as second,
    ):
        wait_until_ready(first)
        yield first, second


def kill(server: RunningTriton) -> None:
    """Kill the server as the kernel would; its stubs would outlive it, with their shared memory."""
    stubs = {stub: stub.cmdline() for stub in psutil.Process(server.pid).children()}
    os.kill(server.pid, signal.SIGKILL)
    server.process.wait()
    for stub, arguments in stubs.items():
        stub.kill()
        for region in arguments:
            if region.startswith("triton_python_backend_shm_region"):
                Path("/dev/shm", region).unlink(missing_ok=True)


async def test_servers_killed_under_load_cost_no_wrong_answer_and_come_back_by_themselves(
    repository: Path, questions: list[Question]
) -> None:
    ports = free_ports(3)
    with two_servers(repository, ports) as (first, second), running_gateway(first, second) as gateway:
        async with load(gateway.base_url, questions, clients=8) as answers:
            await eventually(lambda: answers.statuses[200] >= 50, "load is under way")
            kill(second)
            count = answers.statuses[200]
            await eventually(lambda: answers.statuses[200] >= count + 100, "the other one carries on")
            assert is_ready(gateway)
            with running_triton(repository=repository, ports=ports) as returned:
                before = statistics(returned).rows
                took_s = await eventually(lambda: statistics(returned).rows > before + 100, "it works again")
                print(f"work on the returned server after {took_s:.1f} s; {dict(answers.statuses)}")
                assert "is taken out" in gateway.log.read_text()
                while_one_lived = dict(answers.statuses)

                kill(first)
                kill(returned)
                await eventually(lambda: answers.statuses[503] > 5, "503 while both are dead")
                assert not is_ready(gateway)
                with running_triton(repository=repository, ports=ports):
                    count = answers.statuses[200]
                    took_s = await eventually(lambda: answers.statuses[200] >= count + 50, "answers again")
                    print(f"50 answers {took_s:.1f} s after one is back; {dict(answers.statuses)}")
                    assert is_ready(gateway)
    assert while_one_lived.keys() == {200}
    assert answers.statuses.keys() <= {200, 503, 504}
    assert answers.without_retry_after == 0
    assert "no Triton can take the request now" in answers.bodies[503]
    assert answers.worst <= TOLERANCE


async def test_a_stopped_server_is_passed_over_and_the_deadline_holds_where_it_is_the_only_one(
    repository: Path, questions: list[Question]
) -> None:
    with two_servers(repository, free_ports(3)) as (first, second):
        with running_gateway(first, second, args=("--request-timeout-s", "40")) as gateway:
            assert (await ask_all(gateway.base_url, questions, clients=4)).statuses == {200: len(questions)}
            os.kill(second.pid, signal.SIGSTOP)
            # What was sent to the stopped one before it was found out is sent again to the other.
            answers = await ask_all(gateway.base_url, questions, clients=8)
            os.kill(second.pid, signal.SIGCONT)
        assert answers.statuses == {200: len(questions)}
        assert answers.worst <= TOLERANCE

        with running_gateway(second, args=("--request-timeout-s", "2")) as gateway:
            assert (await ask_all(gateway.base_url, questions[:4], clients=2)).statuses == {200: 4}
            os.kill(second.pid, signal.SIGSTOP)
            stopped = await ask_all(gateway.base_url, questions[:8], clients=8, timeout_s=30)
            assert stopped.statuses == {504: 8}
            assert json.loads(stopped.bodies[504])["error"]["code"] == "deadline_exceeded"
            await eventually(lambda: not is_ready(gateway), "it is not ready while Triton is stopped")
            os.kill(second.pid, signal.SIGCONT)
            await eventually(lambda: is_ready(gateway), "it is ready again")
            again = await ask_all(gateway.base_url, questions[:8], clients=2)
            assert again.statuses == {200: 8}
            assert again.worst <= TOLERANCE


async def test_a_full_queue_is_refused_at_once_and_what_was_accepted_is_answered(
    builtin: Bundle, tmp_path: Path, questions: list[Question]
) -> None:
    require_triton()
    small = write_engine_model(builtin, tmp_path / "repository", queue=Queue(max_requests=4), max_batch=10)
    with running_triton(repository=small) as server, running_gateway(server) as gateway:
        answers = await ask_all(gateway.base_url, questions * 4, clients=64)
        print(f"{dict(answers.statuses)}")
        assert answers.statuses.keys() == {200, 429}
        assert answers.without_retry_after == 0
        assert "max_queue_size" in answers.bodies[429]
        assert answers.worst <= TOLERANCE
        assert is_ready(gateway)


async def test_a_new_version_under_load_loses_no_request_and_its_new_shapes_are_used(
    builtin: Bundle, tmp_path: Path
) -> None:
    require_triton()
    questions = questions_of(builtin, 16, documents=20)
    changing = write_engine_model(builtin, tmp_path / "repository")
    control = ("--", "--model-control-mode=explicit", f"--load-model={MODEL}")
    with running_triton(*control, repository=changing) as server, running_gateway(server) as gateway:
        async with load(gateway.base_url, questions, clients=4) as answers:
            await eventually(lambda: answers.statuses[200] >= 30, "load is under way")
            # Fewer rows a request than the gateway sends: what it knew would now be refused.
            write_engine_model(builtin, changing, version=2, max_batch=16, buckets=[128, 512])
            await asyncio.to_thread(reload, server)
            count = answers.statuses[200]
            await eventually(lambda: answers.statuses[200] >= count + 50, "the new version answers")
            await eventually(lambda: "version='2', " in gateway.log.read_text(), "the gateway knows of it")
        assert answers.statuses.keys() == {200}
        assert answers.worst <= TOLERANCE

        await asyncio.to_thread(reload, server, "unload")
        await eventually(lambda: not is_ready(gateway), "it is not ready without its model")
        gone = await ask_all(gateway.base_url, questions[:1], clients=1)
        assert gone.statuses == {503: 1}
        assert gone.without_retry_after == 0
        await asyncio.to_thread(reload, server)
        await eventually(lambda: is_ready(gateway), "it is ready again")
        assert (await ask_all(gateway.base_url, questions[:4], clients=2)).statuses == {200: 4}


def reload(server: RunningTriton, action: str = "load") -> None:
    request = Request(f"{server.http_url}/v2/repository/models/{MODEL}/{action}", data=b"{}", method="POST")
    with urlopen(request, timeout=120) as response:
        assert response.status == 200
