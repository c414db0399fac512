"""Hold a loaded model: its encoder, its engine and the queue in front of it."""

from __future__ import annotations

import math
from collections.abc import Callable

from crossrank.bundles.bundle import Bundle
from crossrank.engines.base import BatchedEngine, Engine
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import Batcher
from crossrank.scheduling.cores import Cores
from crossrank.scheduling.passthrough import Passthrough
from crossrank.text.encoding import PairEncoder
from crossrank_server.telemetry.base import Observers, ScoredBatch


class ServedModel:
    """Join a bundle with its encoder, its engine and the queue in front of it.

    Args:
        bundle: The model.
        engine: Computes its logits.
        max_waiting_documents: Limit of documents in the queue; a request beyond it is refused.
        max_waiting_bulk_documents: The same for bulk requests (tier `batch`); defaults to
            `max_waiting_documents`.
        max_queue_s: See `Batcher`.
        timeout_s: See `Batcher`.
        cores: Shared by the models of a server, whose engines use the same cores.
        observers: Notified of every scored batch.
    """

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        max_waiting_documents: int,
        max_waiting_bulk_documents: int | None = None,
        *,
        max_queue_s: float = math.inf,
        timeout_s: float = math.inf,
        cores: Cores | None = None,
        observers: Observers | None = None,
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.encoder = PairEncoder(bundle)
        self.cores = cores or Cores()
        limits = max_waiting_documents, max_waiting_bulk_documents
        self.batcher: Batcher | Passthrough
        if isinstance(engine, BatchedEngine):
            report = _reporter(self.id, engine, observers or Observers())
            self.batcher = Batcher(engine, *limits, self.cores, report, max_queue_s=max_queue_s, timeout_s=timeout_s)
        else:
            self.batcher = Passthrough(engine, *limits)

    @property
    def id(self) -> str:
        """The model's id."""
        return self.bundle.manifest.model_id

    async def close(self) -> None:
        """Finish the batches under way and release the engine."""
        await self.batcher.close()
        await self.engine.close()


def _reporter(model_id: str, engine: BatchedEngine, observers: Observers) -> Callable[[PairBatch, float], None]:
    """Return a function that notifies the observers of a scored batch.

    It does not refer to the ServedModel: a cycle of references would keep one that sleeps in memory until the garbage
    collector runs.
    """

    def report(batch: PairBatch, duration_s: float) -> None:
        tokens, padded = len(batch.input_ids), engine.padded_tokens(batch)
        observers.batch_scored(ScoredBatch(model_id, len(batch), tokens, padded, duration_s))

    return report
