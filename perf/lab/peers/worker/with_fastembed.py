"""fastembed's TextCrossEncoder on a plain ONNX export of the weights, registered as a model of one's own."""

from __future__ import annotations

from typing import Any

_NAME = "benchmark/cross-encoder"


class System:
    """See `__main__`."""

    packages = ("fastembed", "onnxruntime", "tokenizers")
    precision = "float32"

    def __init__(self, onnx: str, threads: int, batch_sizes: list[int], **_: Any) -> None:
        from fastembed.common.model_description import ModelSource
        from fastembed.rerank.cross_encoder import TextCrossEncoder

        self.settings = [{"batch_size": size} for size in batch_sizes]
        # A source must be named; nothing is fetched where the path of a directory is given.
        TextCrossEncoder.add_custom_model(_NAME, sources=ModelSource(hf=_NAME), model_file="model.onnx")
        self._model = TextCrossEncoder(
            _NAME, threads=threads, providers=["CPUExecutionProvider"], specific_model_path=onnx
        )

    def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return logits."""
        return list(self._model.rerank(query, documents, batch_size=setting["batch_size"]))
