"""Latency against rate: what is measured at which rate, and what may be said about it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from crossrank.errors import SetupError
from crossrank_perf.base.latency import known_percentiles
from crossrank_perf.base.workload import Request, Workload
from crossrank_perf.load.plan import LoadPlan
from crossrank_perf.load.sweep import check_shares, sweep_rates
from crossrank_perf.load.sweep_report import plot_sweep, print_sweep_report

WORKLOAD = Workload("test", 2, (Request("q", ("a", "b")),))
CAPACITY = 40.0


class Machine:
    """Answers as one with a known latency does, and notes the plans.

    Args:
        requests: Answered in each measurement.
        capacities: Requests/s of the closed loop, one measurement after the other.
    """

    def __init__(self, requests: int = 5000, capacities: tuple[float, ...] = (CAPACITY,)) -> None:
        self.plans: list[LoadPlan] = []
        self.texts: list[Workload] = []
        self._requests = requests
        self._capacities = list(capacities)

    def put_load(self, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
        self.plans.append(plan)
        self.texts.append(workload)
        p50 = 10.0 * plan.documents if plan.rate is None else 10.0 * plan.documents + plan.rate
        facts = {"documents_per_request": plan.documents, "requests": self._requests, "errors": {}}
        latency = {"p50": p50, "p90": 2 * p50, "p99": 3 * p50, "p99_9": 4 * p50}
        if plan.rate is not None:
            return {**facts, "latency_ms": latency, "rate_per_s": plan.rate, "requests_per_s": plan.rate}
        speed = self._capacities.pop() if plan.concurrency > 1 else 1000 / p50
        return {**facts, "latency_ms": latency, "requests_per_s": speed}

    def report(self, *shares: int) -> dict[str, Any]:
        measured = sweep_rates(self.put_load, WORKLOAD, LoadPlan(2, concurrency=4, duration_s=8.0), CAPACITY, shares)
        load = {"requests_per_s": CAPACITY, "documents_per_request": 2}
        hardware = {"cpu": "A CPU", "cores": 3}
        return {"load": load, "hardware": hardware, "date": "2026-01-02T03:04:05", **measured}


def test_rates_are_shares_of_the_capacity_and_each_is_as_long_as_the_closed_loop() -> None:
    machine = Machine()
    report = machine.report(25, 70)
    single, idle, low, high, after = machine.plans
    assert (single.documents, single.concurrency, single.duration_s) == (1, 1, 2.0)
    assert [request.documents for request in machine.texts[0].requests] == [("a",), ("b",)]
    assert (idle.documents, idle.concurrency, idle.duration_s) == (2, 1, 2.0)
    assert [(plan.rate, plan.duration_s, plan.documents) for plan in (low, high)] == [(10.0, 8.0, 2), (28.0, 8.0, 2)]
    assert (after.rate, after.concurrency) == (None, 4)
    assert [figures["latency_ms"]["p50"] for figures in report["idle"]] == [10.0, 20.0]
    # p99 at 28 requests/s is 3 times 20 + 28 ms; the idle p50 with two documents is 20 ms.
    assert [figures["p99_by_idle_p50"] for figures in report["rates"]] == [4.5, 7.2]


@pytest.mark.parametrize(
    ("requests", "known"),
    [
        (1, []),
        (2, ["p50"]),
        (99, ["p50", "p90"]),
        (100, ["p50", "p90", "p99"]),
        (999, ["p50", "p90", "p99"]),
        (1000, ["p50", "p90", "p99", "p99_9"]),
    ],
)
def test_a_percentile_is_known_where_an_answer_lies_beyond_it(requests: int, known: list[str]) -> None:
    figures = {"requests": requests, "latency_ms": {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0, "max": 5.0}}
    assert list(known_percentiles(figures)) == known


def test_without_answers_nothing_is_known() -> None:
    assert known_percentiles({"requests": 0, "latency_ms": {}}) == {}


def test_a_server_too_slow_for_the_duration_is_told() -> None:
    with pytest.raises(SetupError, match=r"within 8 s.*raise --duration"):
        Machine(requests=0).report(70)


def test_shares_of_the_whole_capacity_are_refused() -> None:
    check_shares((1, 99))
    check_shares(())
    with pytest.raises(SetupError, match=r"--sweep 120: at 100% .* give percentages below 100"):
        check_shares((70, 120))


def test_the_report_quotes_70_percent_and_hides_what_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep_report(Machine(requests=500).report(30, 70))
    out = capsys.readouterr().out
    assert "p99 at 70% of the capacity is 7.2 times the idle p50" in out
    assert "idle, 1 document " in out
    assert "144.00" in out  # p99
    assert "192.00" not in out  # p99.9, of 500 answers
    assert "p99.9 takes 1,000" in out
    assert "warning" not in out


def test_a_machine_that_changed_under_way_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep_report(Machine(capacities=(CAPACITY * 0.8,)).report(70))
    out = capsys.readouterr().out
    assert "capacity: 40.0 requests/s before, 32.0 after" in out
    assert "the machine changed under way" in out


def test_the_plot_has_a_line_for_each_percentile_that_is_known(tmp_path: Path) -> None:
    path = tmp_path / "sweep.svg"
    plot_sweep(Machine(requests=500).report(30, 70), path)
    drawn = path.read_text()
    for text in (
        ">p50<",
        ">p99<",
        ">idle p50<",
        "capacity (closed loop)",
        "requests/s of 2 documents",
        "A CPU, 3 cores",
    ):
        assert text in drawn
    assert ">p99.9<" not in drawn
