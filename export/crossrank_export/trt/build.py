"""Build a plan from a bundle: check, build, compare, write and record it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Bundle, Manifest, sha256_of, write_manifest
from crossrank.errors import SetupError
from crossrank_export.trt.bindings import build_plan
from crossrank_export.trt.device import Device, check_device
from crossrank_export.trt.gpus import Gpu, check_release
from crossrank_export.trt.parity import check_parity, measure_parity
from crossrank_export.trt.runtimes import RTX, TENSORRT
from crossrank_export.trt.spec import EngineSpec


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


def require_wheel(trt: Any | None) -> Any:
    """Return the module of TensorRT for RTX.

    Raises:
        SetupError: It is not installed.
    """
    if trt is None:
        raise SetupError(f"{RTX.label} is not installed: pip install 'crossrank[tensorrt]' (Linux on x86-64)")
    return trt


def require_machine(trt: Any | None, device: Device | None, gpu: Gpu, why: str, container_command: str) -> Device:
    """Return the GPU of this machine, after checking that the machine can build for `gpu` with TensorRT proper.

    Raises:
        SetupError: TensorRT, Polygraphy or a GPU is absent; the message holds the command that builds in a container.
    """
    missing = []
    if trt is None:
        missing.append("TensorRT is not installed")
    if find_spec("polygraphy") is None:
        missing.append("Polygraphy is not installed")
    if device is None:
        missing.append("no NVIDIA GPU is visible")
    if missing or device is None:
        releases = "10.4, the last that supports it" if gpu.newest else f"{gpu.oldest[0]}.{gpu.oldest[1]} or later"
        raise SetupError(
            f"cannot build a plan for the {gpu.label} on this machine: it takes TensorRT {releases} ({why}), and here "
            f"{' and '.join(missing)}. On a machine with a {gpu.label} and docker, run:\n\n  {container_command}\n\n"
            "or add --dry-run to see here what would be built."
        )
    return device


def container_command(bundle_path: Path, gpu: Gpu, arguments: Sequence[str], timing_cache: Path | None) -> str:
    """Return the docker command that builds the same plan in NVIDIA's container.

    Args:
        bundle_path: Bundle on the host, which is mounted.
        gpu: GPU that decides the image.
        arguments: Further options of `crossrank engine`, as the user gave them.
        timing_cache: The user's `--timing-cache`, whose directory is mounted too.
    """
    mounts = ["-v", f"{bundle_path.resolve()}:/bundle"]
    arguments = list(arguments)
    if timing_cache is not None:
        mounts += ["-v", f"{timing_cache.resolve().parent}:/timings"]
        arguments += ["--timing-cache", f"/timings/{timing_cache.name}"]
    checkout = Path(__file__).resolve().parents[3]
    if (checkout / "pyproject.toml").is_file():
        mounts += ["-v", f"{checkout}:/crossrank"]
        package = "/crossrank"
    else:
        package = f"crossrank=={version('crossrank')}"
    inner = f"pip install -q {package} polygraphy && " + shlex.join(
        ["crossrank", "engine", "/bundle", "--gpu", gpu.name, "--runtime", TENSORRT.name, *arguments]
    )
    return shlex.join(["docker", "run", "--rm", "--gpus", "all", *mounts, gpu.container.image, "bash", "-c", inner])
