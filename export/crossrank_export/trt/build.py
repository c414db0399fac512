"""Build a plan from a bundle: check, build, compare, write and record it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Bundle, Manifest, sha256_of, write_manifest
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.device import Device
from crossrank.engines.tensorrt.gpus import check_release
from crossrank.engines.tensorrt.runtimes import RTX
from crossrank.engines.tensorrt.spec import EngineSpec
from crossrank.errors import SetupError
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
        SetupError: GPU, TensorRT, graph and plan do not fit one another, the plan scores differently, or the bundle
            cannot be written.
    """
    with _writing(bundle.path), tempfile.TemporaryFile(dir=bundle.path):
        pass  # known before minutes of tuning
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
    with _writing(bundle.path):
        _record(bundle, entry, plan)
    return entry


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SetupError(
            f"{path} cannot be written ({os.strerror(error.errno or 0)}), and a plan is kept in its bundle: free "
            "space, or copy the bundle to where you may write"
        ) from error


def _record(bundle: Bundle, entry: dict[str, Any], plan: bytes) -> None:
    name = entry["file"]
    partial = bundle.file(f".{name}.partial")
    try:
        partial.write_bytes(plan)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
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
