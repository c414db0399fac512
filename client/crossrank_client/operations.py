"""Define the operations of the API, and convert each and its answer to and from HTTP.

An operation holds its arguments as plain fields, so that a transport other than HTTP can carry it too.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Generic, Literal, TypedDict, TypeVar

from typing_extensions import Unpack

from crossrank_client.errors import InvalidResponse
from crossrank_client.results import Account, Model, RerankResponse, RerankResult, Spent, Usage

Answer = TypeVar("Answer")
Kind = TypeVar("Kind")


class Operation(ABC, Generic[Answer]):
    """One operation of the API."""

    http_method: ClassVar[str] = "GET"
    http_path: ClassVar[str]
    http_answers: ClassVar[frozenset[int]] = frozenset({200})  # statuses that are an answer, not an error
    retried: ClassVar[bool] = True

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the request; metadata over gRPC."""
        return {}

    @property
    def may_wait_s(self) -> float:
        """Seconds that the server may wait for a model before it scores, in addition to the timeout."""
        return 0.0

    def http_body(self) -> bytes | None:
        """Return the JSON body, or None."""
        return None

    @abstractmethod
    def answer_from_http(self, status: int, body: bytes) -> Answer:
        """Return the typed answer.

        Raises:
            InvalidResponse: The body does not have the form of an answer.
        """


class RerankOptions(TypedDict, total=False):
    """Options of a rerank call, by keyword; the class Rerank has the defaults.

    Attributes:
        top_n: How many of the best to return; None is all.
        return_documents: Repeat each document's text in its result.
        raw_scores: Give the model's logits, not their sigmoid.
        model: One of `models()`; None is the server's first.
        truncate: False refuses a document that does not fit the model's window, instead of truncating it.
        truncation_direction: The side of a text that is cut; None is the one that the model's own tokenizer cuts.
        max_tokens_per_doc: Tokens of a document that are read at most.
        max_chunks_per_doc: A document that does not fit is scored in up to this many chunks (billed each), of which
            the best counts.
        tier: `batch` is cheaper and gives way to `realtime`.
        wait_s: Seconds that the server may wait for a sleeping model, in addition to the timeout; without it the
            call is retried as the retry policy allows.
    """

    top_n: int | None
    return_documents: bool
    raw_scores: bool
    model: str | None
    truncate: bool
    truncation_direction: Literal["right", "left"] | None
    max_tokens_per_doc: int | None
    max_chunks_per_doc: int | None
    tier: Literal["realtime", "batch"]
    wait_s: float


@dataclass(frozen=True)
class Rerank(Operation[RerankResponse]):
    """Order documents by how well they answer a query."""

    http_method = "POST"
    http_path = "/v1/rerank"

    query: str
    documents: list[str]
    top_n: int | None = None
    return_documents: bool = False
    raw_scores: bool = False
    model: str | None = None
    truncate: bool = True
    truncation_direction: Literal["right", "left"] | None = None
    max_tokens_per_doc: int | None = None
    max_chunks_per_doc: int | None = None
    tier: Literal["realtime", "batch"] = "realtime"
    wait_s: float = 0.0

    @property
    def headers(self) -> dict[str, str]:
        """The tier and the time to wait, where they are not the default."""
        headers: dict[str, str] = {}
        if self.tier != "realtime":
            headers["x-tier"] = self.tier
        if self.wait_s:
            headers["prefer"] = f"wait={math.ceil(self.wait_s)}"
        return headers

    @property
    def may_wait_s(self) -> float:
        """The option `wait_s`."""
        return self.wait_s

    def http_body(self) -> bytes:
        """Return the request as JSON, without the fields that have their default."""
        fields: dict[str, Any] = {"query": self.query, "documents": self.documents}
        optional = {
            "top_n": self.top_n,
            "return_documents": self.return_documents or None,
            "raw_scores": self.raw_scores or None,
            "model": self.model,
            "truncate": None if self.truncate else False,
            "truncation_direction": self.truncation_direction,
            "max_tokens_per_doc": self.max_tokens_per_doc,
            "max_chunks_per_doc": self.max_chunks_per_doc,
        }
        fields.update({name: value for name, value in optional.items() if value is not None})
        try:
            return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()
        except UnicodeEncodeError:
            # A lone surrogate has no UTF-8; escaped, it reaches the server, whose error names the field.
            return json.dumps(fields, separators=(",", ":")).encode()

    def answer_from_http(self, status: int, body: bytes) -> RerankResponse:
        """Return the ranking."""
        data = _object(_parsed(body), "the answer")
        usage = _field(data, "usage", dict)
        meta = {"truncated_documents": [], "query_truncated": False, **_field({"meta": {}, **data}, "meta", dict)}
        return RerankResponse(
            id=_field(data, "id", str),
            model=_field(data, "model", str),
            results=tuple(self._result(row) for row in _field(data, "results", list)),
            usage=Usage(_field(usage, "prompt_tokens", int), _field(usage, "total_tokens", int)),
            truncated_documents=tuple(self.checked(index) for index in _field(meta, "truncated_documents", list)),
            query_truncated=_field(meta, "query_truncated", bool),
        )

    def _result(self, row: Any) -> RerankResult:
        data = _object(row, "a result")
        document = data.get("document")
        text = _field(document, "text", str) if isinstance(document, dict) else document
        if text is not None and not isinstance(text, str):
            raise _unexpected("document", document, str)
        return RerankResult(self.checked(data.get("index")), _field(data, "relevance_score", float), text)

    def checked(self, index: Any) -> int:
        """Return the index of a document that was sent.

        Raises:
            InvalidResponse: It is none.
        """
        if type(index) is not int or not 0 <= index < len(self.documents):
            raise InvalidResponse(f"the answer speaks of document {index!r:.80}; {len(self.documents)} were sent")
        return index


