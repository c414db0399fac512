"""Read the bodies of rerank requests: the options that all dialects share, and validation errors as messages."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from typing_extensions import Self

from crossrank.errors import InvalidRequest
from crossrank.request import RerankRequest, Truncation, TruncationDirection
from crossrank_server.http.schema.fields import (
    Count,
    Direction,
    Documents,
    Flag,
    ModelName,
    Names,
    PairTokens,
    Query,
    Truncate,
    shown,
)

_SIDES: dict[str | None, TruncationDirection] = {"START": "left", "END": "right"}


class Options(BaseModel):
    """The options of all dialects, under all their names. Null counts as left out; unknown fields are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=())
    _required: ClassVar[frozenset[str]] = frozenset()

    model: ModelName = Field(None, description="a served model; the first one if omitted")
    top_n: Count = Field(None, description="how many of the best to return; 0, null or a large number: all")
    top_k: Count = Field(None, description="Voyage's name for top_n")
    return_documents: Flag | None = Field(None, description="repeat the document in its result")
    return_text: Flag | None = Field(None, description="TEI's name for return_documents")
    raw_scores: Flag = Field(False, description="give logits as scores, not their sigmoid")
    use_activation: Flag = Field(True, description="vLLM: false gives logits")
    truncate: Truncate | None = Field(
        None, description="false or NONE (TEI, NIM): an error if a pair is over the window; START or END: the side cut"
    )
    truncation: Flag = Field(True, description="Voyage: false gives an error if a pair is over the window")
    truncation_direction: Direction | None = Field(
        None, description="TEI: the side of a text that is cut; by default the model's own"
    )
    truncation_side: Direction | None = Field(None, description="vLLM's name for truncation_direction")
    truncate_prompt_tokens: PairTokens = Field(None, description="vLLM: tokens of a pair at most; -1: the window")
    max_tokens_per_query: Count = Field(None, description="vLLM: tokens of the query that are read at most")
    max_tokens_per_doc: Count = Field(None, description="Cohere, vLLM: tokens of a document that are read at most")
    max_chunks_per_doc: Count = Field(
        None,
        description="Cohere: score a document over the window in up to so many chunks, the best one counts, each is"
        " billed; by default it is truncated",
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Note which fields are required, for which null is an error."""
        cls._required = frozenset(name for name, field in cls.model_fields.items() if field.is_required())

    @classmethod
    def read(cls, data: dict[str, Any], max_documents: int | None = None) -> Self:
        """Return the fields of a JSON object.

        Args:
            data: The object.
            max_documents: Limit of each list of texts, which is checked before its texts are; the service checks all of
                them together. None has no limit.

        Raises:
            InvalidRequest: A field is missing or cannot be used; `param` names it.
        """
        try:
            return cls.model_validate(
                {name: value for name, value in data.items() if value is not None or name in cls._required},
                context=max_documents,
            )
        except ValidationError as error:
            raise _invalid(error) from None

    @property
    def returned(self) -> int | None:
        """Number of results to return; None is all."""
        return self.top_n or self.top_k

    @property
    def raw(self) -> bool:
        """Whether scores are logits."""
        return self.raw_scores or not self.use_activation

    def with_documents(self, default: bool = False) -> bool:
        """Tell whether results repeat their documents."""
        asked = self.return_documents if self.return_documents is not None else self.return_text
        return default if asked is None else asked

    def limits(self) -> Truncation:
        """Return the truncation of the request."""
        side = self.truncation_direction or self.truncation_side
        return Truncation(
            allowed=self.truncation and self.truncate != "NONE",
            direction=side or _SIDES.get(self.truncate),
            max_tokens=self.truncate_prompt_tokens,
            max_tokens_per_query=self.max_tokens_per_query,
            max_tokens_per_doc=self.max_tokens_per_doc,
            max_chunks_per_doc=self.max_chunks_per_doc or 1,
        )

    def rerank_request(self, query: str, documents: list[str], field: str) -> RerankRequest:
        """Build the request to the service; `field` is the dialect's name of the documents."""
        return RerankRequest(query, documents, self.model, self.returned, self.limits(), field)


class RerankBody(Options):
    """Documents to order by how well they answer a query."""

    query: Query = Field(description="what to rank the documents for", examples=["how many people live in berlin"])
    rank_fields: Names | None = Field(
        None, description="Cohere: fields of document objects to rank on, in this order; text if omitted"
    )
    documents: Documents = Field(
        description="the candidates: strings, or objects with a text",
        examples=[["Berlin has 3.5 million inhabitants.", "Berlin is known for its museums."]],
    )

    def request(self) -> RerankRequest:
        """Build the request to the service."""
        return self.rerank_request(self.query, self.documents, "documents")


def body_schema(*bodies: type[Options]) -> dict[str, Any]:
    """Return the OpenAPI part of a route that reads one of these bodies, which `body_components` describes."""
    references = [{"$ref": f"#/components/schemas/{body.__name__}"} for body in bodies]
    schema = references[0] if len(references) == 1 else {"anyOf": references}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def body_components() -> dict[str, Any]:
    """Return the JSON schemas of the bodies of all dialects, by name."""
    return {body.__name__: body.model_json_schema() for body in Options.__subclasses__()}


def _invalid(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][0])
    if first["type"] == "missing":
        return InvalidRequest(f"{field} is missing; it is required", param=field, code="missing_field")
    if first["type"] == "problem":
        problem = first["ctx"]
        return InvalidRequest(problem["text"], param=field + problem["place"], code=problem["code"])
    return InvalidRequest(f"{field} is {shown(first['input'])}; send true or false", param=field)
