"""A Triton repository says what the bundle and the target call for, and the committed one is what the command writes."""

from __future__ import annotations

import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from google.protobuf import text_format
from onnx import helper

from crossrank.bundles.bundle import Bundle, load_bundle, sha256_of
from crossrank.errors import BundleError, SetupError
from crossrank.native.padding import pad
from crossrank.packed import PairBatch
from crossrank_export.commands.repository import repository, serve_command
from crossrank_export.triton.config import config_from_text, engine_config, text_config, text_from_config
from crossrank_export.triton.graph import write_int32_inputs
from crossrank_export.triton.spec import TARGETS, Queue, make_spec
from crossrank_export.triton.write import write_repository

ROOT = Path(__file__).resolve().parents[3]
COMMITTED = ROOT / "model_repository"
GOLDEN = ROOT / "tests" / "golden" / "triton"
PLAN = "model.sm70.trt10.4.0.fp16.plan"


def plan_entry(file: str = PLAN, gpu: str = "v100", sm: int = 70, tensorrt: str = "10.4.0") -> dict[str, Any]:
    """An entry as `crossrank engine` writes it, with two profiles."""
    profiles = [
        {"min": [1, 1], "opt": [128, 64], "max": [128, 64]},
        {"min": [1, 65], "opt": [16, 512], "max": [128, 512]},
    ]
    return {
        "file": file,
        "runtime": "tensorrt",
        "gpus": [gpu],
        "sms": [sm],
        "tensorrt": tensorrt,
        "precision": "fp16",
        "graph": "model.fp16.onnx",
        "max_batch": 128,
        "profiles": profiles,
    }


@pytest.fixture
def gpu_bundle(builtin: Bundle, tmp_path: Path) -> Bundle:
    """The built-in bundle with an fp16 graph of int32 inputs and a plan; their content is not looked at."""
    path = tmp_path / "gpu-bundle"
    shutil.copytree(builtin.path, path)
    shutil.copy(path / "model.onnx", path / "model.fp16.onnx")
    (path / PLAN).write_bytes(b"a plan")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model_id"] = "acme/reranker"
    fp16 = json.loads(json.dumps(manifest["graphs"][0])) | {"file": "model.fp16.onnx", "precision": "fp16"}
    for tensor in fp16["inputs"]:
        tensor["dtype"] = "int32"
    manifest["graphs"].append(fp16)
    manifest["plans"] = [plan_entry()]
    manifest["files"] |= {name: sha256_of(path / name) for name in ("model.fp16.onnx", PLAN)}
    # The tokenizer's hash is in the golden files; it must not follow the built-in bundle's.
    (path / "tokenizer.json").write_text("{}")
    manifest["files"]["tokenizer.json"] = sha256_of(path / "tokenizer.json")
    (path / "manifest.json").write_text(json.dumps(manifest))
    return load_bundle(path)


def read_config(model: Path) -> Any:
    return config_from_text((model / "config.pbtxt").read_text())


def test_the_committed_repository_is_what_the_command_writes(tmp_path):
    result = CliRunner().invoke(repository, ["builtin", "--target", "cpu", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    written = {
        path.relative_to(tmp_path / "out")
        for path in (tmp_path / "out").rglob("*")
        if path.is_file() and "bundle" not in path.parts
    }
    assert {str(path) for path in written} == {
        "crossrank-mini/config.pbtxt",
        "crossrank-mini/1/model.py",
        "crossrank-mini_rerank/config.pbtxt",
        "crossrank-mini_rerank/1/model.py",
    }
    for path in written:
        assert (tmp_path / "out" / path).read_text() == (COMMITTED / path).read_text(), path


def test_the_weights_of_the_committed_repository_are_ignored_by_git():
    patterns = (ROOT / ".gitignore").read_text().splitlines()
    assert {"model_repository/**/*.onnx", "model_repository/**/*.plan", "model_repository/**/bundle/"} <= set(patterns)


@pytest.mark.parametrize("target", TARGETS)
def test_all_targets_have_the_same_interface(gpu_bundle, target):
    spec = make_spec(gpu_bundle.manifest, target)
    config = engine_config(spec, gpu_bundle.manifest)
    assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.input] == [
        ("input_ids", 8, [-1]),
        ("attention_mask", 8, [-1]),
        ("token_type_ids", 8, [-1]),
    ]
    assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.output] == [("logits", 11, [1])]
    assert config.max_batch_size > 1
    assert config.dynamic_batching.default_queue_policy.max_queue_size > 0


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime-gpu"])
def test_gpu_configs_are_those_reviewed(gpu_bundle, target):
    spec = make_spec(gpu_bundle.manifest, target)
    config = engine_config(spec, gpu_bundle.manifest)
    assert config == config_from_text((GOLDEN / f"{target}.pbtxt").read_text())


