"""Candidates, runs and judgments: what is read, in which order, and what is said of a file that is wrong."""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossrank.errors import SetupError
from crossrank_perf.base.topics import read_candidates
from crossrank_perf.eval.candidates import load_suite, read_run_candidates, suite_topics
from crossrank_perf.eval.trec import read_qrels, read_run, strictly_falling, write_run


def topic_line(qid: object = "1", query: object = "what", candidates: object = None) -> str:
    given_candidates = [{"docid": "a", "text": "alpha"}] if candidates is None else candidates
    return json.dumps({"qid": qid, "query": query, "candidates": given_candidates})


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_candidates_stay_as_listed_without_a_rank(tmp_path: Path) -> None:
    line = topic_line(7, candidates=[{"docid": 3, "text": "x"}, {"docid": "1", "text": "y"}])
    (topic,) = read_candidates(written(tmp_path / "c.jsonl", line))
    assert (topic.qid, topic.docids, topic.documents) == ("7", ("3", "1"), ("x", "y"))


@pytest.mark.parametrize("key", ["rank", "bm25_rank"])
def test_candidates_are_ordered_by_their_rank_where_each_has_one(tmp_path: Path, key: str) -> None:
    ranked = [{"docid": "b", "text": "x", key: 2}, {"docid": "a", "text": "y", key: 1}]
    (topic,) = read_candidates(written(tmp_path / "c.jsonl", topic_line(candidates=ranked)))
    assert topic.docids == ("a", "b")


def test_gzip_is_read_and_a_carriage_return_within_a_passage_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(gzip.compress((topic_line(query="caf\u00e9") + "\r\n\n").encode()))
    assert read_candidates(path)[0].query == "caf\u00e9"
    collection = tmp_path / "collection.tsv"
    collection.write_bytes(b"d\tone\rtwo\tthree\n")
    run = written(tmp_path / "a.run", "1 Q0 d 1 2.0 t")
    queries = written(tmp_path / "q.tsv", "1\twhat")
    assert read_run_candidates(run, collection, queries)[0].documents == ("one\rtwo\tthree",)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not an object"),
        (topic_line(qid=None), "qid is None"),
        (topic_line(qid=True), "qid is True"),
        (topic_line(qid="1 2"), "a word without spaces"),
        (topic_line(query=5), "query is 5, not a string"),
        (topic_line(candidates=[]), "has no candidates"),
        (topic_line(candidates=["a"]), "is not a list of objects"),
        (topic_line(candidates=[{"docid": "a"}]), "text is None"),
        (topic_line(candidates=[{"docid": "a", "text": "x"}] * 2), "document a is listed twice"),
        (topic_line(candidates=[{"docid": "a", "text": "x", "rank": "1st"}]), "rank is '1st', not a number"),
        (topic_line(qid="0"), "query 0 was there before"),
    ],
)
def test_a_malformed_candidates_line_is_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = written(tmp_path / "c.jsonl", topic_line("0"), "", line)
    with pytest.raises(SetupError) as caught:
        read_candidates(path)
    assert caught.value.message.startswith(f"{path}:3: ")
    assert problem in caught.value.message


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b"\n\xff\n", ":2: byte 0xff is not UTF-8"),
    ],
)
def test_an_unreadable_candidates_file_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = tmp_path / "c.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SetupError, match=problem):
        read_candidates(path)


@pytest.mark.parametrize("content", [b"no gzip", gzip.compress(b"x" * 1000, mtime=0)[:-12]])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(SetupError, match="not a complete gzip file"):
        read_candidates(path)


def test_a_run_is_ordered_by_score_then_rank_and_gets_its_texts(tmp_path: Path) -> None:
    run = written(tmp_path / "a.run", "1 Q0 a 3 1.0 t", "1 Q0 b 2 1.0 t", "1 Q0 c 9 2.5 t", "2 Q0 a 1 0 t")
    collection = written(tmp_path / "c.tsv", "a\talpha", "b\tbeta", "c\tgamma", "d\tdelta")
    queries = written(tmp_path / "q.tsv", "2\tsecond", "1\tfirst", "3\tthird")
    one, two = read_run_candidates(run, collection, queries)
    assert (one.qid, one.query, one.docids, one.documents) == (
        "1",
        "first",
        ("c", "b", "a"),
        ("gamma", "beta", "alpha"),
    )
    assert (two.qid, two.query, two.docids) == ("2", "second", ("a",))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("1 Q0 a 1 2.0", "is not a line of a TREC run"),
        ("1 Q0 a first 2.0 t", "is not a line of a TREC run"),
        ("1 Q0 a 1 nan t", "score of a is nan"),
        ("1 Q0 b 1 2.0 t", "document b is listed twice for query 1"),
    ],
)
def test_a_malformed_run_line_is_named_by_file_and_line(tmp_path: Path, line: str, problem: str) -> None:
    path = written(tmp_path / "a.run", "1 Q0 b 1 3.0 t", line)
    with pytest.raises(SetupError) as caught:
        read_run(path)
    assert caught.value.message.startswith(f"{path}:2: ")
    assert problem in caught.value.message


