"""Measure the most pairs/s that an engine computes at each padded length: full batches on all its threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from crossrank.bundles.bundle import Bundle
from crossrank.engines.buckets import check_lengths
from crossrank.engines.names import EngineName, PrecisionName
from crossrank.engines.select import make_engine
from crossrank.text.encoding import PairEncoder
from crossrank_perf.base.workload import Workload
from crossrank_perf.engines.bare import BareEngine
from crossrank_perf.engines.batches import cut_batches, encode_workload, pairs_by_bucket

# For shapes that the engine has not met yet.
_WARM_UP_S = 0.3


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
        seconds: Duration of each measurement.
        say: Called with the progress.

    Raises:
        CrossrankError: An engine cannot serve the bundle.
    """
    lengths = check_lengths(None, bundle.manifest.max_length)
    buckets = pairs_by_bucket(encode_workload(PairEncoder(bundle), workload), lengths)
    rates = []
    for name in names:
        bare = BareEngine(make_engine(bundle, name, precision, threads))
        try:
            for length, pairs in buckets.items():
                say(f"{name}, {length} tokens")
                batches = cut_batches(pairs, max(bare.engine.batch_tokens // length, 1))
                bare.measure(batches, _WARM_UP_S)
                rate = bare.measure(batches, seconds)
                rates.append(
                    {
                        "engine": bare.engine.name,
                        "precision": bare.engine.precision,
                        "bucket": length,
                        "pairs_a_batch": len(batches[0]),
                        "pairs_per_s": rate.documents_per_s,
                        "cpu_us_per_pair": rate.cpu_us_per_document,
                    }
                )
        finally:
            bare.close()
    return rates
