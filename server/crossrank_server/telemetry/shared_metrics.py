"""Expose the metrics of several worker processes: whichever of them Prometheus reaches answers for all.

Counts lie in files of the workers' common directory, where prometheus_client adds them up; those of a worker that has
ended still count, so that no counter falls. Each worker writes its gauges there once a second.

Source: https://prometheus.github.io/client_python/multiprocess/
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from prometheus_client import CollectorRegistry, Gauge, PlatformCollector, ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from crossrank_server.telemetry.base import COUNTS_VARIABLE
from crossrank_server.telemetry.metrics import Metrics

_log = logging.getLogger("crossrank")

_WRITE_S = 1.0
# How the gauges of all living workers are joined to one; others are added up.
_MODES = {"crossrank_ready": "livemin", "crossrank_model_awake": "livemax"}


class SharedMetrics(Metrics):
    """Count for all workers; `COUNTS_VARIABLE` must have been set before prometheus_client was imported.

    Args:
        write_s: Seconds between two writes of this worker's gauges.
    """

    def __init__(self, *, write_s: float = _WRITE_S) -> None:
        super().__init__()
        self._write_s = write_s
        self._failing = False
        self._directory = Path(os.environ[COUNTS_VARIABLE])
        self._gauges: dict[str, Gauge] = {}
        self._states: list[Collector] = []
        self.registry = CollectorRegistry()
        MultiProcessCollector(self.registry, str(self._directory))  # type: ignore[no-untyped-call]
        PlatformCollector(registry=self.registry)
        self.registry.register(_WorkerProcesses(self._directory))

    def watch(self, state: Collector) -> None:
        """Add a collector: its gauges are written from `begin` on; its other metrics are the same in every worker."""
        self._states.append(state)
        self.registry.register(_AllBut("gauge", state))

    def begin(self) -> None:
        """Write the gauges of this worker now, and once a second from the running event loop.

        A write that fails (the directory is full, or was removed) is logged, and tried again like any other.
        """
        asyncio.get_running_loop().call_later(self._write_s, self.begin)
        try:
            for state in self._states:
                self._write(state)
        except Exception:
            if not self._failing:
                _log.exception("the gauges of this worker cannot be written to %s; it is tried again", self._directory)
            self._failing = True
        else:
            self._failing = False

    def _write(self, state: Collector) -> None:
        for family in state.collect():
            if family.type != "gauge":
                continue
            for sample in family.samples:
                gauge = self._gauges.get(family.name)
                if gauge is None:
                    gauge = self._gauges[family.name] = Gauge(
                        family.name,
                        family.documentation,
                        tuple(sample.labels),
                        registry=None,
                        multiprocess_mode=_MODES.get(family.name, "livesum"),  # type: ignore[arg-type]
                    )
                (gauge.labels(**sample.labels) if sample.labels else gauge).set(sample.value)


class _AllBut(Collector):
    """Leave the metrics of one type out."""

    def __init__(self, left_out: str, collector: Collector) -> None:
        self._left_out = left_out
        self._collector = collector

    def collect(self) -> Iterable[Metric]:
        return [family for family in self._collector.collect() if family.type != self._left_out]


class _WorkerProcesses(Collector):
    """Collect CPU time, memory and open files of each living worker, by its process id."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        # The parent removes these files when a worker has ended.
        for file in sorted(self._directory.glob("gauge_livemin_*.db")):
            pid = file.stem.rsplit("_", 1)[1]
            for found in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, {**sample.labels, "pid": pid}, sample.value)
        return families.values()
