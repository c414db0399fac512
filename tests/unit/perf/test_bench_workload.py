"""What a benchmark sends: the right sizes, and synthetic text that costs a tokenizer what real text costs it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from crossrank.errors import SetupError
from crossrank.resolve import builtin_path
from crossrank_perf.base import workload
from crossrank_perf.base.topics import Topic as Candidates
from crossrank_perf.base.workload import (
    load_workload,
    requests_from_topics,
    single_documents,
    synthetic_topics,
    tokenizer_from,
)
from tests.conftest import Topic

TOKENIZER = tokenizer_from(builtin_path())


def pair_tokens(query: str, documents: tuple[str, ...]) -> list[int]:
    own = len(TOKENIZER.encode(query, add_special_tokens=False)) + 3
    return [own + len(e) for e in TOKENIZER.encode_batch(list(documents), add_special_tokens=False)]


def numbered_topics(count: int, depth: int) -> list[Candidates]:
    return [
        Candidates(
            f"q{t}", f"query {t}", tuple(f"{t}-{i}" for i in range(depth)), tuple(f"text {t} {i}" for i in range(depth))
        )
        for t in range(count)
    ]


@pytest.fixture
def nothing_beside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("CROSSRANK_SHARED", str(tmp_path))
    return tmp_path


def test_synthetic_pairs_have_the_token_lengths_of_dl_2019() -> None:
    lengths = [n for topic in synthetic_topics(TOKENIZER) for n in pair_tokens(topic.query, topic.documents)]
    assert len(lengths) == 4300
    assert np.mean(lengths) == pytest.approx(95, abs=2.5)
    assert np.percentile(lengths, [50, 90, 99]) == pytest.approx([85, 147, 196], rel=0.03)
    assert 240 <= max(lengths) <= 268
    assert 28 <= min(lengths) <= 35


def test_the_length_table_is_that_of_the_dl_2019_file(dl19: list[Topic]) -> None:
    lengths = [n for topic in dl19 for n in pair_tokens(topic.query, tuple(topic.passages))]
    assert np.percentile(lengths, workload._PERCENT) == pytest.approx(workload._PAIR_TOKENS, abs=0.51)


def test_synthetic_words_are_split_and_marked_as_in_english() -> None:
    (topic,) = synthetic_topics(TOKENIZER, topics=1, depth=1000)
    text = " ".join(topic.documents)
    pieces = TOKENIZER.encode(text, add_special_tokens=False).tokens
    # DL 2019: 1.36 tokens for each word between blanks, 4.5 characters for each token.
    assert len(pieces) / len(text.split()) == pytest.approx(1.36, abs=0.05)
    assert len(text) / len(pieces) == pytest.approx(4.5, abs=0.2)


def test_the_seed_decides_the_synthetic_text() -> None:
    def texts(seed: int) -> list[tuple[str, ...]]:
        return [topic.documents for topic in synthetic_topics(TOKENIZER, seed, topics=2, depth=5)]

    assert texts(1) == texts(1)
    assert texts(1) != texts(2)


@pytest.mark.parametrize("documents", [1, 7, 30, 100, 101, 250])
def test_every_request_has_exactly_the_documents_asked_for(documents: int) -> None:
    requests = requests_from_topics(numbered_topics(3, 100), documents)
    assert {len(request.documents) for request in requests} == {documents}
    # No text goes to waste but the rest that fills no request.
    assert len(requests) == 3 * max(1, 100 // documents)
    assert len({(request.query, request.documents) for request in requests}) == len(requests)


def test_a_request_asks_its_own_topics_documents_first() -> None:
    for number, request in enumerate(requests_from_topics(numbered_topics(3, 10), 15)):
        assert request.query == f"query {number}"
        assert request.documents[:10] == tuple(f"text {number} {i}" for i in range(10))


def test_single_documents_keep_their_query_and_lose_none() -> None:
    load = load_workload(None, 10, synthetic=True)
    single = single_documents(load)
    assert single.documents == 1
    assert sorted((r.query, d) for r in load.requests for d in r.documents) == sorted(
        (r.query, *r.documents) for r in single.requests
    )


def test_without_the_file_the_text_is_synthetic_and_says_so(nothing_beside: Path) -> None:
    load = load_workload(None, 100, seed=3)
    assert load.source == "synthetic text, seed 3"
    assert len(load.requests) == 43


def test_the_file_beside_the_project_is_found(nothing_beside: Path) -> None:
    (nothing_beside / "data").mkdir()
    row = {"qid": "1", "query": "q", "candidates": [{"docid": "a", "text": "first"}, {"docid": "b", "text": "second"}]}
    with gzip.open(nothing_beside / "data" / "dl19-bm25-top100.jsonl.gz", "wt") as lines:
        lines.write(json.dumps(row) + "\n")
    load = load_workload(None, 2)
    assert load.source == "dl19-bm25-top100.jsonl.gz"
    assert [json.loads(body) for body in load.bodies()] == [
        {"query": "q", "documents": ["first", "second"], "top_n": 2}
    ]
    assert load_workload(None, 2, synthetic=True).source.startswith("synthetic")


def test_a_damaged_candidates_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text("{not json\n")
    with pytest.raises(SetupError, match=r"bad\.jsonl:1"):
        load_workload(path, 100)
