"""Rerank a retriever's results with BEIR. Needs: pip install crossrank beir."""

from beir.reranking import Rerank

from crossrank import CrossEncoder

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]
corpus = {str(i): {"title": "", "text": text} for i, text in enumerate(texts)}
retrieved = {"q": {"0": 12.5, "1": 3.0, "2": 9.1}}

reranked = Rerank(CrossEncoder("builtin")).rerank(corpus, {"q": query}, retrieved, top_k=100)
for number, score in sorted(reranked["q"].items(), key=lambda found: -found[1]):
    print(f"{score:.4f}", corpus[number]["text"])
