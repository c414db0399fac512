"""Search by measurement for the fastest configuration of the embedded engines for a bundle on this machine.

One property after the other: engine and precision, threads, tokens of a batch, padding. The candidates of a step take
turns with the configuration found so far, which only a clearly faster one replaces: a noisy machine keeps what it had.
Texts go in and scores come out as in the library.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.names import CPU_ENGINES, GPU_ENGINES
from crossrank.engines.select import make_engine
from crossrank.engines.tuning import EngineConfig, config_of
from crossrank.errors import CrossrankError, EngineFailure, SetupError
from crossrank_perf.base.workload import Request, load_workload
from crossrank_perf.tune.choice import (
    MAX_DELTA_LOGIT,
    describe,
    fastest,
    fault_of_logits,
    figures,
    other_budgets,
    other_paddings,
    other_threads,
    still_running,
)
from crossrank_perf.tune.models import CONCURRENCY, TrialModels

_MIN_ROUNDS, _MAX_ROUNDS = 3, 9
_REQUEST_DOCUMENTS = 100
_CHECKED_DOCUMENTS = 100
_PROBED_DOCUMENTS = 50

Say = Callable[[str], None]


@dataclass
class Step:
    """One property tried.

    Attributes:
        name: Name of the property.
        figures: Figures of each configuration, the one kept so far first.
    """

    name: str
    figures: list[dict[str, Any]]


@dataclass
class Found:
    """Result of a search.

    Attributes:
        config: The fastest configuration.
        before: The configuration that `auto` takes without tuning.
        source: Origin of the text.
        steps: The measurements.
        left_out: Engines and precisions that were no candidates, with the reason.
        skipped: Steps for which no time was left.
        seconds: Duration of the search.
    """

    config: EngineConfig
    before: EngineConfig
    source: str
    steps: list[Step] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    seconds: float = 0.0


def tune_bundle(bundle: Bundle, seconds: float, candidates: Path | None, say: Say) -> Found:
    """Measure for about `seconds` and return the fastest configuration whose scores are right.

    Args:
        bundle: The model.
        seconds: Duration of the search, loading included. The first step, and one that has begun, takes three rounds
            in any case.
        candidates: File of queries with candidates. Defaults to DL 2019 or synthetic text of its lengths.
        say: Called with the progress.

    Raises:
        SetupError: The file of candidates cannot be read, or `auto` takes a GPU.
        BundleError: The bundle does not fit its manifest.
        EngineFailure: The engine that `auto` takes does not score the text.
    """
    workload = load_workload(candidates, _REQUEST_DOCUMENTS)
    started_s = time.monotonic()
    models = TrialModels(bundle)
    try:
        search = _Search(bundle, models, workload.requests, say)
        found = asyncio.run(search.run(started_s + seconds, workload.source))
    finally:
        models.close()
    found.seconds = round(time.monotonic() - started_s, 1)
    return found


class _Search:
    def __init__(self, bundle: Bundle, models: TrialModels, requests: Sequence[Request], say: Say) -> None:
        self._bundle = bundle
        self._models = models
        self._requests = requests
        self._say = say

    async def run(self, deadline_s: float, source: str) -> Found:
        engine = make_engine(self._bundle)
        if engine.name in GPU_ENGINES:
            await engine.close()
            raise SetupError("engine auto takes the GPU here, which has nothing to tune: crossrank tune is for CPUs")
        start = config_of(engine)
        self._models.add(engine)
        found = Found(config=start, before=start, source=source)
        rivals = await self._engines(found)
        steps: list[tuple[str, Callable[[EngineConfig], list[EngineConfig]]]] = [
            ("engine", lambda _: rivals),
            ("threads", other_threads),
            ("batch_tokens", other_budgets),
            ("padding", lambda config: other_paddings(config, self._models.engine(config))),
        ]
        for number, (name, others) in enumerate(steps):
            configs = [found.config, *others(found.config)]
            if len(configs) == 1:
                continue
            left_s = deadline_s - time.monotonic()
            # The first step in any case: a choice that nothing was measured for is none.
            if left_s <= 0 and found.steps:
                found.skipped.append(name)
                continue
            step = await self._compare(name, configs, left_s / (len(steps) - number))
            found.steps.append(step)
            found.config = configs[fastest([each["ratios"] for each in step.figures])]
        return found

    async def _engines(self, found: Found) -> list[EngineConfig]:
        """Return every other engine and precision of this machine whose logits are right; note why the rest is not."""
        first = self._requests[0]
        request = Request(first.query, first.documents[:_CHECKED_DOCUMENTS])
        expected: NDArray[np.float32] | None = None
        configs = []
        # ONNX Runtime's fp32 is always there: the reference for the logits of the others.
        for name in sorted(CPU_ENGINES, key="onnxruntime".__ne__):
            for precision in MAX_DELTA_LOGIT:
                title = f"{name} {precision}"
                self._say(f"loading {title}")
                try:
                    config = self._models.load(name, precision)  # type: ignore[arg-type]
                    logits = await self._models.logits(config, request)
                except CrossrankError as error:
                    found.left_out[title] = error.message
                    continue
                expected = logits if expected is None else expected
                fault = fault_of_logits(logits, expected, precision)
                if fault:
                    found.left_out[title] = fault
                    continue
                configs.append(config)
        if found.config not in configs:
            raise EngineFailure(
                f"engine auto ({found.config.engine} {found.config.precision}) cannot be used: "
                + found.left_out[f"{found.config.engine} {found.config.precision}"]
            )
        return [config for config in configs if config != found.config]

    async def _compare(self, name: str, configs: list[EngineConfig], seconds: float) -> Step:
        """Time configurations in turn; the first is the reference."""
        stop_s = time.monotonic() + seconds
        requests = await self._slice(configs[0], seconds / (len(configs) * (_MIN_ROUNDS + 2)))
        documents = sum(len(request.documents) for request in requests)
        times_s: list[list[float]] = [[] for _ in configs]
        for config in configs:
            await self._models.time(config, requests)
        for number in range(_MAX_ROUNDS):
            for i in still_running(times_s):
                shown = "" if not times_s[i] else f", {documents / times_s[i][-1]:,.0f} documents/s"
                self._say(f"{name}: {describe(configs[i])}{shown}")
                times_s[i].append(await self._models.time(configs[i], requests))
            if number + 1 >= _MIN_ROUNDS and time.monotonic() + sum(times[-1] for times in times_s) > stop_s:
                break
        return Step(
            name, [figures(config, documents, own, times_s[0]) for config, own in zip(configs, times_s, strict=True)]
        )

    async def _slice(self, config: EngineConfig, seconds: float) -> list[Request]:
        """Return requests that take a configuration about so long, at least as many as are under way at a time."""
        first = self._requests[0]
        probe = [Request(first.query, first.documents[:_PROBED_DOCUMENTS])]
        await self._models.time(config, probe)
        speed = _PROBED_DOCUMENTS / await self._models.time(config, probe)
        wanted = max(int(speed * seconds), CONCURRENCY)
        size = min(max(wanted // CONCURRENCY, 1), _REQUEST_DOCUMENTS)
        count = max(wanted // size, CONCURRENCY)
        chosen = [self._requests[i % len(self._requests)] for i in range(count)]
        return [Request(request.query, request.documents[:size]) for request in chosen]
