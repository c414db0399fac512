"""Load a bundle into the first line of the table of candidates that can serve it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import Literal

from crossrank.bundles.bundle import Bundle
from crossrank.engines.agreement import Expected, check_logits, expect_logits
from crossrank.engines.candidates import CANDIDATES, Candidate, Fault, considered, precisions_of
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.memory import return_memory
from crossrank.engines.names import DEVICES, Device, EngineName, PrecisionName
from crossrank.engines.native import KernelFault
from crossrank.errors import BundleError, CrossrankError, EngineFailure, SetupError
from crossrank.reasons import reason_of

_log = logging.getLogger("crossrank")


@dataclass(frozen=True)
class Verdict:
    """Say what became of one line of the table.

    Attributes:
        candidate: The line.
        state: `taken`; `usable` but behind the one taken; `unfit` here or for this model; `failed` when it was loaded;
            `not asked` for.
        reason: Why it was not taken, empty for the one that was.
        absent: See Fault.
    """

    candidate: Candidate
    state: Literal["taken", "usable", "unfit", "failed", "not asked"]
    reason: str = ""
    absent: bool = False


@dataclass
class Choice:
    """Hold the engine that was loaded, and a verdict on every line of the table.

    Attributes:
        engine: None where no line can serve.
        verdicts: In the order of the table.
        errors: Raised by the lines that failed, in order.
    """

    engine: EmbeddedEngine | None = None
    verdicts: list[Verdict] = field(default_factory=list)
    errors: list[CrossrankError] = field(default_factory=list)

    @property
    def taken(self) -> Candidate | None:
        """Return the line that serves."""
        return next((verdict.candidate for verdict in self.verdicts if verdict.state == "taken"), None)


def make_engine(
    bundle: Bundle,
    name: EngineName = "auto",
    precision: PrecisionName = "auto",
    threads: int | None = None,
    device: Device | None = None,
    cache_dir: Path | None = None,
) -> EmbeddedEngine:
    """Load a bundle into the engine asked for, or into the fastest one of this machine that works.

    That is the first line of `candidates.CANDIDATES` that can serve. One that cannot load the bundle, or computes
    something else than its fp32 graph, is passed over, which is logged once.

    Args:
        bundle: The model.
        name: Of an engine of this process, or `auto`.
        precision: The arithmetic, or `auto`.
        threads: Inferences at the same time; defaults to one for each available core, two on a GPU.
        device: Leave out engines that compute elsewhere.
        cache_dir: Where engines keep what they build; defaults to `default_cache_dir()`.

    Raises:
        SetupError: The engine is not installed or cannot compute in that precision here, or no engine can serve.
        BundleError: The bundle does not fit its manifest.
        EngineFailure: The engine asked for computes something else than the bundle's fp32 graph.
    """
    choice = choose_engine(bundle, name, precision, threads, device, cache_dir)
    for level, message in _messages(choice, bundle, name, precision):
        _say_once(level, message)
    if choice.engine is not None:
        return choice.engine
    if name != "auto" and choice.errors:
        raise choice.errors[0]
    raise SetupError(_refusal(choice, bundle, name, precision))


def choose_engine(
    bundle: Bundle,
    name: EngineName = "auto",
    precision: PrecisionName = "auto",
    threads: int | None = None,
    device: Device | None = None,
    cache_dir: Path | None = None,
) -> Choice:
    """Go through the table until a line serves; see `make_engine`. Nothing is logged or raised for lines that fail."""
    choice = Choice()
    reference = _Reference(bundle)
    lost: set[tuple[str, ...]] = set()  # what failed in a way that other lines share
    for candidate in CANDIDATES:
        elsewhere = device not in (None, DEVICES[candidate.engine])
        if elsewhere or not candidate.considered(name, precision):
            verdict = Verdict(candidate, "not asked", candidate.why if candidate.asked else "")
        elif fault := candidate.fault(bundle) or _disagreement(candidate, bundle, name):
            verdict = Verdict(candidate, "unfit", fault.reason, fault.absent)
        elif choice.engine is not None:
            verdict = Verdict(candidate, "usable", "it comes after the one that is taken")
        elif not lost.isdisjoint(_scopes(candidate)):
            verdict = Verdict(candidate, "failed", "as the line above", absent=True)
        else:
            try:
                choice.engine = _load(candidate, reference, threads, cache_dir)
                verdict = Verdict(candidate, "taken")
            except CrossrankError as error:
                choice.errors.append(error)
                lost.add(_lost(candidate, error))
                verdict = Verdict(candidate, "failed", error.message)
        choice.verdicts.append(verdict)
    return choice


class _Reference:
    """Compute the logits that a bundle's fp32 graph gives in ONNX Runtime, when they are first asked for."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle

    @cached_property
    def expected(self) -> Expected | None:
        return expect_logits(self.bundle)


