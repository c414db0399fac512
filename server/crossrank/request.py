"""What a caller asks for, whatever protocol and dialect it came in: plain fields, checked where they were read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TruncationDirection = Literal["right", "left"]


@dataclass(frozen=True)
class Truncation:
    """How texts that do not fit are dealt with.

    The caps come first, then chunks, then the window: a document is cut to `max_tokens_per_doc`; if it then does not
    fit, it is scored in chunks; what the chunks do not cover is lost.

    Attributes:
        allowed: False refuses a pair over the window instead, naming the document.
        direction: The side that loses tokens: `right` keeps the beginning of a text, `left` its end; None is the one
            that the model's own tokenizer cuts.
        max_tokens: Tokens of a pair, special tokens included; None, or more than the model's window, is the window.
        max_tokens_per_query: Tokens of the query that are read at most; None reads as much as the window holds.
        max_tokens_per_doc: Tokens of a document that are read at most; None reads as much as the window holds.
        max_chunks_per_doc: A document that does not fit is scored in up to this many chunks and the best one counts;
            1 reads only the first.
    """

    allowed: bool = True
    direction: TruncationDirection | None = None
    max_tokens: int | None = None
    max_tokens_per_query: int | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int = 1


@dataclass(frozen=True)
class RerankRequest:
    """Documents to order by how well they answer a query.

    Attributes:
        query: Not blank.
        documents: At least one.
        model: A served model; None is the default one.
        top_n: How many of the best to return; None is all.
        truncation: What happens to long texts.
        field: The documents' name in the caller's dialect, for error messages.
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
        pairs: (query, document) each; at least one.
        model: A served model; None is the default one.
        truncation: What happens to long texts.
        field: The documents' name in the caller's dialect, for error messages.
    """

    pairs: list[tuple[str, str]]
    model: str | None = None
    truncation: Truncation = Truncation()
    field: str = "documents"