@pytest.mark.parametrize("target", TARGETS)
def test_written_configs_parse_back_to_what_was_meant(gpu_bundle, tmp_path, target):
    spec = make_spec(gpu_bundle.manifest, target, queue=Queue(5, 7000, 11), instances=3, text_instances=9)
    engine, text = write_repository(gpu_bundle, spec, tmp_path / "out")
    assert read_config(engine) == engine_config(spec, gpu_bundle.manifest)
    assert read_config(text) == text_config(spec, gpu_bundle.manifest)
    config = read_config(engine)
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (5, 7000)
    assert policy.timeout_action == policy.REJECT
    assert config.dynamic_batching.max_queue_delay_microseconds == 11
    assert config.instance_group[0].count == 3
    assert read_config(text).instance_group[0].count == 9


def test_an_unknown_field_is_not_read():
    with pytest.raises(text_format.ParseError):
        config_from_text('name: "m"\nmax_queue: 3\n')


def test_text_of_a_config_is_the_same_each_time(gpu_bundle):
    spec = make_spec(gpu_bundle.manifest, "tensorrt")
    texts = {text_from_config(engine_config(spec, gpu_bundle.manifest)) for _ in range(5)}
    assert len(texts) == 1


def test_a_tensorrt_model_has_one_profile_warm_up_and_graph_set_for_each_bucket_of_its_plan(gpu_bundle):
    spec = make_spec(gpu_bundle.manifest, "tensorrt")
    config = engine_config(spec, gpu_bundle.manifest)
    assert spec.buckets == (64, 512)
    assert config.max_batch_size == 128
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert dict(config.cc_model_filenames) == {"7.0": PLAN}
    assert config.default_model_filename == f"no-plan-for-this-gpu.the-one-here-is-{PLAN}"
    assert config.parameters["execution_context_allocation_strategy"].string_value == "ON_PROFILE_CHANGE"
    graphs = {(graph.batch_size, graph.input["input_ids"].dim[0]) for graph in config.optimization.cuda.graph_spec}
    assert graphs == {(rows, bucket) for rows in (1, 2, 4, 8, 16, 32) for bucket in (64, 512)}
    assert [(warmup.batch_size, warmup.inputs["input_ids"].dims[0]) for warmup in config.model_warmup] == [
        (128, 64),
        (16, 512),
    ]


def test_files_of_each_target_are_in_the_version_directory(gpu_bundle, tmp_path):
    expected = {
        "tensorrt": {PLAN},
        "onnxruntime-gpu": {"model.onnx"},
        "cpu": {"model.py", *(f"bundle/{name}" for name in ["manifest.json", *gpu_bundle.manifest.files])},
    }
    for target in TARGETS:
        engine, text = write_repository(gpu_bundle, make_spec(gpu_bundle.manifest, target), tmp_path / target)
        files = {path.relative_to(engine / "1").as_posix() for path in (engine / "1").rglob("*") if path.is_file()}
        assert files == expected[target]
        names = {path.relative_to(text / "1").as_posix() for path in (text / "1").rglob("*") if path.is_file()}
        assert names == {"model.py", "bundle/manifest.json", "bundle/tokenizer.json"}
        assert (engine.name, text.name) == ("reranker", "reranker_rerank")


