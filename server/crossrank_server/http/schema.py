"""The rerank schema: what a request may hold, and how an answer looks.

Common core of the rerank APIs in use (Jina, vLLM, Cohere v1, infinity): `model, query, documents, top_n` in,
`results[{index, relevance_score}]` sorted by falling score out.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from crossrank_server.errors import InvalidRequest
from crossrank_server.request import RerankRequest


class Problem(PydanticCustomError):
    """A value that a validator refuses; the text is the whole message, remedy included."""

    def __new__(cls, text: str, param: str = "") -> Problem:
        """Carry text and, below the field, the place (`[3]`) through pydantic's machinery."""
        return super().__new__(cls, "problem", "{text}", {"text": text, "param": param})


def _text(value: Any, where: str, place: str = "") -> str:
    if not isinstance(value, str):
        raise Problem(f"{where} is {shown(value)}; send a string", place)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise Problem(
            f"{where} holds the lone surrogate \\u{ord(value[error.start]):04x} at character {error.start}; "
            "send valid Unicode (a surrogate is only half of a character)",
            place,
        ) from None
    return value


def _query(value: Any) -> str:
    query = _text(value, "query")
    if not query.strip():
        raise Problem("query is empty; send the text to rank the documents for")
    return query


def _documents(value: Any) -> list[str]:
    if not isinstance(value, list):
        raise Problem(f"documents is {shown(value)}; send a list of strings or of objects with a text")
    if not value:
        raise Problem("documents is an empty list; send at least 1 document")
    texts = []
    for i, document in enumerate(value):
        text = document.get("text") if isinstance(document, dict) else document
        if isinstance(document, dict) and not isinstance(text, str):
            found = f"has the text {shown(text)}" if "text" in document else "has no text"
            raise Problem(f'documents[{i}] {found}; send a string or {{"text": "..."}}', f"[{i}]")
        if not isinstance(text, str):
            raise Problem(f'documents[{i}] is {shown(text)}; send a string or {{"text": "..."}}', f"[{i}]")
        texts.append(_text(text, f"documents[{i}]", f"[{i}]"))
    return texts


def _top_n(value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise Problem(f"top_n is {shown(value)}; send a whole number, or leave it out for all documents")
    if value < 0:
        raise Problem(f"top_n is {value}; send 0 or more (0, null and more than there are documents mean all)")
    return value


def _flag(value: Any) -> bool:
    return False if value is None else value


def _model(value: Any) -> str | None:
    return None if value is None else _text(value, "model")


_DOCUMENT_SCHEMA = {
    "type": "array",
    "minItems": 1,
    "items": {
        "anyOf": [
            {"type": "string"},
            {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        ]
    },
}


class RerankBody(BaseModel):
    """Documents to order by how well they answer a query. Unknown fields are ignored, as clients send many."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())

    query: Annotated[str, BeforeValidator(_query), WithJsonSchema({"type": "string", "minLength": 1})] = Field(
        description="what to rank the documents for", examples=["how many people live in berlin"]
    )
    documents: Annotated[list[str], BeforeValidator(_documents), WithJsonSchema(_DOCUMENT_SCHEMA)] = Field(
        description="the candidates: strings, or objects with a text",
        examples=[["Berlin has 3.5 million inhabitants.", "Berlin is known for its museums."]],
    )
    model: Annotated[str | None, BeforeValidator(_model)] = Field(
        None, description="a served model; the first one if omitted"
    )
    top_n: Annotated[int | None, BeforeValidator(_top_n)] = Field(
        None, description="how many of the best to return; 0, null or a large number: all"
    )
    return_documents: Annotated[StrictBool, BeforeValidator(_flag)] = Field(
        False, description="repeat the text of each document in its result"
    )
    raw_scores: Annotated[StrictBool, BeforeValidator(_flag)] = Field(
        False, description="give logits as relevance_score, not their sigmoid"
    )

    def request(self) -> RerankRequest:
        """Return what is asked for, without what concerns only the answer's form."""
        return RerankRequest(self.query, self.documents, model=self.model, top_n=self.top_n)


class DocumentText(BaseModel):
    """A document, as an object because most clients break on a plain string here."""

    text: str


class Result(BaseModel):
    """One ranked document."""

    index: int = Field(description="its position in the request")
    relevance_score: float = Field(description="sigmoid of the logit, in float64; the logit with raw_scores")
    document: DocumentText | None = None


class Usage(BaseModel):
    """Tokens scored, special tokens included; the query counts once for each document."""

    prompt_tokens: int
    total_tokens: int


class Meta(BaseModel):
    """What did not fit the model's window and was cut off before scoring."""

    truncated_documents: list[int] = Field(description="indices of the documents that were truncated")
    query_truncated: bool = Field(description="whether the query, longer than half of the window, was truncated too")


class RerankResponse(BaseModel):
    """The documents by falling relevance; equal ones in the order of the request."""

    id: str
    model: str
    results: list[Result]
    usage: Usage
    meta: Meta


class ErrorDetail(BaseModel):
    """What went wrong, in the form of OpenAI's API."""

    message: str = Field(description="the value, the limit and the remedy")
    type: str
    param: str | None = Field(description="the field at fault, such as documents[3]")
    code: str
    retry_after_s: float | None = None


class ErrorResponse(BaseModel):
    """Every error has this body."""

    error: ErrorDetail
    message: str = Field(description="the same message, where Cohere's clients look for it")
    detail: str = Field(description="the same message, where Jina's and Voyage's clients look for it")


def parse_rerank(data: dict[str, Any]) -> RerankBody:
    """Read the fields of a request.

    Raises:
        InvalidRequest: A field is missing or cannot be used; `param` names it.
    """
    try:
        return RerankBody.model_validate(data)
    except ValidationError as error:
        raise _invalid(error) from None


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing; it is required", param=field, code="missing_field")
    if first["type"] == "problem":
        return InvalidRequest(first["ctx"]["text"], param=field + first["ctx"]["param"])
    return InvalidRequest(f"{field} is {shown(first['input'])}; send true or false", param=field)


def shown(value: Any) -> str:
    """Describe a JSON value in an error message, short."""
    if value is None:
        return "null"
    if isinstance(value, (bool, int, float)):
        return json.dumps(value)
    if isinstance(value, str):
        return "the string " + json.dumps(value if len(value) <= 40 else value[:40] + "...")
    return "a list" if isinstance(value, list) else "an object"
