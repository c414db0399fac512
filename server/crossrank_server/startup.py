"""From model names and settings to a service that is ready to score."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from crossrank_server.bundle import Bundle
from crossrank_server.engines.base import Engine
from crossrank_server.engines.select import make_engine
from crossrank_server.errors import SetupError
from crossrank_server.hub import resolve_model
from crossrank_server.models import ModelPool, ServedModel
from crossrank_server.service import RerankService
from crossrank_server.settings import ServeSettings

_log = logging.getLogger("crossrank")


def load_service(models: Sequence[str], settings: ServeSettings) -> RerankService:
    """Find the models, load each into an engine and warm it up.

    Raises:
        SetupError: A model cannot be found, fetched, trusted or loaded, or two have the same id.
    """
    if settings.triton_model and len(models) > 1:
        raise SetupError(f"--triton-model {settings.triton_model} cannot stand for {len(models)} models: leave it out")
    served: dict[str, ServedModel] = {}
    for spec in models:
        bundle = resolve_model(spec, cache_dir=settings.cache_dir, offline=settings.offline)
        if bundle.manifest.model_id in served:
            raise SetupError(f"two models are called {bundle.manifest.model_id}: name each only once with --model")
        engine = _load_engine(bundle, settings)
        _log.info(
            "%s: engine %s, precision %s, window %d tokens",
            bundle.manifest.model_id,
            engine.name,
            engine.precision,
            bundle.manifest.max_length,
        )
        served[bundle.manifest.model_id] = ServedModel(
            bundle, engine, settings.max_waiting_documents, engine_merges=settings.engine == "triton"
        )
    pool = ModelPool(served.values(), strict_names=settings.strict_model_names)
    return RerankService(pool, max_documents=settings.max_documents, timeout_s=settings.request_timeout_s)


def _load_engine(bundle: Bundle, settings: ServeSettings) -> Engine:
    if settings.engine != "triton":
        engine = make_engine(bundle, settings.engine, settings.precision, settings.threads or None)
        engine.warm_up()
        return engine
    from crossrank_server.engines.triton import connect_triton

    gateway = connect_triton(
        bundle,
        settings.triton_url,
        model=settings.triton_model,
        wait_s=settings.triton_wait_s,
        timeout_s=settings.request_timeout_s,
    )
    if settings.precision not in ("auto", gateway.precision):
        raise SetupError(
            f"--precision {settings.precision} is decided in Triton, whose model was set up with {gateway.precision}: "
            "write its repository with that precision, or leave --precision out"
        )
    return gateway
