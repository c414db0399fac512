"""haystack: the ranker components of several vendors."""

from __future__ import annotations

from haystack import Document
from haystack.utils import Secret
from haystack_integrations.components.rankers.cohere import CohereRanker
from haystack_integrations.components.rankers.jina import JinaRanker
from haystack_integrations.components.rankers.nvidia import NvidiaRanker


def _hits(ranker, query, texts, top_n):
    documents = [Document(id=str(i), content=text) for i, text in enumerate(texts)]
    ranked = ranker.run(query=query, documents=documents, top_k=top_n or len(texts))["documents"]
    return [[int(document.id), document.score, document.content] for document in ranked]


def cohere(base_url, key, query, documents, model, top_n=None):
    ranker = CohereRanker(model=model, api_key=Secret.from_token(key), api_base_url=base_url)
    return _hits(ranker, query, documents, top_n)


def jina(base_url, key, query, documents, model, top_n=None):
    ranker = JinaRanker(model=model, api_key=Secret.from_token(key), base_url=f"{base_url}/v1/rerank")
    return _hits(ranker, query, documents, top_n)


def nvidia(base_url, key, query, documents, model, top_n=None):
    ranker = NvidiaRanker(model=model, api_key=Secret.from_token(key), api_url=f"{base_url}/v1")
    return _hits(ranker, query, documents, top_n)
