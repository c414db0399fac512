"""--workers: several processes on the same ports, which begin, count and end as one server."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable

import grpc
import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from crossrank_client import Client
from crossrank_perf.base.processes import find_pid
from tests.conftest import ROOT
from tests.server_process import CROSSRANK, RunningServer, running_server

SMALL = {"query": "q", "documents": ["a", "b"]}


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something that comes soon."""
    give_up_at = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up_at, f"waited in vain: {what}"
        time.sleep(0.02)


def metrics(server: RunningServer) -> dict[tuple[str, str], float]:
    """Return the samples by name and, of processes, their id."""
    text = httpx.get(f"{server.base_url}/metrics").text
    return {
        (sample.name, sample.labels.get("pid", "")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def workers(server: RunningServer) -> set[int]:
    """Return the processes that say they serve."""
    return {int(pid) for name, pid in metrics(server) if name == "process_cpu_seconds_total"}


def wait_for_workers(server: RunningServer, count: int) -> set[int]:
    until(lambda: len(workers(server)) == count, f"{count} workers")
    return workers(server)


def replaced(server: RunningServer, first: set[int]) -> int:
    """Return how many workers are new; a connection that a killed one had accepted tells nothing."""
    try:
        return len(workers(server) - first)
    except httpx.TransportError:
        return -1


def ask_each(server: RunningServer, requests: int = 24) -> None:
    """Ask over connections of their own, which the kernel spreads over the workers."""
    for _ in range(requests):
        assert httpx.post(f"{server.base_url}/v1/rerank", json=SMALL).status_code == 200


def wait_for_documents(server: RunningServer, count: int) -> None:
    """A request is counted once its answer is out."""
    until(lambda: metrics(server)["crossrank_documents_total", ""] == count, f"{count} documents are counted")


def test_every_process_serves_both_protocols_and_any_of_them_counts_for_all():
    with running_server("--workers", "2", "--grpc-port", "0") as server:
        pids = wait_for_workers(server, 2)
        assert pids == {child.pid for child in psutil.Process(server.pid).children()}
        assert find_pid(server.base_url) == server.pid, "what a benchmark measures"
        before = {pid: sum(psutil.Process(pid).cpu_times()[:2]) for pid in pids}
        ask_each(server)
        for _ in range(24):
            # Or all of a process share one connection.
            options = [("grpc.use_local_subchannel_pool", 1)]
            with grpc.insecure_channel(server.grpc_target, options) as channel:
                check = channel.unary_unary("/grpc.health.v1.Health/Check")
                assert check(b"", timeout=10) == b"\x08\x01"
        with Client(server.grpc_url) as client:
            assert len(client.rerank("q", ["a", "b"]).results) == 2
        assert all(sum(psutil.Process(pid).cpu_times()[:2]) > before[pid] for pid in pids)
        wait_for_documents(server, 50)
        for _ in range(8):
            assert metrics(server)["crossrank_documents_total", ""] == 50
            assert metrics(server)["crossrank_ready", ""] == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log.read_text()
        assert not any(map(psutil.pid_exists, pids))


def test_requests_under_way_finish_in_every_process():
    body = json.dumps(SMALL).encode()
    head = f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    held = ("crossrank_request_bodies_held_bytes", "")
    with running_server("--workers", "2", "--shutdown-grace-s", "120") as server, contextlib.ExitStack() as stack:
        wait_for_workers(server, 2)
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=60)) for _ in range(16)
        ]
        for client in clients:
            client.sendall(head.encode() + body[:-1])
        until(lambda: metrics(server)[held] == 16 * (len(body) - 1), "the requests are under way")
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.log.read_text().count("Shutting down") == 2, "both workers drain")
        for client in clients:
            client.sendall(body[-1:])
            assert client.makefile("rb").readline().startswith(b"HTTP/1.1 200 ")
        assert server.process.wait(30) == 0


def test_a_worker_that_dies_is_replaced_and_reported_and_its_counts_stay():
    with running_server("--workers", "2") as server:
        first = wait_for_workers(server, 2)
        ask_each(server)
        wait_for_documents(server, 48)
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        until(lambda: replaced(server, first) == 1, "a new worker")
        assert victim not in workers(server)
        assert re.search(
            rf"worker \d of 2 \(process {victim}\) was ended by SIGKILL; another is started", server.log.read_text()
        )
        ask_each(server, 1)
        wait_for_documents(server, 50)


def test_what_a_dead_worker_held_is_no_longer_shown():
    held = ("crossrank_request_bodies_held_bytes", "")
    with (
        running_server("--workers", "2") as server,
        socket.create_connection(("127.0.0.1", server.port)) as stuck,
    ):
        first = wait_for_workers(server, 2)
        stuck.sendall(b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
        until(lambda: metrics(server)[held] == 1, "a worker holds a body")
        # One after the other, so that somebody answers.
        for i, pid in enumerate(sorted(first)):
            os.kill(pid, signal.SIGKILL)
            until(lambda gone=i + 1: replaced(server, first) == gone, "a new worker")
        assert metrics(server)[held] == 0


def test_workers_end_when_their_parent_was_killed():
    with running_server("--workers", "2") as server:
        pids = wait_for_workers(server, 2)
        server.process.kill()
        server.process.wait()
        until(lambda: not any(map(psutil.pid_exists, pids)), "the workers are gone")
        with pytest.raises(httpx.ConnectError):
            httpx.get(server.base_url)


def test_a_second_ctrl_c_does_not_wait():
    with (
        running_server("--workers", "2", "--shutdown-grace-s", "300") as server,
        socket.create_connection(("127.0.0.1", server.port)) as stuck,
    ):
        wait_for_workers(server, 2)
        stuck.sendall(b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
        until(lambda: metrics(server)["crossrank_request_bodies_held_bytes", ""] == 1, "the request is under way")
        server.process.send_signal(signal.SIGINT)
        until(lambda: "Shutting down" in server.log.read_text(), "it drains")
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("flag", ["--port", "--grpc-port"])
def test_the_port_of_other_workers_is_refused(flag: str):
    with running_server("--workers", "2", "--grpc-port", "0") as server:
        taken = server.port if flag == "--port" else server.grpc_target.rsplit(":", 1)[1]
        ports = {"--port": "0", "--grpc-port": "0", flag: str(taken)}
        command = [CROSSRANK, "serve", "--workers", "2", *(word for pair in ports.items() for word in pair)]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 1
        assert f"cannot listen on 127.0.0.1:{taken}: Address already in use" in second.stderr
        assert flag in second.stderr


def test_what_is_wrong_at_the_start_is_said_once():
    command = [CROSSRANK, "serve", "--workers", "3", "--port", "0", "--model", "/nowhere"]
    server = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert server.returncode == 1
    assert server.stderr.count("error:") == 1
    assert "/nowhere" in server.stderr


def test_a_process_whose_place_cannot_be_filled_does_not_end_the_others(tmp_path):
    model = tmp_path / "model"
    builtin = ROOT / "server" / "crossrank" / "bundles" / "builtin"
    model.symlink_to(builtin)
    with running_server("--workers", "2", "--model", str(model)) as server:
        first = wait_for_workers(server, 2)
        model.unlink()
        os.kill(min(first), signal.SIGKILL)
        until(lambda: "ended with exit code 1; another is started in 1 s" in server.log.read_text(), "it cannot load")
        ask_each(server, 4)
        model.symlink_to(builtin)
        until(lambda: replaced(server, first) == 1, "a new worker")
