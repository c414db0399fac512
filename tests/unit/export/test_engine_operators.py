"""Every operator and dtype of the fp16 graph is one that TensorRT's parser publishes as supported."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from crossrank.errors import SetupError
from crossrank.text.encoding import PairEncoder
from crossrank_export.graphs import session_scorer
from crossrank_export.trt.operators import SUPPORTED, check_operators, newest_opset
from tests.engine_bundle import write_fp16_bundle
from tests.fake_tensorrt import GOLDEN, VERSIONS

# Named in 10.6's table without dtypes, or added by 10.5: not in 10.4's.
LEFT_OUT = {"STFT", "BlackmanWindow", "HammingWindow", "HannWindow"}


def published(release):
    return json.loads((GOLDEN / f"onnx-tensorrt-operators-{release}.json").read_text())


@pytest.fixture(scope="module")
def bundle(builtin, tmp_path_factory):
    return write_fp16_bundle(builtin, tmp_path_factory.mktemp("operators") / "bundle")


def write_graph(path, nodes, *, dtype=TensorProto.FLOAT16, opset=17, initializers=(), out=None):
    shape = ["batch", 4]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info("y", out or dtype, None)],
        list(initializers),
    )
    domains = sorted({node.domain for node in nodes} - {""})
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    onnx.save(helper.make_model(graph, opset_imports=imports), path)
    return path


def test_the_table_is_the_published_one():
    rows = published("10.6")["operators"]
    assert {name: frozenset(dtypes) for name, dtypes in rows.items() if name not in LEFT_OUT} == SUPPORTED


def test_nothing_in_the_table_was_withdrawn_later():
    later = published("10.15")["operators"]
    assert all(dtypes <= set(later[name]) for name, dtypes in SUPPORTED.items())


@pytest.mark.parametrize("release", ["10.6", "10.15"])
def test_unsupported_rows_are_not_in_the_table(release):
    assert not SUPPORTED.keys() & set(published(release)["unsupported"])


@pytest.mark.parametrize("version", VERSIONS)
def test_fp16_graph_uses_only_supported_operators_at_supported_dtypes(bundle, version):
    found = check_operators(bundle.file("model.fp16.onnx"), version)
    assert all(dtypes and dtypes <= SUPPORTED[name] for name, dtypes in found.items())
    assert "FP16" in found["MatMul"]
    assert found["Softmax"] == {"FP32"}


def test_fp16_graph_executed_on_cpu_agrees_with_fp32(bundle):
    pairs = PairEncoder(bundle).encode("how many people live in berlin", ["3.7 million people", "a cat " * 300]).batch
    fp32, fp16 = (
        session_scorer(bundle.file(bundle.manifest.graph(precision).file), bundle.manifest.graph(precision), 0)(pairs)
        for precision in ("fp32", "fp16")
    )
    delta = np.abs(fp32 - fp16).max()
    assert 0 < delta <= 2e-2


def test_an_operator_outside_the_table_is_named(tmp_path):
    path = write_graph(tmp_path / "m.onnx", [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")])
    with pytest.raises(SetupError, match=r"com\.microsoft::Gelu \(no such operator\)"):
        check_operators(path, "10.4.0")


def test_a_dtype_outside_the_row_is_named(tmp_path):
    path = write_graph(tmp_path / "m.onnx", [helper.make_node("Sin", ["x"], ["y"])], dtype=TensorProto.DOUBLE)
    with pytest.raises(SetupError, match="Sin at FP64"):
        check_operators(path, "10.4.0")


def test_a_comparison_is_judged_by_what_it_compares(tmp_path):
    node = helper.make_node("Equal", ["x", "x"], ["y"])
    path = write_graph(tmp_path / "m.onnx", [node], out=TensorProto.BOOL)
    assert check_operators(path, "10.4.0") == {"Equal": {"FP16"}}


def test_a_cast_is_judged_by_both_sides(tmp_path):
    node = helper.make_node("Cast", ["x"], ["y"], to=TensorProto.DOUBLE)
    path = write_graph(tmp_path / "m.onnx", [node], out=TensorProto.DOUBLE)
    with pytest.raises(SetupError, match="Cast at FP64"):
        check_operators(path, "10.4.0")


def test_axes_computed_at_run_time_are_refused(tmp_path):
    nodes = [
        helper.make_node("Shape", ["x"], ["axes"], start=0, end=1),
        helper.make_node("ReduceSum", ["x", "axes"], ["y"], name="sum_1"),
    ]
    with pytest.raises(SetupError, match=r"axes computed at run time \(sum_1\)"):
        check_operators(write_graph(tmp_path / "m.onnx", nodes), "10.4.0")
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [1])
    assert check_operators(write_graph(tmp_path / "n.onnx", nodes[1:], initializers=[axes]), "10.4.0")


def test_an_opset_beyond_the_parser_is_refused_with_a_remedy(tmp_path):
    path = write_graph(tmp_path / "m.onnx", [helper.make_node("Relu", ["x"], ["y"])], opset=22)
    with pytest.raises(SetupError, match=r"opset 22, TensorRT 10.4.0 takes 9 to 20: .*--opset 17"):
        check_operators(path, "10.4.0")
    check_operators(path, "11.4.0")
    assert [newest_opset(v) for v in ("10.5.0", "10.6.0", "10.15.1", "11.4.0")] == [20, 22, 24, 24]


def test_a_graph_whose_dtypes_cannot_be_inferred_is_refused(tmp_path):
    path = write_graph(tmp_path / "m.onnx", [helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")])
    model = onnx.load(path)
    del model.opset_import[1]
    onnx.save(model, path)
    with pytest.raises(SetupError, match="cannot be inferred"):
        check_operators(path, "10.4.0")