def test_a_graph_with_int64_inputs_gets_int32_ones_and_computes_as_before(tmp_path):
    types = {"input_ids": onnx.TensorProto.INT64, "attention_mask": onnx.TensorProto.INT32}
    nodes = [
        helper.make_node("Cast", ["attention_mask"], ["wide_mask"], to=onnx.TensorProto.INT64),
        helper.make_node("Mul", ["input_ids", "wide_mask"], ["kept"]),
        helper.make_node("Add", ["kept", "input_ids"], ["logits"]),
    ]
    inputs = [helper.make_tensor_value_info(name, dtype, ["batch", "sequence"]) for name, dtype in types.items()]
    output = helper.make_tensor_value_info("logits", onnx.TensorProto.INT64, ["batch", "sequence"])
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(helper.make_graph(nodes, "g", inputs, [output]), opset_imports=opset, ir_version=8)
    onnx.save(model, tmp_path / "wide.onnx")
    write_int32_inputs(tmp_path / "wide.onnx", tmp_path / "narrow.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "narrow.onnx"), providers=["CPUExecutionProvider"])
    assert {tensor.name: tensor.type for tensor in session.get_inputs()} == dict.fromkeys(types, "tensor(int32)")
    feeds = {"input_ids": np.array([[5, 6, 7]], np.int32), "attention_mask": np.array([[1, 1, 0]], np.int32)}
    np.testing.assert_array_equal(session.run(["logits"], feeds)[0], [[10, 12, 7]])


def test_the_onnx_model_in_the_repository_takes_int32_and_scores_as_the_bundle_does(builtin, tmp_path):
    engine, _ = write_repository(builtin, make_spec(builtin.manifest, "onnxruntime-gpu"), tmp_path / "out")
    batch = PairBatch(np.arange(1000, 1012, dtype=np.int32), np.zeros(12, np.int32), np.array([0, 5, 12], np.int64))
    ids, types, mask = pad(batch, 7, 0)
    feeds = {"input_ids": ids, "token_type_ids": types, "attention_mask": mask}
    session = onnxruntime.InferenceSession(str(engine / "1" / "model.onnx"), providers=["CPUExecutionProvider"])
    assert {tensor.type for tensor in session.get_inputs()} == {"tensor(int32)"}
    graph = builtin.manifest.graph("fp32")
    source = onnxruntime.InferenceSession(str(builtin.file(graph.file)), providers=["CPUExecutionProvider"])
    own = {tensor.name: feeds[tensor.name].astype(tensor.dtype) for tensor in graph.inputs}
    np.testing.assert_array_equal(session.run(["logits"], feeds)[0], source.run(["logits"], own)[0])


def test_a_new_version_leaves_the_old_one_and_other_models_alone(builtin, gpu_bundle, tmp_path):
    out = tmp_path / "out"
    write_repository(gpu_bundle, make_spec(gpu_bundle.manifest, "cpu"), out)
    spec = make_spec(builtin.manifest, "cpu")
    write_repository(builtin, spec, out)
    write_repository(builtin, spec, out, version=2)
    write_repository(builtin, spec, out, version=2)
    assert {path.name for path in (out / "crossrank-mini").iterdir()} == {"1", "2", "config.pbtxt"}
    assert (out / "reranker" / "1" / "model.py").is_file()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "gpu-bundle"}
    assert filecmp.cmp(
        builtin.file("model.onnx"), out / "crossrank-mini" / "2" / "bundle" / "model.onnx", shallow=False
    )


def test_a_text_model_can_be_left_out(builtin, tmp_path):
    spec = make_spec(builtin.manifest, "cpu", text_instances=0)
    assert [path.name for path in write_repository(builtin, spec, tmp_path / "out")] == ["crossrank-mini"]


def test_default_buckets_end_at_the_window_of_the_model(builtin):
    manifest = builtin.manifest.model_copy(update={"max_length": 100})
    assert make_spec(manifest, "cpu").buckets == (32, 64, 96, 100)
    assert make_spec(builtin.manifest, "cpu").buckets == (32, 64, 96, 128, 192, 256, 384, 512)


@pytest.mark.parametrize(
    ("target", "options", "message"),
    [
        ("cpu", {"buckets": [64, 32, 512]}, "64,32,512 are not ascending"),
        ("cpu", {"buckets": [64, 128]}, "end at 128 tokens, the bundle's pairs have up to 512"),
        ("cpu", {"name": "a/b"}, "'a/b' is no name of a Triton model"),
        ("tensorrt", {"buckets": [512]}, "--buckets is a property of the TensorRT plan"),
        ("tensorrt", {"max_batch": 8}, "--max-batch is a property of the TensorRT plan"),
        ("tensorrt", {"gpu": "t4"}, r"built for SM 7\.0 \(v100\), this GPU is SM 7\.5"),
        ("tensorrt", {"gpu": "v100", "tensorrt": "10.3.0"}, r"built by TensorRT 10\.4\.0, TensorRT 10\.3\.0"),
    ],
)
def test_options_that_do_not_fit_are_refused(gpu_bundle, target, options, message):
    with pytest.raises(SetupError, match=message):
        make_spec(gpu_bundle.manifest, target, **options)


def test_a_bundle_without_a_plan_is_refused_for_tensorrt(builtin):
    with pytest.raises(
        SetupError, match=r"has no TensorRT plan: build .*crossrank engine --gpu NAME --runtime tensorrt"
    ):
        make_spec(builtin.manifest, "tensorrt")


