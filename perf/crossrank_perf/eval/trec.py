"""Read and write TREC files: runs and judgments (qrels).

The scores of a written run fall strictly within a query, also in float32, which trec_eval uses: a tool that breaks ties
in its own way (trec_eval: by falling document id) then shows the same order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from crossrank.errors import SetupError
from crossrank_perf.base.lines import read_lines

# By query id and document id: scores, grades.
Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]

_RUN_LINE = "QID Q0 DOCID RANK SCORE TAG"
_QRELS_LINE = "QID ITERATION DOCID GRADE"


def read_run(path: Path) -> dict[str, dict[str, float]]:
    """Read a TREC run and return its scores by query id and document id, highest first, ties by the rank column.

    Raises:
        SetupError: The file cannot be read, a line is not `QID Q0 DOCID RANK SCORE TAG`, or a document is
            listed twice for a query.
    """
    rows: dict[str, dict[str, tuple[float, int]]] = {}
    for line in read_lines(path, "run file"):
        fields = line.text.split()
        try:
            qid, _, docid, rank, score, _ = fields
            key = (-float(score), int(rank))
        except ValueError:
            raise line.fail(f"{line.shown()} is not a line of a TREC run: expected {_RUN_LINE}") from None
        if not math.isfinite(key[0]):
            raise line.fail(f"the score of {docid} is {score}; a run needs finite scores")
        if docid in rows.setdefault(qid, {}):
            raise line.fail(f"document {docid} is listed twice for query {qid}; keep one of the lines")
        rows[qid][docid] = key
    if not rows:
        raise SetupError(f"run file {path} is empty: expected lines {_RUN_LINE}")
    return {
        qid: {docid: -documents[docid][0] for docid in sorted(documents, key=documents.__getitem__)}
        for qid, documents in rows.items()
    }


def write_run(path: Path, run: Run, tag: str) -> None:
    """Write a TREC run whose scores fall strictly within each query, as those of `strictly_falling` do."""
    with path.open("w", encoding="utf-8") as stream:
        for qid, documents in run.items():
            for rank, (docid, score) in enumerate(documents.items(), 1):
                stream.write(f"{qid} Q0 {docid} {rank} {score:.9g} {tag}\n")


def strictly_falling(docids: Sequence[str], scores: Sequence[float]) -> dict[str, float]:
    """Rank documents by falling score, ties by their place in `docids`, and make the scores fall strictly.

    A score that is not below its predecessor in float32 is lowered to the next float32 below the predecessor; distinct
    scores stay as they are. Nine digits, as `write_run` prints them, identify a float32.

    Args:
        docids: Document ids, in first-stage order.
        scores: A finite score for each.

    Returns:
        Score by document id, highest first.
    """
    ranked: dict[str, float] = {}
    previous = np.float32(np.inf)
    for index in sorted(range(len(docids)), key=lambda i: -scores[i]):
        previous = min(np.float32(scores[index]), np.nextafter(previous, np.float32(-np.inf)))
        ranked[docids[index]] = float(previous)
    return ranked


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """Read TREC judgments and return the grades by query id and document id.

    Raises:
        SetupError: The file cannot be read or a line is not `QID ITERATION DOCID GRADE`.
    """
    qrels: dict[str, dict[str, int]] = {}
    for line in read_lines(path, "qrels file"):
        try:
            qid, _, docid, grade = line.text.split()
            qrels.setdefault(qid, {})[docid] = int(grade)
        except ValueError:
            raise line.fail(f"{line.shown()} is not a judgment: expected {_QRELS_LINE}") from None
    if not qrels:
        raise SetupError(f"qrels file {path} is empty: expected lines {_QRELS_LINE}")
    return qrels
