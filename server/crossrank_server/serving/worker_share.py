"""Decide how many worker processes serve, and which share of the machine each one gets."""

from __future__ import annotations

from crossrank.engines.candidates import device_of
from crossrank.engines.cpu import available_cores
from crossrank_server.settings import ServeSettings


def worker_count(settings: ServeSettings) -> int:
    """Return how many processes serve: `--workers`, where `auto` depends on the engine.

    In front of Triton it is one a core. A GPU scores more documents than one process hands over: one for every four
    cores, as each holds a copy of the model there and a gigabyte here. On a CPU one process keeps all cores busy.
    """
    if settings.workers != "auto":
        return int(settings.workers)
    per_device = {"server": available_cores(), "gpu": max(1, available_cores() // 4), "cpu": 1}
    return per_device[device_of(settings.engine)]


def worker_settings(settings: ServeSettings, workers: int) -> ServeSettings:
    """Return the settings of one worker: with its share of the cores, unless a GPU scores."""
    if workers == 1 or settings.threads or device_of(settings.engine) == "gpu":
        return settings
    return settings.model_copy(update={"threads": max(1, available_cores() // workers)})
