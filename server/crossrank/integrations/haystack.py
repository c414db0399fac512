"""Rank documents with a CrossEncoder in Haystack, as a component of a pipeline."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

from haystack import Document, component

from crossrank.cross_encoder import CrossEncoder


@component
class CrossrankRanker:
    """Keep the `top_k` documents that answer the query best, best first, with the model's scores.

    Documents without text are scored as empty texts. Haystack loads a saved pipeline with this component only if it is
    allowed to: `Pipeline.loads(saved, allowed_modules=["crossrank.integrations.haystack"])`.

    Args:
        model: Name or directory of the model, as `CrossEncoder` takes it.
        top_k: Number of documents to keep.
        options: Further arguments of `CrossEncoder`, like `{"max_length": 256}`.

    Raises:
        ValueError: `top_k` is not positive.
    """

    def __init__(self, model: str, top_k: int = 10, options: dict[str, Any] | None = None) -> None:
        self.model = model
        self.top_k = _positive(top_k)
        self.options = options
        self._encoder: CrossEncoder | None = None

    def warm_up(self) -> None:
        """Open the model. Pipelines call this method; `run` opens the model if nobody did."""
        self._opened()

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Rank documents by how well they answer the query.

        Args:
            query: Text of the query.
            documents: The candidates. They are not changed; the scores are set on copies.
            top_k: Number of documents to keep, in place of the component's own.

        Returns:
            {"documents": the best documents, best first}

        Raises:
            ValueError: `top_k` is not positive.
        """
        kept = self._kept(top_k)
        ranked = self._opened().rank(query, _texts(documents), top_k=kept) if documents else []
        return {"documents": [replace(documents[hit["corpus_id"]], score=hit["score"]) for hit in ranked]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Rank documents like `run`, without blocking the event loop."""
        kept = self._kept(top_k)
        encoder = await asyncio.to_thread(self._opened)
        ranked = await encoder.arank(query, _texts(documents), top_k=kept) if documents else []
        return {"documents": [replace(documents[hit["corpus_id"]], score=hit["score"]) for hit in ranked]}

    def _kept(self, top_k: int | None) -> int:
        return self.top_k if top_k is None else _positive(top_k)

    def _opened(self) -> CrossEncoder:
        if self._encoder is None:
            self._encoder = CrossEncoder(self.model, **(self.options or {}))
        return self._encoder


def _texts(documents: list[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def _positive(top_k: int) -> int:
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be 1 or more")
    return top_k
