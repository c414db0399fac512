"""`make bench-peers`: crossrank beside itself anywhere, beside the others where `make peers` prepared them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from crossrank.errors import SetupError
from crossrank_perf.base.report import Progress
from crossrank_perf.base.workload import Workload, load_workload
from lab.peers.entrants import Lineup, own_contestants
from lab.peers.in_process import WorkerContestant
from lab.peers.report import plot_peers
from lab.peers.rounds import Rounds, compare
from lab.peers.systems import PEERS, export_plain_onnx
from tests.conftest import ROOT
from tests.integration.test_lab import lab

DOCUMENTS = 10
FP32: dict[str, Any] = {"engine": "onnxruntime", "precision": "fp32"}
ROUNDS = Rounds(3, 0.3, compared_requests=2)


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload(None, DOCUMENTS, synthetic=True)


def lineup() -> Lineup:
    arguments = ["--engine", "onnxruntime", "--precision", "fp32", "--log-level", "warning"]
    return Lineup(Path(), Path(), Path(), "builtin", FP32, arguments, 2, 512, [4], 2)


def peer(name: str, workload: Workload, model: str = "builtin", worker: str = "crossrank") -> WorkerContestant:
    load = {"model": model, "options": FP32, "concurrency": 3}
    return WorkerContestant(name, [sys.executable], worker, workload, load)


def test_systems_take_turns_and_ratios_are_taken_within_a_round(workload: Workload) -> None:
    kept: list[dict[str, Any]] = []
    peers = [peer("twin", workload), peer("absent", workload, worker="nonesuch")]
    with Progress("test") as progress:
        figures = compare(own_contestants(lineup(), workload), peers, ROUNDS, progress, kept.append)
    assert [each["rounds"] for each in kept] == [1, 2, 3]
    assert list(figures["systems"]) == ["crossrank-http", "crossrank", "twin"]
    assert "nonesuch" in figures["failed"]["absent"]
    assert figures["fastest_peer"] == {"in process": "twin"}
    twin = figures["systems"]["twin"]
    for own in ("crossrank", "crossrank-http"):
        speeds = figures["systems"][own]["documents_per_s"]["rounds"]
        ratios = [a / b for a, b in zip(speeds, twin["documents_per_s"]["rounds"], strict=True)]
        assert twin["crossrank_ratio"][own]["rounds"] == pytest.approx(ratios, abs=2e-3)
        assert twin["crossrank_ratio"][own]["median"] == pytest.approx(sorted(ratios)[1], abs=2e-3)
    assert twin["max_logit_difference"] < 1e-4
    assert [each["concurrency"] for each in twin["tried"]] == [1, 3]
    fastest = max(twin["tried"], key=lambda each: float(each["documents_per_s"]))
    assert twin["setting"] == {"concurrency": fastest["concurrency"]}
    assert twin["cpu_s_per_1000_documents"] > 0
    assert twin["rss_mb"] > 30
    assert 0 < twin["latency_ms"]["p50"] < 1000


def test_other_weights_are_refused(workload: Workload, other_bundle: Path) -> None:
    peers = [peer("other", workload, model=str(other_bundle))]
    with (
        Progress("test") as progress,
        pytest.raises(SetupError, match=r"differ by up to [\d.]+, more than 0\.25: these are not the same weights"),
    ):
        compare(own_contestants(lineup(), workload), peers, ROUNDS, progress, lambda _: None)


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in model's shape with random weights, which the benchmark makes for itself."""
    pytest.importorskip("torch")
    from crossrank.bundles.catalog import MODELS
    from lab.random_models import random_bundle

    tiny = next(model for model in MODELS if model.short_name == "ms-marco-TinyBERT-L2-v2")
    directory = tmp_path_factory.mktemp("random")
    bundle = random_bundle(tiny, directory)
    assert random_bundle(tiny, directory) == bundle  # made once
    return bundle


def test_what_the_peers_load_is_the_plain_graph_of_the_checkpoint(tmp_path: Path, mini_dir: Path) -> None:
    pytest.importorskip("torch")
    import onnx

    export_plain_onnx(mini_dir, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert {each.name for each in graph.input} == {"input_ids", "attention_mask", "token_type_ids"}
    # Of each layer: Q, K and V apart, scores, context, output, and two of the feed-forward; the passes join Q, K, V.
    assert sum(node.op_type == "MatMul" for node in graph.node) == 2 * 8
    assert (tmp_path / "tokenizer.json").read_bytes() == (mini_dir / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", list(PEERS))
def test_every_peer_scores_the_same_weights_alike(name: str, mini_dir: Path, tmp_path: Path) -> None:
    if not PEERS[name].python(ROOT).exists():
        pytest.skip(f"{name} is not installed here (make peers)")
    path, plot = tmp_path / "peers.json", tmp_path / "peers.svg"
    result = lab(
        "peers", "--checkpoint", str(mini_dir), "--environments", str(ROOT), "--peer", name, "--documents", "10",
        "--batch-size", "10", "--rounds", "3", "--seconds", "0.5", "--precision", "fp32", "--concurrency", "2",
        "--json", str(path), "--plot", str(plot),
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    system = report["systems"][name]
    assert system["max_logit_difference"] < (0.1 if "bf16" in name or "openvino" in name else 1e-3)
    assert report["failed"] == {}
    assert report["server"]["models"][0]["precision"] == "fp32"
    assert report["fastest_peer"] == {system["over"]: name}
    assert f"fastest peer {system['over']}: {name}" in result.stdout
    assert f">{name.replace('-http', ' over HTTP')}<" in plot.read_text()


def test_the_chart_names_every_system_with_its_ratio(tmp_path: Path) -> None:
    def system(over: str, speed: float, **ratios: float) -> dict[str, Any]:
        found: dict[str, Any] = {"over": over, "documents_per_s": {"median": speed, "min": speed - 1, "max": speed + 1}}
        if ratios:
            found["crossrank_ratio"] = {name.replace("_", "-"): {"median": value} for name, value in ratios.items()}
        return found

    report = {
        "rounds": 3,
        "date": "2026-01-02T03:04:05",
        "hardware": {"cpu": "A CPU", "cores": 2},
        "workload": {"documents_per_request": 100},
        "systems": {
            "crossrank": system("in process", 900.0),
            "crossrank-http": system("over HTTP", 800.0),
            "slow": system("in process", 100.0, crossrank=9.0, crossrank_http=8.0),
            "served-http": system("over HTTP", 200.0, crossrank=4.5, crossrank_http=4.0),
        },
    }
    plot_peers(report, tmp_path / "chart.svg")
    drawn = (tmp_path / "chart.svg").read_text()
    for text in (
        ">slow<",
        ">served over HTTP<",
        ">crossrank in process<",
        "(crossrank: 9.0 x)",
        "(crossrank: 4.0 x)",
        "A CPU, 2 cores",
    ):
        assert text in drawn
