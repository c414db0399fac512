"""FlashRank's Ranker on a plain ONNX export of the weights."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

# It loads only models that it knows by name, from a directory of that name; these weights take this one's place.
_STANDS_FOR = "ms-marco-TinyBERT-L-2-v2"
_LARGEST_BELOW_1 = 1 - 2.0**-24  # of float32, in which it computes


class System:
    """See `__main__`. It scores all documents in one batch and lets ONNX Runtime choose the threads: one a core."""

    packages = ("flashrank", "onnxruntime", "tokenizers")
    precision = "float32"

    def __init__(self, onnx: str, max_length: int, **_: Any) -> None:
        from flashrank import Ranker
        from flashrank.Config import model_file_map

        self.settings: list[dict[str, int]] = [{}]
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder) / _STANDS_FOR
            home.mkdir()
            for file in Path(onnx).iterdir():
                name = model_file_map[_STANDS_FOR] if file.suffix == ".onnx" else file.name
                (home / name).symlink_to(file)
            self._ranker = Ranker(_STANDS_FOR, cache_dir=folder, max_length=max_length, log_level="WARNING")

    def score(self, query: str, documents: list[str], setting: dict[str, int]) -> list[float]:
        """Return logits, from the sigmoids that it gives."""
        from flashrank import RerankRequest

        passages = [{"id": number, "text": text} for number, text in enumerate(documents)]
        scores = [0.0] * len(documents)
        for passage in self._ranker.rerank(RerankRequest(query=query, passages=passages)):
            sigmoid = min(float(passage["score"]), _LARGEST_BELOW_1)
            scores[passage["id"]] = math.log(sigmoid) - math.log1p(-sigmoid)
        return scores
