"""What is told of a model, the same over HTTP and gRPC."""

from __future__ import annotations

from typing import Any

from crossrank_server.models import ServedModel


def model_entry(model: ServedModel) -> dict[str, Any]:
    """Return a model in the form of OpenAI's API, with facts of its own beside it."""
    return {
        "id": model.id,
        "object": "model",
        "owned_by": "crossrank",
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "max_length": model.bundle.manifest.max_length,
    }
