"""The laboratory, `perf/lab`, as its make targets run it: graphs, tiers, tokenizer, guard."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from crossrank.bundles.bundle import Bundle
from crossrank.errors import SetupError
from crossrank.packed import Tokens
from crossrank.text.tokenizer import TextTokenizer
from crossrank_perf.base.workload import Request
from lab.plans.command import plans
from lab.tokenizer.compare import compare_tokenizers
from tests.conftest import ROOT
from tests.integration.test_bench_command import bench_environment


def lab(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = bench_environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT / "perf"), env.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "lab", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=env, check=False)


def test_graphs_before_and_after_the_passes_are_timed_on_the_same_pairs(tmp_path: Path, mini_dir: Path) -> None:
    path = tmp_path / "graphs.json"
    options = ("--rounds", "3", "--requests", "2", "--documents", "20", "--json", str(path))
    result = lab("graphs", str(mini_dir), *options)
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


@pytest.mark.slow
def test_plans_are_built_for_each_gpu_and_for_all_of_them(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    path = tmp_path / "plans.json"
    result = lab("plans", "--only", "TinyBERT-L2", "--gpu", "t4", "--gpu", "l4", "--json", str(path))
    assert result.returncode == 0, result.stderr
    (row,) = json.loads(path.read_text())["rows"]
    t4, l4, both = (plan["bytes"] for plan in row["plans"])
    assert l4 < t4 < both
    assert "| model | Tesla T4 | L4 | one plan for all 2 |\n|---|---|---|---|\n| TinyBERT-L2-v2" in result.stdout


def test_no_model_of_the_name_is_told_with_those_there_are(tmp_path: Path) -> None:
    result = CliRunner().invoke(plans, ["--only", "MiniBERT"])
    assert isinstance(result.exception, SetupError)
    assert "--only MiniBERT: no model has it in its name; they are TinyBERT-L2-v2, TinyBERT-L2; MiniLM" in str(
        result.exception
    )


def test_realtime_requests_are_measured_alone_and_beside_a_flood_of_each_tier(tmp_path: Path) -> None:
    path = tmp_path / "tiers.json"
    result = lab("tiers", "--duration", "1", "--documents", "5", "--rate", "20", "--flood", "3", "--json", str(path))
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


def test_the_tokenizer_is_measured_beside_the_one_it_equals(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    result = lab("tokenizer", "--synthetic", "--documents", "20", "--rounds", "3", "--json", str(path))
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert [way["name"].split(",")[0] for way in report["tokenizers"]] == [
        "crossrank",
        "crossrank",
        "tokenizers (Rust)",
    ]
    assert all(way["passages_per_cpu_s"] > 0 for way in report["tokenizers"])
    assert f"{report['passages']:,} passages with equal ids" in result.stdout


def test_ids_that_differ_are_not_timed(builtin: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = TextTokenizer.tokenize

    def wrong(self: TextTokenizer, texts: list[str], limit: int) -> Tokens:
        ids, offsets = exact(self, texts, limit)
        return Tokens(ids + 1, offsets)

    monkeypatch.setattr(TextTokenizer, "tokenize", wrong)
    with pytest.raises(SetupError, match="differ from those of the tokenizers library: 'a query'"):
        compare_tokenizers(builtin, [Request("a query", ("a passage",))], 3, lambda text: None)


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="no git repository here, as in an unpacked archive")
def test_guard_compares_this_tree_with_a_commit(tmp_path: Path) -> None:
    path = tmp_path / "guard.json"
    result = lab("guard", "--baseline", "HEAD", "--rounds", "5", "--seconds", "1", "--json", str(path))
    assert result.returncode == 0, result.stderr
    report = json.loads(path.read_text())
    assert report["not_compared"] == []
    assert report["baseline"]["name"].startswith("commit ")
    assert report["engine"].split()[-1] == report["baseline"]["engine"].split()[-1]  # their precision
    assert [each["load"] for each in report["comparisons"]] == [
        "100 documents a request, 4 under way",
        "1 document a request, 1 under way",
    ]
    for each in report["comparisons"]:
        assert each["cpu_ratio"] > 0
        assert len(each["rounds"]) == 5
    assert f"### Speed of this tree beside {report['baseline']['name']}" in result.stdout


def test_guard_without_a_baseline_says_so_and_does_not_fail(tmp_path: Path) -> None:
    result = lab("guard", "--baseline", "no-such-commit", "--json", str(tmp_path / "guard.json"))
    assert result.returncode == 0, result.stderr
    assert "Not compared: no-such-commit: git rev-parse failed" in result.stdout
    assert "Not compared: sentence-transformers-torch: " in result.stdout
    assert "Warning: no baseline" in result.stdout
    assert json.loads((tmp_path / "guard.json").read_text())["baseline"] is None


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("peers", "--checkpoint", ".", "--environments", "/nonexistent"), 1, "make peers prepares them"),
        (("scaling", "--resume"), 1, "name it with --json"),
        (("scaling", "--plot", "/nonexistent/x.svg"), 1, "/nonexistent does not exist"),
        (("peers", "--checkpoint", "/nonexistent"), 2, "--checkpoint"),
    ],
)
def test_bad_input_is_one_clear_message(arguments: tuple[str, ...], code: int, message: str) -> None:
    result = lab(*arguments)
    assert result.returncode == code
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_every_benchmark_has_a_make_target_and_teaches_it_with_examples() -> None:
    makefile = (ROOT / "Makefile").read_text()
    commands = re.findall(r"^  (\w+)  ", lab("--help").stdout.partition("Commands:")[2], re.MULTILINE)
    assert {"graphs", "guard", "peers", "scaling", "tiers", "tokenizer"} <= set(commands)
    for command in commands:
        assert f"\nbench-{command}: " in makefile
        assert f"\n    make bench-{command}" in lab(command, "--help").stdout


@pytest.mark.slow
def test_a_soak_compares_every_answer_and_says_that_it_was_too_short(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    result = lab("soak", "--minutes", "0.3", "--json", str(path))
    figures = json.loads(path.read_text())["soak"]
    assert figures["wrong"] == []
    assert figures["errors"] == {}
    assert {"http", "grpc", "probe", "hang-up", "nonsense"} <= set(figures["answers"])
    assert result.returncode == 1
    assert "the second model did not both sleep and serve: soak for longer" in result.stdout
