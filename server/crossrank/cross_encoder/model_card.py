"""What sentence-transformers' evaluators report their metrics to."""

from __future__ import annotations

from typing import Any


class ModelCardData:
    """Takes the place of sentence-transformers' data of a model card, for evaluators that report to it.

    It keeps nothing: this library saves no models, so it writes no model cards.
    """

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0) -> None:
        """Accept the metrics that an evaluator also returns to its caller."""
