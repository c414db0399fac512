"""What a server answers, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
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


@dataclass(frozen=True)
class Spent:
    """What was used in some time.

    Attributes:
        requests: That were answered; one that failed costs nothing.
        documents: Scored; each chunk of a long one counts.
        tokens: Scored.
        cost_usd: What they cost.
    """

    requests: int
    documents: int
    tokens: int
    cost_usd: float


@dataclass(frozen=True)
class Account:
    """What a key may do, what is left of its credit, and what it has used.

    Attributes:
        keys_required: False: the server has no keys, and everything below but `scopes` is None.
        key_id: The public part of the key.
        name: What the key was called when it was made.
        expires_at: None is never.
        scopes: What it may do, such as `rerank`.
        requests_per_minute: Its limit; None is no limit.
        documents_per_minute: Its limit; None is no limit.
        balance_usd: What is left of its credit; None is a key without credit, which has no end.
        granted_usd: All credit it ever got; None is a key without credit.
        spent_usd: Of that; None is a key without credit.
        reserved_usd: Held for requests under way; None is a key without credit.
        today: What it used since midnight UTC.
        total: What it used ever.
    """

    keys_required: bool
    key_id: str | None
    name: str | None
    expires_at: datetime | None
    scopes: tuple[str, ...]
    requests_per_minute: int | None
    documents_per_minute: int | None
    balance_usd: float | None
    granted_usd: float | None
    spent_usd: float | None
    reserved_usd: float | None
    today: Spent | None
    total: Spent | None
