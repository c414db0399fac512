"""Decide all parameters of a build before TensorRT is used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Graph, Manifest
from crossrank.engines.buckets import check_lengths
from crossrank.engines.tensorrt.gpus import Gpu, sm_text
from crossrank.engines.tensorrt.runtimes import RTX, Runtime
from crossrank.errors import SetupError

DEFAULT_MAX_BATCH = 128
DEFAULT_WORKSPACE_MIB = 4096
OPTIMIZATION_LEVEL = 5

# TensorRT tunes its kernels at the OPT point. So many tokens in a launch keep a data-centre GPU busy with an encoder of
# hidden size 128 to 768, and more would only add latency; a full queue makes batches of this size.
OPT_TOKENS = 8192

# A batch's attention scores grow with the square of its length. Beyond 512 tokens a profile takes only as many pairs as
# need no more of them than 128 pairs of 512 tokens: TensorRT for RTX cannot build one for 128 pairs of 2,048 tokens.
FULL_LENGTH = 512
MOST_SCORES = DEFAULT_MAX_BATCH * FULL_LENGTH**2

# Tensors of TensorRT are indexed with 32 bits.
MOST_TOKENS = 2**31 - 1
# 1 TiB, more than any GPU has.
MOST_WORKSPACE_MIB = 1 << 20

Shape = tuple[int, int]


@dataclass(frozen=True)
class Bucket:
    """An optimization profile: pairs padded to one length.

    Attributes:
        length: Tokens that pairs are padded to: OPT and MAX of the profile.
        min_length: One more than the length of the bucket below, so that each length has exactly one profile.
        opt_batch: Pairs of the batch that kernels are tuned for.
        max_batch: Most pairs of a batch.
    """

    length: int
    min_length: int
    opt_batch: int
    max_batch: int

    @property
    def shapes(self) -> tuple[Shape, Shape, Shape]:
        """Return MIN, OPT and MAX, each (pairs, tokens)."""
        return (1, self.min_length), (self.opt_batch, self.length), (self.max_batch, self.length)


@dataclass(frozen=True)
class EngineSpec:
    """Parameters of a plan.

    Attributes:
        gpus: GPUs that the plan is for; for TensorRT proper all of one compute capability.
        runtime: TensorRT or TensorRT for RTX.
        tensorrt: Version of the runtime that builds it.
        graph: Graph that it is built from.
        buckets: Profiles, shortest first.
        workspace_mib: Memory that a kernel may use beside weights and activations, in MiB.
        timing_cache: File that keeps kernel timings between builds; None for TensorRT for RTX, which times nothing.
    """

    gpus: tuple[Gpu, ...]
    runtime: Runtime
    tensorrt: str
    graph: Graph
    buckets: tuple[Bucket, ...]
    workspace_mib: int
    timing_cache: Path | None

    @property
    def sms(self) -> tuple[int, ...]:
        """Return the compute capabilities of the plan times ten, ascending."""
        return tuple(sorted({gpu.sm for gpu in self.gpus}))

    @property
    def plan_name(self) -> str:
        """Return the file name of the plan, with the SMs and the TensorRT that alone can load it."""
        sms = "-".join(f"sm{sm}" for sm in self.sms)
        return f"model.{sms}.{self.runtime.tag}{self.tensorrt}.{self.graph.precision}.plan"

    @property
    def release(self) -> str:
        """Return name and version of the TensorRT that builds the plan."""
        return f"{self.runtime.label} {self.tensorrt}"

    @property
    def targets(self) -> str:
        """Return the GPUs with their compute capabilities, for messages."""
        return ", ".join(f"{gpu.label} (SM {sm_text(gpu.sm)})" for gpu in self.gpus)

    @property
    def inputs(self) -> list[str]:
        """Return the names of the graph's inputs, each int [pairs, tokens]."""
        return [tensor.name for tensor in self.graph.inputs]

    def as_entry(self) -> dict[str, Any]:
        """Return the manifest entry of the plan, without its measured parity."""
        return {
            "file": self.plan_name,
            "gpus": [gpu.name for gpu in self.gpus],
            "sms": list(self.sms),
            "runtime": self.runtime.name,
            "tensorrt": self.tensorrt,
            "precision": self.graph.precision,
            "graph": self.graph.file,
            "max_batch": min(bucket.max_batch for bucket in self.buckets),  # what every profile takes
            "profiles": [
                dict(zip(("min", "opt", "max"), map(list, bucket.shapes), strict=True)) for bucket in self.buckets
            ],
            "workspace_mib": self.workspace_mib,
            "builder_optimization_level": OPTIMIZATION_LEVEL,
        }