@dataclass(frozen=True)
class ListModels(Operation[tuple[Model, ...]]):
    """Name the models the server offers; the first is its default."""

    http_path = "/v1/models"

    def answer_from_http(self, status: int, body: bytes) -> tuple[Model, ...]:
        """Return the models."""
        rows = [_object(row, "a model") for row in _field(_object(_parsed(body), "the answer"), "data", list)]
        return tuple(
            Model(_field(row, "id", str), {name: value for name, value in row.items() if name not in ("id", "object")})
            for row in rows
        )


@dataclass(frozen=True)
class CheckReady(Operation[bool]):
    """Tell whether the server can score now; "not yet" is an answer, so it is not retried."""

    http_path = "/health/ready"
    http_answers = frozenset({200, 503})
    retried = False

    def answer_from_http(self, status: int, body: bytes) -> bool:
        """Return whether the status says so."""
        return status == 200


@dataclass(frozen=True)
class ReadAccount(Operation[Account]):
    """Return scopes, limits, credit and usage of the key."""

    http_path = "/v1/account"

    def answer_from_http(self, status: int, body: bytes) -> Account:
        """Return the account."""
        data = _object(_parsed(body), "the answer")
        key, limits = _optional(data, "key", dict) or {}, _field(data, "limits", dict)
        credit, usage = _optional(data, "credit", dict) or {}, _optional(data, "usage", dict)
        return Account(
            keys_required=_field(data, "keys_required", bool),
            key_id=_optional(key, "id", str),
            name=_optional(key, "name", str),
            expires_at=_time(key, "expires_at"),
            scopes=tuple(_field(data, "scopes", list)),
            requests_per_minute=_optional(limits, "requests_per_minute", int),
            documents_per_minute=_optional(limits, "documents_per_minute", int),
            balance_usd=_optional(data, "balance", float),
            granted_usd=_optional(credit, "granted", float),
            spent_usd=_optional(credit, "spent", float),
            reserved_usd=_optional(credit, "reserved", float),
            today=None if usage is None else self._spent(usage, "today"),
            total=None if usage is None else self._spent(usage, "total"),
        )

    def _spent(self, usage: dict[str, Any], name: str) -> Spent:
        sums = _field(usage, name, dict)
        requests, documents, tokens = (_field(sums, count, int) for count in ("requests", "documents", "tokens"))
        return Spent(requests, documents, tokens, _field(sums, "cost_usd", float))


def rerank_from_arguments(query: str, documents: Iterable[str], **options: Unpack[RerankOptions]) -> Rerank:
    """Build the operation from the arguments of a caller.

    Args:
        query: The text to rank the documents for.
        documents: Any iterable of strings; read once.
        options: See RerankOptions.

    Raises:
        TypeError: The documents are one string (which would be ranked letter by letter), or no iterable; or there is no
            such option.
    """
    if isinstance(documents, (str, bytes, Mapping)) or not isinstance(documents, Iterable):
        raise TypeError(f"documents is {type(documents).__name__}; pass a list (or any iterable) of strings")
    return Rerank(query, list(documents), **options)


def _parsed(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidResponse(f"the answer is not JSON ({error}): {body[:80]!r}; is this a crossrank server?") from None


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidResponse(f"{name} is {value!r:.80}, not an object; is this a crossrank server?")
    return value


def _field(data: dict[str, Any], name: str, kind: type[Kind]) -> Kind:
    value = data.get(name)
    # In Python True is an int, in JSON true is no number; and 1 is accepted for 1.0.
    if isinstance(value, bool) and kind is not bool:
        raise _unexpected(name, value, kind)
    if kind is float and isinstance(value, int):
        value = float(value)
    if not isinstance(value, kind):
        raise _unexpected(name, value, kind)
    return value


def _optional(data: dict[str, Any], name: str, kind: type[Kind]) -> Kind | None:
    return None if data.get(name) is None else _field(data, name, kind)


def _time(data: dict[str, Any], name: str) -> datetime | None:
    text = _optional(data, name, str)
    try:
        return None if text is None else datetime.fromisoformat(text)
    except ValueError:
        raise _unexpected(name, text, datetime) from None


def _unexpected(name: str, value: Any, kind: type) -> InvalidResponse:
    return InvalidResponse(f"the answer has {name} = {value!r:.80}, expected {kind.__name__}")
