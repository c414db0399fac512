"""`crossrank eval` as a person uses it: the real engines, a real server, and the figures known of the data."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from crossrank.engines.cpu import cpu_flags
from crossrank.errors import SetupError
from crossrank_perf.eval.trec import read_run
from crossrank_server.cli import cli
from tests.server_process import running_server

DL19_CANDIDATES = "data/dl19-bm25-top100.jsonl.gz"
DL19_QRELS = "data/dl19-qrels.txt"


def crossrank(*arguments: str | Path) -> Result:
    """Run the command in this process; errors for the user stay exceptions."""
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def refused(*arguments: str | Path) -> str:
    """Return the sentence with which the command refuses."""
    done = crossrank("eval", *arguments)
    assert isinstance(done.exception, SetupError), done.output
    assert done.stdout == ""
    return done.exception.message


def evaluated(*arguments: str | Path) -> dict:
    done = crossrank("eval", *arguments, "--json")
    assert done.exit_code == 0, done.exception
    return json.loads(done.stdout)


def ndcg_of(report: dict, ranking: str) -> float:
    return report["rankings"][ranking]["means"]["NDCG@10"]


def trec_eval_ndcg(run: Path, qrels: dict[str, dict[str, int]]) -> float:
    """What trec_eval's own code says of the file's scores, ties broken its way."""
    import pytrec_eval

    values = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut_10"}).evaluate(read_run(run))
    return float(np.mean([value["ndcg_cut_10"] for value in values.values()]))


@pytest.fixture
def small(tmp_path: Path) -> list[str | Path]:
    """Three queries with texts of different lengths, as a candidates file and its judgments."""
    passages = {
        "berlin": "Berlin has a population of 3,520,031 registered inhabitants.",
        "museum": "Berlin is well known for its museums.",
        "york": "New York City is famous for the Metropolitan Museum of Art.",
        "bm25": "BM25 is a ranking function used by search engines. " * 20,
        "empty": "-",
    }
    queries = {"1": "how many people live in berlin", "2": "what is bm25", "3": "museum of art"}
    rows = [
        {"qid": qid, "query": text, "candidates": [{"docid": d, "text": t} for d, t in passages.items()]}
        for qid, text in queries.items()
    ]
    candidates, qrels = tmp_path / "candidates.jsonl", tmp_path / "qrels.txt"
    candidates.write_text("".join(json.dumps(row) + "\n" for row in rows))
    qrels.write_text("1 0 berlin 3\n1 0 museum 1\n2 0 bm25 2\n3 0 york 2\n")
    (tmp_path / "collection.tsv").write_text("".join(f"{d}\t{t}\n" for d, t in passages.items()))
    (tmp_path / "queries.tsv").write_text("".join(f"{qid}\t{text}\n" for qid, text in queries.items()))
    return ["--candidates", candidates, "--qrels", qrels, "--out", tmp_path / "out"]


def test_the_builtin_model_has_its_published_ndcg_on_dl_2019(
    shared_dir: Path, dl19_qrels: dict[str, dict[str, int]], tmp_path: Path
) -> None:
    inputs = ["--candidates", shared_dir / DL19_CANDIDATES, "--qrels", shared_dir / DL19_QRELS, "--out", tmp_path]
    precisions = ["fp32"] if cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"}) else ["fp32", "bf16"]
    report = evaluated(*inputs, "--precision", ",".join(precisions))
    assert ndcg_of(report, "first stage") == pytest.approx(0.5058, abs=5e-5)
    assert ndcg_of(report, "best possible") == pytest.approx(0.8922, abs=5e-5)
    assert ndcg_of(report, "crossrank-mini fp32") == pytest.approx(0.6093, abs=0.001)
    for row in report["precisions"][1:]:
        assert abs(row["ndcg_delta"]) <= 0.003
        assert 0 < row["max_delta_logit"] <= 0.05
    for precision in precisions:
        run = tmp_path / f"crossrank-mini-{precision}.run"
        assert len(run.read_text().splitlines()) == 4300
        assert trec_eval_ndcg(run, dl19_qrels) == pytest.approx(ndcg_of(report, f"crossrank-mini {precision}"))
    assert report == json.loads((tmp_path / "report.json").read_text())


@pytest.mark.slow
def test_every_precision_of_an_exported_bundle_keeps_the_quality_on_dl_2019(
    shared_dir: Path, mini_dir: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "bundle"
    exported = crossrank("export", mini_dir, "--out", bundle, "--precision", "fp32,fp16,int8")
    assert exported.exit_code == 0, exported.exception
    inputs = ["--candidates", shared_dir / DL19_CANDIDATES, "--qrels", shared_dir / DL19_QRELS]
    report = evaluated(*inputs, "--model", bundle, "--precision", "fp32,fp16,int8", "--out", tmp_path / "out")
    fp32, fp16, int8 = report["precisions"]
    assert fp32["ndcg"] == pytest.approx(0.6093, abs=0.001)
    assert abs(fp16["ndcg_delta"]) <= 0.001
    assert 0 < fp16["max_delta_logit"] <= 0.01
    assert abs(int8["ndcg_delta"]) <= 0.01
    assert int8["max_delta_logit"] > fp16["max_delta_logit"]


def test_a_server_and_this_process_give_the_same_run(small: list[str | Path], tmp_path: Path) -> None:
    here = evaluated(*small, "--precision", "fp32")
    with running_server("--precision", "fp32") as server:
        there = evaluated(*small, "--url", server.base_url, "--compare", tmp_path / "out" / "crossrank-mini-fp32.run")
    name = f"crossrank-mini at {server.base_url}"
    assert there["rankings"][name]["per_query"] == here["rankings"]["crossrank-mini fp32"]["per_query"]
    (served,) = (tmp_path / "out").glob("crossrank-mini-at-*.run")
    ours, theirs = read_run(tmp_path / "out" / "crossrank-mini-fp32.run"), read_run(served)
    for qid in ours:
        assert list(ours[qid]) == list(theirs[qid])
        assert ours[qid] == pytest.approx(theirs[qid], abs=1e-4)
    against = {row["baseline"]: row for row in there["comparisons"]}
    assert against["crossrank-mini-fp32.run"]["ties"] == 3
    assert against["crossrank-mini-fp32.run"]["p_randomisation"] == 1.0


def test_a_trec_run_with_its_texts_is_reranked_like_the_same_candidates(
    small: list[str | Path], tmp_path: Path
) -> None:
    lines = [
        f"{qid} Q0 {docid} {rank} {9 - rank} bm25\n"
        for qid in "123"
        for rank, docid in enumerate(("berlin", "museum", "york", "bm25", "empty"), 1)
    ]
    (tmp_path / "bm25.run").write_text("".join(lines))
    texts = ["--collection", tmp_path / "collection.tsv", "--queries", tmp_path / "queries.tsv"]
    from_run = evaluated("--run", tmp_path / "bm25.run", *texts, *small[2:], "--precision", "fp32", "--depth", "4")
    first_four = evaluated(*small, "--precision", "fp32", "--depth", "4")
    assert from_run["candidates"]["documents"] == 12
    assert from_run["rankings"] == first_four["rankings"]


def test_tables_name_every_ranking_and_the_files_written(small: list[str | Path], tmp_path: Path) -> None:
    done = crossrank("eval", *small, "--engine", "onnxruntime", "--plot", "svg")
    assert done.exit_code == 0, done.exception
    shown = " ".join(done.stdout.split())
    for part in (
        "first stage",
        "crossrank-mini fp32",
        "best possible",
        "NDCG@10",
        "MRR@10",
        "MAP",
        "R@5",
        "60.93 (in %)",
    ):
        assert part in shown
    assert "compare only where candidates and judgments are the same" in shown
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"crossrank-mini-fp32.run", "report.json", "ndcg_deltas.svg"}
    assert all(name in done.stderr for name in written)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([], "give exactly one of --candidates, --run (with --collection and --queries) and --suite"),
        (["--candidates", "nowhere.jsonl"], "candidates file nowhere.jsonl does not exist"),
        (["--run", "a.run"], "--run holds no texts: give --collection and --queries too"),
        (["--candidates", "c", "--queries", "q"], "--collection and --queries belong to --run"),
        (["--suite", "trec-dl-2019", "--qrels", "q"], "--suite brings its own judgments"),
        (["--candidates", "c", "--precision", "fp32,int4"], "--precision 'int4' is not one of auto, fp32"),
        (["--candidates", "c", "--precision", "fp32,fp32"], "--precision fp32,fp32 names one twice"),
        (["--candidates", "c", "--url", "http://h", "--precision", "fp32"], "--precision has no meaning with --url"),
        (["--candidates", "c", "--url", "http://h", "--engine", "openvino"], "--engine has no meaning with --url"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_with_value_and_remedy(arguments: list[str], problem: str) -> None:
    assert refused(*arguments).startswith(problem)


def test_what_cannot_score_is_refused_and_leaves_no_run(
    small: list[str | Path], tmp_path: Path, free_port: Callable[[], int]
) -> None:
    assert "crossrank-mini has no int8 graph" in refused(*small, "--precision", "fp32,int8")
    assert "did not score the query" in refused(*small, "--url", f"http://127.0.0.1:{free_port()}")
    assert "start it with http://" in refused(*small, "--url", "localhost:8000")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_error_is_one_line_on_stderr_and_exit_code_1(tmp_path: Path) -> None:
    candidates = tmp_path / "c.jsonl"
    candidates.write_text('{"qid": 1}\n')
    command = [sys.executable, "-m", "crossrank_server", "eval", "--candidates", str(candidates)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {candidates}:1: query is None, not a string; expected ")
    assert done.stderr.count("\n") == 1


def test_help_teaches_with_examples() -> None:
    text = crossrank("eval", "--help").stdout
    assert "\n    crossrank eval --candidates dl19.jsonl.gz --qrels dl19-qrels.txt\n" in text
    assert "--suite trec-dl-2019" in text
    assert '{"qid": "1", "query": "what is bm25"' in text
