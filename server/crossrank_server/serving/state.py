"""Collect the gauges of a service when Prometheus scrapes: queue lengths, memory of bodies, loaded models."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.metadata import version

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from crossrank_server.serving.service import RerankService


class StateCollector(Collector):
    """Read a service at each scrape, so that no gauge has to be kept up to date.

    Args:
        service: The service.
        buffered_bytes: Returns the bytes of request bodies in memory.
    """

    def __init__(self, service: RerankService, buffered_bytes: Callable[[], int]) -> None:
        self._service = service
        self._buffered_bytes = buffered_bytes

    def collect(self) -> Iterable[Metric]:
        """Yield the metrics."""
        waiting = GaugeMetricFamily(
            "crossrank_documents_waiting",
            "Documents in the queue; beyond the limit requests get 429.",
            labels=["model"],
        )
        engine = InfoMetricFamily("crossrank_engine", "What computes the scores.", labels=["model"])
        awake = GaugeMetricFamily("crossrank_model_awake", "1 while the model is in memory.", labels=["model"])
        for model in self._service.pool.slots:
            awake.add_metric([model.id], model.served is not None)
            if model.served is None:
                continue
            waiting.add_metric([model.id], model.served.batcher.waiting_pairs)
            engine.add_metric(
                [model.id],
                {
                    "engine": model.served.engine.name,
                    "precision": model.served.engine.precision,
                    "max_length": str(model.bundle.manifest.max_length),
                    "version": version("crossrank"),
                },
            )
        yield awake
        yield waiting
        yield engine
        yield GaugeMetricFamily(
            "crossrank_request_bodies_held_bytes", "Bodies of HTTP requests in memory.", value=self._buffered_bytes()
        )
        yield GaugeMetricFamily(
            "crossrank_ready", "1 while requests can be scored, as /health/ready says.", value=self._service.ready()
        )
