"""Every way in which a client of another vendor reaches a rerank server: the one table that the tests walk."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

MODEL = "crossrank-mini"
QUERY = "how many people live in berlin"
# Equal documents keep their order; the last one is over the model's window.
DOCUMENTS = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
    "Berlin is well known for its museums.",
    'Größe: 891,3 km² – „Berlin“ hat 12 Bezirke.\n\t{"text": "柏林"} 🐻',
    "The capital of Germany has about 3.5 million inhabitants. " * 80,
]


@dataclass(frozen=True)
class Reference:
    """The server's own answer, best document first.

    Attributes:
        order: Document indices.
        scores: Their sigmoid scores.
        logits: Their logits.
        total_tokens: Tokens scored.
    """

    order: list[int]
    scores: list[float]
    logits: list[float]
    total_tokens: int


@dataclass(frozen=True)
class Way:
    """One call of one client.

    Attributes:
        name: For the test's id.
        environment: Where the client is installed.
        program: The module of tests/clients/programs that calls it.
        call: The function of that module.
        route: Where the client sends the request.
        options: Further arguments of the function.
        logits: The dialect answers with logits.
        documents: The client returns the documents' texts.
        names_model: The client tells the server which model it wants.
        base: What follows the server's address in the client's base URL.
    """

    name: str
    environment: str
    program: str
    call: str
    route: str
    options: dict[str, Any] = field(default_factory=dict)
    logits: bool = False
    documents: bool = True
    names_model: bool = True
    base: str = ""


def _litellm(provider: str, route: str, **about: Any) -> list[Way]:
    return [
        Way(
            f"litellm {provider} {call}",
            "clients",
            "litellm_sdk",
            call,
            route,
            {"provider": provider, "return_documents": True, **about.get("options", {})},
            logits=about.get("logits", False),
            documents=about.get("documents", True),
            names_model=about.get("names_model", True),
            base=about.get("base", ""),
        )
        for call in ("rerank", "arerank")
    ]


WAYS = [
    *(
        Way(f"{name} {call}", environment, "cohere_sdk", call, route, documents=route == "/v1/rerank")
        for name, environment in (("cohere", "clients"), ("cohere-5", "clients-older"))
        for call, route in (
            ("v2", "/v2/rerank"),
            ("async_v2", "/v2/rerank"),
            ("v1", "/v1/rerank"),
            ("async_v1", "/v1/rerank"),
            ("v1_objects", "/v1/rerank"),
        )
    ),
    *_litellm("cohere", "/v2/rerank"),
    *_litellm("hosted_vllm", "/rerank"),
    *_litellm("jina_ai", "/v1/rerank"),
    *_litellm("huggingface", "/rerank", names_model=False),
    # It sends what jina_ai sends, unless it is given a top_n, and reads another part of the answer.
    *_litellm("voyage", "/voyage/v1/rerank", base="/voyage"),
    *_litellm("together_ai", "/rerank"),
    # It sends what hosted_vllm sends and wants strings where that wants objects.
    *_litellm("infinity", "/rerank", options={"return_documents": False}, documents=False),
    *_litellm("nvidia_nim/ranking", "/v1/ranking", logits=True),
    *_litellm("nvidia_nim", f"/v1/retrieval/{MODEL}/reranking", logits=True),
    Way("langchain-cohere", "clients-older", "langchain_cohere_compressor", "compress", "/v2/rerank"),
    Way("langchain-cohere async", "clients-older", "langchain_cohere_compressor", "acompress", "/v2/rerank"),
    *(
        Way(
            f"langchain-nvidia {call}",
            "clients",
            "langchain_nvidia_compressor",
            call,
            "/v1/ranking",
            logits=True,
        )
        for call in ("compress", "acompress")
    ),
    *(
        Way(
            f"llama-index {vendor}",
            "clients-older",
            "llama_index_postprocessors",
            vendor,
            route,
            logits=vendor == "nvidia",
            names_model=vendor != "tei",
        )
        for vendor, route in (
            ("cohere", "/v2/rerank"),
            ("jina", "/v1/rerank"),
            ("nvidia", "/v1/ranking"),
            ("siliconflow", "/v1/rerank"),
            ("tei", "/rerank"),
            ("xinference", "/v1/rerank"),
        )
    ),
    *(
        Way(f"haystack {vendor}", "clients", "haystack_rankers", vendor, route, logits=vendor == "nvidia")
        for vendor, route in (("cohere", "/v2/rerank"), ("jina", "/v1/rerank"), ("nvidia", "/v1/ranking"))
    ),
    Way("voyageai", "clients", "voyage_sdk", "rerank", "/v1/rerank"),
    Way("voyageai async", "clients", "voyage_sdk", "arerank", "/v1/rerank"),
    Way("infinity-client", "clients-older", "infinity_sdk", "rerank", "/rerank"),
    Way("infinity-client async", "clients-older", "infinity_sdk", "arerank", "/rerank"),
    Way("openai", "clients", "openai_sdk", "post", "/v1/rerank"),
    Way("openai async", "clients", "openai_sdk", "apost", "/v1/rerank"),
]
