"""The real thing, on a machine with TensorRT and an NVIDIA GPU: build a plan, run it, compare, load it again."""

from __future__ import annotations

import pytest

from crossrank.bundles.bundle import load_bundle
from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.device import find_device
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.engines.tensorrt.runtimes import TENSORRT, load_runtime
from crossrank.engines.tensorrt.spec import make_spec
from crossrank_export.trt.build import build_engine
from tests.engine_bundle import write_fp16_bundle

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def machine():
    """(tensorrt, the GPU, its entry in the table) of this machine."""
    trt, device = load_runtime(TENSORRT), find_device()
    if trt is None:
        pytest.skip("TensorRT is not installed here")
    if device is None:
        pytest.skip("no NVIDIA GPU is visible here")
    gpu = next((gpu for gpu in GPUS.values() if gpu.sm == device.sm), None)
    if gpu is None:
        pytest.skip(f"{device.name} (SM {device.sm}) is not in the table of GPUs")
    return trt, device, gpu


@pytest.fixture(scope="module")
def bundle(builtin, tmp_path_factory):
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("engine") / "bundle")


@pytest.mark.timeout(1800)  # level 5 tunes every kernel of each profile
def test_a_plan_agrees_with_onnx_runtime_and_loads_again(machine, bundle):
    trt, device, gpu = machine
    spec = make_spec(bundle.manifest, bundle.path, [gpu], TENSORRT, str(trt.__version__), max_batch=64)
    entry = build_engine(trt, device, bundle, spec)
    again = load_bundle(bundle.path)
    assert again.manifest.plans == [entry]
    assert spec.timing_cache.stat().st_size > 0
    assert entry["parity"]["max_abs_delta"] <= 2e-2
    assert entry["parity"]["kendall_tau"] >= 0.99
    check_plan(entry, device.sm, str(trt.__version__))
    plan = LoadedPlan(trt, TENSORRT, again.file(entry["file"]).read_bytes(), entry["file"], CaptureGate())
    assert [profile.length for profile in plan.profiles] == [bucket.length for bucket in spec.buckets]
    plan.close()
