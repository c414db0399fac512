"""Score with a CrossEncoder where LangChain takes a `BaseCrossEncoder`, as in `CrossEncoderReranker(model=...)`."""

from __future__ import annotations

from langchain_core.cross_encoders import BaseCrossEncoder

from crossrank.cross_encoder import CrossEncoder


class CrossrankCrossEncoder(BaseCrossEncoder):
    """Adapt CrossEncoder to LangChain's `BaseCrossEncoder`.

    Args:
        encoder: Scores the pairs. Several adapters may share it.
    """

    def __init__(self, encoder: CrossEncoder) -> None:
        self.encoder = encoder

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Return one score for each pair of query and text, in their order."""
        return [float(score) for score in self.encoder.predict(text_pairs)]
