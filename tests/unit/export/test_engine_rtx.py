"""The real parser and builder of TensorRT for RTX, on a CPU: what builds for which GPU, and what is refused.

A plan needs a GPU to be loaded, so these tests see no score; the graph's are compared in ONNX Runtime elsewhere.
"""

from __future__ import annotations

import errno
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from click.testing import CliRunner

from crossrank.bundles.bundle import Bundle, load_bundle, sha256_of, write_manifest
from crossrank.engines.buckets import BUCKET_LENGTHS, fit_lengths
from crossrank.engines.tensorrt.build import build_plan
from crossrank.engines.tensorrt.check import check_plan
from crossrank.engines.tensorrt.gpus import GPUS, Gpu
from crossrank.engines.tensorrt.runtimes import RTX, RTX_RELEASE, RTX_SMS, load_runtime
from crossrank.engines.tensorrt.spec import Bucket, EngineSpec, make_buckets, make_spec
from crossrank.errors import SetupError
from crossrank_export.commands.engine import engine
from crossrank_export.graphs import describe_graph
from crossrank_export.passes import optimize
from crossrank_export.precision import fp16_from_fp32
from crossrank_export.trt.build import build_engine
from lab.plans.build import measure_plans, shapes_of_catalog
from lab.plans.command import ONE_OF_EACH
from tests.checkpoints import SMALL
from tests.engine_bundle import write_fp16_bundle
from tests.onnx_exports import Exporter, export_named

trt = pytest.importorskip("tensorrt_rtx", reason="pip install 'crossrank[tensorrt]'")

ANY = [GPUS[name] for name in ONE_OF_EACH]


@pytest.fixture(scope="module")
def original(builtin: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("rtx") / "bundle")


@pytest.fixture
def bundle(original: Bundle, tmp_path: Path) -> Bundle:
    path = tmp_path / "bundle"
    path.mkdir()
    for file in original.path.iterdir():
        (path / file.name).hardlink_to(file)
    return load_bundle(path)


def spec_of(bundle: Bundle, *gpus: Gpu, **options) -> EngineSpec:
    return make_spec(bundle.manifest, bundle.path, gpus, RTX, trt.__version__, **options)


def spec_for(path: Path, gpus: list[Gpu], buckets: tuple[Bucket, ...]) -> EngineSpec:
    """Return the spec of a graph that has no bundle."""
    graph = describe_graph(onnx_ir.load(path), path.name, "fp16", 1)
    return EngineSpec(tuple(gpus), RTX, trt.__version__, graph, buckets, 1024, None)


def write_fp16(name: str, path: Path, **changes) -> Path:
    model, _ = optimize(export_named(name, Exporter(False, "eager", 17), path / "source.onnx", **changes))
    onnx_ir.save(fp16_from_fp32(model), path / "model.fp16.onnx")
    return path / "model.fp16.onnx"


def refused_with_fp32_head(path: Path, tmp_path: Path) -> Path:
    """Write the graph with a head as it was before: its wide product in fp32."""
    model = onnx.load(path)
    gemm = next(node for node in model.graph.node if node.op_type == "Gemm")
    before, after = (
        next(n for n in model.graph.node if name in (*n.input, *n.output) and n is not gemm and n.op_type == "Cast")
        for name in (gemm.input[0], gemm.output[0])
    )
    gemm.input[0], gemm.output[0] = before.input[0], after.output[0]
    for initializer in model.graph.initializer:
        if initializer.name in gemm.input:
            array = onnx.numpy_helper.to_array(initializer).astype(np.float32)
            initializer.CopyFrom(onnx.numpy_helper.from_array(array, initializer.name))
    model.graph.node.remove(before)
    model.graph.node.remove(after)
    onnx.save(model, tmp_path / "old.onnx")
    return tmp_path / "old.onnx"


def test_the_release_named_in_the_table_is_the_one_tested():
    assert trt.__version__ == RTX_RELEASE
    assert load_runtime(RTX) is trt
    members = {name for name in dir(trt.ComputeCapability) if name.startswith("SM")}
    assert members == {f"SM{sm}" for sm in RTX_SMS} == {f"SM{gpu.sm}" for gpu in ANY}


