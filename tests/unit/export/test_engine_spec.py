"""What is decided before TensorRT is touched: GPUs, profiles, names, and which plan may be loaded where."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from crossrank.bundles.bundle import Graph
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.device import Device, device_fault, find_device
from crossrank.engines.tensorrt.gpus import GPUS, check_release
from crossrank.engines.tensorrt.runtimes import TENSORRT
from crossrank.engines.tensorrt.spec import make_buckets, make_spec
from crossrank.errors import BundleError, SetupError
from crossrank_export.trt.describe import describe, trtexec_command
from crossrank_export.trt.machine import check_device
from tests.fake_builder import FakeDriver

ENTRY = {
    "file": "model.sm70.trt10.4.0.fp16.plan",
    "runtime": "tensorrt",
    "gpus": ["v100"],
    "sms": [70],
    "tensorrt": "10.4.0",
}


@pytest.fixture
def manifest(builtin):
    fp32 = builtin.manifest.graph("fp32")
    fp16 = Graph(file="model.fp16.onnx", precision="fp16", inputs=fp32.inputs, output=fp32.output)
    files = {**builtin.manifest.files, fp16.file: "0" * 64}
    return builtin.manifest.model_copy(update={"graphs": [fp32, fp16], "files": files})


def spec_of(manifest, path, gpu="v100", tensorrt="10.4.0", **options):
    return make_spec(manifest, path, [GPUS[gpu]], TENSORRT, tensorrt, **options)


def test_every_length_has_exactly_one_profile():
    buckets = make_buckets(None, 512, 128)
    covered = [length for bucket in buckets for length in range(bucket.min_length, bucket.length + 1)]
    assert covered == list(range(1, 513))


def test_opt_is_a_full_batch_of_the_bucket_within_min_and_max():
    buckets = make_buckets(None, 512, 128)
    assert [(bucket.opt_batch, bucket.length) for bucket in buckets] == [
        (128, 32), (128, 64), (85, 96), (64, 128), (42, 192), (32, 256), (21, 384), (16, 512),
    ]  # fmt: skip
    for bucket in make_buckets(None, 300, 8):
        low, best, high = bucket.shapes
        assert all(a <= b <= c for a, b, c in zip(low, best, high, strict=True))


def test_profiles_of_long_pairs_take_fewer_of_them_so_that_attention_needs_no_more_memory(manifest, tmp_path):
    buckets = make_buckets(None, 8192, 128)
    assert [(bucket.length, bucket.max_batch) for bucket in buckets][6:] == [
        (384, 128), (512, 128), (768, 56), (1024, 32), (1536, 14), (2048, 8), (3072, 3), (4096, 2), (6144, 1), (8192, 1),
    ]  # fmt: skip
    assert all(bucket.opt_batch <= bucket.max_batch for bucket in buckets)
    spec = spec_of(manifest.model_copy(update={"max_length": 1024}), tmp_path)
    assert spec.as_entry()["max_batch"] == 32  # what Triton may send to each profile


def test_default_buckets_end_at_the_longest_pair():
    assert [bucket.length for bucket in make_buckets(None, 300, 8)] == [32, 64, 96, 128, 192, 256, 300]
    assert [bucket.length for bucket in make_buckets(None, 20, 8)] == [20]


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ([64, 32], "64,32 are not ascending"),
        ([0, 512], "0,512 are not ascending"),
        ([32, 32, 512], "not ascending"),
        ([128, 256], "end at 256 tokens, the bundle's pairs have up to 512: make 512"),
        ([512, 1024], "end at 1024"),
    ],
)
def test_buckets_that_do_not_fit_are_refused(lengths, message):
    with pytest.raises(SetupError, match=message):
        make_buckets(lengths, 512, 8)


def test_a_plan_is_named_by_what_can_load_it(manifest, tmp_path):
    assert spec_of(manifest, tmp_path).plan_name == "model.sm70.trt10.4.0.fp16.plan"
    assert spec_of(manifest, tmp_path, "h100", "11.4.0").plan_name == "model.sm90.trt11.4.0.fp16.plan"


def test_timings_of_another_gpu_or_release_are_another_file(manifest, tmp_path):
    specs = [
        spec_of(manifest, tmp_path, *target) for target in (("t4", "10.4.0"), ("a100", "10.4.0"), ("t4", "11.4.0"))
    ]
    assert len({spec.timing_cache for spec in specs}) == 3


def test_a_bundle_without_fp16_names_the_export_that_makes_it(builtin, tmp_path):
    with pytest.raises(SetupError, match=r"no fp16 graph, only fp32: .*crossrank export .* --precision fp32,fp16"):
        spec_of(builtin.manifest, tmp_path)


def test_a_graph_of_onnx_runtimes_operators_is_never_taken(manifest, tmp_path):
    standard = manifest.graph("fp16")
    other = standard.model_copy(update={"file": "other.onnx", "operators": "onnxruntime"})
    both = manifest.model_copy(update={"graphs": [manifest.graph("fp32"), other, standard]})
    assert spec_of(both, tmp_path).graph == standard
    with pytest.raises(SetupError, match="has no fp16 graph, only fp32: TensorRT"):
        spec_of(both.model_copy(update={"graphs": both.graphs[:2]}), tmp_path)


def test_trtexec_command_has_every_profile_in_order(manifest, tmp_path):
    command = trtexec_command(spec_of(manifest, tmp_path, buckets=[64, 512], max_batch=32), tmp_path)
    assert "--stronglyTyped" in command
    assert f"--saveEngine={tmp_path}/model.sm70.trt10.4.0.fp16.plan" in command
    first, second = command.split("--profile=")[1:]
    assert "--minShapes=input_ids:1x1," in first
    assert "--maxShapes=input_ids:32x64,attention_mask:32x64,token_type_ids:32x64" in first
    assert "--minShapes=input_ids:1x65," in second
    assert "--optShapes=input_ids:16x512," in second


def test_tensorrt_11_knows_no_flag_for_strong_typing(manifest, tmp_path):
    assert "--stronglyTyped" not in trtexec_command(spec_of(manifest, tmp_path, "t4", "11.4.0"), tmp_path)


def test_the_description_and_the_manifest_entry_say_the_same(manifest, tmp_path):
    spec = spec_of(manifest, tmp_path, workspace_mib=777)
    text, entry = describe(spec, tmp_path), spec.as_entry()
    assert entry["workspace_mib"] == 777
    assert "workspace 777 MiB" in text
    for profile in entry["profiles"]:
        assert all(f"{batch}x{length}" in text for batch, length in profile.values())


@pytest.mark.parametrize(
    ("gpu", "sm"), [("v100", 70), ("t4", 75), ("a100", 80), ("l4", 89), ("h200", 90), ("gb10", 121)]
)
def test_gpus_have_their_compute_capability(gpu, sm):
    assert GPUS[gpu].sm == sm


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS)
def test_each_gpus_container_holds_a_tensorrt_that_supports_it(gpu):
    check_release(gpu, gpu.container.tensorrt)


def test_volta_after_10_4_is_refused_with_the_container_that_works():
    check_release(GPUS["v100"], "10.4.0")
    with pytest.raises(
        SetupError, match=r"11\.4\.0 does not support the Tesla V100 .* is 10\.4: .*tensorrt:24\.09-py3"
    ):
        check_release(GPUS["v100"], "11.4.0")
    with pytest.raises(SetupError, match=r"10\.4\.0 is too old for a plan on the B200, it takes 10\.8"):
        check_release(GPUS["b200"], "10.4.0")
    with pytest.raises(SetupError, match="not of the form"):
        check_release(GPUS["t4"], "unknown")


def test_another_gpu_than_the_one_present_is_refused_naming_both():
    check_device(GPUS["h100"], Device("NVIDIA H200", 90))
    with pytest.raises(SetupError, match=r"a Tesla V100 \(SM 7\.0\), this machine has a Tesla T4 \(SM 7\.5\)"):
        check_device(GPUS["v100"], Device("Tesla T4", 75))


def test_the_gpu_has_a_name_and_a_capability(monkeypatch):
    monkeypatch.setattr("cuda.bindings.runtime", FakeDriver("NVIDIA A10", 86))
    assert (find_device(), device_fault()) == (Device("NVIDIA A10", 86), "")


@pytest.mark.parametrize(
    ("call", "answer", "message"),
    [
        (
            "cudaDriverGetVersion",
            ("cudaSuccess", 0),
            r"^no NVIDIA driver is installed here .*nvidia-smi lists the GPU$",
        ),
        (
            "cudaGetDeviceCount",
            ("cudaErrorNoDevice", None),
            r"shows this process no GPU \(cudaErrorNoDevice\): see nvid",
        ),
        (
            "cudaGetDeviceCount",
            ("cudaSuccess", 0),
            r"shows this process no GPU \(cudaSuccess\): .*CUDA_VISIBLE_DEVICES",
        ),
        (
            "cudaGetDeviceCount",
            ("cudaErrorInsufficientDriver", None),
            r"^the NVIDIA driver serves CUDA 13\.0 and is too old for CUDA 12: update it$",
        ),
    ],
)
def test_a_gpu_that_cannot_be_used_is_told_with_the_remedy(monkeypatch, call, answer, message):
    driver = FakeDriver()
    error, *values = answer
    setattr(driver, call, lambda: (getattr(driver.cudaError_t, error), *values))
    driver.cudaRuntimeGetVersion = lambda: (driver.cudaError_t.cudaSuccess, 12090)
    monkeypatch.setattr("cuda.bindings.runtime", driver)
    assert find_device() is None
    assert re.search(message, device_fault())


def test_without_cuda_bindings_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "cuda.bindings", None)
    assert find_device() is None
    assert device_fault() == "cuda-bindings is not installed: pip install 'crossrank[tensorrt]'"


def test_this_machines_real_cuda_runtime_says_what_is_missing():
    if Path("/dev/nvidiactl").exists():
        pytest.skip("an NVIDIA driver is installed here")
    assert find_device() is None
    assert device_fault().startswith("no NVIDIA driver is installed here")


def test_a_plan_loads_on_its_own_sm_and_tensorrt():
    check_plan(ENTRY, 70, "10.4.0")
    check_plan(ENTRY, 70, "10.4.0.26")


def test_a_plan_for_another_sm_is_refused_by_name():
    with pytest.raises(BundleError, match=r"model\.sm70.*built for SM 7\.0 \(v100\), this GPU is SM 7\.5"):
        check_plan(ENTRY, 75, "10.4.0")


@pytest.mark.parametrize("version", ["10.4.1", "10.5.0", "11.4.0", "10.40.0", "10.4"])
def test_a_plan_of_another_tensorrt_is_refused_by_name(version):
    with pytest.raises(BundleError, match=rf"model\.sm70.*built by TensorRT 10\.4\.0, TensorRT {version} is installed"):
        check_plan(ENTRY, 70, version)


def test_a_plan_that_does_not_say_what_it_is_for_is_refused():
    with pytest.raises(BundleError, match="does not say its runtime, sms, gpus"):
        check_plan({"file": "model.plan", "tensorrt": "10.4.0"}, 70, "10.4.0")
