"""Define rerank and score requests, the same for every protocol and dialect. Whoever parses one checks its fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TruncationDirection = Literal["right", "left"]


@dataclass(frozen=True)
class Truncation:
    """Rules for texts that do not fit the model's window.

    Caps apply first, then chunks, then the window: a document is cut to `max_tokens_per_doc`; if it then does not fit,
    it is scored in chunks; tokens that no chunk covers are not read.

    Attributes:
        allowed: False refuses a pair over the window; the error names the document.
        direction: Side that loses tokens: `right` keeps the beginning of a text, `left` its end. None is the side that
            the model's own tokenizer cuts.
        max_tokens: Maximum tokens of a pair, special tokens included. None, or more than the window, is the window.
        max_tokens_per_query: Maximum tokens read of the query. None reads as much as the window holds.
        max_tokens_per_doc: Maximum tokens read of a document. None reads as much as the window holds.
        max_chunks_per_doc: Maximum chunks of a document that does not fit; the chunk with the best score counts.
            1 reads only what truncation keeps.
    """

    allowed: bool = True
    direction: TruncationDirection | None = None
    max_tokens: int | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int = 1


@dataclass(frozen=True)
class RerankRequest:
    """Documents to rank by how well they answer a query.

    Attributes:
        query: Text of the query, not blank.
        documents: Texts, at least one.
        model: Id of a served model; None is the default model.
        top_n: Maximum number of results, best first; None returns all.
        truncation: Rules for long texts.
        field: Name of the documents in the caller's dialect, for error messages.
    """

    query: str
    documents: list[str]
    model: str | None = None
    top_n: int | None = None
    truncation: Truncation = Truncation()
    field: str = "documents"


@dataclass(frozen=True)
class ScoreRequest:
    """Pairs to score, in the order given.

    Attributes:
        pairs: (query, document) each, at least one.
        model: Id of a served model; None is the default model.
        truncation: Rules for long texts.
        field: Name of the documents in the caller's dialect, for error messages.
    """

    pairs: list[tuple[str, str]]
    model: str | None = None
    truncation: Truncation = Truncation()
    field: str = "documents"
