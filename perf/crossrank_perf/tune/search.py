"""The fastest configuration of the embedded engines for a bundle on this machine, found by measuring.

One property after the other: engine and precision, threads, tokens of a batch, padding. The candidates of a step take
turns with the configuration found so far, which only a clearly faster one replaces, so that a noisy machine chooses
what it had. Texts go in and scores come out as in `crossrank serve`, HTTP left out.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import CPU_ENGINES
from crossrank.engines.select import make_engine
from crossrank.engines.tuning import EngineConfig, apply_config, config_of
from crossrank.errors import CrossrankError, EngineFailure, SetupError
from crossrank.request import RerankRequest
from crossrank_perf.base.workload import Request, load_workload
from crossrank_server.calls import Call
from crossrank_server.serving.pool import ModelPool
from crossrank_server.serving.served import ServedModel
from crossrank_server.serving.service import RerankService

# What --precision promises of the logits (README); a candidate beyond it is not chosen, however fast.
MAX_DELTA_LOGIT = {"fp32": 1e-3, "bf16": 0.05}
# A faster candidate must be so by this much in the median round.
_MIN_GAIN = 1.03
# One that lost two rounds by more is not given a third.
_HOPELESS = 0.8
_MIN_ROUNDS, _MAX_ROUNDS = 3, 9
_CONCURRENCY = 8
_REQUEST_DOCUMENTS = 100
_CHECKED_DOCUMENTS = 100
_PROBED_DOCUMENTS = 50
_UNLIMITED = 1 << 40

Say = Callable[[str], None]


@dataclass
class Step:
    """One property tried.

    Attributes:
        name: What differs.
        figures: One entry for each configuration, the one kept so far first.
    """

    name: str
    figures: list[dict[str, Any]]


@dataclass
class Found:
    """The outcome.

    Attributes:
        config: The fastest.
        before: What `auto` takes without tuning.
        steps: What was measured.
        left_out: Engine and precision -> why it was not a candidate.
        skipped: Steps for which no time was left.
        source: Where the text came from.
        seconds: Taken in all.
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
        seconds: In all, loading included. A step that has begun takes three rounds whatever they last.
        candidates: File of queries with candidates; DL 2019 or synthetic text of its lengths if omitted.
        say: Is told what is measured.

    Raises:
        SetupError: The file of candidates cannot be read, or `auto` takes a GPU.
        BundleError: The bundle does not fit its manifest.
        EngineFailure: The engine that `auto` takes does not score the text.
    """
    workload = load_workload(candidates, _REQUEST_DOCUMENTS)
    return asyncio.run(_Tuner(bundle, workload.requests, say).run(seconds, workload.source))


class _Tuner:
    def __init__(self, bundle: Bundle, requests: Sequence[Request], say: Say) -> None:
        self._bundle = bundle
        self._requests = requests
        self._say = say
        self._loaded: dict[tuple[str, str, int], tuple[EmbeddedEngine, RerankService]] = {}

    async def run(self, seconds: float, source: str) -> Found:
        started_s = time.monotonic()
        try:
            found = await self._search(started_s + seconds, source)
        finally:
            for _, service in self._loaded.values():
                await service.close()
        found.seconds = round(time.monotonic() - started_s, 1)
        return found

    async def _search(self, deadline_s: float, source: str) -> Found:
        engine = make_engine(self._bundle)
        if engine.name == "cuda":
            await engine.close()
            raise SetupError("engine auto takes the GPU here, which has nothing to tune: crossrank tune is for CPUs")
        start = config_of(engine)
        self._keep(start, engine)
        found = Found(config=start, before=start, source=source)
        rivals = await self._engines(found)
        steps: list[tuple[str, Callable[[EngineConfig], list[EngineConfig]]]] = [
            ("engine", lambda _: rivals),
            ("threads", _other_threads),
            ("batch_tokens", _other_budgets),
            ("padding", self._other_paddings),
        ]
        for number, (name, others) in enumerate(steps):
            configs = [found.config, *others(found.config)]
            if len(configs) == 1:
                continue
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                found.skipped.append(name)
                continue
            step = await self._compare(name, configs, left_s / (len(steps) - number))
            found.steps.append(step)
            found.config = configs[fastest([figures["ratios"] for figures in step.figures])]
        return found

    async def _engines(self, found: Found) -> list[EngineConfig]:
        """Return every other engine and precision that this machine has and whose logits are right."""
        expected: NDArray[np.float32] | None = None
        configs = []
        # ONNX Runtime's fp32 is always there, and is what the others are held against.
        for name in sorted(CPU_ENGINES, key="onnxruntime".__ne__):
            for precision in MAX_DELTA_LOGIT:
                title = f"{name} {precision}"
                self._say(f"loading {title}")
                try:
                    config = self._load(name, precision)
                    logits = await self._logits(config)
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

    def _load(self, name: Any, precision: Any) -> EngineConfig:
        for engine, _ in self._loaded.values():
            if (engine.name, engine.precision) == (name, precision):
                return config_of(engine)
        engine = make_engine(self._bundle, name, precision)
        config = config_of(engine)
        self._keep(config, engine)
        return config

    def _keep(self, config: EngineConfig, engine: EmbeddedEngine) -> None:
        engine.warm_up()
        served = ServedModel(self._bundle, engine, _UNLIMITED)
        service = RerankService(ModelPool([served]), max_documents=_UNLIMITED, timeout_s=1e6)
        self._loaded[config.engine, config.precision, config.threads] = engine, service

    def _service(self, config: EngineConfig) -> RerankService:
        """Return the server's path to an engine that is set up so."""
        key = config.engine, config.precision, config.threads
        if key not in self._loaded:
            self._keep(config, make_engine(self._bundle, *key))
        engine, service = self._loaded[key]
        apply_config(engine, config)
        return service

    async def _logits(self, config: EngineConfig) -> NDArray[np.float32]:
        request = self._requests[0]
        ranking = await self._service(config).rerank(
            RerankRequest(request.query, list(request.documents[:_CHECKED_DOCUMENTS])), Call()
        )
        return ranking.logits

    async def _compare(self, name: str, configs: list[EngineConfig], seconds: float) -> Step:
        """Let configurations take turns; the first is the one that the others are compared with."""
        stop_s = time.monotonic() + seconds
        requests = await self._slice(configs[0], seconds / (len(configs) * (_MIN_ROUNDS + 2)))
        documents = sum(len(request.documents) for request in requests)
        times_s: list[list[float]] = [[] for _ in configs]
        for config in configs:
            await self._time(config, requests)
        for number in range(_MAX_ROUNDS):
            for i in _running(times_s):
                shown = "" if not times_s[i] else f", {documents / times_s[i][-1]:,.0f} documents/s"
                self._say(f"{name}: {describe(configs[i])}{shown}")
                times_s[i].append(await self._time(configs[i], requests))
            if number + 1 >= _MIN_ROUNDS and time.monotonic() + sum(times[-1] for times in times_s) > stop_s:
                break
        return Step(
            name, [_figures(config, documents, own, times_s[0]) for config, own in zip(configs, times_s, strict=True)]
        )

    async def _slice(self, config: EngineConfig, seconds: float) -> list[Request]:
        """Return requests that take a configuration about so long, enough of them to fill all connections."""
        first = self._requests[0]
        probe = [Request(first.query, first.documents[:_PROBED_DOCUMENTS])]
        await self._time(config, probe)
        speed = _PROBED_DOCUMENTS / await self._time(config, probe)
        wanted = max(int(speed * seconds), _CONCURRENCY)
        size = min(max(wanted // _CONCURRENCY, 1), _REQUEST_DOCUMENTS)
        count = max(wanted // size, _CONCURRENCY)
        chosen = [self._requests[i % len(self._requests)] for i in range(count)]
        return [Request(request.query, request.documents[:size]) for request in chosen]

    async def _time(self, config: EngineConfig, requests: Sequence[Request]) -> float:
        """Return the seconds that the requests take, a few of them at a time."""
        service = self._service(config)
        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:
                await service.rerank(RerankRequest(request.query, list(request.documents)), Call())

        started_s = time.perf_counter()
        await asyncio.gather(*(work() for _ in range(_CONCURRENCY)))
        return time.perf_counter() - started_s

    def _other_paddings(self, config: EngineConfig) -> list[EngineConfig]:
        # Only coarser ones: OpenVINO keeps 0.3 - 0.5 MB for each shape it meets, and finer steps make more of them.
        engine, _ = self._loaded[config.engine, config.precision, config.threads]
        if not engine.pads:
            return []
        lengths, rows = (config.length_step, 2 * config.length_step), (config.row_step, 2 * config.row_step)
        made = [config.model_copy(update={"length_step": a, "row_step": b}) for a in lengths for b in rows]
        return [other for other in made if other != config]


def fault_of_logits(logits: NDArray[np.float32], expected: NDArray[np.float32], precision: str) -> str:
    """Return why a candidate must not serve, `` if its logits are those of fp32 within what its precision promises."""
    delta = float(np.abs(logits - expected).max())
    limit = MAX_DELTA_LOGIT[precision]
    return "" if delta <= limit else f"its logits are up to {delta:.3g} off those of fp32, {precision} may be {limit:g}"


def fastest(ratios: Sequence[Sequence[float]]) -> int:
    """Return which configuration to keep: the first, or the one that is clearly faster and by most.

    Args:
        ratios: Of each configuration, how many times as fast as the first it was in each round.
    """
    medians = [statistics.median(own) for own in ratios]
    clear = [
        i
        for i, own in enumerate(ratios)
        if medians[i] >= _MIN_GAIN and sorted(own)[len(own) // 4] > 1  # in three rounds of four
    ]
    return max(clear, key=lambda i: medians[i], default=0)


def describe(config: EngineConfig) -> str:
    """Return a configuration in a line."""
    return (
        f"{config.engine} {config.precision}, {config.threads} threads, {config.batch_tokens} tokens a batch, "
        f"padded to {config.length_step} tokens and {config.row_step} rows"
    )


def _other_threads(config: EngineConfig) -> list[EngineConfig]:
    # A core less, as tokenization needs one too; and half of them, where two threads share a core.
    counts = {config.threads - 1, config.threads // 2} - {0, config.threads}
    return [config.model_copy(update={"threads": count}) for count in sorted(counts, reverse=True)]


def _other_budgets(config: EngineConfig) -> list[EngineConfig]:
    # Not far from the engine's own: others wait longer for a larger batch, which this measurement does not see.
    return [
        config.model_copy(update={"batch_tokens": tokens})
        for tokens in (config.batch_tokens // 2, 2 * config.batch_tokens)
    ]


def _running(times_s: list[list[float]]) -> list[int]:
    """Return who runs in the next round: all but those that lost the first two by far."""
    base = times_s[0]
    return [
        i
        for i, own in enumerate(times_s)
        if not (len(own) == 2 <= len(base) and all(b / a < _HOPELESS for a, b in zip(own, base, strict=False)))
    ]


def _figures(config: EngineConfig, documents: int, own: list[float], base: list[float]) -> dict[str, Any]:
    ratios = [b / a for a, b in zip(own, base, strict=False)]
    return {
        "config": config.model_dump(),
        "documents_per_s": round(documents / statistics.median(own), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
    }
