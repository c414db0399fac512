"""openai: models, and its generic post, as it has no method for reranking."""

from __future__ import annotations

import asyncio

import openai


def _client(base_url, key, max_retries=0):
    return openai.OpenAI(api_key=key, base_url=f"{base_url}/v1", max_retries=max_retries)


def _body(query, documents, model, top_n):
    return {"query": query, "documents": documents, "model": model, "top_n": top_n, "return_documents": True}


def _hits(answer):
    return [[r["index"], r["relevance_score"], r["document"]["text"]] for r in answer["results"]]


def post(base_url, key, query, documents, model, top_n=None, max_retries=0):
    client = _client(base_url, key, max_retries)
    return _hits(client.post("/rerank", body=_body(query, documents, model, top_n), cast_to=dict))


def apost(base_url, key, query, documents, model, top_n=None):
    async def ask():
        async with openai.AsyncOpenAI(api_key=key, base_url=f"{base_url}/v1", max_retries=0) as client:
            return await client.post("/rerank", body=_body(query, documents, model, top_n), cast_to=dict)

    return _hits(asyncio.run(ask()))


def models(base_url, key):
    return [
        model.model_dump(include={"id", "object", "created", "owned_by"})
        for model in _client(base_url, key).models.list()
    ]


def model(base_url, key, name):
    return _client(base_url, key).models.retrieve(name).model_dump(include={"id", "object", "created", "owned_by"})


def fault(base_url, key, query, documents, model):
    """The fields of the exception that the SDK makes of a refusal."""
    try:
        post(base_url, key, query, documents, model)
    except openai.APIStatusError as error:
        return {
            "status": error.status_code,
            "type": error.type,
            "param": error.param,
            "code": error.code,
            "request_id": error.request_id,
        }
    raise RuntimeError("the request was not refused")
