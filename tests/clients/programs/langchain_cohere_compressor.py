"""langchain-cohere: its document compressor."""

from __future__ import annotations

import asyncio

from langchain_cohere import CohereRerank
from langchain_core.documents import Document


def _compressor(base_url, key, model, top_n):
    return CohereRerank(base_url=base_url, cohere_api_key=key, model=model, top_n=top_n)


def _documents(texts):
    return [Document(page_content=text, metadata={"position": i}) for i, text in enumerate(texts)]


def _hits(documents):
    return [[d.metadata["position"], d.metadata["relevance_score"], d.page_content] for d in documents]


def compress(base_url, key, query, documents, model, top_n=None):
    return _hits(_compressor(base_url, key, model, top_n).compress_documents(_documents(documents), query))


def acompress(base_url, key, query, documents, model, top_n=None):
    compressor = _compressor(base_url, key, model, top_n)
    return _hits(asyncio.run(compressor.acompress_documents(_documents(documents), query)))
