"""Read queries with their first-stage candidates from JSONL."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.lines import Line, read_lines

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
            there twice. The message names file and line.
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