def test_ids_that_a_run_names_but_no_file_holds_are_counted_and_shown(tmp_path: Path) -> None:
    run = written(tmp_path / "a.run", "1 Q0 a 1 2 t", "1 Q0 b 2 1 t", "2 Q0 c 1 1 t")
    queries = written(tmp_path / "q.tsv", "1\tx", "2\ty")
    collection = written(tmp_path / "c.tsv", "a\talpha")
    with pytest.raises(SetupError, match=r"2 document ids of .*a.run are not in .*c.tsv \(b, c\)"):
        read_run_candidates(run, collection, queries)
    with pytest.raises(SetupError, match=r"1 query ids of .* \(2\)"):
        read_run_candidates(run, collection, written(tmp_path / "q.tsv", "1\tx"))
    written(queries, "1\tx", "2\ty")
    with pytest.raises(SetupError, match=r"c\.tsv:1: 'a alpha' has no tab"):
        read_run_candidates(run, written(tmp_path / "c.tsv", "a alpha"), queries)


def test_judgments_are_read_and_a_malformed_one_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "qrels", "1 0 a 2", "1 0 b 0", "2\t0\ta\t-1")
    assert read_qrels(path) == {"1": {"a": 2, "b": 0}, "2": {"a": -1}}
    with pytest.raises(SetupError, match="qrels:2: '1 a 2' is not a judgment"):
        read_qrels(written(path, "1 0 a 2", "1 a 2"))


float32 = st.floats(-50, 50, width=32)


@given(st.lists(float32, max_size=30))
def test_a_ranking_falls_strictly_in_float32_with_ties_in_first_stage_order(scores: list[float]) -> None:
    docids = [f"d{i}" for i in range(len(scores))]
    ranked = strictly_falling(docids, scores)
    by_score_then_place = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    assert list(ranked) == [docids[i] for i in by_score_then_place]
    values = np.array(list(ranked.values()), np.float32)
    assert (values[1:] < values[:-1]).all()
    np.testing.assert_allclose([ranked[docid] for docid in docids], scores, rtol=1e-5, atol=1e-6)


@given(st.lists(float32, max_size=30, unique=True))
def test_scores_that_differ_are_left_as_they_are(scores: list[float]) -> None:
    docids = [f"d{i}" for i in range(len(scores))]
    assert strictly_falling(docids, scores) == dict(zip(docids, scores, strict=True))


@given(st.lists(st.sampled_from([-0.1, 0.1, 1.0, 3.0]), min_size=1, max_size=30))
def test_a_written_run_reads_back_in_the_same_order_with_the_same_float32_scores(
    tmp_path_factory: pytest.TempPathFactory, scores: list[float]
) -> None:
    path = tmp_path_factory.mktemp("run") / "x.run"
    run = {"7": strictly_falling([f"d{i}" for i in range(len(scores))], scores)}
    write_run(path, run, "tag")
    read = read_run(path)
    assert list(read["7"]) == list(run["7"])
    assert [np.float32(v) for v in read["7"].values()] == [np.float32(v) for v in run["7"].values()]
    assert [line.split()[3] for line in path.read_text().splitlines()] == [str(i + 1) for i in range(len(scores))]


def test_a_suite_keeps_the_listed_order_and_leaves_out_queries_without_candidates() -> None:
    texts = {docid: SimpleNamespace(text=f"text of {docid}") for docid in "abc"}
    pairs = [("1", "c"), ("2", "b"), ("1", "a")]
    dataset = SimpleNamespace(
        scoreddocs_iter=lambda: [SimpleNamespace(query_id=qid, doc_id=docid, score=0.0) for qid, docid in pairs],
        queries_iter=lambda: [SimpleNamespace(query_id=qid, text=f"query {qid}") for qid in "123"],
        docs_store=lambda: SimpleNamespace(get_many=lambda ids: {docid: texts[docid] for docid in ids}),
    )
    topics = suite_topics(dataset)
    assert [(topic.qid, topic.docids) for topic in topics] == [("1", ("c", "a")), ("2", ("b",))]
    assert topics[0].documents == ("text of c", "text of a")


def test_a_suite_without_ir_datasets_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(SetupError, match=r"pip install 'crossrank\[suites\]'.*--candidates"):
        load_suite("trec-dl-2019")
