"""infinity-client: sync and async."""

from __future__ import annotations

import asyncio

from infinity_client import AuthenticatedClient
from infinity_client.api.default import health as health_route
from infinity_client.api.default import models as models_route
from infinity_client.api.default import rerank as rerank_route
from infinity_client.models import RerankInput


def _client(base_url, key):
    return AuthenticatedClient(base_url=base_url, token=key, raise_on_unexpected_status=True)


def _input(query, documents, model, top_n):
    named = {} if model is None else {"model": model}
    return RerankInput(query=query, documents=documents, top_n=top_n, return_documents=True, **named)


def _hits(answer):
    return [[r.index, r.relevance_score, r.document] for r in answer.results]


def rerank(base_url, key, query, documents, model, top_n=None):
    return _hits(rerank_route.sync(client=_client(base_url, key), body=_input(query, documents, model, top_n)))


def arerank(base_url, key, query, documents, model, top_n=None):
    body = _input(query, documents, model, top_n)
    return _hits(asyncio.run(rerank_route.asyncio(client=_client(base_url, key), body=body)))


def health(base_url, key):
    return health_route.sync_detailed(client=_client(base_url, key)).status_code


def models(base_url, key):
    return [model.id for model in models_route.sync(client=_client(base_url, key)).data]
