"""The fp16 graph of ONNX Runtime's own operators: fp32's logits, few nodes, and what does not fit stays as it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from crossrank.bundles.bundle import Bundle
from crossrank_export.contrib import fuse_for_onnxruntime
from crossrank_export.passes import optimize
from crossrank_export.precision import fp16_for_onnxruntime, fp16_from_fp32
from tests.onnx_exports import Exporter, export_named, logits_of

LEGACY = Exporter(False, "eager", 17)
SHAPES = ((1, 4), (1, 1), (3, 17), (8, 96), (4, 129), (2, 512))
# name: (of tests/checkpoints.py, changes, layers)
MODELS = {
    "384 wide, 12 heads of 32": ("MiniLM-L4-v2", {"vocab_size": 400, "num_hidden_layers": 3}, 3),
    "312 wide, 12 heads of 26": ("TinyBERT-L4", {"vocab_size": 400}, 4),
}


@pytest.fixture(scope="module")
def builtin_graph(builtin: Bundle) -> ir.Model:
    return ir.load(builtin.file(builtin.manifest.graph("fp32").file))


@pytest.fixture
def bert(tmp_path: Path) -> ir.Model:
    """A small one, optimized."""
    return optimize(export_named("bert", LEGACY, tmp_path / "model.onnx"))[0]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def fused(model: ir.Model) -> ir.Model:
    graph, report = fp16_for_onnxruntime(model)
    assert graph is not None, report.detail
    return graph


def check_operators(model: ir.Model, layers: int) -> None:
    """All layers but the last one, which has one query only, are ONNX Runtime's operators."""
    counts = operators(model)
    assert counts["MultiHeadAttention"] == layers - 1
    assert counts["SkipLayerNormalization"] == 2 * layers
    assert counts["EmbedLayerNormalization"] == 1
    # The last layer's mask from integers, and the logits.
    assert counts["Cast"] == 2
    # The last layer's.
    assert counts["Softmax"] == 1
    # The last layer's first token, and the pooler's.
    assert counts["Gather"] == 2
    # Of the last layer: the query's heads, the context's, and the mask's row.
    assert counts["Reshape"] == 3
    assert counts["LayerNormalization"] == counts["ReduceSum"] == counts["Slice"] == counts["Shape"] == 0
    # Query, key, value, output, up and down; the last layer's key and value are products with the query.
    assert counts["MatMul"] == 6 * (layers - 1) + 8


def test_the_builtin_model_gives_the_logits_of_fp32(builtin_graph: ir.Model):
    graph = fused(builtin_graph)
    check_operators(graph, layers=2)
    reference = logits_of(builtin_graph, SHAPES)
    assert reference.std() > 0.3
    assert np.abs(logits_of(graph, SHAPES) - reference).max() <= 5e-3


@pytest.mark.parametrize("name", MODELS)
def test_other_shapes_give_the_logits_of_fp32(name: str, tmp_path: Path):
    checkpoint, changes, layers = MODELS[name]
    optimized, _ = optimize(export_named(checkpoint, LEGACY, tmp_path / "model.onnx", **changes))
    graph = fused(optimized)
    check_operators(graph, layers)
    reference = logits_of(optimized, SHAPES)
    assert reference.std() > 0.05
    assert np.abs(logits_of(graph, SHAPES) - reference).max() <= 5e-3


@pytest.mark.parametrize("family", ["bert", "electra", "roberta"])
@pytest.mark.parametrize("exporter", [Exporter(False, "sdpa", 17), Exporter(True, "eager", 18)], ids=str)
def test_every_exporters_graph_is_recognised(family: str, exporter: Exporter, tmp_path: Path):
    if family == "electra" and exporter.attention == "sdpa":
        pytest.skip("transformers' ELECTRA has no sdpa")
    source = export_named(family, exporter, tmp_path / "model.onnx")
    graph = fused(optimize(source)[0])
    counts = operators(graph)
    assert (counts["MultiHeadAttention"], counts["Softmax"], counts["LayerNormalization"]) == (1, 1, 0)
    # RoBERTa's positions are computed from its ids.
    has_embeddings = family != "roberta"
    assert counts["EmbedLayerNormalization"] == has_embeddings
    assert counts["SkipLayerNormalization"] == 4 + (not has_embeddings)
    assert np.abs(logits_of(graph) - logits_of(source)).max() <= 5e-3


