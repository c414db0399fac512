"""The models of a server: found by any of their names, awake while they are used."""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncIterator, Iterable

from crossrank_server.bundle import Bundle
from crossrank_server.catalog import canonical_model_id
from crossrank_server.engines.base import Engine, PadsBatches, PairBatch
from crossrank_server.errors import ModelNotFound
from crossrank_server.pairs import Batcher, PairEncoder
from crossrank_server.passage import Passage
from crossrank_server.telemetry.base import Observers, ScoredBatch


class ServedModel:
    """A bundle with its encoder, its engine and the queue in front of it.

    Args:
        bundle: The model.
        engine: What computes its logits.
        max_waiting_documents: Beyond this many a request is refused.
        engine_merges: The engine merges concurrent requests itself, as Triton does.
        observers: Who is told of its batches.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        max_waiting_documents: int,
        *,
        engine_merges: bool = False,
        observers: Observers | None = None,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.encoder = PairEncoder(bundle)
        self._observers = observers or Observers()
        self.batcher: Batcher | Passage = (
            Passage(engine, max_waiting_documents)
            if engine_merges
            else Batcher(engine, max_waiting_documents, self._batch_scored)
        )

    @property
    def id(self) -> str:
        """The model's id."""
        return self.bundle.manifest.model_id

    def _batch_scored(self, batch: PairBatch, duration_s: float) -> None:
        tokens = len(batch.input_ids)
        padded = math.prod(self.engine.padded_shape(batch)) if isinstance(self.engine, PadsBatches) else tokens
        self._observers.batch_scored(ScoredBatch(self.id, len(batch), tokens, padded, duration_s))

    async def close(self) -> None:
        """Finish the batches under way and release the engine."""
        await self.batcher.close()
        await self.engine.close()


class ModelPool:
    """Holds the models that a server offers.

    Args:
        models: The first one is the default.
        strict_names: An unknown name is refused; otherwise it gets the default model, as some applications send
            names of their own.
    """

    def __init__(self, models: Iterable[ServedModel], *, strict_names: bool = True) -> None:
        self._models = {model.id: model for model in models}
        self._strict_names = strict_names

    @property
    def models(self) -> list[ServedModel]:
        """The models served, the default first."""
        return list(self._models.values())

    def ready(self) -> bool:
        """Tell whether every model can take requests."""
        return all(model.engine.ready() for model in self.models)

    def resolve(self, name: str | None) -> str:
        """Return the id of the model that a name means (older spellings accepted); no name is the default.

        Raises:
            ModelNotFound: It is not served here.
        """
        if not name:
            return self.models[0].id
        for spelling in (name, canonical_model_id(name)):
            if spelling in self._models:
                return spelling
        if not self._strict_names:
            return self.models[0].id
        served = ", ".join(self._models)
        raise ModelNotFound(f"model {name[:200]!r} is not served here; served: {served}", param="model")

    @contextlib.asynccontextmanager
    async def awake(self, model_id: str, wait_s: float = 0.0) -> AsyncIterator[ServedModel]:
        """Give the model, loaded, and keep it so until the block ends."""
        yield self._models[model_id]

    async def close(self) -> None:
        """Finish the batches under way and release the engines."""
        for model in self.models:
            await model.close()