@pytest.mark.parametrize("names", [["t4"], ["a100"], ["t4", "a10", "l4", "l40s", "rtx-50"]], ids=" ".join)
def test_the_builtin_model_builds_with_its_profiles(bundle: Bundle, names: list[str]):
    spec = spec_of(bundle, *(GPUS[name] for name in names))
    entry = build_engine(trt, None, bundle, spec)
    again = load_bundle(bundle.path)  # verifies every sha256
    assert again.manifest.plans == [entry]
    assert again.manifest.files[entry["file"]] == sha256_of(again.file(entry["file"]))
    assert again.manifest.tool_versions["tensorrt-rtx"] == RTX_RELEASE
    assert entry["sms"] == sorted({GPUS[name].sm for name in names})
    assert [profile["max"] for profile in entry["profiles"]] == [[128, n] for n in fit_lengths(BUCKET_LENGTHS, 512)]
    assert again.file(entry["file"]).stat().st_size > again.file("model.fp16.onnx").stat().st_size
    check_plan(entry, entry["sms"][0], trt.__version__)
    assert "parity" not in entry  # it has not run
    assert not list(bundle.path.glob(".*"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DeBERTa uses torch.jit
@pytest.mark.parametrize("family", SMALL)
def test_a_family_builds_for_every_gpu(family: str, tmp_path: Path):
    path = write_fp16(family, tmp_path)
    assert len(build_plan(trt, path, spec_for(path, ANY, make_buckets([64], 64, 8)))) > path.stat().st_size


def test_a_profile_of_long_pairs_builds(tmp_path: Path):
    path = write_fp16("xlm-roberta", tmp_path, max_position_embeddings=2050)
    plan = build_plan(trt, path, spec_for(path, [GPUS["l4"]], make_buckets([512, 2048], 2048, 128)))
    assert len(plan) > path.stat().st_size


def test_weights_beside_the_graph_are_read(bundle: Bundle, tmp_path: Path):
    onnx.save(
        onnx.load(bundle.file("model.fp16.onnx")), tmp_path / "m.onnx", save_as_external_data=True, location="m.data"
    )
    buckets = make_buckets([64], 64, 8)
    inside, beside = (
        len(build_plan(trt, path, spec_for(path, [GPUS["t4"]], buckets)))
        for path in (bundle.file("model.fp16.onnx"), tmp_path / "m.onnx")
    )
    assert beside == pytest.approx(inside, rel=0.01)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", shapes_of_catalog())
def test_an_architecture_in_its_true_shape_builds_for_every_gpu(name: str):
    model = shapes_of_catalog()[name]
    report = measure_plans({name: model}, [*([gpu] for gpu in ANY), ANY], lambda _: None)
    layers = 2 * model.layers * (4 * model.hidden**2 + 2 * model.hidden * model.ffn)  # bytes of fp16
    assert all(plan["bytes"] > layers for plan in report["rows"][0]["plans"])


def test_a_head_in_fp32_does_not_build_for_a_t4_and_the_message_says_why(bundle: Bundle, tmp_path: Path):
    path = refused_with_fp32_head(bundle.file("model.fp16.onnx"), tmp_path)
    buckets = make_buckets([64], 64, 8)
    assert build_plan(trt, path, spec_for(path, [GPUS["a100"]], buckets))
    with pytest.raises(SetupError, match=r"^TensorRT for RTX .* cannot build model\.sm75.*FP32 GEMM is not supported"):
        build_plan(trt, path, spec_for(path, [GPUS["t4"]], buckets))


def test_a_profile_beyond_the_graph_is_refused_with_the_sizes(bundle: Bundle):
    spec = replace(spec_of(bundle, GPUS["t4"]), buckets=(Bucket(1024, 1, 4, 8),))
    with pytest.raises(SetupError, match=r"cannot build model\.sm75.*1024 != 512"):
        build_plan(trt, bundle.file("model.fp16.onnx"), spec)


def test_a_profile_that_is_none_is_refused(bundle: Bundle):
    spec = replace(spec_of(bundle, GPUS["t4"]), buckets=(Bucket(32, 64, 4, 8),))
    with pytest.raises(SetupError, match=r"refused the profile of the 32-token bucket: .*MIN<=OPT<=MAX"):
        build_plan(trt, bundle.file("model.fp16.onnx"), spec)


def test_a_capability_that_the_release_does_not_know_is_refused_by_number(bundle: Bundle):
    spec = spec_of(bundle, Gpu("next", "Next", 200))
    with pytest.raises(SetupError, match=r"refused compute capability 20\.0: it does not know it; .*--upgrade"):
        build_plan(trt, bundle.file("model.fp16.onnx"), spec)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "it holds no graph"), (b"no graph", "Failed to parse"), (None, r"EmbedLayerNormalization .* more errors")],
    ids=["empty", "garbage", "operators of ONNX Runtime"],
)
def test_a_graph_that_cannot_be_parsed_is_refused(bundle: Bundle, tmp_path: Path, content: bytes | None, reason: str):
    path = tmp_path / "odd.onnx"
    path.write_bytes(bundle.file("model.fp16.onnxruntime.onnx").read_bytes() if content is None else content)
    with pytest.raises(
        SetupError, match=rf"^TensorRT for RTX {RTX_RELEASE} cannot parse odd\.onnx: .*{reason}"
    ) as told:
        build_plan(trt, path, spec_of(bundle, GPUS["t4"]))
    assert "it gives no reason" not in str(told.value)


