"""Build the parts of answers from scores, and describe them as pydantic models for the OpenAPI document."""

from __future__ import annotations

import math
from typing import Any

import orjson
from pydantic import BaseModel, Field

from crossrank_server.serving.service import Ranking, Scores

# Cohere bills a query with up to this many documents as one search unit.
# Source: https://docs.cohere.com/docs/how-does-cohere-pricing-work
_DOCUMENTS_PER_SEARCH_UNIT = 100


class DocumentText(BaseModel):
    """A document, as an object because most clients break on a plain string here; further fields are those sent."""

    text: str


class Result(BaseModel):
    """One ranked document."""

    index: int = Field(description="its position in the request")
    relevance_score: float = Field(description="sigmoid of the logit, in float64; the logit with raw_scores")
    document: DocumentText | str | None = Field(None, description="a plain string only for infinity's client")


class Usage(BaseModel):
    """Tokens and documents of the request; the query counts once for each document."""

    prompt_tokens: int = Field(description="tokens scored, special tokens included")
    total_tokens: int
    search_units: int = Field(description="documents billed, in hundreds, rounded up")
    cost: float | None = Field(None, description="USD; only where usage is metered")


class ApiVersion(BaseModel):
    """Which of Cohere's APIs the answer follows."""

    version: str


class BilledUnits(BaseModel):
    """The billed units."""

    search_units: int
    documents: int = Field(description="documents scored; each chunk counts as one")


class Tokens(BaseModel):
    """Tokens scored."""

    input_tokens: int
    output_tokens: int


class Truncations(BaseModel):
    """What was truncated before scoring."""

    truncated_documents: list[int] = Field(description="indices of the documents that were truncated")
    query_truncated: bool = Field(description="whether the query was truncated too")


class Meta(Truncations):
    """Cohere's `meta`, and what was truncated before scoring."""

    api_version: ApiVersion
    billed_units: BilledUnits
    tokens: Tokens


class RerankResponse(BaseModel):
    """The documents by falling relevance; equal ones in the order of the request."""

    id: str
    object: str
    created: int
    model: str
    provider: str
    results: list[Result]
    data: list[Result] | None = Field(
        None,
        description="the results once more, for Voyage's clients only: those of /voyage/v1/rerank, and those that send"
        " truncation or top_k",
    )
    usage: Usage
    meta: Meta


class ErrorDetail(BaseModel):
    """An error in the form of OpenAI's API."""

    message: str = Field(description="the value, the limit and the remedy")
    type: str
    param: str | None = Field(description="the field at fault, such as documents[3]")
    code: str
    retry_after_s: float | None = None


class ErrorResponse(BaseModel):
    """Every error has this body."""

    error: ErrorDetail
    error_type: str = Field(description="TEI's word for it: Empty, Validation, Overloaded, Backend, Unhealthy")
    message: str = Field(description="the same message, where Cohere's clients look for it")
    detail: str = Field(description="the same message, where Jina's and Voyage's clients look for it")


Responses = dict[int | str, dict[str, Any]]
ERRORS: Responses = {
    status: {"model": ErrorResponse}
    for status in (400, 401, 402, 403, 404, 408, 413, 415, 417, 429, 500, 502, 503, 504)
}
GET_ERRORS: Responses = {status: ERRORS[status] for status in (400, 401, 403, 500)}


def results_of(ranking: Ranking, *, raw: bool, score: str = "relevance_score") -> list[dict[str, Any]]:
    """Return index and score of each ranked document, best first."""
    return [{"index": index, score: ranking.score(index, raw=raw)} for index in ranking.order.tolist()]


def document_object(given: Any, text: str) -> dict[str, Any] | orjson.Fragment:
    """Return a document as an object with a text, its other fields kept.

    Args:
        given: The document as it was sent, or its JSON.
        text: The text of it that was scored.
    """
    if isinstance(given, orjson.Fragment):
        return given
    if not isinstance(given, dict):
        return {"text": text}
    return given if isinstance(given.get("text"), str) else {**given, "text": text}


def usage_of(scores: Scores) -> dict[str, Any]:
    """Return the form of Usage."""
    usage: dict[str, Any] = {
        "prompt_tokens": scores.tokens,
        "total_tokens": scores.tokens,
        "search_units": search_units(scores),
    }
    if scores.cost_usd is not None:
        usage["cost"] = scores.cost_usd
    return usage


def truncations_of(scores: Scores) -> dict[str, Any]:
    """Return the form of Truncations."""
    return {"truncated_documents": scores.truncated, "query_truncated": scores.query_truncated}


def meta_of(scores: Scores, version: str) -> dict[str, Any]:
    """Return the form of Meta."""
    return {
        "api_version": {"version": version},
        "billed_units": {"search_units": search_units(scores), "documents": scores.billed},
        "tokens": {"input_tokens": scores.tokens, "output_tokens": 0},
        **truncations_of(scores),
    }


def search_units(scores: Scores) -> int:
    """Return the number of Cohere's search units."""
    return math.ceil(scores.billed / _DOCUMENTS_PER_SEARCH_UNIT)
