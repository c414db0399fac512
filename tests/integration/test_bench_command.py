"""`crossrank bench` against the real server, as a person runs it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from crossrank.errors import SetupError
from crossrank_perf.base.processes import Usage, find_pid
from crossrank_perf.base.server import free_ports, started_server
from tests.scripted_server import Reply, ScriptedServer
from tests.server_process import CROSSRANK, RunningServer, running_server

QUICK = ("--duration", "1", "--warm-up", "0.2", "--documents", "20")


def bench_environment(shared: Path | None = None) -> dict[str, str]:
    """Without settings, and without the shared data: the text is synthetic then, so these tests run anywhere."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CROSSRANK_")}
    return {**env, "CROSSRANK_SHARED": str(shared or "/nonexistent")}


def bench(*arguments: str, shared: Path | None = None, key: str = "") -> subprocess.CompletedProcess[str]:
    env = bench_environment(shared)
    if key:
        env["CROSSRANK_API_KEY"] = key
    command = [sys.executable, "-m", "crossrank_server", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--engine", "onnxruntime", "--precision", "fp32") as running:
        yield running


def test_engines_take_turns_on_the_same_pairs(tmp_path: Path) -> None:
    path = tmp_path / "engines.json"
    options = ("--rounds", "3", "--requests", "2", "--documents", "20", "--threads", "2", "--json", str(path))
    result = bench("engines", "--engine", "openvino", "--engine", "onnxruntime", *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    first, second = report["engines"]

    assert (report["pairs"], report["threads"]) == (40, 2)
    assert [first["name"], second["name"]] == ["openvino", "onnxruntime"]
    assert (first["wall_ratio"], first["cpu_ratio"], first["max_delta_logit"]) == (1.0, 1.0, 0.0)
    assert min(second["pairs_per_s"], second["cpu_us_per_pair"], second["wall_ratio"]) > 0
    assert 0 < second["max_delta_logit"] <= 1e-4  # another engine's rounding
    assert "onnxruntime fp32" in result.stdout


def test_load_starts_measures_and_ends_a_server(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    result = bench("load", *QUICK, "--engine", "onnxruntime", "--precision", "fp32", "--json", str(path))
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(path.read_text())

    assert report["kind"] == "load"
    assert report["command"].startswith("crossrank bench load --duration 1")
    assert report["workload"] == {
        "source": "synthetic text, seed 0",
        "documents_per_request": 20,
        "distinct_requests": 215,
    }
    (model,) = report["server"]["models"]
    assert (model["id"], model["engine"], model["precision"]) == ("crossrank-mini", "onnxruntime", "fp32")
    assert report["hardware"]["cpu"]
    assert report["versions"]["crossrank"]
    assert report["server"]["start_to_ready_s"] > 0
    for name in ("load", "single_document"):
        figures = report[name]
        assert figures["errors"] == {}
        assert figures["requests"] > 0
        assert figures["server_cpu_s"] > 0
        assert figures["server_peak_rss_mb"] >= report["server"]["rss_at_ready_mb"] * 0.9 > 10
        assert 0 < figures["latency_ms"]["p50"] <= figures["latency_ms"]["max"]
    assert report["single_document"]["documents_per_request"] == 1

    assert "HTTP, 20 documents," in result.stdout
    assert "from start to ready" in result.stdout
    assert "20 documents a request" in result.stderr
    url = report["server"]["url"]
    assert find_pid(url) is None, "the server was left running"


def test_a_sweep_measures_latency_at_shares_of_what_the_closed_loop_reached(tmp_path: Path) -> None:
    path, plot = tmp_path / "sweep.json", tmp_path / "sweep.svg"
    options = ("--sweep", "20,70", "--requests", "100", "--engine", "onnxruntime", "--plot", str(plot))
    result = bench("load", *QUICK, *options, "--json", str(path))
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(path.read_text())
    capacity_per_s = report["load"]["requests_per_s"]
    assert [figures["loop"] for figures in report["rates"]] == ["open", "open"]
    for figures, share in zip(report["rates"], (0.2, 0.7), strict=True):
        assert figures["rate_per_s"] == pytest.approx(share * capacity_per_s, abs=1e-3)
        assert figures["generator_lag_ms"]["p50"] >= 0
        assert figures["errors"] == {}
    assert [figures["documents_per_request"] for figures in report["idle"]] == [1, 20]
    assert report["load_after"]["loop"] == "closed"
    assert "70% of the capacity" in result.stdout
    assert ">p90<" in plot.read_text()


def test_a_benchmark_that_is_terminated_ends_its_server() -> None:
    command = [CROSSRANK, "bench", "load", "--synthetic", "--duration", "100", "--engine", "onnxruntime"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        while "1 document a request" not in process.stderr.readline():  # the server is ready by then
            assert process.poll() is None
        (server,) = psutil.Process(process.pid).children()
        time.sleep(0.5)  # in the middle of the load
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    server.wait(60)


def test_load_measures_grpc_beside_http(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = (*QUICK, "--grpc", "--engine", "onnxruntime", "--precision", "fp32", "--json", str(path))
    result = bench("load", *options)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(path.read_text())
    for name, over in (("load", "HTTP"), ("grpc_load", "gRPC"), ("grpc_single_document", "gRPC")):
        figures = report[name]
        assert figures["over"] == over
        assert figures["errors"] == {}
        assert figures["requests"] > 0
        assert figures["server_cpu_s"] > 0
    assert "gRPC, 20 documents," in result.stdout
    assert "gRPC, 1 document," in result.stdout


def test_load_over_grpc_of_a_server_with_keys_gets_the_key_of_the_environment(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/keys.db"
    made = subprocess.run(
        [CROSSRANK, "keys", "create", "--name", "bench", "--store", store], capture_output=True, text=True, check=True
    )
    key = re.search(r"cr-\S+|cr_\S+", made.stdout)
    assert key, made.stdout
    (port,) = free_ports(1)
    load = ("load", "--url", f"grpc://127.0.0.1:{port}", "--requests", "5", "--warm-up", "0", "--documents", "2")
    options = ("--engine", "onnxruntime", "--precision", "fp32", "--grpc-port", str(port), "--store", store)
    with running_server(*options):
        refused = bench(*load)
        accepted = bench(*load, key=key[0])
    assert refused.returncode == 1
    assert "key" in refused.stderr
    assert accepted.returncode == 0, accepted.stderr


def test_load_measures_a_server_that_runs_and_leaves_it_running(server: RunningServer, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    options = ("--requests", "20", "--warm-up", "0", "--documents", "3", "--rate", "50", "--json", str(path))
    result = bench("load", "--url", server.base_url, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert report["load"]["loop"] == "open"
    assert report["load"]["server_cpu_s"] is not None  # the process was found by its port
    assert "generator_lag_ms" in report["load"]
    assert "single_document" not in report
    assert server.process.poll() is None


def test_the_process_behind_a_port_is_found(server: RunningServer, free_port: Callable[[], int]) -> None:
    assert find_pid(server.base_url) == server.pid
    assert find_pid(f"http://127.0.0.1:{free_port()}") is None
    assert find_pid("http://192.0.2.1:80") is None  # another machine's processes are not ours


def test_memory_and_cpu_of_a_process_count_its_children() -> None:
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"
    child = "import sys; block = bytearray(200_000_000); print('up', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program.format(child)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        usage = Usage(process.pid)
        usage.start()
        usage.end()
        assert psutil.Process(process.pid).memory_info().rss < 100_000_000
        process.stdin.close()
    assert usage.peak_rss_bytes is not None
    assert usage.peak_rss_bytes > 200_000_000
    assert usage.cpu_s is not None
    usage.sample()  # gone by now: nothing to measure is no error


def test_a_server_that_cannot_start_is_told_with_its_last_words() -> None:
    with (
        pytest.raises(SetupError, match=r"ended with exit code 1: .*no-such-dir"),
        started_server(["--model", "./no-such-dir"]),
    ):
        pass


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("load", "--url", "127.0.0.1:8000"), 1, "give scheme, host and port"),
        (("load", "--url", "http://127.0.0.1:9"), 1, "no server at http://127.0.0.1:9"),
        (("load", "--url", "grpc://127.0.0.1:9"), 1, "no usable answer from grpc://127.0.0.1:9"),
        (("load", "--url", "grpc://127.0.0.1"), 1, "gRPC has no default port"),
        (("load", "--url", "http://127.0.0.1:9", "--engine", "openvino"), 2, "--engine would start a server"),
        (("load", "--url", "http://127.0.0.1:9", "--grpc"), 2, "--grpc would start a server"),
        (("load", "--sweep", "70,100"), 1, "give percentages below 100"),
        (("load", "--sweep", "half"), 2, "is no list of positive numbers"),
        (("load", "--sweep", "--rate", "5"), 2, "--sweep finds its rates itself"),
        (("load", "--sweep", "--grpc"), 2, "--sweep takes one protocol"),
        (("load", "--plot", "x.svg"), 2, "--plot draws a sweep: add --sweep"),
        (("load", "--pid", "1"), 2, "--pid belongs to --url"),
        (("load", "--json", "/nonexistent/x.json"), 1, "/nonexistent does not exist"),
        (("load", "--model", "./no-such-dir"), 1, "no-such-dir"),
        (("load", "--documents", "0"), 2, "--documents"),
    ],
)
def test_bad_input_is_one_clear_message(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = bench(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_failed_requests_make_the_exit_code_1(server: RunningServer) -> None:
    # Over the server's limit of 1000 documents.
    result = bench("load", "--url", server.base_url, "--documents", "1001", *QUICK[:4])
    assert result.returncode == 1
    assert "answered 400 to the first request" in result.stderr
    assert "1001" in result.stderr


def test_failures_under_way_are_reported_after_the_table() -> None:
    models = Reply(200, b'{"data": [{"id": "m", "engine": "e", "precision": "p"}]}')
    good = Reply(200, b'{"results": [{"relevance_score": 1}]}')
    with ScriptedServer([models, good, good, Reply(429, b'{"error": {"message": "queue full"}}'), good]) as scripted:
        options = ("--documents", "1", "--requests", "9", "--warm-up", "0", "--concurrency", "1")
        result = bench("load", "--url", scripted.base_url, *options)
    assert result.returncode == 1
    assert "1 x 429" in result.stdout
    assert "1 of 9 requests failed: 429" in result.stderr
    assert "queue full" in result.stderr


def test_help_teaches_with_examples() -> None:
    assert "\n    crossrank bench load --duration 30 --json result.json\n" in bench("load", "--help").stdout


def test_help_lists_what_the_wheel_holds() -> None:
    commands = re.findall(r"^  (\w+)  ", bench("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert sorted(commands) == ["engines", "load", "plan"]
