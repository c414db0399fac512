"""The capacity model against a machine whose law is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from crossrank.errors import SetupError
from crossrank_perf.commands.bench_plan import plan
from crossrank_perf.plan.capacity import (
    MAX_UTILIZATION,
    MEAN_PAIR_TOKENS,
    CapacityModel,
    plan_machines,
    usd_per_1000_documents,
)
from crossrank_perf.plan.fit import checks_from_load, fit_capacity, worst

# Seconds: 1 ms a request, 20 us a document, 1 us a token, 1 ns a pair of tokens.
LAW = (1e-3, 20e-6, 1e-6, 1e-9)
DOCUMENTS, TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000), (16, 32, 64, 128, 256, 512)
HARDWARE = {"cpu": "known", "cores": 2}


def seconds(documents: int, tokens: float) -> float:
    a, b, c, d = LAW
    return a + documents * (b + c * tokens + d * tokens**2)


def point(documents: int, tokens: int | None = None, concurrency: int = 8, cores: int = 2) -> dict[str, Any]:
    service_s = seconds(documents, tokens or MEAN_PAIR_TOKENS)
    return {
        "documents": documents,
        "tokens": tokens,
        "concurrency": concurrency,
        "cores": cores,
        "documents_per_s": {"median": documents / service_s},
        "p99_ms": 1.5e3 * service_s,
    }


def report() -> dict[str, Any]:
    return {
        "kind": "scaling",
        "hardware": HARDWARE,
        "series": {
            "documents": [point(n) for n in DOCUMENTS],
            "tokens": [point(100, n) for n in TOKENS],
            "concurrency": [point(100, concurrency=1)],
        },
    }


def load(**figures: Any) -> dict[str, Any]:
    return {"kind": "load", "hardware": HARDWARE, "load": {"documents_per_request": 50, **figures}}


def test_the_fit_finds_the_law_and_predicts_what_it_left_out() -> None:
    model, checks = fit_capacity(report())
    assert model.coefficients == pytest.approx(LAW, rel=1e-6)
    assert model.alone == pytest.approx(1.5)
    assert len(checks) >= 5
    assert worst(checks) < 1e-6


def test_points_left_out_do_not_bend_the_fit_and_show_in_the_check() -> None:
    changed = report()
    changed["series"]["documents"][1]["documents_per_s"]["median"] *= 2
    model, checks = fit_capacity(changed)
    assert model.coefficients == pytest.approx(LAW, rel=1e-6)
    assert checks[0].error == pytest.approx(-0.5)


def test_points_of_fewer_cores_or_little_load_are_not_fitted() -> None:
    changed = report()
    changed["series"]["documents"] += [point(100, concurrency=1) for _ in range(3)]
    changed["series"]["documents"] += [point(100, cores=1) for _ in range(3)]
    for each in changed["series"]["documents"][-6:]:
        each["documents_per_s"]["median"] = 1e6
    assert fit_capacity(changed)[0].coefficients == pytest.approx(LAW, rel=1e-6)


@pytest.mark.parametrize("missing", ["documents", "tokens", "concurrency"])
def test_a_report_without_a_series_that_is_needed_is_refused(missing: str) -> None:
    short = report()
    del short["series"][missing]
    with pytest.raises(SetupError, match="make bench-scaling"):
        fit_capacity(short)


def test_machines_keep_the_latency_and_one_fewer_would_not() -> None:
    model = CapacityModel(LAW, 2, 1.5)
    limit_s = 3 * seconds(100, 95)
    made = plan_machines(model, 10_000, 100, 95, limit_s)
    assert made.documents_per_s == 1_000_000
    assert made.p99_s <= limit_s
    assert made.utilization == pytest.approx(10_000 * seconds(100, 95) / made.machines)
    busier = 10_000 * seconds(100, 95) / (made.machines - 1)
    assert model.p99_s(100, 95, busier) > limit_s


def test_no_machine_is_planned_busier_than_the_limit_however_patient_the_caller() -> None:
    made = plan_machines(CapacityModel(LAW, 2, 1.5), 1000, 100, 95, 1e3)
    assert MAX_UTILIZATION * 0.98 < made.utilization <= MAX_UTILIZATION


@pytest.mark.parametrize("utilization", [0.3, 0.5, 0.7, 0.8])
def test_the_p99_is_that_of_a_simulated_queue_and_a_little_in_reserve(utilization: float) -> None:
    # Lindley's recursion: a request waits for what is left of those before it; every one takes a second.
    steps = 1 - np.random.default_rng(0).exponential(1 / utilization, 500_000)
    left = np.cumsum(steps)
    simulated = float(np.percentile(1 + left - np.minimum.accumulate(left), 99))
    expected = CapacityModel((1.0, 0.0, 0.0, 0.0), 2, 1.0).p99_s(1, MEAN_PAIR_TOKENS, utilization)
    assert simulated < expected < 1.2 * simulated


def test_a_limit_below_one_request_alone_is_refused_with_figures() -> None:
    with pytest.raises(SetupError, match=r"--p99 1 ms cannot be kept.*takes 20\.1 ms"):
        plan_machines(CapacityModel(LAW, 2, 1.5), 1, 100, 95, 1e-3)


def test_reports_of_bench_load_are_predicted() -> None:
    model = CapacityModel(LAW, 2, 1.5)
    (closed,) = checks_from_load(model, load(loop="closed", concurrency=4, documents_per_s=1000.0))
    assert closed.predicted == pytest.approx(50 / seconds(50, MEAN_PAIR_TOKENS))
    half = 0.5 / seconds(50, MEAN_PAIR_TOKENS)
    opened_report = load(loop="open", rate_per_s=half, requests=100, latency_ms={"p50": 9.0, "p90": 9.0, "p99": 50.0})
    (opened,) = checks_from_load(model, opened_report)
    assert opened.measured == 50.0
    # 1.5 S, and S / (2 (1 - 0.5)) ln(50) of waiting.
    assert opened.predicted == pytest.approx((1.5 + 3.912) * seconds(50, MEAN_PAIR_TOKENS) * 1e3, rel=1e-3)
    with pytest.raises(SetupError, match="queue that only grows"):
        checks_from_load(model, load(loop="open", rate_per_s=2.5 * half, latency_ms={"p99": 50.0}))
    opened_report["load"]["requests"] = 99
    with pytest.raises(SetupError, match="99 answers, too few to know the p99"):
        checks_from_load(model, opened_report)
    with pytest.raises(SetupError, match="2 cores, --measured on 4"):
        checks_from_load(CapacityModel(LAW, 4, 1.5), load(loop="closed"))


def test_of_a_sweep_the_rates_are_predicted_at_which_machines_may_be_planned() -> None:
    model, service_s = CapacityModel(LAW, 2, 1.5), seconds(50, MEAN_PAIR_TOKENS)

    def rate(utilization: float, requests: int) -> dict[str, Any]:
        latency_ms = {"p50": 1.0, "p90": 2.0, "p99": 3.0, "p99_9": 4.0}
        facts = {"documents_per_request": 50, "rate_per_s": utilization / service_s}
        return {**facts, "requests": requests, "latency_ms": latency_ms}

    swept = load(loop="closed", concurrency=4, documents_per_s=1000.0)
    swept["rates"] = [rate(0.1, 99), rate(0.3, 500), rate(0.7, 500), rate(MAX_UTILIZATION + 0.05, 500)]
    checks = checks_from_load(model, swept)
    assert [check.what.partition(",")[0] for check in checks] == ["documents/s", "p99 ms", "p99 ms"]
    assert [check.what.rpartition(" ")[2] for check in checks[1:]] == ["30%", "70%"]
    assert checks[2].predicted == pytest.approx(model.p99_s(50, MEAN_PAIR_TOKENS, 0.7) * 1e3)
    assert checks[2].measured == 3.0


def test_cost_is_machine_hours_by_documents() -> None:
    # 3,600,000 documents an hour on two machines of 1.80 USD.
    assert usd_per_1000_documents(2, 1.8, 1000.0) == pytest.approx(0.001)


def test_the_command_says_what_is_measured_and_what_is_assumed(tmp_path: Path) -> None:
    measured, check, out = (tmp_path / name for name in ("scaling.json", "load.json", "plan.json"))
    measured.write_text(json.dumps(report()))
    check.write_text(json.dumps(load(loop="closed", concurrency=4, documents_per_s=1000.0)))
    options = ["--measured", str(measured), "--check", str(check), "--json", str(out)]
    prices = ["--usd-per-machine-hour", "0.1", "--usd-per-gpu-hour", "4"]
    run = CliRunner().invoke(plan, ["--qps", "10000", *options, *prices], catch_exceptions=False)
    assert "1,000,000 documents/s" in run.output
    assert "if enough processes can feed one at its full rate (1,294,000 documents/s a GPU" in run.output
    gateways = json.loads(out.read_text())["cpu"]["gateways"]
    assert f"bench load --documents 100 --rate {10_000 / gateways:.4g} " in run.output
    assert "published: 0.008" in run.output
    written = json.loads(out.read_text())
    assert written["cpu"]["gateways"] * written["cpu"]["utilization"] == pytest.approx(
        10_000 * seconds(100, 95), rel=1e-2
    )
    assert written["cpu"]["usd_per_1000_documents"] == pytest.approx(written["cpu"]["gateways"] * 0.1 / 3.6e6, rel=1e-6)
    assert written["gpu"]["gpus"] == 1  # 1,000,000 documents/s at 80% of 1,294,000
    assert written["gpu"]["gateway_cores"] == 35  # at 80% of 36,000 each
    assert written["checks"][-1]["measured"] == 1000.0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no JSON", "is no JSON report of a benchmark"),
        ("[]", "is no report of a benchmark"),
        ("{}", "make bench-scaling"),
    ],
)
def test_a_file_that_is_no_report_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "scaling.json"
    path.write_text(content)
    result = CliRunner().invoke(plan, ["--qps", "1", "--measured", str(path)])
    assert isinstance(result.exception, SetupError)
    assert message in str(result.exception)
