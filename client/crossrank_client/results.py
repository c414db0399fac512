"""The answers of a server, as frozen dataclasses."""

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
        id: Identifies the request in the server's log.
        model: The model that scored.
        results: By falling relevance; equal ones in the order of the request.
        usage: The tokens of the request.
        truncated_documents: Indices of the documents that were truncated.
        query_truncated: Whether the query was truncated.
    """

    id: str
    model: str
    results: tuple[RerankResult, ...]
    usage: Usage
    truncated_documents: tuple[int, ...] = ()
    query_truncated: bool = False

    @property
    def truncated(self) -> int:
        """Number of truncated documents."""
        return len(self.truncated_documents)


@dataclass(frozen=True)
class Model:
    """A model that the server offers.

    Attributes:
        id: What to pass as `model`.
        details: Its other fields, such as `max_length`.
    """

    id: str
    details: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Spent:
    """Usage of a key in a period.

    Attributes:
        requests: Number of requests answered; one that failed costs nothing.
        documents: Number of documents scored; each chunk of a long one counts.
        tokens: Number of tokens scored.
        cost_usd: Their cost in USD.
    """

    requests: int
    documents: int
    tokens: int
    cost_usd: float


@dataclass(frozen=True)
class Account:
    """Scopes, limits, credit and usage of a key.

    Attributes:
        keys_required: Whether the server requires keys; if not, everything below but `scopes` is None.
        key_id: The public part of the key.
        name: The name that the key was created with.
        expires_at: When it expires; None is never.
        scopes: Operations that it allows, such as `rerank`.
        requests_per_minute: Limit of requests; None is no limit.
        documents_per_minute: Limit of documents; None is no limit.
        balance_usd: Credit that is left; None for a key that is not prepaid.
        granted_usd: Credit granted in all; None for a key that is not prepaid.
        spent_usd: Credit spent; None for a key that is not prepaid.
        reserved_usd: Credit held for requests under way; None for a key that is not prepaid.
        today: Usage since midnight UTC.
        total: Usage in all.
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
