"""Score with crossrank's `CrossEncoder`, in crossrank's own environment."""

from __future__ import annotations

from typing import Any

from crossrank import CrossEncoder


class System:
    """See `__main__`."""

    packages = ("crossrank", "onnxruntime", "openvino", "tokenizers")

    def __init__(self, model: str, options: dict[str, Any], concurrency: int, **_: Any) -> None:
        self.settings = [{"concurrency": calls} for calls in sorted({1, concurrency})]
        self._encoder = CrossEncoder(model, **options)
        self.precision = self._encoder.precision

    async def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return the logits of the documents; a single caller blocks, as it has nothing else to do."""
        pairs = [(query, document) for document in documents]
        if setting["concurrency"] == 1:
            scores = self._encoder.predict(pairs, activation_fn="identity")
        else:
            scores = await self._encoder.apredict(pairs, activation_fn="identity")
        logits: list[float] = scores.tolist()
        return logits