def test_all_weights_are_fp16_and_the_interface_is_that_of_fp32(builtin_graph: ir.Model):
    graph = fused(builtin_graph).graph
    dtypes = {value.dtype for value in graph.initializers.values()}
    assert ir.DataType.FLOAT16 in dtypes
    assert ir.DataType.FLOAT not in dtypes
    source = builtin_graph.graph
    for ours, theirs in ((graph.inputs, source.inputs), (graph.outputs, source.outputs)):
        assert [(v.name, v.dtype, str(v.shape)) for v in ours] == [(v.name, v.dtype, str(v.shape)) for v in theirs]


def test_the_source_is_left_as_it_is_and_so_is_its_standard_fp16_graph(builtin_graph: ir.Model):
    before = ir.to_proto(builtin_graph).SerializeToString(deterministic=True)
    fused(builtin_graph)
    assert ir.to_proto(builtin_graph).SerializeToString(deterministic=True) == before
    assert {node.domain for node in fp16_from_fp32(builtin_graph).graph} == {""}


def test_positions_and_segments_are_the_table_taken_apart(builtin_graph: ir.Model):
    model = builtin_graph.clone()
    assert fuse_for_onnxruntime(model).applied
    embeddings = next(node for node in model.graph if node.op_type == "EmbedLayerNormalization")
    positions, segments = (value.const_value.numpy() for value in embeddings.inputs[3:5])
    assert (positions.shape, segments.shape) == ((512, 128), (2, 128))
    table = builtin_graph.graph.initializers["crossrank/embeddings/table_7"].const_value.numpy()
    sums = (segments[:, None, :] + positions[None]).reshape(-1, 128)
    np.testing.assert_allclose(sums, table, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # by transformers
@pytest.mark.parametrize("family", ["mpnet", "deberta-v2"])
def test_attention_with_positions_of_its_own_is_left_alone(family: str, tmp_path: Path):
    optimized, _ = optimize(export_named(family, LEGACY, tmp_path / "model.onnx"))
    before = ir.to_proto(optimized).SerializeToString(deterministic=True)
    report = fuse_for_onnxruntime(optimized)
    assert not report.applied
    assert operators(optimized)["MultiHeadAttention"] == 0
    assert ir.to_proto(optimized).SerializeToString(deterministic=True) == before
    assert fp16_for_onnxruntime(optimized)[0] is None


def attention_add(model: ir.Model) -> ir.Node:
    """Where the first layer adds the mask to its scores."""
    return next(node for node in model.graph if node.op_type == "Softmax").inputs[0].producer()


def hide_less(model: ir.Model) -> None:
    """Padding counts a little: no mask that lengths could stand for."""
    masked = [
        value
        for value in model.graph.initializers.values()
        if value.const_value.size == 1 and value.const_value.numpy().min() < -1e3
    ]
    for value in masked:
        value.const_value = ir.tensor(np.array(-3, np.float32), name=value.name)


def hide_words(model: ir.Model) -> None:
    """The other way round."""
    for node in model.graph:
        if node.op_type == "Sub":
            for use in list(node.outputs[0].uses()):
                use.node.replace_input_with(use.idx, node.inputs[1])


def hide_by_place(model: ir.Model) -> None:
    """A constant for each of four places."""
    add = attention_add(model)
    place = ir.Value(name="place", const_value=ir.tensor(np.zeros((1, 1, 1, 4), np.float32), name="place"))
    place.type, place.shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([1, 1, 1, 4])
    model.graph.register_initializer(place)
    mask = add.inputs[1]
    moved = ir.node("Add", [mask, place])
    moved.outputs[0].name = "moved"
    model.graph.append(moved)
    add.replace_input_with(1, moved.outputs[0])
    model.graph.sort()


@pytest.mark.parametrize("change", [hide_less, hide_words, hide_by_place])
def test_a_mask_that_is_not_the_padding_is_left_alone(bert: ir.Model, change: Callable[[ir.Model], None]):
    assert fuse_for_onnxruntime(bert.clone()).applied
    change(bert)
    assert not fuse_for_onnxruntime(bert).applied


def test_a_table_that_is_no_sum_of_positions_and_segments_leaves_the_embeddings(bert: ir.Model):
    table = next(value for name, value in bert.graph.initializers.items() if "embeddings/table" in name)
    array = table.const_value.numpy().copy()
    array[-1] += 0.5
    table.const_value = ir.tensor(array, name=table.name)
    graph = fused(bert)
    counts = operators(graph)
    assert (counts["EmbedLayerNormalization"], counts["ReduceSum"], counts["MultiHeadAttention"]) == (0, 1, 1)
    assert np.abs(logits_of(graph) - logits_of(bert)).max() <= 5e-3


@pytest.mark.parametrize("positions", [0, -16])
def test_segments_that_no_number_of_positions_apart_leave_the_embeddings(bert: ir.Model, positions: int):
    """With 0, the same positions for every segment; of what -16 computes there is no table."""
    stride = next(
        value
        for node in bert.graph
        if node.op_type == "Mul" and any(operand.name == "token_type_ids" for operand in node.inputs)
        for value in node.inputs
        if value.const_value is not None
    )
    stride.const_value = ir.tensor(np.full(stride.shape.numpy(), positions, np.int32), name=stride.name)
    assert operators(fused(bert))["EmbedLayerNormalization"] == 0


def test_a_context_that_two_nodes_read_keeps_the_values_bias(bert: ir.Model):
    attention = next(node for node in bert.graph if node.op_type == "Softmax")
    context = attention.outputs[0].uses()[0].node.outputs[0].uses()[0].node.outputs[0].uses()[0].node.outputs[0]
    output = context.uses()[0].node
    doubled = ir.node("Add", [context, context])
    doubled.outputs[0].name = "doubled"
    bert.graph.append(doubled)
    output.replace_input_with(0, doubled.outputs[0])
    bert.graph.sort()
    graph = fused(bert)
    biases = [name for name in graph.graph.initializers if "onnxruntime/v_bias" in name]
    assert len(biases) == 1
    assert np.abs(logits_of(graph) - logits_of(bert)).max() <= 5e-3


def test_a_sum_that_broadcasts_is_no_skip_connection(bert: ir.Model):
    """The first layer's residual is its first token, for all tokens."""
    norm = [node for node in bert.graph if node.op_type == "LayerNormalization"][1]
    total = norm.inputs[0].producer()
    position = next(i for i, value in enumerate(total.inputs) if value.producer().op_type == "LayerNormalization")
    zero = ir.Value(name="zero", const_value=ir.tensor(np.array([0], np.int64), name="zero"))
    zero.type, zero.shape = ir.TensorType(ir.DataType.INT64), ir.Shape([1])
    bert.graph.register_initializer(zero)
    first = ir.node("Gather", [total.inputs[position], zero], {"axis": 1})
    first.outputs[0].name = "first"
    bert.graph.append(first)
    total.replace_input_with(position, first.outputs[0])
    bert.graph.sort()
    graph = fused(bert)
    assert operators(graph)["SkipLayerNormalization"] == 3
    assert operators(graph)["LayerNormalization"] == 1
    assert np.abs(logits_of(graph) - logits_of(bert)).max() <= 5e-3
