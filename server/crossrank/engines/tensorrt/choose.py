"""Find the plan that serves a bundle on the GPU at hand: one of the bundle, one that was kept, or one that is built."""

from __future__ import annotations

import importlib.util
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crossrank.bundles.bundle import Bundle
from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.shaped import batch_tokens_of
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.cache import PlanCache
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.device import Device, device_fault, find_device
from crossrank.engines.tensorrt.gpus import GPUS, Gpu, sm_text
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.engines.tensorrt.runtimes import RTX, RTX_SMS, RUNTIMES, TENSORRT, Runtime, load_runtime
from crossrank.engines.tensorrt.spec import EngineSpec, make_spec
from crossrank.engines.tensorrt.validity import PlanRefused
from crossrank.errors import BundleError, SetupError

_log = logging.getLogger("crossrank")

# Compile for this compute capability instead of the GPU's own: to try one that TensorRT for RTX does not list.
SM_VARIABLE = "CROSSRANK_TENSORRT_SM"
_MODULES = {RTX: "tensorrt_rtx", TENSORRT: "tensorrt"}
# Increase this when plans are built in another way, so that kept ones are built again.
_BUILD = 1


def tensorrt_installed() -> bool:
    """Tell whether a TensorRT is installed, without importing it."""
    return any(_installed(runtime) for runtime in RUNTIMES.values())


def plan_fault(bundle: Bundle) -> str:
    """Return why no plan can serve a bundle on this machine, with the remedy; empty if one may. Loads nothing."""
    device = find_device()
    if device is None:
        return device_fault()
    try:
        sm = target_sm(device)
    except SetupError as error:
        return error.message
    if sm in RTX_SMS and _installed(RTX):
        return ""
    for entry in bundle.manifest.plans:
        runtime = RUNTIMES.get(str(entry.get("runtime")))
        if runtime is not None and _installed(runtime) and sm in entry.get("sms", ()):
            return ""
    return _no_plan(bundle, device, sm)


def target_sm(device: Device) -> int:
    """Return the compute capability, times ten, that plans must be for: the GPU's, or that of SM_VARIABLE.

    Raises:
        SetupError: The variable names none that TensorRT for RTX compiles for.
    """
    asked = os.environ.get(SM_VARIABLE)
    if not asked:
        return device.sm
    if not asked.isdigit() or int(asked) not in RTX_SMS:
        known = ", ".join(map(str, sorted(RTX_SMS)))
        raise SetupError(f"{SM_VARIABLE} is {asked!r}, TensorRT for RTX compiles for {known}: give one, or unset it")
    return int(asked)


@dataclass(frozen=True)
class ServedPlan:
    """Hold a plan on the GPU, and where what it compiles there is kept.

    Attributes:
        plan: The plan.
        keep: Keeps what TensorRT for RTX has compiled for this GPU until now.
    """

    plan: LoadedPlan
    keep: Callable[[], None]


def open_plan(bundle: Bundle, gate: CaptureGate, cache_dir: Path | None = None) -> ServedPlan:
    """Load the plan that serves a bundle on the GPU of this machine.

    That is the bundle's own for this GPU and for the TensorRT installed here, TensorRT proper's before TensorRT for
    RTX's as it was tuned on such a GPU; else TensorRT for RTX's from the cache; else one that is built now, in seconds.

    Args:
        bundle: The model.
        gate: See LoadedPlan.
        cache_dir: Root of the cache; defaults to `default_cache_dir()`.

    Raises:
        SetupError: There is no GPU, TensorRT does not serve it, or does not build or load a plan.
    """
    device = find_device()
    if device is None:
        raise SetupError(device_fault())
    sm = target_sm(device)
    if sm != device.sm:
        _log.warning("%s is set: plans for SM %s are tried on SM %s", SM_VARIABLE, sm_text(sm), sm_text(device.sm))
    for entry, runtime, trt in _own_plans(bundle, sm):
        file = entry["file"]
        cache = PlanCache(bundle.manifest.model_id, {"plan": bundle.manifest.files[file]}, cache_dir)
        try:
            plan = LoadedPlan(trt, runtime, bundle.file(file).read_bytes(), file, gate, cache.kernels(device.name))
        except PlanRefused as error:
            _log.warning("a plan is not used: %s", error.message)
            continue
        return _served(plan, cache, device)
    trt = load_runtime(RTX) if sm in RTX_SMS else None
    if trt is None:
        raise SetupError(_no_plan(bundle, device, sm))
    return _built(bundle, trt, device, sm, gate, cache_dir)


