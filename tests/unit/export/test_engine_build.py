"""Building with a stand-in of TensorRT 10.4 and 11.4 and of a GPU, which are not here: what either lacks would raise."""

from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from crossrank.bundles.bundle import load_bundle, sha256_of
from crossrank.engines.cuda_gate import CaptureGate
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.device import find_device
from crossrank.engines.tensorrt.gpus import GPUS
from crossrank.engines.tensorrt.plan import LoadedPlan
from crossrank.engines.tensorrt.runtimes import TENSORRT
from crossrank.engines.tensorrt.spec import make_spec
from crossrank.engines.tensorrt.validity import PlanRefused
from crossrank.errors import SetupError
from crossrank_export.commands.engine import engine
from crossrank_export.trt.build import build_engine
from tests.engine_bundle import write_fp16_bundle
from tests.fake_builder import FakeDriver, install, plan_header
from tests.fake_tensorrt import VERSIONS

MACHINES = {"10.4.0": ("v100", "Tesla V100-SXM2-16GB", 70), "11.4.0": ("t4", "Tesla T4", 75)}


@pytest.fixture(scope="module")
def original(builtin, tmp_path_factory):
    # Shorter pairs than the model takes: fp16 is slow on a CPU.
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("engine") / "bundle", max_length=128)


@pytest.fixture
def bundle(original, tmp_path):
    path = tmp_path / "bundle"
    path.mkdir()
    for file in original.path.iterdir():
        (path / file.name).hardlink_to(file)
    return load_bundle(path)


def build(monkeypatch, bundle, version, *, skew=0.0, **options):
    gpu, name, sm = MACHINES[version]
    trt = install(monkeypatch, version, FakeDriver(name, sm), skew=skew)
    spec = make_spec(bundle.manifest, bundle.path, [GPUS[gpu]], TENSORRT, trt.__version__, **options)
    return build_engine(trt, find_device(), bundle, spec)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_plan_is_built_as_described(monkeypatch, bundle, version):
    entry = build(monkeypatch, bundle, version, max_batch=32, workspace_mib=512)
    header = plan_header(bundle.file(entry["file"]).read_bytes())
    strongly_typed = {"10.4.0": 1, "11.4.0": 0}[version]
    assert header["network_flags"] == 1 << strongly_typed
    assert header["level"] == 5
    assert header["pools"] == {"WORKSPACE": 512 << 20}
    assert header["cleared"] == ["TF32"]
    inputs = [tensor.name for tensor in bundle.manifest.graph("fp16").inputs]
    built = [{name: [p["min"], p["opt"], p["max"]] for name in inputs} for p in entry["profiles"]]
    assert header["profiles"] == built
    assert [profile[inputs[0]][2][1] for profile in built] == [32, 64, 96, 128]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_plan_is_recorded_with_hash_and_parity(monkeypatch, bundle, version):
    entry = build(monkeypatch, bundle, version)
    gpu, device, sm = MACHINES[version]
    again = load_bundle(bundle.path)  # verifies every sha256
    assert again.manifest.plans == [entry]
    assert again.manifest.files[entry["file"]] == sha256_of(again.file(entry["file"]))
    assert (entry["gpus"], entry["device"], entry["sms"], entry["precision"]) == ([gpu], device, [sm], "fp16")
    assert entry["graph_sha256"] == again.manifest.files["model.fp16.onnx"]
    assert again.manifest.tool_versions["tensorrt"] == version
    parity = entry["parity"]
    assert 0 < parity["max_abs_delta"] <= 2e-2  # the fake runs the fp16 graph, the reference is fp32
    assert sum(parity["pairs_by_bucket"].values()) == parity["pairs"]
    assert list(parity["pairs_by_bucket"]) == ["32", "64", "96", "128"]
    check_plan(entry, sm, version)
    assert not list(bundle.path.glob(".*"))


def test_building_again_replaces_the_entry_and_keeps_others(monkeypatch, bundle):
    build(monkeypatch, bundle, "10.4.0")
    build(monkeypatch, load_bundle(bundle.path), "11.4.0")
    build(monkeypatch, load_bundle(bundle.path), "10.4.0", max_batch=8)
    plans = load_bundle(bundle.path).manifest.plans
    assert {plan["tensorrt"]: plan["max_batch"] for plan in plans} == {"10.4.0": 8, "11.4.0": 128}


def test_timings_are_kept_between_builds_and_dropped_on_mismatch(monkeypatch, bundle):
    def timings_used(version, **options):
        entry = build(monkeypatch, load_bundle(bundle.path), version, **options)
        return plan_header(bundle.file(entry["file"]).read_bytes())["timings"]

    cache = bundle.path.parent / "sub" / "timings"
    assert timings_used("10.4.0", timing_cache=cache) == ""
    assert timings_used("10.4.0", timing_cache=cache) == "timings of 10.4.0"
    assert timings_used("11.4.0", timing_cache=cache) == ""
    assert cache.read_bytes() == b"timings of 11.4.0"


@pytest.mark.parametrize("skew", [0.2, float("nan")])
def test_a_plan_that_scores_differently_leaves_the_bundle_as_it_was(monkeypatch, bundle, skew):
    before = bundle.file("manifest.json").read_bytes()
    with pytest.raises(SetupError, match=r"model\.sm70.*no plan was written"):
        build(monkeypatch, bundle, "10.4.0", skew=skew)
    assert bundle.file("manifest.json").read_bytes() == before
    assert not list(bundle.path.glob("*.plan*"))


