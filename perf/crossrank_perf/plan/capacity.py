"""Model the capacity of a machine: service time and queueing time of requests. `fit.py` fits and checks it.

A saturated machine spends on a request of D documents of T tokens

    S(D, T) = a + D (b + c T + d T^2)    seconds:

the cost of the request, of each document, of its tokens and of its attention. Requests that arrive at random (Poisson)
wait for those before them; a machine whose cores share each request is one server with constant service time (M/D/1),
whose wait has the mean rho S / (2 (1 - rho)) and a tail taken as exponential. That puts the p99 up to a fifth above a
simulated M/D/1's between 30% and 80% utilization, never below (tests/unit/perf/test_capacity.py).
Source: https://en.wikipedia.org/wiki/M/D/1_queue
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.errors import SetupError

# Mean of DL 2019's pairs and of the synthetic text like them, whose points have no fixed length.
MEAN_PAIR_TOKENS = 95
# A load varies within the hour; beyond this share of the capacity waits grow faster than any forecast is exact.
MAX_UTILIZATION = 0.8
# USD for 1,000 documents: the published price of TinyBERT-L2-v2 at a hosted service; see crossrank.bundles.catalog.
PUBLISHED_USD = 0.008


@dataclass(frozen=True)
class CapacityModel:
    """Fitted model of a machine.

    Attributes:
        coefficients: a, b, c, d of S, in seconds.
        cores: Cores of the measured machine.
        alone: p99 of a request alone on the machine, as a multiple of S.
    """

    coefficients: tuple[float, float, float, float]
    cores: int
    alone: float

    def request_s(self, documents: int, tokens: float) -> float:
        """Return S: the seconds that a saturated machine spends on a request."""
        return float(request_terms(documents, tokens) @ np.asarray(self.coefficients))

    def documents_per_s(self, documents: int, tokens: float) -> float:
        """Return the documents/s of a saturated machine."""
        return documents / self.request_s(documents, tokens)

    def p99_s(self, documents: int, tokens: float, utilization: float) -> float:
        """Return the p99 latency, in seconds, of requests at random times that use this share of the capacity."""
        service_s = self.request_s(documents, tokens)
        mean_wait_s = service_s / (2 * (1 - utilization))  # of those that wait at all
        return self.alone * service_s + mean_wait_s * math.log(max(100 * utilization, 1.0))

    def utilization_for(self, documents: int, tokens: float, p99_s: float) -> float:
        """Return the largest utilization at which the p99 is within the limit.

        Raises:
            SetupError: A request alone on the machine takes longer than the limit.
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
    """Machines for a load.

    Attributes:
        machines: Number of gateways, each on a machine like the one measured.
        utilization: Share of each machine's capacity that the load uses.
        p99_s: Expected p99 latency, in seconds.
        documents_per_s: Documents/s of the load.
    """

    machines: int
    utilization: float
    p99_s: float
    documents_per_s: float


def plan_machines(model: CapacityModel, qps: float, documents: int, tokens: float, p99_s: float) -> MachinePlan:
    """Return the machines that serve `qps` requests/s of `documents` documents with a p99 within the limit.

    Raises:
        SetupError: See `CapacityModel.utilization_for`.
    """
    limit = model.utilization_for(documents, tokens, p99_s)
    busy = qps * model.request_s(documents, tokens)
    machines = max(math.ceil(busy / limit), 1)
    utilization = busy / machines
    return MachinePlan(machines, utilization, model.p99_s(documents, tokens, utilization), qps * documents)


def usd_per_1000_documents(machines: int, usd_per_hour: float, documents_per_s: float) -> float:
    """Return the cost of 1,000 documents on machines paid by the hour, all of them serving this rate together."""
    return machines * usd_per_hour / (documents_per_s * 3600) * 1000


def request_terms(documents: int, tokens: float) -> NDArray[np.float64]:
    """Return the factors of a, b, c, d in S, float64 [4]."""
    return np.array([1.0, documents, documents * tokens, documents * tokens**2])