def test_a_plan_of_tensorrt_for_rtx_is_passed_over_and_alone_refused(gpu_bundle):
    other = {**plan_entry("model.sm75.rtx1.7.1.116.fp16.plan", "t4", 75, "1.7.1.116"), "runtime": "tensorrt-rtx"}
    both = gpu_bundle.manifest.model_copy(update={"plans": [other, plan_entry()]})
    assert make_spec(both, "tensorrt").plan == plan_entry()
    alone = gpu_bundle.manifest.model_copy(update={"plans": [other]})
    for manifest, gpu, which in (
        (alone, None, ""),
        (alone, "t4", "for the Tesla T4 "),
        (both, "t4", "for the Tesla T4 "),
    ):
        with pytest.raises(SetupError) as refused:
            make_spec(manifest, "tensorrt", gpu=gpu)
        message = str(refused.value)
        assert (
            f"has {which}only plans of TensorRT for RTX ({other['file']}), which Triton's TensorRT backend" in message
        )
        for way in (
            "crossrank serve --engine tensorrt",
            "--target onnxruntime-gpu",
            f"crossrank engine --gpu {gpu or 'NAME'} --runtime tensorrt",
        ):
            assert way in message


def test_a_plan_of_tensorrt_for_rtx_is_not_offered_for_a_gpu_that_it_does_not_serve(gpu_bundle):
    other = {**plan_entry("model.sm75.rtx1.7.1.116.fp16.plan", "t4", 75, "1.7.1.116"), "runtime": "tensorrt-rtx"}
    alone = gpu_bundle.manifest.model_copy(update={"plans": [other]})
    with pytest.raises(SetupError, match=r"has no TensorRT plan for the Tesla V100: build .*--gpu v100 --runtime"):
        make_spec(alone, "tensorrt", gpu="v100")


def test_warm_up_batches_are_no_larger_than_what_every_profile_of_the_plan_takes(gpu_bundle):
    manifest = gpu_bundle.manifest.model_copy(update={"plans": [{**plan_entry(), "max_batch": 8}]})
    spec = make_spec(manifest, "tensorrt")
    assert (spec.max_batch, spec.opt_batches) == (8, (8, 8))


def test_of_several_plans_the_one_for_the_gpu_is_taken(gpu_bundle):
    plans = [plan_entry(), plan_entry("model.sm90.trt11.2.1.fp16.plan", "h100", 90, "11.2.1")]
    manifest = gpu_bundle.manifest.model_copy(update={"plans": plans})
    with pytest.raises(SetupError, match="choose one with --gpu"):
        make_spec(manifest, "tensorrt")
    assert make_spec(manifest, "tensorrt", gpu="v100").plan == plans[0]
    assert make_spec(manifest, "tensorrt", gpu="h100").plan == plans[1]
    with pytest.raises(BundleError, match=r"TensorRT 10\.3\.0 is installed"):
        make_spec(manifest, "tensorrt", gpu="v100", tensorrt="10.3.0")


def test_a_plan_with_int64_inputs_is_refused(gpu_bundle):
    graph = gpu_bundle.manifest.graph("fp16")
    inputs = [tensor.model_copy(update={"dtype": "int64"}) for tensor in graph.inputs]
    manifest = gpu_bundle.manifest.model_copy(update={"graphs": [graph.model_copy(update={"inputs": inputs})]})
    with pytest.raises(SetupError, match="as int64, Triton's clients send int32"):
        make_spec(manifest, "tensorrt")


def test_a_graph_of_onnx_runtimes_operators_is_left_to_the_engine_of_this_project(gpu_bundle):
    standard = gpu_bundle.manifest.graph("fp16")
    other = standard.model_copy(update={"file": "other.onnx", "operators": "onnxruntime"})
    graphs = [other, *gpu_bundle.manifest.graphs]
    manifest = gpu_bundle.manifest.model_copy(update={"graphs": graphs})
    assert make_spec(manifest, "onnxruntime-gpu").graph == standard
    assert make_spec(manifest, "cpu").graph == manifest.graph("fp32")


def test_a_model_with_several_logits_is_refused_on_gpus_and_served_on_cpus(gpu_bundle):
    manifest = gpu_bundle.manifest.model_copy(update={"num_labels": 3, "label": 2})
    with pytest.raises(SetupError, match="has 3 logits a pair"):
        make_spec(manifest, "onnxruntime-gpu")
    assert engine_config(make_spec(manifest, "cpu"), manifest).output[0].dims == [1]


def test_the_command_to_serve_names_the_container_of_the_plans_gpu(gpu_bundle, tmp_path):
    plan = serve_command(make_spec(gpu_bundle.manifest, "tensorrt"), tmp_path)
    assert "nvcr.io/nvidia/tritonserver:24.09-py3" in plan
    assert f"-v {tmp_path}:/models" in plan
    onnx = serve_command(make_spec(gpu_bundle.manifest, "onnxruntime-gpu", text_instances=0), tmp_path)
    assert "crossrank-engines:/var/cache/crossrank" in onnx
    assert "pip install" not in onnx
