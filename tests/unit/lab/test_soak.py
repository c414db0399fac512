"""The verdict of `make bench-soak`: what grew, slowed down or was wrong is a fault."""

from __future__ import annotations

from dataclasses import replace

from lab.soak.callers import Seen
from lab.soak.report import soak_figures
from lab.soak.run import Sample, Soaked

SECONDS = 100.0
FLAT = [Sample(float(at), 200.0, 20, ("a",) if at % 20 else ()) for at in range(0, 100, 5)]
PROBES = [(float(at), 0.01) for at in range(100)]


def faults(samples: list[Sample], seen: Seen) -> list[str]:
    found: list[str] = soak_figures(Soaked(seen, samples), SECONDS)["faults"]
    return found


def test_a_flat_soak_with_right_answers_has_no_fault() -> None:
    assert faults(FLAT, Seen(probes=PROBES)) == []


def test_memory_that_grows_after_warm_up_is_a_fault() -> None:
    # Medians 207.5 and 215.5 MB.
    growing = [replace(sample, memory_mb=200 + sample.at_s / 5) for sample in FLAT]
    assert faults(growing, Seen(probes=PROBES)) == ["memory grew by 3.9% after warm-up, more than 2%"]
    at_first = [replace(sample, memory_mb=100 if sample.at_s < 20 else 200) for sample in FLAT]
    assert faults(at_first, Seen(probes=PROBES)) == []


def test_latency_that_grows_is_a_fault() -> None:
    slower = [(at, 0.01 if at < 60 else 0.02) for at, _ in PROBES]
    assert faults(FLAT, Seen(probes=slower)) == ["small requests became slower by 100.0%, more than 10%"]


def test_wrong_answers_errors_and_a_model_that_never_slept_are_faults() -> None:
    awake = [replace(sample, asleep=()) for sample in FLAT]
    seen = Seen(wrong=["http m: 1 of 2 scores"], probes=PROBES)
    seen.errors["grpc: TimedOut"] = 3
    assert faults(awake, seen) == [
        "1 answers were wrong, the first: http m: 1 of 2 scores",
        "3 times: grpc: TimedOut",
        "the second model did not both sleep and serve: soak for longer",
    ]
