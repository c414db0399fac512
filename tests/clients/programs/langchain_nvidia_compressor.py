"""langchain-nvidia-ai-endpoints: its document compressor, pointed at a NIM of one's own."""

from __future__ import annotations

import asyncio

from langchain_core.documents import Document
from langchain_nvidia_ai_endpoints import NVIDIARerank


def _compressor(base_url, key, model, count, **options):
    return NVIDIARerank(base_url=f"{base_url}/v1", api_key=key, model=model, top_n=count, **options)


def _documents(texts):
    return [Document(page_content=text, metadata={"position": i}) for i, text in enumerate(texts)]


def _hits(documents):
    return [[d.metadata["position"], d.metadata["relevance_score"], d.page_content] for d in documents]


def compress(base_url, key, query, documents, model, top_n=None, **options):
    compressor = _compressor(base_url, key, model, top_n or len(documents), **options)
    return _hits(compressor.compress_documents(_documents(documents), query))


def acompress(base_url, key, query, documents, model, top_n=None):
    compressor = _compressor(base_url, key, model, top_n or len(documents))
    return _hits(asyncio.run(compressor.acompress_documents(_documents(documents), query)))


def default_model(base_url, key):
    """The model that is taken when none is named: the first one listed."""
    return _compressor(base_url, key, None, 1).model


def available_models(base_url, key, model):
    return [entry.id for entry in _compressor(base_url, key, model, 1).available_models]
