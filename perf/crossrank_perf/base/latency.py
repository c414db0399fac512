"""Percentiles of latencies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

_PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99_9": 99.9, "max": 100.0}

# Share of the answers above each percentile.
_BEYOND = {"p50": 0.5, "p90": 0.1, "p99": 0.01, "p99_9": 0.001}


def latency_ms(latencies_s: Sequence[float]) -> dict[str, float]:
    """Return mean, p50, p90, p99, p99.9 and max in milliseconds; empty where nothing was answered."""
    if not latencies_s:
        return {}
    in_ms = np.asarray(latencies_s) * 1e3
    figures = {name: round(float(np.percentile(in_ms, q)), 3) for name, q in _PERCENTILES.items()}
    return {"mean": round(float(in_ms.mean()), 3), **figures}


def known_percentiles(figures: Mapping[str, Any]) -> dict[str, float]:
    """Return those of p50, p90, p99 and p99.9, in ms, that at least one answer lies above.

    Args:
        figures: Result of `measure_load`.
    """
    latency_ms = figures["latency_ms"]
    return {name: latency_ms[name] for name, beyond in _BEYOND.items() if figures["requests"] * beyond >= 1}
