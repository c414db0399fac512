"""`make bench-gpu`: refuses machines without a GPU, names the steps that fail, and sums up what the others measured."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab.gpu.summary import summarize
from tests.conftest import ROOT


def gpu_script(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    return subprocess.run(
        [str(ROOT / "perf" / "lab" / "gpu" / "measure.sh"), *arguments],
        capture_output=True,
        text=True,
        env=env,
        timeout=250,
        check=False,
    )


def test_it_stops_at_once_where_no_driver_answers(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("nvidia-smi is installed here")
    done = gpu_script(OUT=str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no NVIDIA driver or no GPU answers here" in done.stderr
    assert "DEVICE=cpu make bench-gpu" in done.stderr
    assert not (tmp_path / "out").exists()


def test_another_device_is_refused(tmp_path: Path) -> None:
    done = gpu_script(DEVICE="tpu", OUT=str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (1, "bench-gpu: DEVICE is tpu, it must be cuda or cpu\n")


def test_a_step_that_fails_is_named_beside_those_that_ran(tmp_path: Path) -> None:
    done = gpu_script(str(tmp_path / "no-model"), DEVICE="cpu", OUT=str(tmp_path / "out"))
    assert done.returncode == 1
    summary = (tmp_path / "out" / "summary.md").read_text()
    assert "| machine | ok |" in summary
    assert "| tests | ok |" in summary
    assert "| bundle | FAILED, exit code 1 |" in summary
    assert summary.strip() in done.stdout
    assert "no-model" in done.stdout, "the last words of the step's log"
    assert "rehearsal on CPU" in (tmp_path / "out" / "machine.txt").read_text()
    assert "numpy==" in (tmp_path / "out" / "packages.txt").read_text()


def test_load_generators_add_up_and_the_slowest_counts(tmp_path: Path) -> None:
    (tmp_path / "steps.tsv").write_text("machine\tok\t0\nload-triton\tok\t21\n")
    (tmp_path / "machine.txt").write_text("a GPU\n")
    for i, (speed, p99) in enumerate([(1000.0, 7.0), (2500.4, 9.5)]):
        load = {"documents_per_s": speed, "latency_ms": {"p50": 5.0 - i, "p99": p99}}
        (tmp_path / f"load-triton-{i}.json").write_text(json.dumps({"load": load}))
    summary = summarize(tmp_path)
    assert "| load-triton | ok | 21 |" in summary
    assert "| end to end over HTTP, triton, 2 load generators | 3,500 | 5.0 | 9.5 |" in summary
    assert "perf_analyzer" not in summary
