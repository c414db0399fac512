"""Build a plan from a bundle: check, build, compare, write and record it."""

from __future__ import annotations

from typing import Any

from crossrank.bundles.bundle import Bundle, Manifest, sha256_of, write_manifest
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.device import Device
from crossrank.engines.tensorrt.gpus import check_release
from crossrank.engines.tensorrt.runtimes import RTX
from crossrank.engines.tensorrt.spec import EngineSpec
from crossrank_export.trt.machine import check_device
from crossrank_export.trt.parity import check_parity, measure_parity


def build_engine(trt: Any, device: Device | None, bundle: Bundle, spec: EngineSpec) -> dict[str, Any]:
    """Build the plan, compare it with ONNX Runtime where it can run here, and add it to the bundle.

    A plan of TensorRT for RTX is not run: the GPUs it is for need not be here. The plan gets its name only after it has
    passed, in place of an older one of that name; the manifest is replaced in one step.

    Args:
        trt: The module of `spec.runtime`.
        device: The GPU of this machine; not needed for TensorRT for RTX.
        bundle: A verified bundle.
        spec: Parameters of the build.

    Returns:
        The manifest entry of the plan.

    Raises:
        SetupError: GPU, TensorRT, graph and plan do not fit one another, or the plan scores differently.
    """
    graph_path = bundle.file(spec.graph.file)
    entry = {**spec.as_entry(), "graph_sha256": bundle.manifest.files[spec.graph.file]}
    if spec.runtime is RTX:
        plan = build_plan(trt, graph_path, spec)
    else:
        assert device is not None
        check_device(spec.gpus[0], device)
        check_release(spec.gpus[0], spec.tensorrt)
        plan = build_plan(trt, graph_path, spec)
        parity = measure_parity(trt, plan, bundle, spec)
        check_parity(parity, spec)
        entry |= {"device": device.name, "parity": parity}
    _record(bundle, entry, plan)
    return entry


def _record(bundle: Bundle, entry: dict[str, Any], plan: bytes) -> None:
    name = entry["file"]
    partial = bundle.file(f".{name}.partial")
    partial.write_bytes(plan)
    digest = sha256_of(partial)
    manifest = bundle.manifest
    others = [other for other in manifest.plans if other.get("file") != name]
    updated = manifest.model_copy(
        update={
            "plans": [*others, entry],
            "files": {**manifest.files, name: digest},
            "tool_versions": {**manifest.tool_versions, entry["runtime"]: entry["tensorrt"]},
        }
    )
    partial.replace(bundle.file(name))
    write_manifest(bundle.path, Manifest.model_validate(updated.model_dump()))
