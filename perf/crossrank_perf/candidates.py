"""What is re-ranked: queries with their first-stage candidates, from JSONL, a TREC run, or ir_datasets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.trec import Line, Qrels, read_lines, read_run

# Names of --suite, and the data set of ir_datasets whose official candidates each re-ranks: the organisers' BM25
# top-1000, in no order and without scores.
# Source: https://ir-datasets.com/msmarco-passage.html
SUITES = {
    "trec-dl-2019": "msmarco-passage/trec-dl-2019/judged",
    "trec-dl-2020": "msmarco-passage/trec-dl-2020/judged",
}
_RANK_KEYS = ("rank", "bm25_rank")
_SHAPE = '{"qid": .., "query": .., "candidates": [{"docid": .., "text": ..}, ..]}'


@dataclass(frozen=True)
class Topic:
    """A query and its candidates in first-stage order.

    Attributes:
        qid: The query's id.
        query: Its text.
        docids: Ids of the candidates, the first stage's best first.
        documents: Their texts.
    """

    qid: str
    query: str
    docids: tuple[str, ...]
    documents: tuple[str, ...]

    def first(self, depth: int | None) -> Topic:
        """Return the topic with its first `depth` candidates only."""
        return Topic(self.qid, self.query, self.docids[:depth], self.documents[:depth])


def read_candidates(path: Path) -> list[Topic]:
    """Read topics from JSONL, one a line.

    Candidates are ordered by their `rank` or `bm25_rank` where each has it, else they stay as listed.

    Raises:
        SetupError: The file cannot be read, a line is not of that form, a query has no candidates, or an id is
            there twice; the message names file and line.
    """
    topics: dict[str, Topic] = {}
    for line in read_lines(path, "candidates file"):
        topic = _topic_from_line(line)
        if topic.qid in topics:
            raise line.fail(f"query {topic.qid} was there before; give each query one line")
        topics[topic.qid] = topic
    if not topics:
        raise SetupError(f"candidates file {path} is empty: expected lines {_SHAPE}")
    return list(topics.values())


def read_run_candidates(run: Path, collection: Path, queries: Path) -> list[Topic]:
    """Read topics from a TREC run and the texts it refers to.

    Only the passages and queries that the run names are kept in memory.

    Args:
        run: TREC run of the first stage.
        collection: Lines `DOCID<tab>TEXT`.
        queries: Lines `QID<tab>QUERY`.

    Raises:
        SetupError: A file cannot be read, or a query or document of the run is not in its file.
    """
    ranked = read_run(run)
    texts = _read_tsv(queries, "queries file", set(ranked))
    _check_all_found(ranked, texts, f"query ids of {run} are not in {queries}")
    wanted = {docid for documents in ranked.values() for docid in documents}
    passages = _read_tsv(collection, "collection", wanted)
    _check_all_found(sorted(wanted), passages, f"document ids of {run} are not in {collection}")
    return [
        Topic(qid, texts[qid], tuple(documents), tuple(passages[docid] for docid in documents))
        for qid, documents in ranked.items()
    ]


def load_suite(name: str) -> tuple[list[Topic], Qrels]:
    """Fetch a suite's official candidates and judgments through ir_datasets, which caches them.

    The candidates come as listed, which is no ranking; see SUITES.

    Raises:
        SetupError: ir_datasets is not installed, or the data cannot be fetched.
    """
    try:
        import ir_datasets
    except ImportError:
        raise SetupError(
            f"--suite {name} needs ir_datasets, which is not installed: pip install 'crossrank[suites]', "
            "or give the same data with --candidates and --qrels"
        ) from None
    try:
        dataset = ir_datasets.load(SUITES[name])
        return suite_topics(dataset), _suite_qrels(dataset)
    except Exception as error:  # ir_datasets raises whatever its downloads, parsers and disk raise
        lines = str(error).strip().splitlines() or [""]
        raise SetupError(
            f"--suite {name}: ir_datasets could not provide {SUITES[name]} ({type(error).__name__}: {lines[0][:200]}); "
            "it needs the network and several GB of disk the first time; --candidates FILE needs neither"
        ) from error


def suite_topics(dataset: Any) -> list[Topic]:
    """Read the topics of a data set of ir_datasets that has queries, docs and scoreddocs."""
    listed: dict[str, list[str]] = {}
    for row in dataset.scoreddocs_iter():
        listed.setdefault(row.query_id, []).append(row.doc_id)
    store = dataset.docs_store()
    topics = []
    for query in dataset.queries_iter():
        if docids := listed.get(query.query_id):
            found = store.get_many(docids)
            texts = tuple(str(found[docid].text) for docid in docids)
            topics.append(Topic(query.query_id, query.text, tuple(docids), texts))
    return topics


def _suite_qrels(dataset: Any) -> Qrels:
    qrels: dict[str, dict[str, int]] = {}
    for row in dataset.qrels_iter():
        qrels.setdefault(row.query_id, {})[row.doc_id] = row.relevance
    return qrels


def _topic_from_line(line: Line) -> Topic:
    try:
        row = json.loads(line.text)
    except (ValueError, RecursionError) as error:
        raise line.fail(f"{line.shown()} is not JSON ({error}); expected {_SHAPE}") from None
    if not isinstance(row, dict):
        raise line.fail(f"{line.shown()} is not an object; expected {_SHAPE}")
    qid = _text_of(line, row, "qid")
    query = _text_of(line, row, "query")
    candidates = row.get("candidates")
    if not isinstance(candidates, list) or not all(isinstance(item, dict) for item in candidates):
        raise line.fail(f"candidates of query {qid} is not a list of objects; expected {_SHAPE}")
    if not candidates:
        raise line.fail(f"query {qid} has no candidates; remove the line, or give it some")
    ordered = _in_rank_order(line, candidates)
    docids = tuple(_text_of(line, item, "docid") for item in ordered)
    if len(set(docids)) < len(docids):
        twice = next(docid for i, docid in enumerate(docids) if docid in docids[:i])
        raise line.fail(f"document {twice} is listed twice for query {qid}; keep one of them")
    return Topic(qid, query, docids, tuple(_text_of(line, item, "text") for item in ordered))


def _in_rank_order(line: Line, candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    for key in _RANK_KEYS:
        if all(key in item for item in candidates):
            bad = [item[key] for item in candidates if not isinstance(item[key], (int, float))]
            if bad:
                raise line.fail(f"{key} is {bad[0]!r}, not a number")
            return sorted(candidates, key=lambda item: item[key])
    return candidates


def _text_of(line: Line, row: dict[str, Any], key: str) -> str:
    """Return a string field; ids may be whole numbers and become strings, without whitespace as runs need them."""
    value = row.get(key)
    is_id = key.endswith("id")
    if is_id and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise line.fail(f"{key} is {value!r:.80}, not a string; expected {_SHAPE}")
    if is_id and (not value or value.split() != [value]):
        raise line.fail(f"{key} is {value!r:.80}: an id is a word without spaces, as TREC runs need it")
    return value


def _read_tsv(path: Path, what: str, wanted: set[str]) -> dict[str, str]:
    texts: dict[str, str] = {}
    for line in read_lines(path, what):
        name, tab, text = line.text.partition("\t")
        if not tab:
            raise line.fail(f"{line.shown()} has no tab; expected ID<tab>TEXT")
        if name in wanted:
            texts[name] = text
    return texts


def _check_all_found(wanted: Iterable[str], found: Mapping[str, str], problem: str) -> None:
    missing = [name for name in wanted if name not in found]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise SetupError(f"{len(missing)} {problem} ({shown}): give the files that the run was made from")
