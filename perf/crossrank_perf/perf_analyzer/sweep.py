"""Run perf_analyzer over several concurrencies, and in turn with the engine called directly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from crossrank.packed import PairBatch
from crossrank_perf.base.processes import Usage
from crossrank_perf.engines.bare import BareEngine
from crossrank_perf.engines.batches import cut_batches
from crossrank_perf.perf_analyzer.home import PerfAnalyzer
from crossrank_perf.perf_analyzer.run import WINDOWS, Inference, measure_point
from crossrank_perf.perf_analyzer.triton import TritonFacts

Tell = Callable[[str], None]
# Before it is measured, the bare engine meets the shapes of a bucket: some runtimes compile each on first use.
_WARM_UP_S = 0.5


@dataclass(frozen=True)
class SweepPlan:
    """Parameters of a sweep.

    Attributes:
        concurrencies: Numbers of requests under way, ascending.
        window_s: Seconds of each of perf_analyzer's three windows.
        rounds: Rounds of bare engine and perf_analyzer in turn, at the best concurrency.
    """

    concurrencies: tuple[int, ...]
    window_s: float
    rounds: int


class Sweep:
    """Runs perf_analyzer on the models of one Triton.

    Args:
        analyzer: The program.
        triton: The server to measure.
        plan: Parameters of the sweep.
        tell: Called with a line before each step, and with its figures after it.
    """

    def __init__(self, analyzer: PerfAnalyzer, triton: TritonFacts, plan: SweepPlan, tell: Tell) -> None:
        self._analyzer = analyzer
        self.triton = triton
        self.plan = plan
        self._tell = tell

    def measure(self, label: str, inference: Inference) -> dict[str, Any]:
        """Return the figures at each concurrency, and the concurrency with the most documents/s.

        Raises:
            SetupError: A run failed.
        """
        points = [self._point(label, inference, concurrency) for concurrency in self.plan.concurrencies]
        best = max(points, key=lambda point: float(point["documents_per_s"]))
        return {"documents_per_request": inference.documents, "points": points, "best_concurrency": best["concurrency"]}

    def compare(
        self, label: str, inference: Inference, concurrency: int, bare: BareEngine, pairs: PairBatch
    ) -> dict[str, Any]:
        """Measure the bare engine and perf_analyzer in turn, under the same conditions of the machine.

        Args:
            label: Name of the bucket, for progress.
            inference: The requests of perf_analyzer.
            concurrency: Requests under way, the best number of the sweep.
            bare: The engine that computes in Triton, called directly.
            pairs: Pairs of the input file, in its order.

        Returns:
            Figures of each round, and the medians of two ratios: of documents/s, and of the CPU time that a document
            costs the bare engine and Triton, the steadier figure where other processes use the machine.
        """
        batches = cut_batches(pairs, inference.rows)
        bare.measure(batches, _WARM_UP_S)
        rounds = []
        for number in range(self.plan.rounds):
            self._tell(f"{label}: bare engine, round {number + 1} of {self.plan.rounds}")
            alone = bare.measure(batches, WINDOWS * self.plan.window_s)
            self._tell(f"{label}: bare engine {alone.documents_per_s:,.0f} documents/s")
            point = self._point(label, inference, concurrency)
            cpu_us = point["triton_cpu_us_per_document"]
            rounds.append(
                {
                    "bare": asdict(alone),
                    "triton": point,
                    "rate_ratio": round(point["documents_per_s"] / alone.documents_per_s, 3),
                    "cpu_ratio": None if cpu_us is None else round(alone.cpu_us_per_document / cpu_us, 3),
                }
            )
        return {
            "concurrency": concurrency,
            "rounds": rounds,
            "rate_ratio": _median(rounds, "rate_ratio"),
            "cpu_ratio": _median(rounds, "cpu_ratio"),
        }

    def _point(self, label: str, inference: Inference, concurrency: int) -> dict[str, Any]:
        self._tell(f"{label}: concurrency {concurrency}")
        usage, computed = Usage(self.triton.pid), self.triton.documents_computed()
        usage.start()
        point = measure_point(self._analyzer, self.triton.address, inference, concurrency, self.plan.window_s)
        usage.end()
        computed = self.triton.documents_computed() - computed
        self._tell(
            f"{label}: concurrency {concurrency}: {point.documents_per_s:,.0f} documents/s, "
            f"p50 {point.latency_ms['p50']:.1f} ms, p99 {point.latency_ms['p99']:.1f} ms"
        )
        return asdict(point) | {"triton_cpu_us_per_document": _cpu_us(usage.cpu_s, computed)}


def _cpu_us(server_cpu_s: float | None, documents: int) -> float | None:
    """Return the CPU time of Triton for a document, None where its process is not known."""
    if server_cpu_s is None or documents < 1:
        return None
    return round(1e6 * server_cpu_s / documents, 1)


def _median(rounds: Sequence[dict[str, Any]], name: str) -> float | None:
    values = [each[name] for each in rounds if each[name] is not None]
    return round(median(values), 3) if values else None
