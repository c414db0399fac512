"""Rank texts in your own process. Needs: pip install crossrank."""

from crossrank import CrossEncoder

query = "how many people live in berlin"
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]

encoder = CrossEncoder("builtin")  # or a hub id, or a directory written by save_pretrained: "./my-model"
for hit in encoder.rank(query, texts):
    print(f"{hit['score']:.4f}", texts[hit["corpus_id"]])
