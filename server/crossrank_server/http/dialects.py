"""Choose the dialect of a rerank request: which vendor's client sent it, and what that client reads of the answer.

The path decides; where several vendors have the same path, a field that only one of them declares does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Dialect:
    """What the clients of one vendor expect of an answer.

    Attributes:
        name: The vendor.
        api_version: Cohere's `meta.api_version`.
        results_in_data: The client reads the results under `data`, which then repeats `results`.
        returns_documents: Results repeat their documents unless the request says otherwise.
        documents_as_strings: A repeated document is a string, not an object with a text.
    """

    name: str
    api_version: str = "1"
    results_in_data: bool = False
    returns_documents: bool = False
    documents_as_strings: bool = False


COHERE = Dialect("Cohere, Jina")
COHERE_2 = Dialect("Cohere 2", api_version="2")
VLLM = Dialect("vLLM", returns_documents=True)
INFINITY = Dialect("infinity", returns_documents=True, documents_as_strings=True)
VOYAGE = Dialect("Voyage", results_in_data=True)
VOYAGE_BESIDE_VLLM = Dialect("Voyage", results_in_data=True, returns_documents=True)

# By path: the dialect of a request that declares no field of another one, and those that a field decides for, in order.
# Beside the vendors' own paths there are those that clients make of a base URL that ends in /v1, llama.cpp's names, and
# that of OpenVINO Model Server.
_VOYAGE_FIELDS = ("truncation", "top_k")
_VOYAGE_BY_FIELD = tuple((name, VOYAGE) for name in _VOYAGE_FIELDS)
_BY_PATH: dict[str, tuple[Dialect, tuple[tuple[str, Dialect], ...]]] = {
    "/v1/rerank": (COHERE, _VOYAGE_BY_FIELD),
    "/v2/rerank": (COHERE_2, ()),
    # Voyage's client with a base URL that does not end in /v1 comes here too.
    "/rerank": (VLLM, (("raw_scores", INFINITY), *((name, VOYAGE_BESIDE_VLLM) for name in _VOYAGE_FIELDS))),
    # For those of Voyage's clients that do not send a field of its own, such as litellm's.
    "/voyage/v1/rerank": (VOYAGE, ()),
    "/v1/v1/rerank": (COHERE, _VOYAGE_BY_FIELD),
    "/v1/v2/rerank": (COHERE_2, ()),
    "/v1/reranking": (COHERE, _VOYAGE_BY_FIELD),
    "/reranking": (COHERE, _VOYAGE_BY_FIELD),
    "/v3/rerank": (COHERE, _VOYAGE_BY_FIELD),
}
PATHS = tuple(_BY_PATH)
DOCUMENTED_PATHS = PATHS[:4]


def dialect_of(path: str, declared: Collection[str]) -> Dialect:
    """Return the dialect of a request.

    Args:
        path: One of PATHS.
        declared: The names of the fields that it sets; null is as good as left out.
    """
    default, by_field = _BY_PATH[path]
    return next((dialect for name, dialect in by_field if name in declared), default)
