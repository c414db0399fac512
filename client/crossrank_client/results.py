"""What a server answers, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class RerankResult:
    """One ranked document.

    Attributes:
        index: Its position in the documents that were sent.
        relevance_score: Probability of relevance in [0, 1]; the model's logit with `raw_scores`.
        document: Its text with `return_documents`, else None.
    """

    index: int
    relevance_score: float
    document: str | None = None


@dataclass(frozen=True)
class Usage:
    """Tokens scored, special tokens included; the query counts once for each document."""

    prompt_tokens: int
    total_tokens: int


@dataclass(frozen=True)
class RerankResponse:
    """The answer to one request.

    Attributes:
        id: Names the request in the server's log.
        model: The model that scored.
        results: By falling relevance; equal ones in the order of the request.
        usage: What the request cost, in tokens.
        truncated_documents: Indices of the documents of which only the beginning was scored.
        query_truncated: Whether only the beginning of the query was used.
    """

    id: str
    model: str
    results: tuple[RerankResult, ...]
    usage: Usage
    truncated_documents: tuple[int, ...] = ()
    query_truncated: bool = False

    @property
    def truncated(self) -> int:
        """The number of documents of which only the beginning was scored."""
        return len(self.truncated_documents)


@dataclass(frozen=True)
class Model:
    """A model that the server offers.

    Attributes:
        id: What to pass as `model`.
        details: Everything else the server says about it, such as `max_length`.
    """

    id: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)
