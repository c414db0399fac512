"""Build a service that is ready to score from model names and settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial

from crossrank.bundles.bundle import Bundle
from crossrank.bundles.catalog import canonical_model_id
from crossrank.engines.base import Engine
from crossrank.engines.candidates import device_of
from crossrank.engines.tuning import load_engine
from crossrank.errors import SetupError
from crossrank.resolve import resolve_model
from crossrank.scheduling.cores import Cores
from crossrank_server.accounts.base import Accounts, OpenAccounts
from crossrank_server.accounts.prices import Prices, parse_prices
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.residency import estimated_memory_mb
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService
from crossrank_server.serving.slot import ModelSlot
from crossrank_server.settings import ServeSettings
from crossrank_server.telemetry.base import Observers

_log = logging.getLogger("crossrank")


def load_service(models: Sequence[str], settings: ServeSettings, observers: Observers | None = None) -> RerankService:
    """Find the models, and load the pinned ones into engines that are warmed up.

    The others are fetched and checked all the same, so that waking them needs no network.

    Args:
        models: As `--model` takes them; the first is the default.
        settings: Those of the server.
        observers: Notified of every request and every scored batch.

    Raises:
        SetupError: A model cannot be found, fetched, trusted or loaded, two have the same id, or the memory budget is
            too small.
    """
    if settings.triton_model and len(models) > 1:
        raise SetupError(f"--triton-model {settings.triton_model} cannot stand for {len(models)} models: leave it out")
    bundles: dict[str, Bundle] = {}
    for spec in models:
        bundle = resolve_model(spec, cache_dir=settings.cache_dir, offline=settings.offline, label=settings.label)
        model_id = bundle.manifest.model_id
        if model_id in bundles:
            raise SetupError(f"two models are called {model_id}: name each only once with --model")
        bundles[model_id] = bundle
    pinned = _pinned_ids(settings.pin, models, list(bundles))
    # A model that another server computes takes no memory here.
    elsewhere = device_of(settings.engine) == "server"
    cores = Cores()
    slots = [
        ModelSlot(
            bundle,
            partial(_load, bundle, settings, cores, observers),
            memory_mb=0.0 if elsewhere else estimated_memory_mb(bundle),
            pinned=elsewhere or model_id in pinned,
        )
        for model_id, bundle in bundles.items()
    ]
    pool = ModelPool(
        slots,
        idle_sleep_s=settings.idle_sleep_s,
        memory_budget_mb=settings.memory_budget_mb,
        strict_names=settings.strict_model_names,
    )
    for slot in slots:
        if slot.pinned:
            slot.finish(slot.load())
    prices = prices_from_settings(settings)
    for name in prices.named.keys() - bundles.keys():
        _log.warning("--prices names %s, which is not served: served are %s", name, ", ".join(bundles))
    return RerankService(
        pool,
        max_documents=settings.max_documents,
        timeout_s=settings.request_timeout_s,
        bulk_timeout_s=settings.batch_timeout_s,
        accounts=open_accounts(settings, prices),
        prices=prices,
        observers=observers,
    )


def _pinned_ids(pin: str, specs: Sequence[str], model_ids: Sequence[str]) -> set[str]:
    """Return the ids of the first model and of those that `--pin` names.

    Args:
        pin: The setting.
        specs: The values of `--model`.
        model_ids: The id of each.

    Raises:
        SetupError: A name is that of no model.
    """
    if pin.strip() == "all":
        return set(model_ids)
    pinned = {*model_ids[:1]}
    for name in filter(None, map(str.strip, pin.split(","))):
        same = {
            model_id
            for spec, model_id in zip(specs, model_ids, strict=True)
            if canonical_model_id(name) in (spec, canonical_model_id(spec), model_id)
        }
        if not same:
            raise SetupError(f"--pin names {name}, which no --model does; served: {', '.join(model_ids)}")
        pinned |= same
    return pinned


def _load(bundle: Bundle, settings: ServeSettings, cores: Cores, observers: Observers | None) -> ServedModel:
    engine = _load_engine(bundle, settings)
    _log.info(
        "%s: engine %s, precision %s, window %d tokens",
        bundle.manifest.model_id,
        engine.name,
        engine.precision,
        bundle.manifest.max_length,
    )
    return ServedModel(
        bundle,
        engine,
        settings.max_waiting_documents,
        settings.max_waiting_batch_documents,
        max_queue_s=settings.max_queue_s,
        timeout_s=settings.request_timeout_s,
        cores=cores,
        observers=observers,
    )


def prices_from_settings(settings: ServeSettings) -> Prices:
    """Return the price list of the settings.

    Raises:
        SetupError: See `parse_prices`.
    """
    return Prices(
        parse_prices(settings.prices),
        usd_per_1000=settings.usd_per_1000_documents,
        bulk_factor=settings.batch_price_factor,
    )


def open_accounts(settings: ServeSettings, prices: Prices) -> Accounts:
    """Open the store of keys; without one anybody is served.

    Raises:
        SetupError: It cannot be opened.
    """
    if not settings.store:
        return OpenAccounts()
    from crossrank_server.accounts.keys import has_keys
    from crossrank_server.accounts.metered import MeteredAccounts
    from crossrank_server.accounts.redis_limits import RedisLimits
    from crossrank_server.accounts.store import Store

    store = Store(settings.store, timeout_s=settings.store_timeout_s)
    if not has_keys(store):
        _log.warning("the store has no keys yet, so that every request gets 401: `crossrank keys create` makes one")
    limits = RedisLimits(settings.limits_store, settings.store_timeout_s) if settings.limits_store else None
    return MeteredAccounts(
        store,
        prices,
        journals=settings.cache_dir / "usage",
        flush_window_s=settings.flush_window_s,
        timeout_s=settings.store_timeout_s,
        limits=limits,
    )


def _load_engine(bundle: Bundle, settings: ServeSettings) -> Engine:
    if device_of(settings.engine) != "server":
        embedded = load_engine(
            bundle, settings.engine, settings.precision, settings.threads or None, settings.cache_dir
        )
        embedded.warm_up()
        return embedded
    from crossrank.engines.triton.engine import connect_triton

    engine = connect_triton(
        bundle,
        settings.triton_url,
        model=settings.triton_model,
        wait_s=settings.triton_wait_s,
        timeout_s=settings.request_timeout_s,
    )
    if settings.precision not in ("auto", engine.precision):
        raise SetupError(
            f"--precision {settings.precision} is decided in Triton, whose model was set up with {engine.precision}: "
            "write its repository with that precision, or leave --precision out"
        )
    return engine
