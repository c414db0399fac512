"""`make bench-scaling` against real servers, interrupted and gone on with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest

from crossrank.errors import SetupError
from crossrank.resolve import builtin_path
from crossrank_perf.base.workload import fixed_length_workload, tokenizer_from
from lab.scaling.points import DOCUMENTS, Point, _server_on, make_points, rounds_from_report, summarize_points
from lab.scaling.report import plot_scaling
from tests.integration.test_lab import lab

BASE = Point("", 0, "builtin", 3, 100, None, 8)
QUICK = ("--documents", "5", "-c", "2", "--seconds", "0.2", "--engine", "onnxruntime", "--precision", "fp32")


def figures(speed: float) -> dict[str, Any]:
    return {"documents_per_s": speed, "latency_ms": {"p50": 1000 / speed, "p90": 2.0, "p99": 3.0}, "requests": 7}


def test_cores_are_measured_and_an_interrupted_run_goes_on_where_it_was(tmp_path: Path) -> None:
    path, plot = tmp_path / "scaling.json", tmp_path / "scaling.svg"
    options = ("--series", "cores", *QUICK, "--json", str(path))
    first = lab("scaling", *options, "--rounds", "1")
    assert first.returncode == 0, first.stderr
    before = json.loads(path.read_text())["series"]["cores"]
    assert before[0]["x"] == 1
    assert all(point["documents_per_s"]["median"] > 0 for point in before)

    # As if it had been interrupted within the second round.
    again = lab("scaling", *options, "--rounds", "2", "--resume", "--usd-per-machine-hour", "1", "--plot", str(plot))
    assert again.returncode == 0, again.stderr
    after = json.loads(path.read_text())["series"]["cores"]
    for old, new in zip(before, after, strict=True):
        assert len(new["rounds"]) == 2
        assert new["rounds"][0] == old["rounds"][0]
        assert new["documents_per_s"]["min"] == min(each["documents_per_s"] for each in new["rounds"])
    assert "USD/1,000" in again.stdout
    assert "by cores of the server" in plot.read_text()

    other = lab("scaling", *options, "--rounds", "2", "--resume", "--seed", "5")
    assert other.returncode == 1
    assert "other plan" in other.stderr


def test_the_server_gets_only_the_cores_of_the_point() -> None:
    allowed = os.sched_getaffinity(0)
    with _server_on(1, ["--engine", "onnxruntime", "--precision", "fp32", "--log-level", "warning"]) as server:
        assert len(psutil.Process(server.pid).cpu_affinity()) == 1
        assert os.sched_getaffinity(0) == allowed


def test_every_series_varies_one_thing() -> None:
    points = make_points(BASE, ("documents", "tokens", "concurrency", "cores", "models"), {"a": "/a", "b": "/b"})
    varied = {"documents": "documents", "tokens": "tokens", "concurrency": "concurrency", "cores": "cores"}
    for series, name in varied.items():
        mine = [point for point in points if point.series == series]
        assert [getattr(point, name) for point in mine] == [point.x for point in mine]
        rest = {"documents", "tokens", "concurrency", "cores", "model"} - {name}
        assert all(getattr(point, other) == getattr(BASE, other) for point in mine for other in rest)
    assert [point.x for point in points if point.series == "cores"] == [1, 2, 3]
    assert [point.model for point in points if point.series == "models"] == ["/a", "/b"]


def test_a_report_holds_medians_and_gives_its_rounds_back() -> None:
    points = make_points(BASE, ("documents",), {})
    rounds = {point: [figures(speed) for speed in (10.0, 40.0, 20.0)] for point in points[:4]}
    report = {"series": summarize_points(points, rounds)}
    assert [each["x"] for each in report["series"]["documents"]] == list(DOCUMENTS[:4])
    assert report["series"]["documents"][0]["documents_per_s"] == {"median": 20.0, "min": 10.0, "max": 40.0}
    assert report["series"]["documents"][0]["p50_ms"] == 50.0
    assert rounds_from_report(points, json.loads(json.dumps(report))) == rounds
    assert rounds_from_report(make_points(BASE, ("tokens",), {}), report) == {}


@pytest.mark.parametrize("tokens", [9, 16, 128, 512])
def test_pairs_of_a_fixed_length_have_it(tokens: int) -> None:
    tokenizer = tokenizer_from(builtin_path())
    workload = fixed_length_workload(tokens, 3)
    assert workload.documents == 3
    for request in workload.requests[:5]:
        lengths = [len(tokenizer.encode(request.query, text).ids) for text in request.documents]
        assert lengths == [tokens] * 3


def test_pairs_too_short_for_any_text_are_refused() -> None:
    with pytest.raises(SetupError, match="pairs of 8 tokens cannot be written: give at least 9"):
        fixed_length_workload(8, 1)


def test_the_plots_show_every_series(tmp_path: Path) -> None:
    points = make_points(BASE, ("documents", "tokens", "concurrency", "cores", "models"), {"TinyBERT-L2": "/a"})
    report = {
        "series": summarize_points(points, {point: [figures(1234.0)] for point in points}),
        "hardware": {"cpu": "A CPU", "cores": 3},
        "date": "2026-01-02T03:04:05",
    }
    plot_scaling(report, tmp_path / "all.svg")
    drawn = (tmp_path / "all.svg").read_text()
    for text in ("documents a request", "tokens a pair", "requests under way", "TinyBERT-L2", "1,234/s, p50 1 ms"):
        assert text in drawn
