"""`crossrank perf-analyzer` with the real perf_analyzer and the real tritonserver, as a person runs it."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from crossrank.engines.cpu import available_cores
from crossrank.errors import SetupError
from crossrank_perf.perf_analyzer.home import HOME_VARIABLE, find_perf_analyzer
from tests.conftest import ROOT
from tests.triton_process import RunningTriton, free_ports, running_triton

pytestmark = pytest.mark.triton
KEPT = ("CROSSRANK_TRITON_HOME", HOME_VARIABLE)
QUICK = ("--synthetic", "--seconds", "0.4", "--rounds", "1", "--documents", "10")


@pytest.fixture(scope="module", autouse=True)
def _analyzer() -> None:
    try:
        find_perf_analyzer()
    except SetupError as error:
        pytest.skip(error.message)


@pytest.fixture(scope="module")
def triton() -> Iterator[RunningTriton]:
    with running_triton("--precision", "fp32", "--engine", "onnxruntime") as running:
        yield running


def perf_analyzer(*arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("CROSSRANK_") or name in KEPT}
    command = [sys.executable, "-m", "crossrank_server", "perf-analyzer", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={**env, **extra}, cwd=ROOT)


def test_both_models_are_swept_and_the_engine_is_measured_beside_them(triton: RunningTriton, tmp_path: Path) -> None:
    options = ("--bucket", "96", "--concurrency", "1,3", "--rows", "8", "--out", str(tmp_path))
    result = perf_analyzer("--url", triton.grpc_url, *QUICK, *options)
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "perf-analyzer.json").read_text())

    assert report["versions"]["perf_analyzer"] == "2.48.0"
    assert report["versions"]["tritonserver"] == "2.51.0"
    assert report["hardware"]["cpu"]
    assert report["workload"]["source"] == "synthetic text, seed 0"
    engine, text = report["series"]
    assert (engine["model"], engine["bucket"], engine["documents_per_request"]) == ("crossrank-mini", 96, 8)
    assert (text["model"], text["bucket"], text["documents_per_request"]) == ("crossrank-mini_rerank", None, 10)
    for series in (engine, text):
        assert [point["concurrency"] for point in series["points"]] == [1, 3]
        for point in series["points"]:
            assert point["requests"] > 0
            assert point["documents_per_s"] > 0
            assert len(point["window_documents_per_s"]) >= 3
            assert 0 < point["latency_ms"]["p50"] <= point["latency_ms"]["p99"]
            assert point["triton_cpu_us_per_document"] > 0
    # Alone, nothing merges: an execution is a request.
    assert engine["points"][0]["documents_per_execution"] == 8
    assert text["points"][0]["documents_per_execution"] == 10

    compared = engine["bare_engine"]
    assert (compared["engine"], compared["precision"]) == ("onnxruntime", "fp32")
    assert compared["threads"] == min(report["triton"]["instances"], available_cores())
    (only_round,) = compared["rounds"]
    rates = only_round["triton"]["documents_per_s"] / only_round["bare"]["documents_per_s"]
    assert compared["rate_ratio"] == pytest.approx(rates, abs=1e-3)
    assert compared["concurrency"] == engine["best_concurrency"]

    with (tmp_path / "perf-analyzer.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["concurrency"]) for row in rows] == [
        ("crossrank-mini", "1"),
        ("crossrank-mini", "3"),
        ("crossrank-mini_rerank", "1"),
        ("crossrank-mini_rerank", "3"),
    ]
    assert "crossrank-mini_rerank" in (tmp_path / "perf-analyzer.svg").read_text()
    assert "crossrank-mini, bucket 96: concurrency 3" in result.stderr
    assert "bare engine" in result.stdout


def refusal(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def test_a_triton_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    said = refusal(perf_analyzer("--url", f"127.0.0.1:{port}", *QUICK, "--out", str(tmp_path)))
    assert said.startswith(f"error: no Triton answers at 127.0.0.1:{port}")
    assert "--url" in said


def test_a_model_that_is_not_served_is_named_beside_those_that_are(triton: RunningTriton, tmp_path: Path) -> None:
    options = ("--triton-model", "absent", "--out", str(tmp_path))
    said = refusal(perf_analyzer("--url", triton.grpc_url, *QUICK, *options))
    assert "no model absent that is ready, only: crossrank-mini, crossrank-mini_rerank" in said


def test_more_rows_than_the_model_takes_are_refused(triton: RunningTriton, tmp_path: Path) -> None:
    said = refusal(perf_analyzer("--url", triton.grpc_url, *QUICK, "--rows", "1000", "--out", str(tmp_path)))
    assert "--rows 1000 is over the 128 rows" in said


def test_without_the_binary_the_make_target_is_named(tmp_path: Path) -> None:
    said = refusal(perf_analyzer(*QUICK, "--out", str(tmp_path), **{HOME_VARIABLE: str(tmp_path)}))
    assert f"no perf_analyzer in {tmp_path}: run make perf-analyzer-setup" in said
    assert not list(tmp_path.iterdir())


def test_an_absent_directory_for_the_results_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    said = refusal(perf_analyzer(*QUICK, "--out", str(tmp_path / "absent")))
    assert "there is no such directory" in said
