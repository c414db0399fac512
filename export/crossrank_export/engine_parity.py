"""Compare the logits that this machine's engines compute from a written bundle with the source's.

The parity of the graph shows that the graph is right. An engine may read other files (native), fuse operators wrongly,
or refuse the graph; as `auto` may choose any of them, each one is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.candidates import choosable_engines
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.names import EngineName
from crossrank.engines.select import make_engine
from crossrank.errors import CrossrankError
from crossrank.packed import PairBatch, take_pairs
from crossrank.reasons import reason_of
from crossrank_export.parity import SampleSet, compare

# Tokens of a call: enough to be efficient, few enough to keep every core busy.
_CALL_TOKENS = 2048
_PACKAGES = {"native": "crossrank", "cuda": "onnxruntime-gpu"}


def compare_engines(bundle: Bundle, samples: Sequence[SampleSet]) -> dict[str, dict[str, Any]]:
    """Score the pairs in fp32 with each engine that `auto` may choose here for a bundle.

    Args:
        bundle: The written bundle.
        samples: Pairs with the source's logits.

    Returns:
        For each engine: `runtime` with its version, the agreement by name of the sample set, and `disagrees`, true if a
        logit is beyond the threshold of fp32. For an engine that cannot serve: `refused` with the reason.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in choosable_engines(bundle, "fp32"):
        found[name] = _compare(bundle, name, samples)
    return found


def _compare(bundle: Bundle, name: EngineName, samples: Sequence[SampleSet]) -> dict[str, Any]:
    record: dict[str, Any] = {"runtime": _runtime(name)}
    try:
        engine = make_engine(bundle, name, "fp32")
        agreements = {sample.name: compare(sample, _score(engine, sample.batch)) for sample in samples}
    except CrossrankError as error:
        return {**record, "refused": error.message}
    except Exception as error:  # runtimes raise many types
        return {**record, "refused": reason_of(error)}
    record |= {key: agreement.judged_as("fp32") for key, agreement in agreements.items()}
    record["disagrees"] = not all(agreement.within("fp32") for agreement in agreements.values())
    return record


def _score(engine: EmbeddedEngine, batch: PairBatch) -> NDArray[np.float32]:
    """Return the logits, float32 [pairs], in calls of similar pairs, as many at a time as there are cores."""
    order = np.argsort(batch.lengths, kind="stable")
    calls: list[list[int]] = [[]]
    for row in order:
        if calls[-1] and (len(calls[-1]) + 1) * batch.lengths[row] > _CALL_TOKENS:
            calls.append([])
        calls[-1].append(int(row))
    logits = np.empty(len(batch), np.float32)
    with ThreadPoolExecutor(engine.concurrency) as pool:
        parts = pool.map(lambda rows: engine.infer(take_pairs(batch, np.array(rows))), calls)
        for rows, part in zip(calls, parts, strict=True):
            logits[rows] = part
    return logits


def _runtime(name: str) -> str:
    package = _PACKAGES.get(name, name)
    try:
        return f"{name} {version(package)}"
    except PackageNotFoundError:
        return name