def test_device_memory_is_given_back(monkeypatch, bundle):
    driver = FakeDriver()
    trt = install(monkeypatch, "10.4.0", driver)
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["v100"]], TENSORRT, "10.4.0")
    build_engine(trt, find_device(), bundle, spec)
    assert driver.copied_bytes > 0
    assert (driver.memory, driver.pinned, driver.streams) == ({}, {}, set())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("step", "answer", "message"),
    [
        ("OnnxParser.parse_from_file", False, r"cannot parse model\.fp16\.onnx: Gelu node_7: no importer"),
        (
            "Builder.build_serialized_network",
            None,
            r"cannot build model\.sm70.*smaller --max-batch, or another --workspace-mib \(now 4096\)",
        ),
        ("IBuilderConfig.add_optimization_profile", -1, "refused the profile of the 32-token bucket"),
    ],
)
def test_a_step_that_tensorrt_refuses_is_told_as_such(monkeypatch, bundle, version, step, answer, message):
    trt = install(monkeypatch, version, FakeDriver(), overrides={step: lambda *_: answer})
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["v100"]], TENSORRT, version)
    with pytest.raises(SetupError, match=message):
        build_plan(trt, bundle.file("model.fp16.onnx"), spec)
    assert not list(bundle.path.glob("*.cache"))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_batch_that_does_not_run_is_told_as_such(monkeypatch, bundle, version):
    trt = install(
        monkeypatch, version, FakeDriver(), overrides={"IExecutionContext.execute_async_v3": lambda *_: False}
    )
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["v100"]], TENSORRT, "10.4.0")
    with pytest.raises(SetupError, match=r"profile 0 of model\.sm70.*plan did not run a batch of \d+x32"):
        build_engine(trt, find_device(), bundle, spec)
    assert not list(bundle.path.glob("*.plan*"))


def test_a_plan_of_another_tensorrt_is_an_error_not_a_crash(monkeypatch, bundle):
    old = install(monkeypatch, "10.4.0", FakeDriver())
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["t4"]], TENSORRT, "10.4.0", buckets=[128])
    plan = build_plan(old, bundle.file("model.fp16.onnx"), spec)
    new = install(monkeypatch, "11.4.0", FakeDriver())
    with pytest.raises(PlanRefused, match=r"TensorRT 11\.4\.0 cannot load model\.sm75"):
        LoadedPlan(new, TENSORRT, plan, spec.plan_name, CaptureGate())


def test_the_wrong_gpu_and_the_wrong_release_are_refused_first(monkeypatch, bundle):
    trt = install(monkeypatch, "11.4.0", FakeDriver("Tesla T4", 75))
    spec = make_spec(bundle.manifest, bundle.path, [GPUS["v100"]], TENSORRT, "11.4.0")
    with pytest.raises(SetupError, match=r"Tesla V100 .*Tesla T4"):
        build_engine(trt, find_device(), bundle, spec)
    trt = install(monkeypatch, "11.4.0", FakeDriver())
    with pytest.raises(SetupError, match=r"does not support the Tesla V100"):
        build_engine(trt, find_device(), bundle, spec)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_command_builds_and_reports(monkeypatch, bundle, version):
    gpu, name, sm = MACHINES[version]
    install(monkeypatch, version, FakeDriver(name, sm))
    result = CliRunner().invoke(
        engine, [str(bundle.path), "--gpu", gpu, "--runtime", "tensorrt", "--buckets", "48,128"], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert f"built {bundle.path}/model.sm{sm}.trt{version}.fp16.plan: " in result.output
    assert [p["max"] for p in load_bundle(bundle.path).manifest.plans[0]["profiles"]] == [[128, 48], [128, 128]]


def test_dry_run_builds_nothing_and_needs_nothing(bundle):
    result = CliRunner().invoke(engine, [str(bundle.path), "--gpu", "v100", "--dry-run"], catch_exceptions=False)
    assert result.exit_code == 0
    assert "model.sm70.trt10.4.0.fp16.plan" in result.output
    assert "trtexec --onnx=" in result.output
    assert not list(bundle.path.glob("*.plan"))


def test_help_shows_one_example_a_line():
    lines = CliRunner().invoke(engine, ["--help"]).output.splitlines()
    assert sum(line.startswith("    crossrank engine tiny") for line in lines) == 4


def test_buckets_that_are_no_numbers_are_a_usage_error(bundle):
    result = CliRunner().invoke(engine, [str(bundle.path), "--gpu", "v100", "--buckets", "32;64"])
    assert result.exit_code == 2
    assert "not a list of lengths" in result.output


def test_a_machine_without_tensorrt_or_gpu_gets_one_message_with_the_container_command(bundle):
    try:
        import tensorrt  # noqa: F401

        pytest.skip("TensorRT is installed here")
    except ImportError:
        pass
    cache = bundle.path.parent / "timings.cache"
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from crossrank_server.cli import main; main()",
            "engine",
            str(bundle.path),
            "--gpu",
            "v100",
            "--buckets",
            "64,128",
            "--timing-cache",
            str(cache),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert "TensorRT is not installed" in done.stderr
    assert f"docker run --rm --gpus all -v {bundle.path}:/bundle -v {cache.parent}:/timings" in done.stderr
    assert "nvcr.io/nvidia/tensorrt:24.09-py3" in done.stderr
    assert "crossrank engine /bundle --gpu v100 --runtime tensorrt" in done.stderr
    assert "--buckets=64,128 --timing-cache /timings/timings.cache" in done.stderr
    assert "Traceback" not in done.stderr


def test_check_and_spec_import_no_tensorrt_and_no_onnx():
    code = (
        "import sys, crossrank.engines.tensorrt.check, crossrank.engines.tensorrt.spec, crossrank_export.commands.engine\n"
        "print(sorted({'tensorrt', 'tensorrt_rtx', 'cuda.bindings', 'onnx', 'onnxruntime', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