def _load(candidate: Candidate, reference: _Reference, threads: int | None, cache_dir: Path | None) -> EmbeddedEngine:
    """Load an engine and compare what it computes with the bundle's fp32 graph.

    Raises:
        CrossrankError: It computes something else, or cannot be loaded.
    """
    assert candidate.load is not None  # a server's engine has a fault
    # Before the engine is loaded: of a large model, two copies of the weights at a time would be one too many.
    expected = reference.expected if candidate.checked else None
    try:
        engine = candidate.load(reference.bundle, threads, cache_dir)
    except CrossrankError:
        raise
    except Exception as error:  # a broken installation raises anything, on import already
        _log.debug("%s cannot be loaded", candidate.label, exc_info=True)
        raise SetupError(f"engine {candidate.engine} cannot be loaded here ({reason_of(error)})") from error
    if expected is not None:
        check_logits(engine, expected)
    return_memory()  # of other copies of the weights, which loading makes
    return engine


def _scopes(candidate: Candidate) -> set[tuple[str, ...]]:
    """Return what may be lost with a line: its engine, the file it reads, that in its precision, its kernel."""
    engine, precision = candidate.engine, candidate.precision
    return {
        (engine,),
        (engine, "reads", candidate.reads),
        (engine, "reads", candidate.reads, precision),
        (engine, "kernel", candidate.kernel, precision),
    }


def _lost(candidate: Candidate, error: CrossrankError) -> tuple[str, ...]:
    """Return what cannot serve after a line failed: another kernel may do where one fails, another engine always."""
    engine, precision = candidate.engine, candidate.precision
    if isinstance(error, KernelFault):
        return (engine, "kernel", candidate.kernel, precision)
    if isinstance(error, BundleError):
        return (engine, "reads", candidate.reads)
    if isinstance(error, EngineFailure):
        return (engine, "reads", candidate.reads, precision)
    return (engine,)


def _disagreement(candidate: Candidate, bundle: Bundle, name: EngineName) -> Fault | None:
    """Return the fault of an engine whose logits were not the source's at export, unless it was asked for."""
    record = bundle.manifest.engines.get(candidate.engine, {})
    if name != "auto" or not record.get("disagrees"):
        return None
    return Fault(
        f"its logits were not the source's when {bundle.manifest.model_id} was exported, with {record['runtime']}"
    )


def _messages(choice: Choice, bundle: Bundle, name: EngineName, precision: PrecisionName) -> Iterator[tuple[int, str]]:
    """Say which lines were passed over, in their order, and what should be known of the one taken.

    Yields:
        The level and the message: what should work and does not, such as damaged weights, is a warning.
    """
    unfit = _unfit_engines(choice) if name == "auto" else {}
    for verdict in choice.verdicts:
        if verdict.state == "failed" and not verdict.absent:
            yield logging.WARNING, f"{verdict.candidate.label} is not used: {verdict.reason}"
        elif unfit.get(verdict.candidate.engine) is verdict:
            yield logging.INFO, f"engine {verdict.candidate.engine} is not used: {verdict.reason}"
    taken = choice.taken
    if taken is None:
        return
    if name == "auto" and DEVICES[taken.engine] == "gpu":
        said = "engine cuda is used, as ONNX Runtime found a GPU; --engine native, openvino or onnxruntime use the CPU"
        yield logging.INFO, said
    if "auto" in (name, precision) and (note := taken.note(bundle)):
        yield logging.INFO, note


def _unfit_engines(choice: Choice) -> dict[str, Verdict]:
    """Return the engines that come before the one taken and cannot serve, with the verdict on the last of their lines.

    That one needs least: its reason holds for the lines above it too.
    """
    found: dict[str, Verdict] = {}
    before = True
    for verdict in choice.verdicts:
        engine = verdict.candidate.engine
        before = before and verdict.state != "taken"
        if verdict.state == "unfit" and not verdict.absent and (before or engine in found):
            found[engine] = verdict
    fit = {verdict.candidate.engine for verdict in choice.verdicts if verdict.state in ("taken", "usable", "failed")}
    return {engine: verdict for engine, verdict in found.items() if engine not in fit}


def _refusal(choice: Choice, bundle: Bundle, name: EngineName, precision: PrecisionName) -> str:
    """Say why no line can serve."""
    if not considered(name, precision):
        others = dict.fromkeys(candidate.engine for candidate in considered("auto", precision))
        return (
            f"engine {name} serves {' and '.join(precisions_of(name))}, not {precision}: use --precision auto, or "
            f"--engine {' or '.join(others)}"
        )
    faults = [verdict for verdict in choice.verdicts if verdict.state in ("unfit", "failed")]
    # What is not installed matters where nothing else was found, or where it was asked for.
    faults = [verdict for verdict in faults if not verdict.absent] or faults
    reasons = {verdict.candidate.engine: verdict.reason for verdict in faults}
    served = f"{bundle.manifest.model_id} in {precision}" if precision != "auto" else bundle.manifest.model_id
    if name == "auto":
        said = "; ".join(f"{engine}: {reason}" for engine, reason in reasons.items())
        return f"no engine of this machine serves {served}: {said}"
    remedy = "" if precision != "auto" else "; --engine auto takes one that can"
    return f"engine {name} cannot serve {served}: {reasons[name]}{remedy}"


@cache
def _say_once(level: int, message: str) -> None:
    _log.log(level, message)
