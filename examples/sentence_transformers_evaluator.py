"""Evaluate a CrossEncoder with sentence-transformers. Needs: pip install crossrank sentence-transformers."""

from sentence_transformers.cross_encoder.evaluation import CrossEncoderRerankingEvaluator

from crossrank import CrossEncoder

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

evaluator = CrossEncoderRerankingEvaluator([{"query": query, "positive": texts[2:], "negative": texts[:2]}])
for name, value in evaluator(CrossEncoder("builtin")).items():
    print(f"{value:.4f}", name)
