"""litellm: one provider after the other, sync and async."""

from __future__ import annotations

import asyncio

import litellm

litellm.suppress_debug_info = True


def _hits(response):
    return [[r["index"], r["relevance_score"], (r.get("document") or {}).get("text")] for r in response.results]


def rerank(provider, base_url, key, query, documents, model, top_n=None, **options):
    return _hits(
        litellm.rerank(
            model=f"{provider}/{model}",
            api_base=base_url,
            api_key=key,
            query=query,
            documents=documents,
            top_n=top_n,
            **options,
        )
    )


def arerank(provider, base_url, key, query, documents, model, top_n=None, **options):
    return _hits(
        asyncio.run(
            litellm.arerank(
                model=f"{provider}/{model}",
                api_base=base_url,
                api_key=key,
                query=query,
                documents=documents,
                top_n=top_n,
                **options,
            )
        )
    )
