"""voyageai: sync and async."""

from __future__ import annotations

import asyncio

import voyageai


def _hits(response):
    return [[r.index, r.relevance_score, r.document] for r in response.results]


def rerank(base_url, key, query, documents, model, top_n=None, truncation=True, max_retries=0):
    client = voyageai.Client(key, base_url=f"{base_url}/v1", max_retries=max_retries)
    return _hits(client.rerank(query, documents, model, top_k=top_n, truncation=truncation))


def arerank(base_url, key, query, documents, model, top_n=None):
    client = voyageai.AsyncClient(key, base_url=f"{base_url}/v1")
    return _hits(asyncio.run(client.rerank(query, documents, model, top_k=top_n)))


def total_tokens(base_url, key, query, documents, model):
    return voyageai.Client(key, base_url=f"{base_url}/v1").rerank(query, documents, model).total_tokens
