"""The fp16 graph is strongly typed with FP32 islands but no FP32 product, cannot overflow in its masks, and keeps its interface."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest

from crossrank.errors import SetupError
from crossrank_export.head import sum_narrow_products
from crossrank_export.passes import optimize
from crossrank_export.precision import fp16_from_fp32, write_int8
from tests.checkpoints import SMALL
from tests.onnx_exports import Exporter, export_named, logits_of, session_of

FLOAT, HALF = onnx_ir.DataType.FLOAT, onnx_ir.DataType.FLOAT16


def encoder(masked: float = float(np.finfo(np.float32).min)) -> onnx_ir.Model:
    """A miniature cross-encoder: embedding, one attention head, normalization, residual, pooler, classifier."""
    rng = np.random.default_rng(7)
    weights = {
        "words": rng.normal(size=(50, 16)),
        "wq": rng.normal(size=(16, 16)),
        "wp": rng.normal(size=(16, 16)),
        "wc": rng.normal(size=(16, 1)),
        "gamma": rng.normal(size=16),
        "beta": rng.normal(size=16),
        "masked": np.array(masked),
        "one": np.array(1.0),
    }
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    encoder (int64[batch, sequence] input_ids, int64[batch, sequence] attention_mask) => (float[batch, 1] logits) {
        x = Gather <axis = 0> (words, input_ids)
        q = MatMul (x, wq)
        t = Transpose <perm = [0, 2, 1]> (x)
        raw = MatMul (q, t)
        axes = Constant <value = int64[1] {1}> ()
        wide = Unsqueeze (attention_mask, axes)
        real = Cast <to = 1> (wide)
        padding = Sub (one, real)
        bias = Mul (padding, masked)
        scores = Add (raw, bias)
        p = Softmax <axis = -1> (scores)
        context = MatMul (p, x)
        summed = Add (context, x)
        normed = LayerNormalization <axis = -1, epsilon = 1e-12> (summed, gamma, beta)
        zero = Constant <value = int64 {0}> ()
        first = Gather <axis = 1> (normed, zero)
        pooled = MatMul (first, wp)
        bent = Tanh (pooled)
        logits = MatMul (bent, wc)
    }
    """
    proto = onnx.parser.parse_model(text)
    for name, array in weights.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array.astype(np.float32), name))
    onnx.checker.check_model(proto, full_check=True)
    return onnx_ir.from_proto(proto)


def run(model: onnx_ir.Model, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    data = onnx_ir.to_proto(model).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"input_ids": ids, "attention_mask": mask})[0]


@pytest.fixture
def fp32() -> onnx_ir.Model:
    return encoder()


def test_every_operator_has_one_floating_type(fp32: onnx_ir.Model):
    fp16 = fp16_from_fp32(fp32)
    onnx.checker.check_model(onnx_ir.to_proto(fp16), full_check=True)
    for node in fp16.graph:
        if node.op_type == "Cast":
            assert node.inputs[0].dtype != node.outputs[0].dtype, node.name
            continue
        types = {value.dtype for value in (*node.inputs, *node.outputs) if value.dtype in (FLOAT, HALF)}
        assert len(types) <= 1, (node.op_type, types)


def test_norm_softmax_and_head_are_fp32_and_all_products_fp16(fp32: onnx_ir.Model):
    fp16 = fp16_from_fp32(fp32)
    types = {node.outputs[0].name: node.outputs[0].dtype for node in fp16.graph}
    named = {value: dtype for value, dtype in types.items() if value and "cast" not in value.lower()}
    islands = [
        node for node in fp16.graph if node.op_type in ("LayerNormalization", "Softmax", "Tanh", "Mul", "ReduceSum")
    ]
    assert Counter(node.op_type for node in islands)["ReduceSum"] == 1
    assert all(node.inputs[0].dtype == FLOAT for node in islands if node.outputs[0].name != "bias")
    products = [node for node in fp16.graph if node.op_type == "MatMul"]
    assert Counter(node.inputs[0].dtype for node in products) == {HALF: 4}
    assert named["x"] == HALF
    assert named["logits"] == FLOAT
    assert fp16.graph.initializers["words"].dtype == HALF
    assert fp16.graph.initializers["wp"].dtype == HALF


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # DeBERTa uses torch.jit
@pytest.mark.parametrize("family", SMALL)
@pytest.mark.parametrize("labels", [1, 3])
def test_no_family_has_a_product_in_fp32(family: str, labels: int, tmp_path: Path):
    source = export_named(family, Exporter(False, "eager", 17), tmp_path / "model.onnx", num_labels=labels)
    optimized, _ = optimize(source)
    fp16 = fp16_from_fp32(optimized)
    products = [node for node in fp16.graph if node.op_type in ("MatMul", "Gemm")]
    assert {node.inputs[0].dtype for node in products} == {HALF}
    # Nothing rounds the logits to fp16.
    last = fp16.graph.outputs[0].producer()
    assert last is not None
    assert (last.op_type, last.inputs[0].producer().op_type) == ("Add", "ReduceSum")
    reference = logits_of(optimized)
    assert reference.shape[1] == labels
    assert reference.std() > 0.05
    assert np.abs(logits_of(fp16) - reference).max() < 5e-3


