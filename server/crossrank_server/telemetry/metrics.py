"""Count requests and batches for Prometheus, by its naming rules: base units, `_total`, few values a label.

Labels hold only values that the server itself defines: templates of routes, ids of served models, error codes. A
caller cannot create new series by sending new names.

Source: https://prometheus.io/docs/practices/naming/
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from crossrank_server.calls import Call
from crossrank_server.telemetry.base import OK, Exchange, ScoredBatch

# A single short document takes about 1 ms, a thousand long ones seconds, the default time limit is 60 s.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Parts of a request: parsing one document takes 20 us.
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS)
_PAIRS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_TOKENS = (64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 8192, 16384, 32768, 65536, 131072)

Child = TypeVar("Child", Counter, Histogram)


def _child_of(metric: Child) -> Callable[..., Child]:
    """Return the metric's `labels` with a cache: four times as fast, and small, as labels have few values."""
    return functools.cache(metric.labels)


class Metrics:
    """Count requests and batches; an `Observer`.

    Attributes:
        registry: Holds all metrics; further collectors may be added.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each metric, which is of no use
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)
        self._requests = self._counter(
            "crossrank_requests",
            "Requests answered, by outcome: HTTP or gRPC status, and ok or the error's code.",
            ("protocol", "route", "model", "tier", "status", "code"),
        )
        self._duration = self._histogram(
            "crossrank_request_duration_seconds",
            "From the first byte of a request to the last of its answer.",
            ("protocol", "route"),
            _SECONDS,
        )
        self._stages = self._histogram(
            "crossrank_stage_duration_seconds",
            "Where the time of scored requests went: parse, tokenize, queue, inference, respond.",
            ("stage", "model"),
            _STAGE_SECONDS,
        )
        work = ("model", "tier")
        self._documents = self._counter("crossrank_documents", "Documents of scored requests.", work)
        self._tokens = self._counter(
            "crossrank_tokens", "Tokens of scored requests, special tokens and the repeated query included.", work
        )
        self._truncated_documents = self._counter(
            "crossrank_truncated_documents", "Documents of which only a part was read.", work
        )
        self._truncated_queries = self._counter(
            "crossrank_truncated_queries", "Queries of which only a part was read.", work
        )
        model = ("model",)
        self._batch_pairs = self._histogram("crossrank_batch_size_pairs", "Pairs in a batch.", model, _PAIRS)
        self._batch_tokens = self._histogram(
            "crossrank_batch_size_tokens", "Tokens in a batch, padding aside.", model, _TOKENS
        )
        self._batch_duration = self._histogram(
            "crossrank_batch_duration_seconds",
            "How long an engine took for a batch, its own queue included.",
            model,
            _SECONDS,
        )
        self._engine_tokens = self._counter(
            "crossrank_engine_tokens", "Tokens that engines computed, padding aside.", model
        )
        self._padding_tokens = self._counter(
            "crossrank_engine_padding_tokens", "Padding that engines computed for nothing; its share is waste.", model
        )

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Callable[..., Counter]:
        return _child_of(Counter(name, text, labels, registry=self.registry))

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float]
    ) -> Callable[..., Histogram]:
        return _child_of(Histogram(name, text, labels, registry=self.registry, buckets=buckets))

    def finished(self, exchange: Exchange) -> None:
        """Count a request by its outcome, and its documents and tokens."""
        call = exchange.call
        model, tier = (call.model, call.tier) if call else ("", "")
        self._requests(exchange.protocol, exchange.route, model, tier, exchange.status, exchange.code).inc()
        self._duration(exchange.protocol, exchange.route).observe(exchange.duration_s)
        if call and call.tokens and exchange.code == OK:
            self._count_work(call)

    def _count_work(self, call: Call) -> None:
        for stage, seconds in call.stages_s.items():
            self._stages(stage, call.model).observe(seconds)
        self._documents(call.model, call.tier).inc(call.documents)
        self._tokens(call.model, call.tier).inc(call.tokens)
        if call.truncated_documents:
            self._truncated_documents(call.model, call.tier).inc(call.truncated_documents)
        if call.query_truncated:
            self._truncated_queries(call.model, call.tier).inc()

    def batch_scored(self, batch: ScoredBatch) -> None:
        """Count a batch and its padding."""
        self._batch_pairs(batch.model).observe(batch.pairs)
        self._batch_tokens(batch.model).observe(batch.tokens)
        self._batch_duration(batch.model).observe(batch.duration_s)
        self._engine_tokens(batch.model).inc(batch.tokens)
        self._padding_tokens(batch.model).inc(batch.padded_tokens - batch.tokens)

    def close(self) -> None:
        """Do nothing: Prometheus scrapes."""

    def watch(self, state: Collector) -> None:
        """Add a collector that is read at each scrape."""
        self.registry.register(state)

    def begin(self) -> None:
        """Do nothing: watched collectors are read at each scrape."""

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics and their content type, in OpenMetrics where the Accept header asks for it."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
