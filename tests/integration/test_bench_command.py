"""`crossrank bench` against the real server, as a person runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from crossrank_perf.serving import Usage, find_pid, started_server
from crossrank_server.errors import SetupError
from tests.conftest import ROOT
from tests.scripted_server import Reply, ScriptedServer
from tests.server_process import RunningServer, running_server

QUICK = ("--duration", "1", "--warm-up", "0.2", "--documents", "20")


def bench(*arguments: str, shared: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CROSSRANK_")}
    # Without the shared data the text is synthetic, so these tests run anywhere.
    env["CROSSRANK_SHARED"] = str(shared or "/nonexistent")
    command = [sys.executable, "-m", "crossrank_server", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with running_server("--engine", "onnxruntime", "--precision", "fp32") as running:
        yield running


def test_graphs_before_and_after_the_passes_are_timed_on_the_same_pairs(tmp_path: Path, mini_dir: Path) -> None:
    path = tmp_path / "graphs.json"
    options = ("--rounds", "3", "--requests", "2", "--documents", "20", "--json", str(path))
    result = bench("graphs", str(mini_dir), *options)
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    before, after = report["graphs"]

    assert report["pairs"] == 40
    assert after["mflop_per_96_token_pair"] < 0.55 * before["mflop_per_96_token_pair"]
    assert after["nodes"] < before["nodes"]
    assert before["pairs_per_s"] > 0
    assert len(report["ratios"]) == 3
    assert 0 < report["max_delta_logit"] <= 1e-4  # two graphs, not one twice
    assert f"the passes make it {report['ratio']:.2f} times as fast" in result.stdout


def test_realtime_requests_are_measured_alone_and_beside_a_flood_of_each_tier(tmp_path: Path) -> None:
    path = tmp_path / "tiers.json"
    result = bench("tiers", "--duration", "1", "--documents", "5", "--rate", "20", "--flood", "3", "--json", str(path))
    assert result.returncode == 0, result.stderr
    rounds = {each["name"]: each["loads"] for each in json.loads(path.read_text())["rounds"]}
    assert [sorted(loads) for loads in rounds.values()] == [
        ["realtime"],
        ["flood"],
        ["flood"],
        ["flood", "realtime"],
        ["flood", "realtime"],
    ]
    assert all(
        load["latency_ms"]["p99"] > 0 and not load["errors"] for loads in rounds.values() for load in loads.values()
    )
    for name in rounds:
        assert name in result.stdout


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

    assert "20 documents, concurrency 4" in result.stdout
    assert "from start to ready" in result.stdout
    assert "20 documents a request" in result.stderr
    url = report["server"]["url"]
    assert find_pid(url) is None, "the server was left running"


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
        (("load", "--url", "http://127.0.0.1:9", "--engine", "openvino"), 2, "--engine would start a server"),
        (("load", "--pid", "1"), 2, "--pid belongs to --url"),
        (("load", "--json", "/nonexistent/x.json"), 1, "/nonexistent does not exist"),
        (("load", "--model", "./no-such-dir"), 1, "no-such-dir"),
        (("load", "--documents", "0"), 2, "--documents"),
        (("peers", "--checkpoint", ".", "--python", "/nonexistent/python"), 1, "make peers"),
        (("peers", "--checkpoint", "/nonexistent"), 2, "--checkpoint"),
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
    assert "\n    make peers\n" in bench("peers", "--help").stdout


@pytest.fixture(scope="module")
def peer_python() -> str:
    """A Python that has sentence-transformers: the tests' own, else the environment of the benchmark."""
    if importlib.util.find_spec("sentence_transformers"):
        return sys.executable
    own = ROOT / ".venv-peers" / "bin" / "python"
    if not own.exists():
        pytest.skip("sentence-transformers is not installed here, nor in .venv-peers (make peers)")
    return str(own)


def test_peers_score_the_same_and_take_turns(peer_python: str, mini_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    result = bench(
        "peers", "--checkpoint", str(mini_dir), "--python", peer_python, "--peer", "torch", "--documents", "10",
        "--batch-size", "4", "--batch-size", "10", "--rounds", "3", "--seconds", "0.3", "--precision", "fp32",
        "--json", str(path),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    peer, own = report["systems"]["sentence-transformers torch"], report["systems"]["crossrank"]
    assert peer["max_logit_difference"] < 1e-4
    assert peer["precision"] == "float32"
    assert peer["batch_size"] in (4, 10)
    assert set(peer["tried_documents_per_s"]) == {"4", "10"}
    ratios = [a / b for a, b in zip(own["documents_per_s"]["rounds"], peer["documents_per_s"]["rounds"], strict=True)]
    assert peer["crossrank_ratio"]["rounds"] == pytest.approx(ratios, rel=1e-3)
    assert peer["crossrank_ratio"]["median"] == pytest.approx(sorted(ratios)[1], rel=1e-3)
    assert report["fastest_peer"] == "sentence-transformers torch"
    assert "crossrank is faster by" in result.stdout


def test_peers_with_other_weights_are_refused(peer_python: str, mini_dir: Path, tmp_path: Path) -> None:
    torch_files = pytest.importorskip("safetensors.torch")
    for source in mini_dir.iterdir():
        if source.name != "model.safetensors":
            (tmp_path / source.name).write_bytes(source.read_bytes())
    weights = torch_files.load_file(mini_dir / "model.safetensors")
    weights["classifier.bias"] += 1.0
    torch_files.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    options = ("--peer", "torch", "--documents", "10", "--rounds", "3", "--seconds", "0.3")
    result = bench("peers", "--checkpoint", str(tmp_path), "--python", peer_python, *options)
    assert result.returncode == 1
    assert "these are not the same weights" in result.stderr
