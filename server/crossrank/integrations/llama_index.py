"""Rerank nodes with a CrossEncoder in LlamaIndex, as a node postprocessor."""

from __future__ import annotations

from typing import Any

from llama_index.core.bridge.pydantic import Field
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle

from crossrank.cross_encoder import CrossEncoder

_dispatcher = get_dispatcher(__name__)


class CrossrankRerank(BaseNodePostprocessor):
    """Keep the `top_n` nodes that answer the query best, best first, with the model's scores.

    The text of a node is the text that LlamaIndex would embed: with all metadata that is not excluded from embeddings.

    Attributes:
        encoder: Scores the nodes. Several postprocessors may share it.
        top_n: Number of nodes to keep.
    """

    encoder: CrossEncoder = Field(exclude=True)
    top_n: int = Field(default=2, ge=1)

    @classmethod
    def class_name(cls) -> str:
        """Return the name by which LlamaIndex identifies the component."""
        return "CrossrankRerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._begin(nodes, query_bundle)
        ranked = self.encoder.rank(query, _texts(nodes), top_k=self.top_n) if nodes else []
        return _end(nodes, ranked)

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._begin(nodes, query_bundle)
        ranked = await self.encoder.arank(query, _texts(nodes), top_k=self.top_n) if nodes else []
        return _end(nodes, ranked)

    def _begin(self, nodes: list[NodeWithScore], query: QueryBundle | None) -> str:
        if query is None:
            raise ValueError("no query to rank the nodes by; pass query_bundle or query_str")
        model_name = self.encoder.model_id
        _dispatcher.event(ReRankStartEvent(query=query, nodes=nodes, top_n=self.top_n, model_name=model_name))
        return str(query.query_str)


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _end(nodes: list[NodeWithScore], ranked: list[dict[str, Any]]) -> list[NodeWithScore]:
    kept = [NodeWithScore(node=nodes[hit["corpus_id"]].node, score=hit["score"]) for hit in ranked]
    _dispatcher.event(ReRankEndEvent(nodes=kept))
    return kept
