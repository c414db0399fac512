"""Build the entries of /v1/models, the same over HTTP and gRPC."""

from __future__ import annotations

import time
from typing import Any, get_args

from crossrank.scheduling.tiers import Tier
from crossrank_server.serving.service import RerankService
from crossrank_server.serving.slot import ModelSlot

_STARTED = int(time.time())


def model_entry(service: RerankService, model: ModelSlot) -> dict[str, Any]:
    """Build the /v1/models entry of a model: OpenAI's fields, and beside them those of this server.

    Engine and precision are None until the model is first loaded.
    """
    return {
        "id": model.id,
        "object": "model",
        "created": _STARTED,
        "owned_by": "crossrank",
        "engine": model.engine.name,
        "precision": model.engine.precision,
        "status": model.status,
        "pinned": model.pinned,
        "max_length": model.bundle.manifest.max_length,
        "activation": model.bundle.manifest.activation,
        "pricing": {
            "currency": "USD",
            "per_1000_documents": {tier: service.prices.usd_per_1000(model.id, tier) for tier in get_args(Tier)},
        },
    }
