"""The cost of a graph is what a hand count says."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest

from crossrank_export.cost import measure_cost
from tests.onnx_exports import Exporter, export_named


def hand_count(layers: int, hidden: int, ffn: int, tokens: int) -> float:
    """MFLOP of a BERT encoder with pooler and one label: two operations for each multiply-add."""
    layer = 4 * tokens * hidden**2 + 2 * tokens**2 * hidden + 2 * tokens * hidden * ffn
    return 2 * (layers * layer + hidden**2 + hidden) / 1e6


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("tokens", [32, 96])
def test_bert_costs_what_a_hand_count_says(tmp_path, opset, tokens):
    model = export_named("bert", Exporter(False, "eager", opset), tmp_path / "model.onnx")
    cost = measure_cost(model, tokens)

    assert cost.mflop == pytest.approx(hand_count(2, 32, 64, tokens), abs=1e-4)
    assert cost.sequence == tokens
    embeddings = (400 + 512 + 2) * 32 + 2 * 32
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    assert cost.parameters == pytest.approx(embeddings + 2 * layer + 32 * 32 + 32 + 33, abs=20)


def test_an_attention_operator_counts_as_its_two_products(tmp_path):
    plain = export_named("bert", Exporter(True, "eager", 18), tmp_path / "plain.onnx")
    fused = export_named("bert", Exporter(True, "sdpa", 23), tmp_path / "fused.onnx")
    assert "Attention" in {node.op_type for node in fused.graph}
    assert measure_cost(fused).mflop == measure_cost(plain).mflop


def test_constants_are_no_nodes_and_the_model_is_left_as_it_is():
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,S] x) => (float[N,S] y)
    { two = Constant<value = float {2}>()  y = Mul(x, two) }"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    before = ir.to_proto(model).SerializeToString()

    assert measure_cost(model).nodes == 1
    assert measure_cost(model).mflop == 0
    assert ir.to_proto(model).SerializeToString() == before


def test_arithmetic_that_cannot_be_read_is_unknown_and_not_zero():
    text = """<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]> g (float[N,S] x) => (float[N,S] y)
    { y = com.microsoft.FusedMatMul(x, x) }"""
    assert measure_cost(ir.from_proto(onnx.parser.parse_model(text))).mflop is None
