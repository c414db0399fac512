"""llama-index: the node postprocessors of several vendors."""

from __future__ import annotations

from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.postprocessor.cohere_rerank import CohereRerank
from llama_index.postprocessor.jinaai_rerank import JinaRerank
from llama_index.postprocessor.nvidia_rerank import NVIDIARerank
from llama_index.postprocessor.siliconflow_rerank import SiliconFlowRerank
from llama_index.postprocessor.tei_rerank import TextEmbeddingInference
from llama_index.postprocessor.xinference_rerank import XinferenceRerank


def _hits(postprocessor, query, texts):
    nodes = [NodeWithScore(node=TextNode(id_=str(i), text=text)) for i, text in enumerate(texts)]
    ranked = postprocessor.postprocess_nodes(nodes, query_str=query)
    return [[int(hit.node.node_id), hit.score, hit.node.get_content()] for hit in ranked]


def cohere(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(
        CohereRerank(base_url=base_url, api_key=key, model=model, top_n=count, max_retries=1), query, documents
    )


def jina(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(JinaRerank(base_url=f"{base_url}/v1", api_key=key, model=model, top_n=count), query, documents)


def nvidia(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(NVIDIARerank(base_url=f"{base_url}/v1", api_key=key, model=model, top_n=count), query, documents)


def siliconflow(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(
        SiliconFlowRerank(base_url=f"{base_url}/v1/rerank", api_key=key, model=model, top_n=count), query, documents
    )


def tei(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(TextEmbeddingInference(base_url=base_url, auth_token=f"Bearer {key}", top_n=count), query, documents)


def xinference(base_url, key, query, documents, model, top_n=None):
    count = top_n or len(documents)
    return _hits(XinferenceRerank(base_url=base_url, model=model, top_n=count), query, documents)
