"""`crossrank tune` measures here, and `crossrank serve` starts with what it found."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx

from crossrank.bundles.bundle import Bundle
from crossrank.engines.names import CPU_ENGINES
from crossrank_perf.tune.search import tune_bundle
from tests.server_process import CROSSRANK, running_server


def test_a_choice_is_measured_even_where_loading_took_all_the_time(builtin: Bundle) -> None:
    found = tune_bundle(builtin, 0.0, None, lambda text: None)
    assert [step.name for step in found.steps] == ["engine"]
    assert all(each["documents_per_s"] > 0 for each in found.steps[0].figures)
    assert found.skipped, "no other step was begun"
    assert "engine" not in found.skipped


def test_tune_keeps_a_choice_that_serve_starts_with(tmp_path: Path) -> None:
    command = [CROSSRANK, "tune", "builtin", "--seconds", "5", "--cache-dir", str(tmp_path), "--offline"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200, check=True)
    (file,) = tmp_path.glob("tuning/*/*.json")
    assert str(file) in run.stdout
    tuning = json.loads(file.read_text())
    tried = {
        tuple(each["config"][key] for key in ("engine", "precision"))
        for each in tuning["figures"]["steps"][0]["figures"]
    }
    left_out = {tuple(name.split()) for name in tuning["figures"]["left_out"]}
    # Every engine in every precision was measured, or it is said why not.
    assert tried | left_out == {(engine, precision) for engine in CPU_ENGINES for precision in ("fp32", "bf16")}
    assert not tried & left_out
    assert all(each["documents_per_s"] > 0 for step in tuning["figures"]["steps"] for each in step["figures"])
    assert tuning["config"] in [each["config"] for step in tuning["figures"]["steps"] for each in step["figures"]]

    tuning["config"] |= {"engine": "onnxruntime", "precision": "fp32", "threads": 1}
    file.write_text(json.dumps(tuning))
    with running_server("--cache-dir", str(tmp_path)) as server:
        (model,) = httpx.get(f"{server.base_url}/v1/models").json()["data"]
        assert (model["engine"], model["precision"]) == ("onnxruntime", "fp32")
        assert "found fastest on" in server.log.read_text()
    with running_server("--cache-dir", str(tmp_path), "--engine", "openvino") as server:
        (model,) = httpx.get(f"{server.base_url}/v1/models").json()["data"]
        assert model["engine"] == "openvino"