@pytest.mark.parametrize("columns", [1, 2, 8, 9])
@pytest.mark.parametrize("product", ["MatMul", "Gemm", "Gemm transB"])
def test_a_narrow_product_is_a_sum_of_the_same_value(product: str, columns: int):
    rng = np.random.default_rng(columns)
    x, bias = rng.normal(size=(5, 16)).astype(np.float32), rng.normal(size=columns).astype(np.float32)
    weight = rng.normal(size=(columns, 16) if "transB" in product else (16, columns)).astype(np.float32)
    head = {
        "MatMul": "y = MatMul (normed, w)  logits = Add (y, b)",
        "Gemm": "logits = Gemm (normed, w, b)",
        "Gemm transB": "logits = Gemm <transB = 1> (normed, w, b)",
    }[product]
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        head (float[batch, 16] x) => (float[batch, {columns}] logits) {{
            normed = LayerNormalization (x, gamma)
            {head}
        }}"""
    )
    for name, array in {"w": weight, "b": bias, "gamma": np.ones(16, np.float32)}.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    model = onnx_ir.from_proto(proto)
    for number, node in enumerate(model.graph):
        node.name = f"node_{number}"
    summed = onnx_ir.from_proto(onnx_ir.to_proto(model))
    kept = sum_narrow_products(summed)
    operators = [node.op_type for node in summed.graph]
    assert ("ReduceSum" in operators) == (columns <= 8)
    assert kept == {node.name for node in summed.graph if node.op_type not in ("MatMul", "Gemm", "LayerNormalization")}
    results = [session_of(m).run(["logits"], {"x": x})[0] for m in (model, summed)]
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)


def test_inputs_and_logits_keep_their_types(fp32: onnx_ir.Model):
    fp16 = fp16_from_fp32(fp32)
    before = [(value.name, value.dtype) for value in (*fp32.graph.inputs, *fp32.graph.outputs)]
    assert [(value.name, value.dtype) for value in (*fp16.graph.inputs, *fp16.graph.outputs)] == before


def test_the_source_graph_is_left_as_it_is(fp32: onnx_ir.Model):
    before = onnx_ir.to_proto(fp32).SerializeToString()
    fp16_from_fp32(fp32)
    assert onnx_ir.to_proto(fp32).SerializeToString() == before


@pytest.mark.parametrize("masked", [float(np.finfo(np.float32).min), -65504.0, float("-inf")])
def test_rows_without_any_real_token_give_numbers(masked: float):
    ids = np.arange(24).reshape(2, 12)
    mask = np.zeros((2, 12), np.int64)
    mask[0, :7] = 1
    logits = run(fp16_from_fp32(encoder(masked)), ids, mask)
    assert np.isfinite(logits).all()


def test_fp16_logits_are_near_fp32s(fp32: onnx_ir.Model):
    rng = np.random.default_rng(3)
    ids = rng.integers(0, 50, (8, 12))
    mask = (np.arange(12) < rng.integers(1, 13, (8, 1))).astype(np.int64)
    assert np.abs(run(fp16_from_fp32(fp32), ids, mask) - run(fp32, ids, mask)).max() < 2e-2


def test_places_in_a_table_are_computed_in_fp32(tmp_path: Path):
    source = export_named("mpnet", Exporter(False, "eager", 17), tmp_path / "model.onnx")  # buckets of log(distance)
    optimized, _ = optimize(source)
    fp16 = fp16_from_fp32(optimized)
    assert {node.outputs[0].dtype for node in fp16.graph if node.op_type == "Log"} == {FLOAT}
    reference = logits_of(optimized)
    assert reference.std() > 0.05
    assert np.abs(logits_of(fp16) - reference).max() < 2e-3


def test_int8_quantizes_products_with_weights_per_channel_and_nothing_else(tmp_path: Path):
    write_int8(encoder(), tmp_path / "int8.onnx")
    model = onnx_ir.load(tmp_path / "int8.onnx")
    products = Counter(node.op_type for node in model.graph)
    assert (products["MatMulInteger"], products["MatMul"]) == (3, 2)
    scales = [value for name, value in model.graph.initializers.items() if name.endswith("wq_scale")]
    assert scales[0].const_value.size == 16
    assert model.graph.initializers["words"].dtype == FLOAT


def test_a_graph_whose_norm_is_in_pieces_gets_no_fp16():
    model = encoder()
    norm = next(node for node in model.graph if node.op_type == "LayerNormalization")
    norm.outputs[0].replace_all_uses_with(norm.inputs[0])
    model.graph.remove(norm, safe=True)
    with pytest.raises(SetupError, match="no LayerNormalization"):
        fp16_from_fp32(model)
