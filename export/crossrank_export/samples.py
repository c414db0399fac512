"""Provide pairs for comparisons: built-in ones of all lengths, or those of a user's file."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crossrank.errors import SetupError

BUILTIN_TOKENS = 1024
"""The longest built-in pair: attention takes time and memory by the square of it, and wider windows go up to 32,768."""

_DOCUMENTS = 16
_SEED = 20240
# Queries, and the words that their documents are made of: some on the subject, most not.
_TOPICS = (
    (
        "how long is the life cycle of a flea",
        "flea fleas egg larva pupa adult cocoon host days weeks blood pet carpet life cycle hatch survive",
    ),
    (
        "What causes low blood pressure?",
        "blood pressure heart hypotension dehydration dizzy fainting symptom doctor artery volume medication low cause",
    ),
    (
        "définition of a theory in science",
        "theory hypothesis evidence experiment science law observation tested explanation définition naïve model proof",
    ),
    (
        "rsa key exchange vs. elliptic curves 256-bit",
        "rsa key exchange elliptic curve 256-bit cipher modulus prime signature handshake x25519 tls public private",
    ),
)
_FILLER = (
    "the a of and to in that is was for on as with by at from this which or have its one had not but all were when we "
    "there been has more if out so up said what about than into them can only other time new some could these two may"
)
_UNUSUAL = "café Ã©tude 北京 Übergröße наука — “quoted” €3.5 ½ 😀 naïve"


@dataclass(frozen=True)
class SampleGroup:
    """One query with its documents, ranked against each other.

    Attributes:
        query: The query.
        documents: The texts.
        docids: Their ids, for judgments.
        grades: Judged grade by docid; empty where nothing is judged.
    """

    query: str
    documents: list[str]
    docids: list[str]
    grades: Mapping[str, int] = field(default_factory=dict)


def builtin_groups(max_length: int, documents: int = _DOCUMENTS) -> list[SampleGroup]:
    """Return pairs that are the same each time: from three words to more than the window holds, some not ASCII.

    Args:
        max_length: Window in tokens; pairs do not grow beyond BUILTIN_TOKENS.
        documents: Documents of each query, at least 2.
    """
    rng = random.Random(_SEED)
    longest = max(1.3 * min(max_length, BUILTIN_TOKENS), 8)
    filler, unusual = _FILLER.split(), _UNUSUAL.split()
    groups = []
    for query, words in _TOPICS:
        texts = []
        for i in range(documents):
            count = round(3 * (longest / 3) ** (i / (documents - 1)))
            share = rng.random()
            subject = words.split()
            chosen = [rng.choice(subject if rng.random() < share else filler) for _ in range(count)]
            if i % 4 == 1:
                chosen[rng.randrange(count)] = rng.choice(unusual)
            texts.append(" ".join(chosen).capitalize() + ".")
        groups.append(SampleGroup(query, texts, [str(i) for i in range(documents)]))
    return groups


def read_groups(path: Path) -> list[SampleGroup]:
    """Read a JSONL file of the user's own pairs.

    A line is `{"query": ..., "documents": ["...", ...]}` or `{"query": ..., "candidates": [{"docid": ..., "text": ...},
    ...]}`. Judgments are optional: `"judgments": {"docid": grade}`, where documents without ids count from "0".

    Raises:
        SetupError: The file is unreadable or a line has another form.
    """
    groups = []
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    groups.append(_group(line, f"{path}:{number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"pairs file {path} cannot be read ({error}): give a JSONL file in UTF-8") from error
    if not groups:
        raise SetupError(f"pairs file {path} is empty: it needs at least one query with documents")
    return groups


def _group(line: str, where: str) -> SampleGroup:
    try:
        row: dict[str, Any] = json.loads(line)
        if "candidates" in row:
            documents = [candidate["text"] for candidate in row["candidates"]]
            docids = [str(candidate["docid"]) for candidate in row["candidates"]]
        else:
            documents = row["documents"]
            docids = [str(i) for i in range(len(documents))]
        grades = {str(docid): int(grade) for docid, grade in (row.get("judgments") or {}).items()}
        if not documents or not isinstance(documents, list):
            raise ValueError("no list of documents")
        if not all(isinstance(text, str) for text in (row["query"], *documents)):
            raise ValueError("a text that is no string")
        return SampleGroup(row["query"], documents, docids, grades)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SetupError(
            f'{where} is not {{"query": ..., "documents": [...]}} or {{"query": ..., "candidates": [{{"docid": ..., '
            f'"text": ...}}]}} ({error!r})'
        ) from error
