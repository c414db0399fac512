"""The seam: transports, service and batcher report here, and need not know who counts, logs or traces.

Every method is called on the event loop and must not block. An observer that fails is logged; requests go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from crossrank_server.calls import Call

_log = logging.getLogger("crossrank")

OK = "ok"

# Environment variable with the directory of all workers' counts (shared_metrics.py); prometheus_client reads it when it
# is imported.
COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"


@dataclass
class Exchange:
    """One request and its outcome, whether or not a call could be opened for it.

    Attributes:
        protocol: `http` or `grpc`.
        method: HTTP's method; a gRPC method's full name.
        request_id: As the answer has it.
        headers: HTTP's headers or gRPC's metadata, by lower-case name.
        route: The route's template such as `/v1/models/{id}`, or the full name of a gRPC method, never what the caller
            wrote: `other` where nothing fits. It becomes a label.
        status: HTTP's number or gRPC's name of the status: `200`, `INVALID_ARGUMENT`.
        code: `ok`, or the code of the error that was answered.
        call: None where the request was refused before it had one.
        trace_id: Hexadecimal, of the trace that it belongs to; empty without tracing.
        started: time.perf_counter() when it arrived.
        duration_s: Seconds until its last byte was handed to the transport.
    """

    protocol: Literal["http", "grpc"]
    method: str
    request_id: str
    headers: Mapping[str, str] = field(default_factory=dict)
    route: str = "other"
    status: str = ""
    code: str = OK
    call: Call | None = None
    trace_id: str = ""
    started: float = field(default_factory=time.perf_counter)
    duration_s: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the server is to blame: a 5xx, or gRPC's words for it."""
        return self.status.startswith("5") or self.status in _SERVER_FAULTS

    @property
    def is_probe(self) -> bool:
        """Whether a machine asks this every few seconds: health and metrics."""
        return self.route in _PROBES or self.route.startswith(("/health", "/grpc.health.", "/grpc.reflection."))


_SERVER_FAULTS = frozenset({"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"})
_PROBES = frozenset({"/metrics", "/ping"})


@dataclass(frozen=True)
class ScoredBatch:
    """One batch that an engine scored.

    Attributes:
        model: Id of the model.
        pairs: Number of pairs, of one or several requests.
        tokens: Number of tokens of the pairs.
        padded_tokens: Number of tokens that the engine computed, padding included.
        duration_s: Seconds from the call of the engine to its logits.
    """

    model: str
    pairs: int
    tokens: int
    padded_tokens: int
    duration_s: float


class Observer(Protocol):
    """Is notified of requests and batches."""

    def finished(self, exchange: Exchange) -> None:
        """Take note of a request that was answered, or whose caller went away."""
        ...

    def batch_scored(self, batch: ScoredBatch) -> None:
        """Take note of a batch that an engine scored."""
        ...

    def close(self) -> None:
        """Send what was not sent yet."""
        ...


class Observers:
    """Notify several observers, each in turn; with none do nothing.

    Args:
        observers: In the order in which they are notified.
    """

    def __init__(self, observers: Sequence[Observer] = ()) -> None:
        self._observers = tuple(observers)

    def finished(self, exchange: Exchange) -> None:
        """See Observer.finished; the duration ends here."""
        exchange.duration_s = time.perf_counter() - exchange.started
        self._notify(lambda observer: observer.finished(exchange))

    def batch_scored(self, batch: ScoredBatch) -> None:
        """See Observer.batch_scored."""
        self._notify(lambda observer: observer.batch_scored(batch))

    def close(self) -> None:
        """See Observer.close."""
        self._notify(lambda observer: observer.close())

    def _notify(self, call: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                call(observer)
            except Exception:  # such as a full disk under the counters: it must fail neither the request nor the batch
                _log.exception("%s failed", type(observer).__name__)
