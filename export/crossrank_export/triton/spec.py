"""Decide all parameters of a model repository before a file is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from crossrank.bundles.bundle import Graph, Manifest
from crossrank.engines.buckets import check_lengths
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.runtimes import RTX, TENSORRT
from crossrank.errors import SetupError

Target = Literal["tensorrt", "onnxruntime-gpu", "cpu"]
TARGETS: tuple[Target, ...] = ("tensorrt", "onnxruntime-gpu", "cpu")

TEXT_SUFFIX = "_rerank"
# On a CPU a batch is sorted by length and divided to suit the caches anyway.
_MAX_BATCH = 128
# Rows of a request to an engine model that merges requests of all lengths: few enough that the documents of one client
# keep all instances busy.
MIXED_ROWS = 32
# Two instances overlap one batch's copies with another's kernels; on CPUs `crossrank triton` takes one more than cores.
_INSTANCES = 2
_TEXT_INSTANCES = 4
# CUDA graphs remove launch overhead, which matters in small batches; each takes GPU memory.
_GRAPH_BATCHES = (1, 2, 4, 8, 16, 32)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Queue:
    """Parameters of the queue in front of the engine model.

    Attributes:
        max_requests: Most waiting requests; one more is refused at once with UNAVAILABLE.
        timeout_us: Microseconds after which a waiting request is refused; a client may ask for less.
        delay_us: Microseconds that a batch waits for more requests. Under load batches fill without waiting.
    """

    max_requests: int = 2048
    timeout_us: int = 10_000_000
    delay_us: int = 0


@dataclass(frozen=True)
class RepositorySpec:
    """Parameters of a repository.

    Attributes:
        name: Name of the engine model; the text model is `<name>_rerank`.
        target: Backend that computes the logits.
        graph: Graph that it runs, or that its plan was built from.
        buckets: Sequence lengths in tokens, ascending.
        max_batch: Most rows of a batch.
        opt_batches: Rows that kernels are tuned for, for each bucket; also those of the warm-up.
        graph_batches: Rows for which a CUDA graph of each bucket is captured; `tensorrt` only.
        queue: Queue of the dynamic batcher.
        instances: Instances of the engine model (on each GPU).
        text_instances: Instances of the text model, each for one request at a time; 0 leaves it out.
        engine: Embedded engine of the `cpu` target.
        precision: Precision of the `cpu` target.
        plan: Manifest entry of the TensorRT plan; `tensorrt` only.
    """

    name: str
    target: Target
    graph: Graph
    buckets: tuple[int, ...]
    max_batch: int
    opt_batches: tuple[int, ...]
    graph_batches: tuple[int, ...]
    queue: Queue
    instances: int
    text_instances: int
    engine: str = "auto"
    precision: str = "auto"
    plan: dict[str, Any] | None = None

    @property
    def merges_lengths(self) -> bool:
        """Return whether requests of different lengths merge: the Python backend gets the tensors of each request."""
        return self.target == "cpu"

    @property
    def text_name(self) -> str:
        """Return the name of the text model."""
        return self.name + TEXT_SUFFIX


def make_spec(
    manifest: Manifest,
    target: Target,
    *,
    name: str | None = None,
    buckets: Sequence[int] | None = None,
    max_batch: int | None = None,
    queue: Queue | None = None,
    instances: int | None = None,
    text_instances: int | None = None,
    engine: str = "auto",
    precision: str = "auto",
    gpu: str | None = None,
    tensorrt: str | None = None,
) -> RepositorySpec:
    """Return the parameters of a repository for a bundle.

    Args:
        manifest: Manifest of the bundle.
        target: Backend that computes the logits.
        name: Name of the engine model; defaults to the model id without its owner.
        buckets: Sequence lengths in tokens; for `tensorrt` they are those of the plan.
        max_batch: Most rows of a batch; for `tensorrt` it is that of the plan.
        queue: Queue of the dynamic batcher.
        instances: Instances of the engine model.
        text_instances: Instances of the text model; 0 leaves it out.
        engine: Embedded engine of the `cpu` target: auto, native, openvino or onnxruntime.
        precision: Precision of the `cpu` target; see `crossrank.engines.names`.
        gpu: GPU whose plan to take, where the bundle has several.
        tensorrt: Version in the serving container; with `gpu` it defaults to that of the GPU's usual container.

    Raises:
        SetupError: An option does not fit the bundle or the target.
    """
    name = name or manifest.model_id.rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise SetupError(f"--name {name!r} is no name of a Triton model: use letters, digits, '.', '_' and '-'")
    if instances is not None and instances < 1:
        raise SetupError(f"--instances {instances} leaves nothing to compute with: give 1 or more")
    plan = None
    if target == "tensorrt":
        _refuse_given(buckets, max_batch)
        plan = choose_plan(manifest, gpu, tensorrt)
        buckets = [profile["max"][1] for profile in plan["profiles"]]
        max_batch = int(plan["max_batch"])
        opt_batches = [min(max_batch, int(profile["opt"][0])) for profile in plan["profiles"]]
        graph = _planned_graph(manifest, plan)
    else:
        buckets = check_lengths(buckets, manifest.max_length)
        max_batch = max_batch or _MAX_BATCH
        opt_batches = [min(max_batch, max(1, 4096 // bucket)) for bucket in buckets]
        graph = _graph_for(manifest, target)
    if target != "cpu" and manifest.num_labels != 1:
        raise SetupError(
            f"{manifest.model_id} has {manifest.num_labels} logits a pair: target {target} serves models with one; "
            "use --target cpu, which picks the bundle's label"
        )
    return RepositorySpec(
        name=name,
        target=target,
        graph=graph,
        buckets=tuple(buckets),
        max_batch=max_batch,
        opt_batches=tuple(opt_batches),
        graph_batches=tuple(b for b in _GRAPH_BATCHES if b <= max_batch) if target == "tensorrt" else (),
        queue=queue or Queue(),
        instances=instances or _INSTANCES,
        text_instances=_TEXT_INSTANCES if text_instances is None else text_instances,
        engine=engine,
        precision=precision,
        plan=plan,
    )


def choose_plan(manifest: Manifest, gpu: str | None, tensorrt: str | None) -> dict[str, Any]:
    """Return the manifest's plan for a GPU, or its only one.

    Raises:
        SetupError: There is no plan that Triton loads, or several and none was chosen.
        BundleError: That GPU or TensorRT version cannot load the plan.
    """
    plans = [plan for plan in manifest.plans if plan.get("runtime") != RTX.name]
    fitting = [plan for plan in manifest.plans if gpu is None or GPUS[gpu].sm in plan.get("sms", [])]
    served = [plan for plan in fitting if plan in plans]
    portable = [plan for plan in fitting if plan not in plans]
    if not served and (portable or not plans):
        raise SetupError(_no_plan_for_triton(manifest, portable, gpu))
    if gpu is None:
        if len(plans) > 1:
            raise SetupError(f"the bundle has the plans {_names(plans)}: choose one with --gpu")
        plan = plans[0]
        check_plan(plan, int(next(iter(plan.get("sms", [])), 0)), tensorrt or str(plan.get("tensorrt", "")))
        return plan
    wanted = GPUS[gpu]
    version = tensorrt or wanted.container.tensorrt
    same_release = [plan for plan in served if str(plan.get("tensorrt", "")).startswith(version)]
    plan = (same_release or served or plans)[0]
    check_plan(plan, wanted.sm, version)
    return plan


def _no_plan_for_triton(manifest: Manifest, portable: Sequence[dict[str, Any]], gpu: str | None) -> str:
    label = GPUS[gpu].label if gpu else "GPU that will serve"
    build = (
        f"build a plan of {TENSORRT.label} itself on the {label} "
        f"(crossrank engine --gpu {gpu or 'NAME'} --runtime {TENSORRT.name})"
    )
    if not portable:
        which = f" for the {label}" if gpu else ""
        return (
            f"{manifest.model_id} has no TensorRT plan{which}: {build}, or let Triton run the graph (--target "
            "onnxruntime-gpu)"
        )
    which = f"for the {label} only plans" if gpu else "only plans"
    return (
        f"{manifest.model_id} has {which} of {RTX.label} ({_names(portable)}), which Triton's TensorRT backend does "
        "not load: serve them with the gateway alone (crossrank serve --engine tensorrt), or let Triton run the graph "
        f"(--target onnxruntime-gpu), or {build}"
    )


def _names(plans: Sequence[dict[str, Any]]) -> str:
    return ", ".join(str(plan.get("file", "?")) for plan in plans)


def _planned_graph(manifest: Manifest, plan: dict[str, Any]) -> Graph:
    graph = next((graph for graph in manifest.graphs if graph.file == plan["graph"]), None)
    if graph is None:
        raise SetupError(
            f"{plan['file']} was built from {plan['graph']}, which the bundle no longer has: build it again"
        )
    wide = [tensor.name for tensor in graph.inputs if tensor.dtype != "int32"]
    if wide:
        raise SetupError(
            f"{plan['file']} takes {', '.join(wide)} as int64, Triton's clients send int32: "
            "export the bundle again with this version of crossrank and build the plan from it"
        )
    return graph


def _graph_for(manifest: Manifest, target: Target) -> Graph:
    """Return a graph of standard operators, which any release runs: fp16 for GPUs if the bundle has it, else fp32."""
    wanted = ("fp16", "fp32") if target == "onnxruntime-gpu" else ("fp32",)
    standard = {graph.precision: graph for graph in manifest.graphs if graph.operators == "onnx"}
    return next(standard[precision] for precision in wanted if precision in standard)


def _refuse_given(buckets: Sequence[int] | None, max_batch: int | None) -> None:
    for flag, value in (("--buckets", buckets), ("--max-batch", max_batch)):
        if value is not None:
            raise SetupError(f"{flag} is a property of the TensorRT plan: give it to crossrank engine instead")
