"""Rank for many users at once: calls share batches and never block the event loop. Needs: pip install crossrank."""

import asyncio

from crossrank import CrossEncoder

queries = ["how many people live in berlin", "what is berlin known for", "why was the motorway closed"]
texts = [
    "Berlin is well known for its museums.",
    "The motorway was closed on Sunday.",
    "Berlin had a population of 3,520,031 registered inhabitants in 2016.",
]


async def main() -> None:
    """Print the best text for each query."""
    with CrossEncoder("builtin") as encoder:
        answers = await asyncio.gather(*(encoder.arank(query, texts, top_k=1) for query in queries))
    for query, [best] in zip(queries, answers, strict=True):
        print(f"{best['score']:.4f} {query}: {texts[best['corpus_id']]}")


asyncio.run(main())
