"""Parameters, progress and outcome of a load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoadPlan:
    """Parameters of a load: closed loop by `concurrency`, or open loop by `rate`.

    Attributes:
        documents: Documents in each request; an answer with fewer results counts as an error.
        concurrency: Closed loop: requests under way at any time.
        rate: Open loop: mean requests/s, arriving at random (Poisson) whether or not earlier ones are answered.
        warm_up_s: Seconds of load before the measurement begins.
        duration_s: Seconds measured.
        requests: Number of requests to measure, instead of `duration_s`.
        timeout_s: A request without an answer after this time is an error.
        seed: Seed of the arrival times.
        tier: Class of service, `realtime` or `batch`.
    """

    documents: int
    concurrency: int = 4
    rate: float | None = None
    warm_up_s: float = 3.0
    duration_s: float = 20.0
    requests: int | None = None
    timeout_s: float = 60.0
    seed: int = 0
    tier: str = "realtime"


@dataclass
class LoadResult:
    """Outcome of a load.

    Attributes:
        window_s: Seconds over which `latencies_s` were collected.
        latencies_s: Latency of each complete answer: from sending, or in the open loop from the time the request was
            due, so that a stalled server cannot hide the requests it held back (no coordinated omission).
        lags_s: Open loop: delay of the generator itself at each request, which is part of the latency.
        errors: Number of failed requests by HTTP or gRPC status, or `connection`, `timeout`, `incomplete answer`.
        examples: First message of each kind of error.
    """

    window_s: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    lags_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tick:
    """Progress of a load, reported twice a second.

    Attributes:
        measuring: Whether the warm-up is over.
        elapsed_s: Seconds since the measured window began, or the warm-up.
        answered: Complete answers so far.
        failed: Failed requests so far.
    """

    measuring: bool
    elapsed_s: float
    answered: int
    failed: int


OnTick = Callable[[Tick], None]