def with_an_operator_of(domain: str, bundle: Bundle) -> Bundle:
    """Put an operator into the fp16 graph that no parser knows."""
    path = bundle.file("model.fp16.onnx")
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "Erf").domain = domain
    next(node for node in model.graph.node if node.op_type == "Erf").op_type = "Erf3"
    model.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    path.unlink()  # a hard link to the module's fixture
    onnx.save(model, path)
    manifest = bundle.manifest.model_copy(update={"files": {**bundle.manifest.files, path.name: sha256_of(path)}})
    write_manifest(bundle.path, manifest)
    return load_bundle(bundle.path)


@pytest.mark.parametrize(
    ("gpu", "message"),
    [
        ("l4", rf"TensorRT for RTX {RTX_RELEASE} cannot parse model\.fp16\.onnx: Erf3"),
        ("v100", r"uses what TensorRT 10\.4\.0 does not support: acme::Erf3 \(no such operator\)"),
    ],
)
def test_a_dry_run_asks_the_parser_and_without_it_the_published_table(bundle: Bundle, gpu: str, message: str):
    words = [str(bundle.path), "--gpu", gpu, "--dry-run"]
    fine = CliRunner().invoke(engine, words, catch_exceptions=False)
    says = "was parsed by TensorRT for RTX" if gpu == "l4" else "was compared with the published operator support"
    assert fine.output.splitlines()[-1].startswith(f"model.fp16.onnx {says}")
    odd = CliRunner().invoke(engine, [str(with_an_operator_of("acme", bundle).path), *words[1:]])
    assert isinstance(odd.exception, SetupError)
    assert re.search(message, str(odd.exception))
    assert not list(bundle.path.glob("*.plan"))


def test_a_failed_build_leaves_the_bundle_as_it_was(bundle: Bundle):
    before = bundle.file("manifest.json").read_bytes()
    with pytest.raises(SetupError, match="cannot build"):
        build_engine(trt, None, bundle, replace(spec_of(bundle, GPUS["t4"]), buckets=(Bucket(1024, 1, 4, 8),)))
    assert bundle.file("manifest.json").read_bytes() == before
    assert not list(bundle.path.glob("*.plan*"))


def test_the_command_builds_one_plan_for_several_gpus_without_a_gpu(bundle: Bundle):
    arguments = ["engine", str(bundle.path), "--gpu", "t4", "--gpu", "l4", "--max-batch", "8"]
    done = subprocess.run(
        [sys.executable, "-c", "from crossrank_server.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "it serves every GPU named and builds without one" in done.stdout
    assert f"built {bundle.path}/model.sm75-sm89.rtx{RTX_RELEASE}.fp16.plan: " in done.stdout
    assert "its scores are not compared yet: that takes one of these GPUs" in done.stdout
    assert load_bundle(bundle.path).manifest.plans[0]["gpus"] == ["t4", "l4"]


def test_a_bundle_that_cannot_be_written_is_told_before_anything_is_built(bundle: Bundle, monkeypatch):
    def full(**_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("crossrank_export.trt.build.tempfile.TemporaryFile", full)
    with pytest.raises(
        SetupError, match=r"bundle cannot be written \(No space left on device\).*: free space, or copy"
    ):
        build_engine(None, None, bundle, spec_of(bundle, GPUS["l4"]))


def test_a_plan_that_does_not_fit_on_the_disk_leaves_the_bundle_as_it_was(bundle: Bundle):
    before = {file.name for file in bundle.path.iterdir()}
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from crossrank_server.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "engine", str(bundle.path), "--gpu", "l4", "--buckets", "512"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(r"^error: .*bundle cannot be written \(File too large\)", done.stderr), done.stderr
    assert {file.name for file in bundle.path.iterdir()} == before
    assert load_bundle(bundle.path).manifest.plans == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 10**20}, r"--max-batch 1(0){20} gives batches of more than 2147483647 tokens .*: give 128, or"),
        ({"workspace_mib": 10**14}, r"--workspace-mib 1(0){14} is more than any GPU has: give 16 to 1048576"),
    ],
    ids=["batch", "workspace"],
)
def test_numbers_beyond_what_tensorrt_takes_are_refused(bundle: Bundle, options, message):
    with pytest.raises(SetupError, match=message):
        spec_of(bundle, GPUS["l4"], **options)