def plan_spec(bundle: Bundle, device: Device, sm: int, version: str) -> EngineSpec:
    """Return the parameters of the plan that TensorRT for RTX builds for the GPU at hand.

    Its batches are as large as those of engine cuda.

    Raises:
        SetupError: The bundle has no fp16 graph.
    """
    gpu = next((gpu for gpu in GPUS.values() if gpu.sm == sm), Gpu(f"sm{sm}", device.name, sm))
    tokens = batch_tokens_of(bundle.manifest)
    return make_spec(bundle.manifest, bundle.path, [gpu], RTX, version, max_batch=tokens, batch_tokens=tokens)


def plan_cache(bundle: Bundle, spec: EngineSpec, cache_dir: Path | None = None) -> PlanCache:
    """Return where a built plan is kept, by all that decides it."""
    graphs = {file: bundle.manifest.files[file] for file in spec.graph.files}
    facts = {**spec.as_entry(), "build": _BUILD, "graphs": graphs}
    return PlanCache(bundle.manifest.model_id, facts, cache_dir)


def _built(bundle: Bundle, trt: Any, device: Device, sm: int, gate: CaptureGate, cache_dir: Path | None) -> ServedPlan:
    spec = plan_spec(bundle, device, sm, str(trt.__version__))
    cache = plan_cache(bundle, spec, cache_dir)

    def build() -> bytes:
        return build_with_progress(bundle, trt, spec)

    kept = cache.plan()
    plan = kept or cache.build(build)
    try:
        loaded = LoadedPlan(trt, RTX, plan, spec.plan_name, gate, cache.kernels(device.name))
    except PlanRefused as error:
        if kept is None:
            raise
        _log.warning("the plan in %s will be built again: %s", cache.path, error.message)
        plan = cache.build(build, refused=kept)
        loaded = LoadedPlan(trt, RTX, plan, spec.plan_name, gate)
    return _served(loaded, cache, device)


def build_with_progress(bundle: Bundle, trt: Any, spec: EngineSpec) -> bytes:
    """Build a plan, and log what is built, how long it took and how large it is.

    Raises:
        SetupError: See `build_plan`.
    """
    lengths = ", ".join(str(bucket.length) for bucket in spec.buckets)
    _log.info(
        "%s: %s builds a plan for %s from %s, for lengths of %s tokens; this takes seconds",
        bundle.manifest.model_id,
        spec.release,
        spec.targets,
        spec.graph.file,
        lengths,
    )
    started = time.monotonic()
    plan = build_plan(trt, bundle.file(spec.graph.file), spec)
    _log.info("%s: built %.1f MB in %.1f s", bundle.manifest.model_id, len(plan) / 1e6, time.monotonic() - started)
    return plan


def _served(plan: LoadedPlan, cache: PlanCache, device: Device) -> ServedPlan:
    _log.info("%s serves on %s from %s", plan.name, device.name, cache.path)
    return ServedPlan(plan, lambda: cache.keep_kernels(device.name, plan.compiled_kernels()))


def _own_plans(bundle: Bundle, sm: int) -> list[tuple[dict[str, Any], Runtime, Any]]:
    """Return the bundle's plans that can be loaded here, with their runtime and its module; log why others cannot."""
    found = []
    for runtime in (TENSORRT, RTX):
        entries = [entry for entry in bundle.manifest.plans if entry.get("runtime") == runtime.name]
        trt = load_runtime(runtime) if entries else None
        if trt is None:
            continue
        for entry in entries:
            try:
                check_plan(entry, sm, str(trt.__version__))
                if entry.get("graph_sha256") != bundle.manifest.files.get(str(entry.get("graph"))):
                    raise BundleError(f"{entry['file']} was built from another graph: build it again")
            except BundleError as error:
                _log.info("a plan is not used: %s", error.message)
                continue
            found.append((entry, runtime, trt))
    return found


def _installed(runtime: Runtime) -> bool:
    return importlib.util.find_spec(_MODULES[runtime]) is not None


def _no_plan(bundle: Bundle, device: Device, sm: int) -> str:
    name = next((gpu.name for gpu in GPUS.values() if gpu.sm == sm), "NAME")
    if sm in RTX_SMS:
        return (
            f"engine tensorrt has no plan for the {device.name} (SM {sm_text(sm)}): pip install 'crossrank[tensorrt]' "
            "(Linux on x86-64) builds one"
        )
    return (
        f"TensorRT for RTX does not serve the {device.name} (SM {sm_text(sm)}): use --engine cuda, or build a plan "
        f"there with TensorRT itself (crossrank engine {bundle.path} --gpu {name})"
    )
