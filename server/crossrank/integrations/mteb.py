"""Evaluate a CrossEncoder with MTEB: an implementation of its `CrossEncoderProtocol`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from mteb.models import ModelMeta
from numpy.typing import NDArray

from crossrank.cross_encoder import CrossEncoder

# Pairs scored at a time: enough to fill every batch, without holding more texts in memory.
_AT_A_TIME = 1024


class CrossrankCrossEncoder:
    """Adapt CrossEncoder to `mteb.evaluate`.

    Args:
        model_name: Name or directory of the model, as `CrossEncoder` takes it.
        revision: Commit, branch or tag on the hub.
        device: As `CrossEncoder` takes it.
        options: Further arguments of `CrossEncoder`.

    Attributes:
        encoder: The open model.
        mteb_model_meta: Facts that MTEB writes into its results: name, revision, maximum tokens.
    """

    def __init__(self, model_name: str, revision: str | None = None, device: str | None = None, **options: Any) -> None:
        self.encoder = CrossEncoder(model_name, revision=revision, device=device, **options)
        # MTEB asks for names like ORGANIZATION/MODEL.
        model_id = self.encoder.model_id
        name = model_id if "/" in model_id else f"crossrank/{model_id}"
        self.mteb_model_meta = ModelMeta.create_empty(
            overwrites={
                "name": name,
                "revision": revision,
                "max_tokens": self.encoder.max_length,
                "model_type": ["cross-encoder"],
            }
        )

    def predict(
        self,
        inputs1: Iterable[dict[str, list[str]]],
        inputs2: Iterable[dict[str, list[str]]],
        **described: Any,
    ) -> NDArray[np.float32]:
        """Score query i of `inputs1` with text i of `inputs2`.

        Args:
            inputs1: Batches of queries, under "text".
            inputs2: Batches of documents, under "text".
            described: MTEB's description of the task, and options for batches and progress bars. Not used.

        Returns:
            float32 [n_pairs].

        Raises:
            ValueError: The numbers of queries and documents differ.
        """
        pairs = zip(_texts(inputs1), _texts(inputs2), strict=True)
        scores = [np.empty(0, np.float32)]
        while some := list(islice(pairs, _AT_A_TIME)):
            scores.append(self.encoder.predict(some))
        return np.concatenate(scores)


def _texts(batches: Iterable[dict[str, list[str]]]) -> Iterator[str]:
    for batch in batches:
        yield from batch["text"]
