"""`crossrank perf-analyzer`: what is sent, how perf_analyzer is found and read, and what is written."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.errors import SetupError
from crossrank.packed import PairBatch
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Request, Workload, load_workload
from crossrank_perf.engines.batches import cut_batches, encode_workload, pairs_by_bucket
from crossrank_perf.perf_analyzer.home import HOME_VARIABLE, PerfAnalyzer, find_perf_analyzer
from crossrank_perf.perf_analyzer.input import write_texts, write_token_rows
from crossrank_perf.perf_analyzer.report import csv_from_report, plot_report, summarize, write_results
from crossrank_perf.perf_analyzer.run import Inference, measure_point, point_from_output

BUCKETS = fit_lengths(BUCKET_LENGTHS, 512)
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

# What perf_analyzer 2.48.0 wrote for 32 rows at concurrency 4, in --verbose-csv and with -v.
FIGURES = """Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,request/response,response wait
4,1562.68,16,2466,12222,80,64681,714,2,77951,116353,127478,198842,18,80140
"""
SAID = """Request concurrency: 4
  Pass [1] throughput: 1517.84 infer/sec. p99 latency: 127478 usec
  Pass [2] throughput: 1838.12 infer/sec. p99 latency: 129414 usec
  Pass [3] throughput: 1332.08 infer/sec. p99 latency: 199906 usec
  Client:
    Request count: 176
    Throughput: 1562.68 infer/sec
  Server:
    Inference count: 5632
    Execution count: 117
    Successful request count: 176

