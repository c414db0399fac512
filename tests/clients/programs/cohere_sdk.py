"""cohere: both generations of its API, each sync and async."""

from __future__ import annotations

import asyncio

import cohere


def _hits(response):
    return [
        [r.index, r.relevance_score, r.document.text if getattr(r, "document", None) else None]
        for r in response.results
    ]


def v2(base_url, key, query, documents, model, top_n=None, max_retries=0):
    client = cohere.ClientV2(key, base_url=base_url)
    options = {"max_retries": max_retries}
    return _hits(client.rerank(model=model, query=query, documents=documents, top_n=top_n, request_options=options))


def v1(base_url, key, query, documents, model, top_n=None, max_retries=0):
    client = cohere.Client(key, base_url=base_url)
    return _hits(
        client.rerank(
            model=model,
            query=query,
            documents=documents,
            top_n=top_n,
            return_documents=True,
            request_options={"max_retries": max_retries},
        )
    )


def v1_objects(base_url, key, query, documents, model, top_n=None):
    """Documents as objects with more fields than the text."""
    documents = [{"text": text, "title": "not ranked"} for text in documents]
    client = cohere.Client(key, base_url=base_url)
    return _hits(client.rerank(model=model, query=query, documents=documents, top_n=top_n, return_documents=True))


def v1_fields(base_url, key, query, documents, model, fields):
    """Objects of which some fields are ranked."""
    client = cohere.Client(key, base_url=base_url)
    return _hits(client.rerank(model=model, query=query, documents=documents, rank_fields=fields))


def async_v2(base_url, key, query, documents, model, top_n=None):
    async def ask():
        async with cohere.AsyncClientV2(key, base_url=base_url) as client:
            return await client.rerank(model=model, query=query, documents=documents, top_n=top_n)

    return _hits(asyncio.run(ask()))


def async_v1(base_url, key, query, documents, model, top_n=None):
    async def ask():
        async with cohere.AsyncClient(key, base_url=base_url) as client:
            return await client.rerank(
                model=model, query=query, documents=documents, top_n=top_n, return_documents=True
            )

    return _hits(asyncio.run(ask()))


def meta(base_url, key, query, documents, model):
    """What the SDK makes of the answer's id and meta."""
    response = cohere.ClientV2(key, base_url=base_url).rerank(model=model, query=query, documents=documents)
    return {
        "id": response.id,
        "api_version": response.meta.api_version.version if response.meta.api_version else None,
        "search_units": response.meta.billed_units.search_units if response.meta.billed_units else None,
    }
