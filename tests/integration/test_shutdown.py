"""SIGTERM: not ready first, then no new connections, requests under way finish, and there is an end to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT
from tests.server_process import RunningServer, running_server

# It takes a second or more, so that it is under way when the server is told to end.
SLOW = {"query": "what " * 20, "documents": [f"document {i} " * 60 for i in range(1000)]}
SMALL = {"query": "q", "documents": ["a", "b"]}


class Request(threading.Thread):
    """A request in a thread of its own, which has reached the server when the constructor returns."""

    def __init__(self, server: RunningServer, body: dict[str, object]) -> None:
        super().__init__()
        self.server = server
        self.body = body
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self.start()
        for _ in range(1000):
            if "crossrank_request_bodies_held_bytes 0.0" not in httpx.get(f"{server.base_url}/metrics").text:
                return
            time.sleep(0.01)
        raise AssertionError("the request did not reach the server")

    def run(self) -> None:
        try:
            self.response = httpx.post(f"{self.server.base_url}/v1/rerank", json=self.body, timeout=60)
        except httpx.HTTPError as error:
            self.error = error


def refuses_connections(server: RunningServer) -> bool:
    try:
        socket.create_connection(("127.0.0.1", server.port), 5).close()
    except ConnectionRefusedError:
        return True
    return False


def wait_until_refusing(server: RunningServer) -> None:
    for _ in range(1000):
        if refuses_connections(server):
            return
        time.sleep(0.01)
    raise AssertionError("the server still accepts connections")


@contextlib.contextmanager
def stuck_connection(server: RunningServer) -> Iterator[socket.socket]:
    """Send a request whose body never comes."""
    with socket.create_connection(("127.0.0.1", server.port), 30) as connection:
        connection.sendall(b"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{")
        for _ in range(1000):
            if "crossrank_request_bodies_held_bytes 1.0" in httpx.get(f"{server.base_url}/metrics").text:
                break
            time.sleep(0.01)
        yield connection


def test_requests_under_way_finish_while_new_ones_are_refused():
    with running_server("--shutdown-grace-s", "120") as server:
        slow = Request(server, SLOW)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refusing(server)
        assert slow.response is None, "it is still under way"
        slow.join()
        assert slow.response is not None
        assert slow.response.status_code == 200
        assert len(slow.response.json()["results"]) == 1000
        assert server.process.wait(30) == 0


def test_load_balancers_see_it_before_connections_are_refused():
    with running_server("--shutdown-delay-s", "2") as server:
        server.process.send_signal(signal.SIGTERM)
        for _ in range(100):
            ready = httpx.get(f"{server.base_url}/health/ready")
            if ready.status_code == 503:
                break
        assert ready.status_code == 503
        assert httpx.get(f"{server.base_url}/health/live").status_code == 200
        assert httpx.post(f"{server.base_url}/v1/rerank", json=SMALL).status_code == 200
        wait_until_refusing(server)
        assert server.process.wait(30) == 0


def test_a_second_sigterm_changes_nothing():
    with running_server("--shutdown-grace-s", "120") as server:
        slow = Request(server, SLOW)
        server.process.send_signal(signal.SIGTERM)
        wait_until_refusing(server)
        server.process.send_signal(signal.SIGTERM)
        slow.join()
        assert slow.response is not None
        assert slow.response.status_code == 200
        assert server.process.wait(30) == 0


def test_a_second_ctrl_c_does_not_wait():
    with running_server("--shutdown-grace-s", "300") as server, stuck_connection(server):
        server.process.send_signal(signal.SIGINT)
        wait_until_refusing(server)
        server.process.send_signal(signal.SIGINT)
        assert server.process.wait(30) == 0


def test_a_stuck_request_is_given_up_after_the_grace():
    with running_server("--shutdown-grace-s", "1") as server, stuck_connection(server) as connection:
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        answer = connection.recv(2000)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in answer
        assert b"the server is shutting down" in answer
        assert "Traceback" not in server.log.read_text()


def test_requests_that_come_over_open_connections_are_still_answered():
    with running_server("--shutdown-delay-s", "1") as server, httpx.Client(base_url=server.base_url) as client:
        assert client.post("/v1/rerank", json=SMALL).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert client.post("/v1/rerank", json=SMALL).status_code == 200
        assert server.process.wait(30) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_ends_at_once_and_cleanly(number: signal.Signals):
    with running_server() as server:
        server.process.send_signal(number)
        assert server.process.wait(30) == 0
        assert "Traceback" not in server.log.read_text()


def test_a_stuck_runtime_loses_no_usage_and_does_not_keep_the_process(tmp_path: Path):
    marker = tmp_path / "marker"
    command = [sys.executable, "-m", "tests.hanging_server", str(marker)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        port = int(process.stdout.readline())
        with socket.create_connection(("127.0.0.1", port), 30) as connection:
            body = json.dumps(SMALL).encode()
            head = f"POST /v1/rerank HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            for _ in range(1000):
                text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
                if "crossrank_request_bodies_held_bytes 0.0" not in text:
                    break
                time.sleep(0.01)
            process.terminate()
            assert connection.recv(2000).startswith(b"HTTP/1.1 503 ")
        assert process.wait(40) == 1
        log = process.stderr.read().decode()
    assert marker.read_text() == "usage written"
    assert "an engine has not stopped after 5 s" in log
    assert "it is ended now" in log
