"""Several models on the real server: asleep until asked for, given back when idle, and never in each other's way."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from crossrank.bundles.bundle import Bundle, write_manifest
from crossrank_server.serving.residency import estimated_memory_mb
from tests.server_process import RunningServer, running_server

QUESTION = {"query": "how many people live in berlin", "documents": ["Berlin has 3.5 million inhabitants.", "museums"]}
WAIT = {"prefer": "wait=60"}


@pytest.fixture(scope="module")
def copies(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The built-in model under two more names."""
    paths = []
    for name in ("second", "third"):
        path = tmp_path_factory.mktemp("bundles") / name
        shutil.copytree(builtin.path, path)
        write_manifest(path, builtin.manifest.model_copy(update={"model_id": name}))
        paths.append(str(path))
    return paths


@contextlib.contextmanager
def serving(copies: list[str], *args: str) -> Iterator[RunningServer]:
    models = [argument for path in ("builtin", *copies) for argument in ("--model", path)]
    with running_server(*models, *args) as server:
        yield server


def ask(server: RunningServer, model: str, **headers: str) -> httpx.Response:
    body = {**QUESTION, "model": model}
    return httpx.post(f"{server.base_url}/v1/rerank", json=body, headers=headers, timeout=90)


def models_of(server: RunningServer) -> dict[str, dict[str, Any]]:
    return {model["id"]: model for model in httpx.get(f"{server.base_url}/v1/models").json()["data"]}


def until(condition: Callable[[], bool], what: str) -> None:
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at, f"{what}: it never happened"
        time.sleep(0.02)


def test_a_sleeping_model_is_a_503_that_says_when_to_come_back_and_answers_then(copies: list[str]) -> None:
    with serving(copies) as server:
        listed = models_of(server)
        assert [(m["status"], m["pinned"]) for m in listed.values()] == [("ready", True)] + [("asleep", False)] * 2
        assert listed["second"]["engine"] is None
        assert listed["second"]["max_length"] == 512
        refused = ask(server, "second")
        assert refused.status_code == 503
        error = refused.json()["error"]
        assert error["code"] == "model_warming"
        assert refused.headers["retry-after"] == f"{error['retry_after_s']:.0f}"
        assert "preference-applied" not in refused.headers
        assert httpx.get(f"{server.base_url}/health/ready").status_code == 200
        until(lambda: models_of(server)["second"]["status"] == "ready", "second is awake")
        answer = ask(server, "second").json()
        assert answer["model"] == "second"
        assert answer["results"] == ask(server, "builtin").json()["results"]
        assert models_of(server)["second"]["engine"] == models_of(server)["crossrank-mini"]["engine"]
        assert models_of(server)["third"]["status"] == "asleep"


async def test_prefer_wait_holds_the_requests_which_share_one_load(copies: list[str]) -> None:
    with serving(copies) as server:
        async with httpx.AsyncClient(timeout=90, base_url=server.base_url) as client:
            answers = await asyncio.gather(
                *(client.post("/v1/rerank", json={**QUESTION, "model": "third"}, headers=WAIT) for _ in range(8))
            )
        assert [answer.status_code for answer in answers] == [200] * 8
        assert {answer.headers["preference-applied"] for answer in answers} == {"wait=60"}
        assert server.log.read_text().count("third: engine") == 1


def test_an_idle_model_sleeps_the_pinned_ones_do_not_and_the_server_stays_ready(copies: list[str]) -> None:
    with serving(copies, "--idle-sleep-s", "0.3", "--pin", "second") as server:
        assert models_of(server)["second"] == {**models_of(server)["second"], "status": "ready", "pinned": True}
        for _ in range(2):
            assert ask(server, "third", **WAIT).status_code == 200
            until(lambda: models_of(server)["third"]["status"] == "asleep", "third sleeps")
            assert httpx.get(f"{server.base_url}/health/ready").status_code == 200
        # What computed its scores is known from then on.
        assert models_of(server)["third"]["precision"] == models_of(server)["second"]["precision"]
        assert models_of(server)["second"]["status"] == "ready"


