"""How many machines a load needs: a model of time and waiting, fitted to part of `bench scaling`, checked on the rest.

A request of D documents of T tokens takes a saturated machine

    S(D, T) = a + D (b + c T + d T^2)    seconds,

a request's own work, then a document's, its tokens' and its attention's. Requests that arrive at random (Poisson) wait
for those before them; a machine whose cores share each request is one server with constant service time (M/D/1), whose
wait has the mean rho S / (2 (1 - rho)) and a tail taken as exponential.
Source: https://en.wikipedia.org/wiki/M/D/1_queue
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from crossrank_server.errors import SetupError

# Mean of DL 2019's pairs and of the synthetic text like them, whose points have no fixed length.
MEAN_PAIR_TOKENS = 95
# A load varies within the hour; beyond this share of the capacity waits grow faster than any forecast is exact.
MAX_UTILIZATION = 0.8
# Points with fewer requests under way measure latency, not capacity.
_SATURATED = 4
# One point in three is kept for the check.
_HELD_OUT_EVERY = 3
_FITTED_SERIES = ("documents", "tokens")
_LEAST_POINTS = 6


@dataclass(frozen=True)
class Measured:
    """A saturated point: documents of a request, tokens of a pair, documents/s of the machine."""

    documents: int
    tokens: float
    documents_per_s: float

    @property
    def request_s(self) -> float:
        """Seconds of the machine that a request takes."""
        return self.documents / self.documents_per_s


@dataclass(frozen=True)
class Check:
    """A figure that the fit has not seen."""

    what: str
    predicted: float
    measured: float

    @property
    def error(self) -> float:
        """How far off the prediction is, as a share of what was measured."""
        return self.predicted / self.measured - 1


@dataclass(frozen=True)
class CapacityModel:
    """A fitted machine.

    Attributes:
        coefficients: a, b, c, d of S, in seconds.
        cores: Of the machine measured.
        alone: p99 of a request alone on the machine, as a multiple of S.
    """

    coefficients: tuple[float, float, float, float]
    cores: int
    alone: float

    def request_s(self, documents: int, tokens: float) -> float:
        """Return S: seconds of a saturated machine that a request takes."""
        return float(_terms(documents, tokens) @ np.asarray(self.coefficients))

    def documents_per_s(self, documents: int, tokens: float) -> float:
        """Return what one machine does at its limit."""
        return documents / self.request_s(documents, tokens)

    def p99_s(self, documents: int, tokens: float, utilization: float) -> float:
        """Return the p99 latency of requests at random times that keep the machine busy for this share of the time."""
        service_s = self.request_s(documents, tokens)
        mean_wait_s = service_s / (2 * (1 - utilization))  # of those that wait at all
        return self.alone * service_s + mean_wait_s * math.log(max(100 * utilization, 1.0))

    def utilization_for(self, documents: int, tokens: float, p99_s: float) -> float:
        """Return the largest utilization whose p99 is within the limit.

        Raises:
            SetupError: A request alone takes longer.
        """
        alone_s = self.p99_s(documents, tokens, 0.0)
        if alone_s > p99_s:
            raise SetupError(
                f"--p99 {p99_s * 1e3:g} ms cannot be kept: alone on the measured machine, a request of {documents} "
                f"documents takes {alone_s * 1e3:.1f} ms; send fewer documents a request, or raise it"
            )
        low, high = 0.0, MAX_UTILIZATION
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if self.p99_s(documents, tokens, middle) <= p99_s else (low, middle)
        return low


@dataclass(frozen=True)
class MachinePlan:
    """What a load needs.

    Attributes:
        machines: Gateways, each a machine like the one measured.
        utilization: Of each.
        p99_s: Expected.
        documents_per_s: The load.
    """

    machines: int
    utilization: float
    p99_s: float
    documents_per_s: float


def plan_machines(model: CapacityModel, qps: float, documents: int, tokens: float, p99_s: float) -> MachinePlan:
    """Return how many machines serve `qps` requests/s of `documents` documents within the latency.

    Raises:
        SetupError: See `CapacityModel.utilization_for`.
    """
    limit = model.utilization_for(documents, tokens, p99_s)
    busy = qps * model.request_s(documents, tokens)
    machines = max(math.ceil(busy / limit), 1)
    utilization = busy / machines
    return MachinePlan(machines, utilization, model.p99_s(documents, tokens, utilization), qps * documents)


def usd_per_1000_documents(machines: int, usd_per_hour: float, documents_per_s: float) -> float:
    """Return what 1,000 documents cost on machines that are paid by the hour."""
    return machines * usd_per_hour / (documents_per_s * 3600) * 1000


def fit_capacity(report: Mapping[str, Any]) -> tuple[CapacityModel, list[Check]]:
    """Return the model of the machine that a report of `bench scaling` measured, and its check on points left out.

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
            "crossrank bench scaling, measured with --concurrency 4 or more"
        )
    held_out = points[1::_HELD_OUT_EVERY]
    fitted = [point for i, point in enumerate(points) if i % _HELD_OUT_EVERY != 1]
    # Relative errors count, or the longest requests would decide alone.
    rows = np.array([_terms(point.documents, point.tokens) / point.request_s for point in fitted])
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
    """Return predictions beside a report of `bench load`, which the fit has not seen.

    Raises:
        SetupError: It is none, was measured on other cores, or had more requests than the machine can do.
    """
    if report.get("kind") != "load":
        raise SetupError("--check takes reports of crossrank bench load --json")
    cores = report["hardware"]["cores"]
    if cores != model.cores:
        raise SetupError(
            f"--check was measured on {cores} cores, --measured on {model.cores}: they say nothing together"
        )
    load = report["load"]
    documents = load["documents_per_request"]
    if load["loop"] == "closed":
        title = f"documents/s, {documents} documents, concurrency {load['concurrency']}"
        return [Check(title, model.documents_per_s(documents, MEAN_PAIR_TOKENS), load["documents_per_s"])]
    utilization = load["rate_per_s"] * model.request_s(documents, MEAN_PAIR_TOKENS)
    if utilization >= 1:
        raise SetupError(
            f"--check has {load['rate_per_s']:g} requests/s, {utilization:.1f} times what the measured machine can do: "
            "its latency is that of a queue that only grows; measure with a lower --rate"
        )
    title = f"p99 ms, {documents} documents, {load['rate_per_s']:g} requests/s, utilization {utilization:.2f}"
    return [Check(title, model.p99_s(documents, MEAN_PAIR_TOKENS, utilization) * 1e3, load["latency_ms"]["p99"])]


def _terms(documents: int, tokens: float) -> Any:
    return np.array([1.0, documents, documents * tokens, documents * tokens**2])


def _measured(each: Mapping[str, Any]) -> Measured:
    tokens = float(each["tokens"] or MEAN_PAIR_TOKENS)
    return Measured(int(each["documents"]), tokens, float(each["documents_per_s"]["median"]))


def worst(checks: Sequence[Check]) -> float:
    """Return the largest error of a check, as a share."""
    return max((abs(check.error) for check in checks), default=0.0)
