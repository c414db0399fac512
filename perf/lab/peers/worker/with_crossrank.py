"""crossrank's own service, called without HTTP: text in, scores out. Runs in crossrank's environment."""

from __future__ import annotations

from typing import Any

from crossrank.request import RerankRequest
from crossrank_server.calls import Call
from crossrank_server.serving.startup import load_service
from crossrank_server.settings import ServeSettings


class System:
    """See `__main__`."""

    packages = ("crossrank", "onnxruntime", "openvino", "tokenizers")

    def __init__(self, model: str, options: dict[str, Any], concurrency: int, **_: Any) -> None:
        self.settings = [{"concurrency": calls} for calls in sorted({1, concurrency})]
        self._service = load_service([model], ServeSettings(**options))
        self.precision = self._service.pool.slots[0].engine.precision

    async def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return logits."""
        ranking = await self._service.rerank(RerankRequest(query, documents), Call())
        scores: list[float] = ranking.logits.tolist()
        return scores
