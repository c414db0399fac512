"""infinity-emb's asynchronous engine on torch."""

from __future__ import annotations

from typing import Any


class System:
    """See `__main__`. A batch size is part of its engine, which is started anew for each."""

    packages = ("infinity-emb", "torch", "transformers", "sentence-transformers")

    def __init__(self, checkpoint: str, threads: int, batch_sizes: list[int], concurrency: int, **_: Any) -> None:
        import torch

        torch.set_num_threads(threads)
        self.settings = [
            {"batch_size": size, "concurrency": calls} for size in batch_sizes for calls in sorted({1, concurrency})
        ]
        self._checkpoint = checkpoint
        self._engine: Any = None
        self._batch_size = 0
        self.precision = "float32"

    async def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return logits."""
        if setting["batch_size"] != self._batch_size:
            await self._start(setting["batch_size"])
        ranked, _ = await self._engine.rerank(query=query, docs=documents, raw_scores=True)
        scores = [0.0] * len(documents)
        for each in ranked:
            scores[each.index] = each.relevance_score
        return scores

    async def _start(self, batch_size: int) -> None:
        from infinity_emb import AsyncEmbeddingEngine, EngineArgs

        if self._engine is not None:
            await self._engine.astop()
        # Set before the first wait, or calls side by side would each start one.
        self._batch_size = batch_size
        self._engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(model_name_or_path=self._checkpoint, batch_size=batch_size, engine="torch", device="cpu")
        )
        await self._engine.astart()
