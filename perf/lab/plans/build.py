"""Build plans of TensorRT for RTX for models of the catalog's shapes; its parser and builder need no GPU."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from crossrank.bundles.catalog import BUILTIN, MODELS, CatalogModel
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.gpus import Gpu
from crossrank.engines.tensorrt.runtimes import RTX, load_runtime
from crossrank.engines.tensorrt.spec import DEFAULT_MAX_BATCH, DEFAULT_WORKSPACE_MIB, EngineSpec, make_buckets
from crossrank_export.trt.machine import require_wheel
from lab.random_models import write_checkpoint

# Tokens of the nine models' longest pairs.
_WINDOW = 512


def shapes_of_catalog() -> dict[str, CatalogModel]:
    """Return one model of each shape in the catalog, under the names of all that have it."""
    found: dict[tuple[Any, ...], list[CatalogModel]] = {}
    for model in MODELS:
        if model is not BUILTIN:
            shape = (model.model_type, model.layers, model.hidden, model.heads, model.ffn)
            found.setdefault(shape, []).append(model)
    return {", ".join(model.short_name.removeprefix("ms-marco-") for model in same): same[0] for same in found.values()}


def measure_plans(
    models: dict[str, CatalogModel], plans: Sequence[Sequence[Gpu]], say: Callable[[str], None]
) -> dict[str, Any]:
    """Build each plan for each model, of random weights, with the profiles of `crossrank engine`.

    Args:
        models: Models by the name to report.
        plans: GPUs of each plan.
        say: Called with the progress.

    Returns:
        The release, the profiles, and for each model seconds of CPU time and bytes of each plan, ready for JSON.

    Raises:
        SetupError: TensorRT for RTX or PyTorch is not installed, or a plan cannot be built.
    """
    trt = require_wheel(load_runtime(RTX))
    buckets = make_buckets(None, _WINDOW, DEFAULT_MAX_BATCH)
    rows = []
    for name, model in models.items():
        with tempfile.TemporaryDirectory(prefix="crossrank-plans-") as folder:
            say(f"{name}: fp16 graph")
            graph, path = _write_fp16(model, Path(folder))
            built = []
            for gpus in plans:
                say(f"{name}: plan for {', '.join(gpu.name for gpu in gpus)}")
                spec = EngineSpec(
                    tuple(gpus), RTX, str(trt.__version__), graph, buckets, DEFAULT_WORKSPACE_MIB, timing_cache=None
                )
                started = time.process_time()
                size = len(build_plan(trt, path, spec))
                built.append({"cpu_s": round(time.process_time() - started, 2), "bytes": size})
        rows.append({"models": name, "plans": built})
    return {
        "release": f"{RTX.label} {trt.__version__}",
        "lengths": [bucket.length for bucket in buckets],
        "max_batch": DEFAULT_MAX_BATCH,
        "gpus": [[gpu.name for gpu in gpus] for gpus in plans],
        "rows": rows,
    }


def _write_fp16(model: CatalogModel, folder: Path) -> tuple[Any, Path]:
    """Write the graph that `crossrank export --precision fp16` makes, and return its entry and its path."""
    import onnx_ir

    from crossrank_export.convert import graph_from_checkpoint, load_checkpoint
    from crossrank_export.graphs import describe_graph
    from crossrank_export.passes import optimize
    from crossrank_export.precision import fp16_from_fp32

    write_checkpoint(model, folder / "checkpoint")
    graph, _ = optimize(graph_from_checkpoint(load_checkpoint(folder / "checkpoint"), None))
    fp16 = fp16_from_fp32(graph)
    path = folder / "model.fp16.onnx"
    entry = describe_graph(fp16, path.name, "fp16", num_labels=1)
    onnx_ir.save(fp16, path)
    return entry, path
