"""Compare an engine's logits with those that ONNX Runtime computes from the bundle's fp32 graph, before it serves.

No machine that built this project had every CPU and GPU, and an engine may read other files than that graph: one that
computes something else must not serve.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle
from crossrank.engines.embedded import EmbeddedEngine
from crossrank.engines.memory import return_memory
from crossrank.errors import EngineFailure
from crossrank.packed import PairBatch, offsets_of, take_pairs

_log = logging.getLogger("crossrank")

# How far any logit may be off, relative to the largest one, or to 1 where that is larger. Orders of addition give 1e-6;
# roles mixed up, lost segments or a wrong kernel give more than these.
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "bf16": 0.1}
_LENGTHS = (1, 3, 17, 33, 64, 97, 200)
_SEED = 0


@dataclass(frozen=True)
class Expected:
    """Hold pairs of random tokens, and their logits in fp32 on the CPU.

    Attributes:
        batch: The pairs.
        logits: float32 [pairs].
    """

    batch: PairBatch
    logits: NDArray[np.float32]


def expect_logits(bundle: Bundle) -> Expected | None:
    """Score random pairs with ONNX Runtime; None where the bundle has no fp32 graph, or one that cannot run there."""
    if all(graph.precision != "fp32" for graph in bundle.manifest.graphs):
        return None
    try:
        from crossrank.engines.onnxruntime import OnnxRuntimeEngine

        engine = OnnxRuntimeEngine(bundle, "fp32", 1)
        batch = random_pairs(bundle)
        expected = Expected(batch, np.concatenate([engine.infer(pair) for pair in _alone(batch)]))
    except Exception:  # a broken installation raises anything, on import already
        _log.debug("no other engine computes this graph", exc_info=True)
        return None
    del engine
    return_memory()
    return expected


def random_pairs(bundle: Bundle) -> PairBatch:
    """Return pairs of seeded random tokens, short and long, the second half of each in the document's segment."""
    manifest = bundle.manifest
    generator = np.random.default_rng(_SEED)
    lengths = np.array([min(length, manifest.max_length) for length in _LENGTHS])
    query, document = manifest.pair_template.segments
    types = [np.where(np.arange(length) < (length + 1) // 2, query, document) for length in lengths]
    return PairBatch(
        generator.integers(0, manifest.architecture.vocab_size, int(lengths.sum()), np.int32),
        np.concatenate(types).astype(np.int32),
        offsets_of(lengths),
    )


def _alone(batch: PairBatch) -> list[PairBatch]:
    """Return each pair as a batch of its own, which nothing pads."""
    return [take_pairs(batch, np.array([row])) for row in range(len(batch))]


def check_logits(engine: EmbeddedEngine, expected: Expected) -> None:
    """Refuse an engine whose logits are not the expected ones.

    Raises:
        EngineFailure: A logit is further off than TOLERANCE allows.
    """
    logits = engine.infer(expected.batch)
    limit = TOLERANCE[engine.precision] * max(1.0, float(np.abs(expected.logits).max()))
    delta = float(np.abs(logits - expected.logits).max())
    if not delta <= limit:
        raise EngineFailure(
            f"{engine.file} on engine {engine.name} gives logits {delta:.3g} off those of the bundle's fp32 graph in "
            f"ONNX Runtime, in {engine.precision} (limit {limit:.3g}): "
            "export the model again; if that does not help, report this with the model and the CPU or GPU"
        )
