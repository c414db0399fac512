"""Accept the metrics that sentence-transformers' evaluators report to a model."""

from __future__ import annotations

from typing import Any


class ModelCardData:
    """Replace sentence-transformers' model card data, for evaluators that report to it.

    Nothing is stored: this library saves no models, so it writes no model cards.
    """

    def set_evaluation_metrics(self, evaluator: Any, metrics: dict[str, Any], epoch: int = 0, step: int = 0) -> None:
        """Accept metrics and drop them; the evaluator also returns them to its caller."""
