"""Rank a retriever's documents in a Haystack pipeline. Needs: pip install crossrank haystack-ai."""

from haystack import Document, Pipeline
from haystack.components.retrievers.in_memory import InMemoryBM25Retriever
from haystack.document_stores.in_memory import InMemoryDocumentStore

from crossrank.integrations.haystack import CrossrankRanker

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

store = InMemoryDocumentStore()
store.write_documents([Document(content=text) for text in texts])
pipeline = Pipeline()
pipeline.add_component("retriever", InMemoryBM25Retriever(store))
pipeline.add_component("ranker", CrossrankRanker("builtin", top_k=2))
pipeline.connect("retriever", "ranker")

for document in pipeline.run({"retriever": {"query": query}, "ranker": {"query": query}})["ranker"]["documents"]:
    print(f"{document.score:.4f}", document.content)
