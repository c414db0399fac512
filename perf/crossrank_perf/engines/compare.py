"""Compare the embedded engines: they score the same pairs through the same batcher, in turn, request by request.

Taking turns cancels the noise of the machine; where other processes take the cores, read the CPU time a pair.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np

from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import EngineName, PrecisionName
from crossrank.engines.select import make_engine
from crossrank.packed import PairBatch
from crossrank.scheduling.batcher import Batcher
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Request


@dataclass
class _Turns:
    """One engine, and the wall and CPU seconds of each round."""

    engine: EmbeddedEngine
    batcher: Batcher
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)


def compare_engines(
    bundle: Bundle,
    names: Sequence[EngineName],
    precision: PrecisionName,
    threads: int,
    requests: Sequence[Request],
    rounds: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Score the pairs of the requests, one request at a time, with each engine; tokenization is left out.

    Args:
        bundle: The model.
        names: Engines; ratios are to the first.
        precision: Precision of all engines; `auto` lets each choose its own.
        threads: Inferences at a time, one thread each.
        requests: Queries with documents.
        rounds: Number of rounds; in each, every engine scores all pairs once.
        say: Called with the progress.

    Returns:
        Figures of each engine, and its largest difference of a logit from the first engine, ready for JSON.

    Raises:
        CrossrankError: An engine cannot serve the bundle.
    """
    encoder = PairEncoder(bundle)
    batches = [encoder.encode(request.query, list(request.documents)).batch for request in requests]
    engines = [make_engine(bundle, name, precision, threads) for name in names]
    turns = [_Turns(engine, Batcher(engine, 1_000_000)) for engine in engines]
    logits = asyncio.run(_run(turns, batches, rounds, say))
    pairs = sum(len(batch) for batch in batches)
    first = turns[0]
    return {
        "threads": threads,
        "pairs": pairs,
        "mean_tokens": round(sum(len(batch.input_ids) for batch in batches) / pairs, 1),
        "rounds": rounds,
        "engines": [
            {
                "name": turn.engine.name,
                "precision": turn.engine.precision,
                "pairs_per_s": round(pairs / median(turn.wall_s), 1),
                "cpu_us_per_pair": round(median(turn.cpu_s) / pairs * 1e6, 1),
                "wall_ratio": _ratio(turn.wall_s, first.wall_s),
                "cpu_ratio": _ratio(turn.cpu_s, first.cpu_s),
                "max_delta_logit": float(np.abs(own - logits[0]).max()),
            }
            for turn, own in zip(turns, logits, strict=True)
        ],
    }


def _ratio(seconds: Sequence[float], first: Sequence[float]) -> float:
    """Return the median over the rounds of the time relative to the first engine."""
    return round(median(own / other for own, other in zip(seconds, first, strict=True)), 3)


async def _run(
    turns: Sequence[_Turns], batches: Sequence[PairBatch], rounds: int, say: Callable[[str], None]
) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    """Fill in the seconds of each round and return each engine's logits, float32 [pairs]."""
    logits = [np.concatenate([await turn.batcher.score(batch) for batch in batches]) for turn in turns]
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        for turn in turns:
            turn.wall_s.append(0.0)
            turn.cpu_s.append(0.0)
        for i, batch in enumerate(batches):
            for turn in turns if i % 2 == 0 else reversed(turns):
                wall, cpu = time.perf_counter(), time.process_time()
                await turn.batcher.score(batch)
                turn.wall_s[-1] += time.perf_counter() - wall
                turn.cpu_s[-1] += time.process_time() - cpu
    for turn in turns:
        await turn.engine.close()
    return logits
