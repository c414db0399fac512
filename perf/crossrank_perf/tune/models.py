"""Models under trial: a bundle loaded in one configuration after the other, scored and timed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.cross_encoder.loaded import LoadedModel
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import EngineName, PrecisionName
from crossrank.engines.select import make_engine
from crossrank.engines.tuning import EngineConfig, apply_config, config_of
from crossrank.request import Truncation
from crossrank_perf.base.workload import Request

# Requests under way at a time while a configuration is timed.
CONCURRENCY = 8
_AS_A_WHOLE = Truncation()


class TrialModels:
    """A bundle with one engine for each engine name, precision and number of threads, loaded when first asked for.

    Args:
        bundle: The model.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._loaded: dict[tuple[str, str, int], LoadedModel] = {}

    def add(self, engine: EmbeddedEngine) -> EngineConfig:
        """Take over a loaded engine, warm it up, and return its configuration."""
        config = config_of(engine)
        engine.warm_up()
        self._loaded[config.engine, config.precision, config.threads] = LoadedModel(self._bundle, engine)
        return config

    def load(self, name: EngineName, precision: PrecisionName) -> EngineConfig:
        """Return the configuration that an engine takes by itself, loaded unless it is already.

        Raises:
            CrossrankError: The engine cannot serve the bundle in this precision.
        """
        for model in self._loaded.values():
            if (model.engine.name, model.engine.precision) == (name, precision):
                return config_of(model.engine)
        return self.add(make_engine(self._bundle, name, precision))

    def engine(self, config: EngineConfig) -> EmbeddedEngine:
        """Return the engine of a configuration that is loaded."""
        return self._loaded[config.engine, config.precision, config.threads].engine

    async def logits(self, config: EngineConfig, request: Request) -> NDArray[np.float32]:
        """Return the logits of a request's documents, float32 [documents].

        Raises:
            CrossrankError: The engine cannot be loaded or broke, or a logit is not finite.
        """
        return await _logits(self._model(config), request)

    async def time(self, config: EngineConfig, requests: Sequence[Request]) -> float:
        """Return the seconds that the requests take, CONCURRENCY of them at a time.

        Raises:
            CrossrankError: See `logits`.
        """
        model = self._model(config)
        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:
                await _logits(model, request)

        started_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(CONCURRENCY)))
        return time.perf_counter() - started_s

    def close(self) -> None:
        """Release all engines."""
        for model in self._loaded.values():
            model.close()

    def _model(self, config: EngineConfig) -> LoadedModel:
        """Return the model whose engine is set up like this, loaded if need be."""
        key = config.engine, config.precision, config.threads
        if key not in self._loaded:
            self.add(make_engine(self._bundle, *key))
        model = self._loaded[key]
        apply_config(model.engine, config)
        return model


async def _logits(model: LoadedModel, request: Request) -> NDArray[np.float32]:
    groups = [(request.query, list(request.documents))]
    return await asyncio.wrap_future(model.start(lambda: groups, _AS_A_WHOLE, lambda scored: scored.logits))
