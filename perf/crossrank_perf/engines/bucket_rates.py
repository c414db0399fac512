"""Measure the most pairs/s that engines compute at each padded length: full batches on all their threads, in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from crossrank.bundles.bundle import Bundle
from crossrank.engines.buckets import check_lengths
from crossrank.engines.names import EngineName, PrecisionName
from crossrank.engines.select import make_engine
from crossrank.packed import PairBatch
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Workload
from crossrank_perf.engines.bare import BareEngine, BareRate
from crossrank_perf.engines.batches import cut_batches, encode_workload, pairs_by_bucket

# For shapes that the engine has not met yet.
_WARM_UP_S = 0.3
# Each round measures every engine for its share of the time, so that noise of the machine meets them all.
_ROUNDS = 3


def rates_by_bucket(
    bundle: Bundle,
    names: Sequence[EngineName],
    precision: PrecisionName,
    threads: int,
    workload: Workload,
    seconds: float,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """Return pairs/s of each engine and each length that a twentieth of the pairs are padded to.

    Args:
        bundle: The model.
        names: Engines.
        precision: Precision of all engines; `auto` lets each choose its own.
        threads: Inferences at a time.
        workload: Requests whose pairs are computed.
        seconds: Duration of each engine's measurement at each length, all rounds together.
        say: Called with the progress.

    Raises:
        CrossrankError: An engine cannot serve the bundle.
    """
    lengths = check_lengths(None, bundle.manifest.max_length)
    buckets = pairs_by_bucket(encode_workload(PairEncoder(bundle), workload), lengths)
    engines: list[BareEngine] = []
    try:
        for name in names:
            engines.append(BareEngine(make_engine(bundle, name, precision, threads)))
        return [rate for length, pairs in buckets.items() for rate in _rates_of(engines, length, pairs, seconds, say)]
    finally:
        for bare in engines:
            bare.close()


def _rates_of(
    engines: Sequence[BareEngine], length: int, pairs: PairBatch, seconds: float, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return the median rate of each engine at one length, over rounds in which all take their turn."""
    batches = [cut_batches(pairs, max(bare.engine.batch_tokens // length, 1)) for bare in engines]
    found: list[list[BareRate]] = [[] for _ in engines]
    for number in range(_ROUNDS):
        for bare, own, rates in zip(engines, batches, found, strict=True):
            say(f"{bare.engine.name}, {length} tokens")
            if number == 0:
                bare.measure(own, _WARM_UP_S)
            rates.append(bare.measure(own, seconds / _ROUNDS))
    return [
        {
            "engine": bare.engine.name,
            "precision": bare.engine.precision,
            "bucket": length,
            "pairs_a_batch": len(own[0]),
            "pairs_per_s": median(rate.documents_per_s for rate in rates),
            "cpu_us_per_pair": median(rate.cpu_us_per_document for rate in rates),
        }
        for bare, own, rates in zip(engines, batches, found, strict=True)
    ]