def test_fifty_times_asleep_and_awake_the_memory_does_not_grow(builtin: Bundle, copies: list[str]) -> None:
    budget = str(2.5 * estimated_memory_mb(builtin))
    with serving(copies, "--memory-budget-mb", budget) as server:
        process = psutil.Process(server.pid)
        resident_mb = []
        for _ in range(25):
            for name, other in (("second", "third"), ("third", "second")):
                assert ask(server, name, **WAIT).status_code == 200
                assert models_of(server)[other]["status"] == "asleep"
            resident_mb.append(process.memory_info().rss / 1e6)
        assert server.log.read_text().count(" goes to sleep") == 49
        print(f"resident MB by cycle: {[round(value) for value in resident_mb]}")
        # One model takes about 80 MB: kept each time it would be 4000.
        assert max(resident_mb[5:]) - resident_mb[4] < 80


def test_a_model_that_cannot_be_loaded_is_a_503_with_an_error_id_until_it_is_repaired(
    builtin: Bundle, tmp_path: Path
) -> None:
    path = tmp_path / "broken"
    shutil.copytree(builtin.path, path)
    write_manifest(path, builtin.manifest.model_copy(update={"model_id": "broken"}))
    with serving([str(path)]) as server:
        (path / "model.onnx").write_bytes(b"damaged")
        failed = ask(server, "broken", **WAIT)
        assert failed.status_code == 503
        assert failed.json()["error"]["code"] == "model_load_failed"
        error_id = failed.json()["error"]["message"].partition("error id ")[2][:12]
        assert str(path) not in failed.text
        assert error_id in server.log.read_text()
        assert ask(server, "builtin").status_code == 200
        shutil.copy(builtin.file("model.onnx"), path / "model.onnx")
        assert ask(server, "broken", **WAIT).status_code == 200


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--pin", "fourth"), "--pin names fourth, which no --model does; served: crossrank-mini, second, third"),
        (("--memory-budget-mb", "150"), "--memory-budget-mb is 150, but the pinned models take about 97 MB and the"),
        (("--model", "./nowhere"), "./nowhere does not exist"),
    ],
)
def test_what_could_never_be_served_is_an_error_at_start(
    copies: list[str], args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(RuntimeError) as raised, serving(copies, *args):
        pass
    assert message in " ".join(str(raised.value).split())


@pytest.mark.parametrize(("tier", "status"), [("batch", 200), ("BATCH", 200), ("Realtime", 200), ("", 200), ("x", 400)])
def test_the_tier_is_read_from_the_header(tier: str, status: int, tier_server: RunningServer) -> None:
    response = ask(tier_server, "builtin", **{"X-Tier": tier})
    assert response.status_code == status
    if status == 400:
        assert response.json()["error"]["param"] == "x-tier"
        assert "x-tier is 'x'; send realtime or batch" in response.json()["message"]


@pytest.fixture(scope="module")
def tier_server() -> Iterator[RunningServer]:
    with running_server("--threads", "1", "--precision", "fp32", "--batch-timeout-s", "2") as server:
        yield server


async def test_realtime_requests_pass_a_load_of_batch_requests_of_which_the_late_get_a_504_that_says_why(
    tier_server: RunningServer,
) -> None:
    large = {"query": "q", "documents": ["some words of text " * 100] * 500}
    async with httpx.AsyncClient(timeout=90, base_url=tier_server.base_url) as client:
        batch = [
            asyncio.ensure_future(client.post("/v1/rerank", json=large, headers={"x-tier": "batch"})) for _ in range(30)
        ]
        await asyncio.sleep(0.5)
        for _ in range(20):
            assert (await client.post("/v1/rerank", json=QUESTION)).status_code == 200
        answers = await asyncio.gather(*batch)
    late = [answer for answer in answers if answer.status_code == 504]
    assert late
    assert {answer.status_code for answer in answers} <= {200, 504}
    assert "the tier batch took longer than 2 s, as it waits for idle cores" in late[0].json()["message"]


def post(server: RunningServer, body: bytes, **headers: str) -> httpx.Response:
    return httpx.post(f"{server.base_url}/v1/rerank", content=body, headers=headers)


def test_bodies_of_the_batch_tier_leave_half_of_what_may_be_held_to_others() -> None:
    head = b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\nx-tier: batch\r\ncontent-length: 100000\r\n\r\n"
    with running_server("--max-body-bytes", "100000") as server, contextlib.ExitStack() as connections:
        for _ in range(4):
            connection = connections.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20))
            connection.sendall(head + b" " * 99_990)
        # Of one caller as much as is left free, and of a single body half of that.
        large = b" " * 60_000
        until(lambda: post(server, large, **{"x-tier": "batch"}).status_code == 429, "the half is taken")
        assert post(server, large).status_code == 400
        assert ask(server, "builtin", **{"x-tier": "batch"}).status_code == 200
