"""Decide how many worker processes serve, and which share of the machine each one gets."""

from __future__ import annotations

from crossrank.engines.cpu import available_cores
from crossrank.engines.cuda_session import cuda_installed
from crossrank_server.settings import ServeSettings


def worker_count(settings: ServeSettings) -> int:
    """Return how many processes serve: `--workers`, where `auto` depends on the engine.

    In front of Triton it is one a core. A GPU scores more documents than one process hands over: one for every four
    cores, as each holds a copy of the model there and a gigabyte here. On a CPU one process keeps all cores busy.
    """
    if settings.workers != "auto":
        return int(settings.workers)
    if settings.engine == "triton":
        return available_cores()
    return max(1, available_cores() // 4) if _takes_gpu(settings) else 1


def worker_settings(settings: ServeSettings, workers: int) -> ServeSettings:
    """Return the settings of one worker: with its share of the cores, unless a GPU scores."""
    if workers == 1 or settings.threads or _takes_gpu(settings):
        return settings
    return settings.model_copy(update={"threads": max(1, available_cores() // workers)})


def _takes_gpu(settings: ServeSettings) -> bool:
    return settings.engine == "cuda" or (settings.engine == "auto" and cuda_installed())
