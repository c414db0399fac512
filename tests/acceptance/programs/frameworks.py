"""LangChain, LlamaIndex, Haystack and PyTerrier, ranking with crossrank as their users have them do it."""

from __future__ import annotations

import asyncio

import pandas as pd
import pyterrier as pt
from example import run_example
from haystack import Document, Pipeline
from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_classic.retrievers.document_compressors import CrossEncoderReranker
from langchain_core.documents import Document as LangChainDocument
from langchain_core.retrievers import BaseRetriever
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, TextNode

from crossrank import CrossEncoder
from crossrank.integrations.haystack import CrossrankRanker
from crossrank.integrations.langchain import CrossrankCrossEncoder
from crossrank.integrations.llama_index import CrossrankRerank

__all__ = ["run_example"]

encoder = CrossEncoder("builtin", precision="fp32")


class Everything(BaseRetriever):
    """Finds all texts for any query."""

    texts: list[str]

    def _get_relevant_documents(self, query, *, run_manager):
        return [LangChainDocument(page_content=text, metadata={"position": i}) for i, text in enumerate(self.texts)]


def _langchain(texts, top_n):
    reranker = CrossEncoderReranker(model=CrossrankCrossEncoder(encoder), top_n=top_n)
    return ContextualCompressionRetriever(base_compressor=reranker, base_retriever=Everything(texts=texts))


def langchain(query, texts, top_n):
    return [document.metadata["position"] for document in _langchain(texts, top_n).invoke(query)]


def langchain_async(query, texts, top_n):
    return [document.metadata["position"] for document in asyncio.run(_langchain(texts, top_n).ainvoke(query))]


def langchain_scores(pairs):
    return CrossrankCrossEncoder(encoder).score([tuple(pair) for pair in pairs])


def _nodes(texts):
    return [
        NodeWithScore(node=TextNode(text=text, metadata={"position": i}, **_HIDDEN)) for i, text in enumerate(texts)
    ]


_HIDDEN = {"excluded_embed_metadata_keys": ["position"]}


def _hits(nodes):
    return [[node.metadata["position"], node.score] for node in nodes]


def llama_index(query, texts, top_n):
    return _hits(CrossrankRerank(encoder=encoder, top_n=top_n).postprocess_nodes(_nodes(texts), query_str=query))


def llama_index_async(query, texts, top_n):
    rerank = CrossrankRerank(encoder=encoder, top_n=top_n)
    return _hits(asyncio.run(rerank.apostprocess_nodes(_nodes(texts), query_str=query)))


def llama_index_with_title(query, title, text):
    """Return the score of a node whose title LlamaIndex puts before its text, and the text that it makes of both."""
    node = TextNode(text=text, metadata={"title": title})
    [hit] = CrossrankRerank(encoder=encoder).postprocess_nodes([NodeWithScore(node=node)], query_str=query)
    return [hit.score, node.get_content(metadata_mode="embed")]


def llama_index_events(query, texts):
    """Return the names of the events that LlamaIndex's instrumentation is told."""
    seen = []

    class Seen(BaseEventHandler):
        def handle(self, event, **_):
            seen.append(event.class_name())

    handler = Seen()
    root = get_dispatcher()
    root.add_event_handler(handler)
    llama_index(query, texts, 1)
    root.event_handlers.remove(handler)
    return seen


def llama_index_without_query(texts):
    CrossrankRerank(encoder=encoder).postprocess_nodes(_nodes(texts))


def _pipeline(top_k):
    pipeline = Pipeline()
    pipeline.add_component("ranker", CrossrankRanker("builtin", top_k=top_k, options={"precision": "fp32"}))
    return pipeline


def _given(query, texts):
    return {
        "ranker": {"query": query, "documents": [Document(id=str(i), content=text) for i, text in enumerate(texts)]}
    }


def _documents(result):
    return [[int(document.id), document.score] for document in result["ranker"]["documents"]]


def haystack(query, texts, top_k):
    return _documents(_pipeline(top_k).run(_given(query, texts)))


def haystack_async(query, texts, top_k):
    return _documents(asyncio.run(_pipeline(top_k).run_async(_given(query, texts))))


def haystack_saved_and_loaded(query, texts, top_k):
    loaded = Pipeline.loads(_pipeline(top_k).dumps(), allowed_modules=["crossrank.integrations.haystack"])
    return _documents(loaded.run(_given(query, texts)))


def haystack_run(query, texts, **options):
    """Rank with the component alone; say also whether the documents given still have no score."""
    documents = _given(query, texts)["ranker"]["documents"]
    ranked = CrossrankRanker("builtin", options={"precision": "fp32"}).run(query=query, documents=documents, **options)
    return [_documents({"ranker": ranked}), all(document.score is None for document in documents)]


def pyterrier(topics, texts, qrels):
    """Rank each topic's texts, then let pt.Experiment measure it; return both."""
    rerank = pt.apply.doc_score(lambda rows: encoder.predict(rows[["query", "text"]].values.tolist()), batch_size=4)
    rows = [
        {"qid": qid, "query": query, "docno": str(i), "text": text, "score": 0.0}
        for qid, query in topics.items()
        for i, text in enumerate(texts)
    ]
    found = pt.model.add_ranks(pd.DataFrame(rows))
    ranked = rerank(found).sort_values(["qid", "rank"])
    judged = pd.DataFrame(
        [{"qid": qid, "docno": docno, "label": 1} for qid, docnos in qrels.items() for docno in docnos]
    )
    topics = pd.DataFrame([{"qid": qid, "query": query} for qid, query in topics.items()])
    measured = pt.Experiment([pt.Transformer.from_df(found) >> rerank], topics, judged, ["ndcg_cut_10", "recip_rank"])
    empty = rerank(found.head(0))
    return {
        "ranked": {
            qid: [[int(row.docno), row.score] for row in part.itertuples()] for qid, part in ranked.groupby("qid")
        },
        "measured": measured[["ndcg_cut_10", "recip_rank"]].iloc[0].tolist(),
        "rows of nothing": len(empty),
    }
