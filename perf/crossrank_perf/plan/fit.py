"""Fit the capacity model to a report of `make bench-scaling`, and check it on points left out and on `bench load`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossrank.errors import SetupError
from crossrank_perf.base.latency import known_percentiles
from crossrank_perf.plan.capacity import MAX_UTILIZATION, MEAN_PAIR_TOKENS, CapacityModel, request_terms

# Requests under way from which a point measures capacity, not latency.
_SATURATED = 4
# One point in three is left out of the fit, for the check.
_HELD_OUT_EVERY = 3
_FITTED_SERIES = ("documents", "tokens")
_LEAST_POINTS = 6


@dataclass(frozen=True)
class Measured:
    """A point measured on a saturated machine.

    Attributes:
        documents: Documents in each request.
        tokens: Mean tokens of a pair.
        documents_per_s: Documents/s of the machine.
    """

    documents: int
    tokens: float
    documents_per_s: float

    @property
    def request_s(self) -> float:
        """Return the seconds that the machine spends on a request."""
        return self.documents / self.documents_per_s


@dataclass(frozen=True)
class Check:
    """A measured figure that the fit did not use, beside its prediction.

    Attributes:
        what: Name of the figure, for the report.
        predicted: Value by the model.
        measured: Value that was measured.
    """

    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """Return the relative error of the prediction."""
        return self.predicted / self.measured - 1


def fit_capacity(report: Mapping[str, Any]) -> tuple[CapacityModel, list[Check]]:
    """Fit the model to a report of `make bench-scaling`, and return it with its checks on the points left out.

    Raises:
        SetupError: The report lacks the series that the fit needs.
    """
    from scipy.optimize import nnls

    series = report.get("series", {})
    cores = int(report.get("hardware", {}).get("cores", 0))
    points = [
        _measured(each)
        for name in _FITTED_SERIES
        for each in series.get(name, ())
        if each["concurrency"] >= _SATURATED and each["cores"] == cores
    ]
    alone = [each for each in series.get("concurrency", ()) if each["concurrency"] == 1]
    if (
        not all(map(series.get, _FITTED_SERIES))
        or len(points) < _LEAST_POINTS
        or len({point.tokens for point in points}) < 3
        or not alone
    ):
        raise SetupError(
            "the report has too few points to fit: it must hold the series documents, tokens and concurrency of "
            "make bench-scaling, measured with --concurrency 4 or more"
        )
    held_out = points[1::_HELD_OUT_EVERY]
    fitted = [point for i, point in enumerate(points) if i % _HELD_OUT_EVERY != 1]
    # Relative errors: absolute ones would fit the longest requests only.
    rows = np.array([request_terms(point.documents, point.tokens) / point.request_s for point in fitted])
    solution, _ = nnls(rows, np.ones(len(fitted)))
    a, b, c, d = map(float, solution)
    single = _measured(alone[0])
    model = CapacityModel((a, b, c, d), cores, 1.0)
    factor = alone[0]["p99_ms"] / 1e3 / model.request_s(single.documents, single.tokens)
    model = CapacityModel(model.coefficients, cores, factor)
    return model, [
        Check(
            f"documents/s, {point.documents} documents of {point.tokens:g} tokens",
            model.documents_per_s(point.documents, point.tokens),
            point.documents_per_s,
        )
        for point in held_out
    ]


def checks_from_load(model: CapacityModel, report: Mapping[str, Any]) -> list[Check]:
    """Return the figures of a report of `bench load` beside their predictions.

    The rates of a sweep are included up to the highest utilization that is planned for, if there are enough answers for
    a p99.

    Raises:
        SetupError: The report is not one of `bench load`, was measured on another number of cores, had a rate above
            the capacity, or has too few answers for a p99.
    """
    if report.get("kind") != "load":
        raise SetupError("--check takes reports of crossrank bench load --json")
    cores = report["hardware"]["cores"]
    if cores != model.cores:
        raise SetupError(
            f"--check was measured on {cores} cores, --measured on {model.cores}: they say nothing together"
        )
    load = report["load"]
    if load["loop"] == "open":
        return [_open_loop_check(model, load)]
    documents = load["documents_per_request"]
    title = f"documents/s, {documents} documents, concurrency {load['concurrency']}"
    closed = Check(title, model.documents_per_s(documents, MEAN_PAIR_TOKENS), load["documents_per_s"])
    rates = [
        _open_loop_check(model, each)
        for each in report.get("rates", ())
        if _utilization(model, each) <= MAX_UTILIZATION and "p99" in known_percentiles(each)
    ]
    return [closed, *rates]


def _utilization(model: CapacityModel, load: Mapping[str, Any]) -> float:
    return float(load["rate_per_s"]) * model.request_s(load["documents_per_request"], MEAN_PAIR_TOKENS)


def _open_loop_check(model: CapacityModel, load: Mapping[str, Any]) -> Check:
    rate, documents, utilization = load["rate_per_s"], load["documents_per_request"], _utilization(model, load)
    if utilization >= 1:
        raise SetupError(
            f"--check has {rate:g} requests/s, {utilization:.1f} times what the measured machine can do: its latency "
            "is that of a queue that only grows; measure with a lower --rate"
        )
    known = known_percentiles(load)
    if "p99" not in known:
        raise SetupError(
            f"--check has {load['requests']} answers, too few to know the p99, which takes 100; raise --duration"
        )
    title = f"p99 ms, {documents} documents, {rate:,.1f} requests/s, busy {utilization:.0%}"
    return Check(title, model.p99_s(documents, MEAN_PAIR_TOKENS, utilization) * 1e3, known["p99"])


def _measured(each: Mapping[str, Any]) -> Measured:
    tokens = float(each["tokens"] or MEAN_PAIR_TOKENS)
    return Measured(int(each["documents"]), tokens, float(each["documents_per_s"]["median"]))


def worst(checks: Sequence[Check]) -> float:
    """Return the largest error of a check, as a share."""
    return max((abs(check.error) for check in checks), default=0.0)