Inferences/Second vs. Client p99 Batch Latency
Concurrency: 4, throughput: 1562.68 infer/sec, latency 198842 usec
"""


@pytest.fixture(scope="module")
def workload() -> Workload:
    return load_workload(None, 50, synthetic=True)


@pytest.fixture(scope="module")
def pairs(builtin: Bundle, workload: Workload) -> PairBatch:
    return encode_workload(PairEncoder(builtin), workload)


def batch_of(*lengths: int) -> PairBatch:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = np.arange(1, offsets[-1] + 1, dtype=np.int32)
    return PairBatch(ids, ids % 2, offsets)


def inference(rows: int = 32, documents: int = 32) -> Inference:
    return Inference("crossrank-mini", Path("unused.json"), {"input_ids": 128}, rows, documents)


# Input


def test_each_bucket_holds_the_pairs_that_fit_no_shorter_one(pairs: PairBatch) -> None:
    chosen = pairs_by_bucket(pairs, BUCKETS, wanted=BUCKETS[1:5])
    for length, shorter in ((64, 32), (96, 64), (128, 96), (192, 128)):
        expected = np.sort(pairs.lengths[(pairs.lengths > shorter) & (pairs.lengths <= length)])
        assert len(expected) > 0
        np.testing.assert_array_equal(np.sort(chosen[length].lengths), expected)


def test_buckets_that_few_pairs_fall_into_are_left_out(pairs: PairBatch) -> None:
    chosen = pairs_by_bucket(pairs, BUCKETS)
    assert list(chosen) == [64, 96, 128, 192]
    assert sum(map(len, chosen.values())) > 0.9 * len(pairs)


def test_a_bucket_without_pairs_is_refused_with_those_that_have_some() -> None:
    with pytest.raises(SetupError, match=r"--bucket 128, only into 32, 64"):
        pairs_by_bucket(batch_of(20, 40), BUCKETS, wanted=[128])


def test_pairs_of_a_bucket_are_shuffled_by_the_seed(pairs: PairBatch) -> None:
    first, again, other = (pairs_by_bucket(pairs, BUCKETS, [96], seed)[96] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.input_ids, again.input_ids)
    assert not np.array_equal(first.input_ids, other.input_ids)


def test_token_rows_are_padded_pairs_in_order(tmp_path: Path) -> None:
    batch, path = batch_of(3, 4), tmp_path / "rows.json"
    write_token_rows(path, batch, 5, 99, INPUTS)
    assert json.loads(path.read_text()) == {
        "data": [
            {"input_ids": [1, 2, 3, 99, 99], "attention_mask": [1, 1, 1, 0, 0], "token_type_ids": [1, 0, 1, 0, 0]},
            {"input_ids": [4, 5, 6, 7, 99], "attention_mask": [1, 1, 1, 1, 0], "token_type_ids": [0, 1, 0, 1, 0]},
        ]
    }


def test_token_rows_have_only_the_inputs_of_the_model(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    write_token_rows(path, batch_of(2), 2, 0, INPUTS[:2])
    assert json.loads(path.read_text()) == {"data": [{"input_ids": [1, 2], "attention_mask": [1, 1]}]}


def test_texts_are_one_entry_a_request_with_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    write_texts(path, Workload("made up", 2, (Request("quoi ?", ("æ", "b")),)))
    (entry,) = json.loads(path.read_text())["data"]
    assert entry == {
        "QUERY": {"content": ["quoi ?"], "shape": [1]},
        "DOCUMENTS": {"content": ["æ", "b"], "shape": [2]},
    }


def test_the_bare_engine_gets_the_batches_that_perf_analyzer_sends() -> None:
    batches = cut_batches(batch_of(1, 2, 3, 4, 5), 2)
    assert [batch.lengths.tolist() for batch in batches] == [[1, 2], [3, 4]]
    (wrapped,) = cut_batches(batch_of(1, 2), 5)
    assert wrapped.lengths.tolist() == [1, 2, 1, 2, 1]


# perf_analyzer


def write_program(home: Path, script: str) -> Path:
    binary = home / "bin" / "perf_analyzer"
    binary.parent.mkdir(parents=True)
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return binary


def test_a_missing_perf_analyzer_is_an_error_that_names_the_make_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    with pytest.raises(SetupError, match=rf"no perf_analyzer in {tmp_path}: run make perf-analyzer-setup"):
        find_perf_analyzer()


def test_a_missing_shared_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says = "error while loading shared libraries: libb64.so.0d: cannot open shared object file: No such file"
    write_program(tmp_path, f'echo "perf_analyzer: {says}" >&2; exit 127')
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    with pytest.raises(SetupError, match=r"needs libb64\.so\.0d, .* run make perf-analyzer-setup again"):
        find_perf_analyzer()


def test_its_own_libraries_come_before_those_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Like the real one it reports its version on stderr, with an exit code that is not 0.
    write_program(tmp_path, 'echo "Perf Analyzer Version $LD_LIBRARY_PATH (commit unknown)" >&2; exit 99')
    monkeypatch.setenv(HOME_VARIABLE, str(tmp_path))
    monkeypatch.setenv("LD_LIBRARY_PATH", "/elsewhere")
    found = find_perf_analyzer()
    assert found.version == f"{tmp_path}/lib:{tmp_path}/nvidia/cuda_runtime/lib:/elsewhere"


def test_a_failing_run_is_one_sentence_with_its_own_words(tmp_path: Path) -> None:
    binary = write_program(tmp_path, 'echo "error: model is gone" >&2; exit 2')
    with pytest.raises(SetupError, match=r"exit code 2 for crossrank-mini at concurrency 7: model is gone$"):
        measure_point(PerfAnalyzer(binary, (), "0"), "127.0.0.1:1", inference(), 7, 0.1)


def test_throughput_is_documents_whether_the_model_batches_or_not() -> None:
    batching = point_from_output(FIGURES, SAID, inference(rows=32, documents=32), 0.5)
    assert batching.documents_per_s == 1562.7
    assert batching.window_documents_per_s == [1517.8, 1838.1, 1332.1]
    assert batching.documents_per_execution == pytest.approx(5632 / 117, abs=0.05)
    text = point_from_output(FIGURES, SAID, inference(rows=1, documents=100), 0.5)
    assert text.documents_per_s == 156268.0
    assert text.window_documents_per_s[0] == 151784.0


def test_latencies_are_in_milliseconds() -> None:
    point = point_from_output(FIGURES, SAID, inference(), 0.5)
    assert point.latency_ms == {"p50": 77.951, "p90": 116.353, "p95": 127.478, "p99": 198.842}
    assert (point.queue_ms, point.compute_ms) == (12.222, pytest.approx(65.475))
    assert (point.concurrency, point.requests, point.executions) == (4, 176, 117)


@pytest.mark.parametrize(
    ("figures", "said"),
    [("", SAID), (FIGURES, "Client: \n"), (FIGURES.replace("p99 latency", "p98 latency"), SAID)],
    ids=["no row", "no statistics", "no p99"],
)
def test_output_of_another_form_is_refused(figures: str, said: str) -> None:
    with pytest.raises(SetupError, match="output is not as expected"):
        point_from_output(figures, said, inference(), 0.5)


# Report


def report_of(*series: tuple[str, int | None]) -> dict[str, Any]:
    point = {
        "concurrency": 4,
        "requests": 176,
        "documents_per_s": 1562.7,
        "latency_ms": {"p50": 1.0, "p90": 2.0, "p95": 3.0, "p99": 4.0},
        "queue_ms": 0.1,
        "compute_ms": 0.8,
        "executions": 117,
        "documents_per_execution": 48.1,
        "client_cpu_s": 0.5,
        "triton_cpu_us_per_document": None,
    }
    return {
        "series": [
            {
                "model": model,
                "bucket": bucket,
                "documents_per_request": 32,
                "points": [point, {**point, "concurrency": 8}],
            }
            for model, bucket in series
        ]
    }


def test_the_csv_has_a_line_for_each_point() -> None:
    rows = list(csv.DictReader(csv_from_report(report_of(("m", 64), ("m", 128), ("m_rerank", None))).splitlines()))
    assert [(row["model"], row["bucket"], row["concurrency"]) for row in rows] == [
        ("m", "64", "4"),
        ("m", "64", "8"),
        ("m", "128", "4"),
        ("m", "128", "8"),
        ("m_rerank", "", "4"),
        ("m_rerank", "", "8"),
    ]
    assert (rows[0]["documents_per_s"], rows[0]["p99_ms"]) == ("1562.7", "4.0")


def test_the_plot_names_models_buckets_and_percentiles(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    plot_report(report_of(("m", 64), ("m", 128), ("m_rerank", None)), path)
    drawn = path.read_text()
    for text in (
        ">m<",
        ">m_rerank<",
        "bucket 64, 32 documents a request, p50",
        "bucket 128, 32",
        "text, 32 documents a request, p99",
    ):
        assert text in drawn


def test_results_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot write"):
        write_results(tmp_path / "absent", report_of(("m", 64)))


def test_the_summary_is_the_median_of_the_buckets_that_were_compared() -> None:
    series = [
        {"bare_engine": {"rate_ratio": rate, "cpu_ratio": cpu}} for rate, cpu in ((0.5, 0.8), (0.9, None), (0.8, 0.7))
    ]
    assert summarize([*series, {"bucket": None}]) == {"rate_ratio": 0.8, "cpu_ratio": 0.75}
    assert summarize([{"bucket": None}]) == {"rate_ratio": None, "cpu_ratio": None}
