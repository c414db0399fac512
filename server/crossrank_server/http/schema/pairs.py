"""Read requests of pairs: vLLM's names for their two sides, and how the sides are matched."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from crossrank.errors import InvalidRequest
from crossrank.request import ScoreRequest
from crossrank_server.http.schema.bodies import Options
from crossrank_server.http.schema.fields import Texts

# vLLM's names for the two sides of the pairs, the newest last.
_SIDES = (("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2"))


class ScoreBody(Options):
    """Pairs to score: one query with one text or a list, or two lists of the same length."""

    model_config = ConfigDict(json_schema_extra={"anyOf": [{"required": list(names)} for names in _SIDES]})

    text_1: Texts | None = Field(None, description="the query, or one for each text_2")
    text_2: Texts | None = Field(None, description="the documents")
    queries: Texts | None = Field(None, description="vLLM's newer name for text_1")
    documents: Texts | None = Field(None, description="vLLM's newer name for text_2")
    data_1: Texts | None = Field(None, description="another of vLLM's names for text_1")
    data_2: Texts | None = Field(None, description="another of vLLM's names for text_2")
    items: Texts | None = Field(None, description="another of vLLM's names for documents")

    def request(self) -> ScoreRequest:
        """Build the request to the service.

        Raises:
            InvalidRequest: A side is missing, a query is blank, or the sides do not match.
        """
        for first, second in _SIDES:
            left, right = getattr(self, first), getattr(self, second)
            if left is not None and right is not None:
                return ScoreRequest(_pairs(first, left, second, right), self.model, self.limits(), second)
        raise InvalidRequest(
            "the pairs are missing; send text_1 and text_2, or queries and documents",
            param="text_2" if self.text_1 is not None else "text_1",
            code="missing_field",
        )


def _pairs(first: str, left: list[str] | str, second: str, right: list[str] | str) -> list[tuple[str, str]]:
    lefts = [left] if isinstance(left, str) else left
    rights = [right] if isinstance(right, str) else right
    for i, query in enumerate(lefts):
        if not query.strip():
            raise InvalidRequest(f"{first}[{i}] is empty; send the text of a query", param=f"{first}[{i}]")
    if len(lefts) == 1:
        lefts = lefts * len(rights)
    if len(lefts) != len(rights):
        raise InvalidRequest(
            f"{first} has {len(lefts)} texts and {second} {len(rights)}; send one {first} for all, or as many of each",
            param=second,
        )
    return list(zip(lefts, rights, strict=True))