def make_buckets(
    lengths: Sequence[int] | None, max_length: int, max_batch: int, batch_tokens: int | None = None
) -> tuple[Bucket, ...]:
    """Return a bucket for each length.

    Args:
        lengths: Tokens of each bucket; see `check_lengths`.
        max_length: Tokens of the bundle's longest pair, which the last bucket must hold.
        max_batch: Most pairs of a batch; of pairs longer than 512 tokens fewer.
        batch_tokens: Most tokens of a batch, which may leave fewer pairs in long buckets; None sets no limit.

    Raises:
        SetupError: The lengths are not ascending, or do not end at `max_length`; or a batch is too large.
    """
    if max_batch < 1:
        raise SetupError(f"--max-batch {max_batch} is not a batch: give 1 or more")
    lengths = check_lengths(lengths, max_length)
    starts = [1, *(length + 1 for length in lengths[:-1])]
    buckets = []
    for length, start in zip(lengths, starts, strict=True):
        most = _most_pairs(length, max_batch, batch_tokens)
        if most * length > MOST_TOKENS:
            raise SetupError(
                f"--max-batch {max_batch} gives batches of more than {MOST_TOKENS} tokens in the {length}-token "
                f"bucket: give {DEFAULT_MAX_BATCH}, or at most {MOST_TOKENS // length}"
            )
        buckets.append(Bucket(length, start, max(1, min(most, OPT_TOKENS // length)), most))
    return tuple(buckets)


def _most_pairs(length: int, max_batch: int, batch_tokens: int | None) -> int:
    most = max_batch
    if batch_tokens is not None:
        most = min(most, batch_tokens // length)
    if length > FULL_LENGTH or batch_tokens is not None:
        most = min(most, MOST_SCORES // length**2)
    return max(1, most)


def make_spec(
    manifest: Manifest,
    bundle_path: Path,
    gpus: Sequence[Gpu],
    runtime: Runtime,
    tensorrt: str,
    *,
    buckets: Sequence[int] | None = None,
    max_batch: int = DEFAULT_MAX_BATCH,
    batch_tokens: int | None = None,
    workspace_mib: int = DEFAULT_WORKSPACE_MIB,
    timing_cache: Path | None = None,
) -> EngineSpec:
    """Return the parameters of a plan for a bundle.

    Args:
        manifest: Manifest of the bundle.
        bundle_path: Directory of the bundle.
        gpus: See `choose_runtime`.
        runtime: Runtime that serves all of them.
        tensorrt: Version of the runtime.
        buckets: See `make_buckets`.
        max_batch: Most pairs of a batch.
        batch_tokens: See `make_buckets`.
        workspace_mib: Memory that a kernel may use beside weights and activations, in MiB.
        timing_cache: File that keeps kernel timings; defaults to one in the bundle.

    Raises:
        SetupError: The bundle has no fp16 graph, or an option does not fit it.
    """
    standard = {graph.precision: graph for graph in manifest.graphs if graph.operators == "onnx"}
    graph = standard.get("fp16")
    if graph is None:
        present = ", ".join(standard)
        raise SetupError(
            f"{manifest.model_id} has no fp16 graph, only {present}: TensorRT plans are built from it, so run "
            f"crossrank export {manifest.source.name} --out {bundle_path} --precision fp32,fp16"
        )
    if not 1 <= workspace_mib <= MOST_WORKSPACE_MIB:
        fault = "leaves no memory" if workspace_mib < 1 else "is more than any GPU has"
        raise SetupError(f"--workspace-mib {workspace_mib} {fault}: give 16 to {MOST_WORKSPACE_MIB}")
    if runtime is RTX and timing_cache is not None:
        raise SetupError(f"--timing-cache: {RTX.label} times no kernels when it builds: leave it out")
    return EngineSpec(
        gpus=tuple(gpus),
        runtime=runtime,
        tensorrt=tensorrt,
        graph=graph,
        buckets=make_buckets(buckets, manifest.max_length, max_batch, batch_tokens),
        workspace_mib=workspace_mib,
        # Timings are valid for one device and release, hence the name; beside the plan they outlive the container
        # that it was built in.
        timing_cache=None
        if runtime is RTX
        else timing_cache or bundle_path / f"timing.sm{gpus[0].sm}.trt{tensorrt}.cache",
    )
