"""Compare a plan's logits with ONNX Runtime's on the built-in pairs, each on the profile of its bucket."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crossrank.bundles.bundle import Bundle, Graph
from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.tensorrt.lane import Feed, PlanLane
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.engines.tensorrt.spec import Bucket, EngineSpec
from crossrank.errors import SetupError
from crossrank.native.padding import pad
from crossrank.packed import PairBatch, join_pairs, take_pairs
from crossrank.text.encoding import PairEncoder
from crossrank_export.graphs import session_scorer
from crossrank_export.parity import SampleSet, compare
from crossrank_export.samples import SampleGroup, builtin_groups

# The fp16 graph itself may be 0.02 off fp32; TensorRT adds in yet another order.
MAX_DELTA_LOGIT = 0.05


def measure_parity(trt: Any, plan: bytes, bundle: Bundle, spec: EngineSpec) -> dict[str, Any]:
    """Score the built-in pairs with the plan, and compare the logits with ONNX Runtime's on the CPU.

    The reference is the bundle's fp32 graph, so that the difference is that of the plan from fp32; where the bundle has
    none, it is the graph that the plan was built from.

    Returns:
        `reference`, the fields of `Agreement`, and per bucket `pairs_by_bucket` and `max_abs_delta_by_bucket`.

    Raises:
        SetupError: The plan cannot be loaded, or a logit is not a finite number.
    """
    manifest = bundle.manifest
    groups = builtin_groups(manifest.max_length)
    batch = _encode(bundle, groups)
    graph = next((graph for graph in manifest.graphs if graph.precision == "fp32"), spec.graph)
    reference = session_scorer(bundle.file(graph.file), graph, manifest.pad_token_id)(batch)[:, manifest.label]
    logits = np.zeros(len(batch), np.float32)
    pairs_by_bucket: dict[str, int] = {}
    delta_by_bucket: dict[str, float] = {}
    with _lane(trt, plan, spec) as lane:
        for bucket, chosen in _by_bucket(batch.lengths, spec):
            feed = make_feed(spec.graph, take_pairs(batch, chosen), bucket.length, manifest.pad_token_id)
            logits[chosen] = lane.run(feed)[:, manifest.label]
            delta = np.abs(logits[chosen] - reference[chosen])
            name = str(bucket.length)
            pairs_by_bucket[name] = pairs_by_bucket.get(name, 0) + len(chosen)
            delta_by_bucket[name] = max(delta_by_bucket.get(name, 0.0), float(delta.max()))
    if not np.isfinite(logits).all():
        raise SetupError(
            f"{spec.plan_name} gives logits that are not finite numbers, which an overflow in fp16 does: no plan was "
            "written; export the bundle again and check the fp16 graph's parity in its manifest"
        )
    agreement = compare(SampleSet("builtin", groups, batch, reference), logits)
    return {
        "reference": f"onnxruntime {version('onnxruntime')} CPU, {graph.precision}",
        **agreement.as_dict(),
        "pairs_by_bucket": pairs_by_bucket,
        "max_abs_delta_by_bucket": delta_by_bucket,
    }


def check_parity(parity: dict[str, Any], spec: EngineSpec) -> None:
    """Check that a plan's logits are within the limit.

    Raises:
        SetupError: The largest difference is over the limit.
    """
    delta = parity["max_abs_delta"]
    if not delta <= MAX_DELTA_LOGIT:
        raise SetupError(
            f"{spec.plan_name} differs from {parity['reference']} by up to {delta:.4g} in the logit, the limit is "
            f"{MAX_DELTA_LOGIT}: no plan was written; check the fp16 graph's own parity in the manifest first"
        )


def make_feed(graph: Graph, batch: PairBatch, length: int, pad_token_id: int) -> Feed:
    """Return the graph's inputs, padded to `length` tokens, in the dtypes of the manifest."""
    ids, types, mask = pad(batch, length, pad_token_id)
    values = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    return {tensor.name: values[tensor.name].astype(tensor.dtype) for tensor in graph.inputs}


def _encode(bundle: Bundle, groups: list[SampleGroup]) -> PairBatch:
    encoder = PairEncoder(bundle)
    return join_pairs([encoder.encode(group.query, group.documents).batch for group in groups])


@contextmanager
def _lane(trt: Any, plan: bytes, spec: EngineSpec) -> Iterator[PlanLane]:
    """Load a plan onto the GPU, and yield a lane until the context ends.

    Raises:
        SetupError: TensorRT cannot load the plan, or the GPU has not enough memory.
    """
    loaded = LoadedPlan(trt, spec.runtime, plan, spec.plan_name, CaptureGate())
    try:
        if len(loaded.profiles) != len(spec.buckets):
            raise SetupError(
                f"{spec.plan_name} has {len(loaded.profiles)} profiles, {len(spec.buckets)} were asked for"
            )
        lane = PlanLane(loaded)
        try:
            yield lane
        finally:
            lane.close()
    finally:
        loaded.close()


def _by_bucket(lengths: NDArray[np.int64], spec: EngineSpec) -> Iterator[tuple[Bucket, NDArray[np.int64]]]:
    """Yield (bucket, indices of pairs), at most as many pairs at a time as the profile takes."""
    profiles = np.searchsorted([bucket.length for bucket in spec.buckets], lengths)
    for profile, bucket in enumerate(spec.buckets):
        chosen = np.flatnonzero(profiles == profile)
        for start in range(0, len(chosen), bucket.max_batch):
            yield bucket, chosen[start : start + bucket.max_batch]
