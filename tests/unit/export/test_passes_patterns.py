"""Each pass by itself: what it recognises, and what it leaves alone, saying so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from crossrank_export.passes import PassReport, optimize
from crossrank_export.passes.attention import find_attention
from crossrank_export.passes.branches import fold_branches
from crossrank_export.passes.clean import clean_graph, inline_functions
from crossrank_export.passes.embeddings import fold_embeddings
from crossrank_export.passes.first_token import prune_to_first_token
from crossrank_export.passes.interface import unify_interface
from crossrank_export.passes.layer_norm import fuse_layer_norm
from crossrank_export.passes.mask import narrow_masks
from crossrank_export.passes.merge_qkv import merge_projections
from crossrank_export.passes.opset import raise_opset
from tests.checkpoints import build_model
from tests.onnx_exports import Exporter, export_named, export_onnx, logits_of, random_batch, session_of

LEGACY = Exporter(False, "eager", 17)
SDPA = Exporter(False, "sdpa", 17)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    """Two layers as torch's tracing exporter writes them, cleaned; a test takes a clone."""
    return cleaned(export_named("bert", LEGACY, tmp_path_factory.mktemp("onnx") / "bert.onnx"))


@pytest.fixture(scope="module")
def sdpa(tmp_path_factory: pytest.TempPathFactory) -> ir.Model:
    return cleaned(export_named("bert", SDPA, tmp_path_factory.mktemp("onnx") / "sdpa.onnx"))


def cleaned(model: ir.Model) -> ir.Model:
    inline_functions(model)
    clean_graph(model)
    return model


def parsed(text: str, opset: int = 17) -> ir.Model:
    """Read a model in ONNX's own text form."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}]>\n'
    return cleaned(ir.from_proto(onnx.parser.parse_model(header + text)))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def run(model: ir.Model, **feeds: np.ndarray) -> np.ndarray:
    return session_of(model).run(None, feeds)[0]


def report_of(reports: list[PassReport], name: str) -> PassReport:
    return next(report for report in reports if report.name == name)


def test_attention_is_found_with_its_scale_wherever_the_exporter_put_it(bert, sdpa):
    for model in (bert, sdpa):
        blocks = find_attention(model.graph)
        assert [block.heads for block in blocks] == [4, 4]
        assert [block.total_scale for block in blocks] == pytest.approx([8**-0.5] * 2)


def test_after_pruning_the_last_layer_works_on_one_token(bert):
    model = bert.clone()
    report = prune_to_first_token(model)
    clean_graph(model)

    assert report.applied
    softmaxes = [node for node in model.graph if node.op_type == "Softmax"]
    assert [len(node.outputs[0].shape) for node in softmaxes] == [4, 3], "one query has no axis of queries"
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    assert [node.outputs[0].shape[1] == 1 for node in norms] == [False, False, False, True, True]
    assert np.abs(logits_of(model) - logits_of(bert)).max() <= 1e-5


def test_a_slice_of_the_first_token_is_recognised_too(bert):
    model = bert.clone()
    gather = next(n for n in model.graph if n.op_type == "Gather" and n.attributes.get_int("axis", 0) == 1)
    text = model.graph
    constants = [
        ir.Value(name=f"cut{i}", const_value=ir.tensor(np.array([v], np.int64))) for i, v in enumerate((0, 1, 1))
    ]
    for value in constants:
        text.register_initializer(value)
    cut = ir.node("Slice", [gather.inputs[0], *constants])
    cut.outputs[0].name = "cut"
    text.insert_before(gather, cut)
    gather.replace_input_with(0, cut.outputs[0])
    clean_graph(model)

    assert prune_to_first_token(model).applied
    assert np.abs(logits_of(model) - logits_of(bert)).max() <= 1e-5


def test_mean_pooling_is_left_alone_and_reported(tmp_path):
    import torch

    class MeanPooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = build_model("bert", attention="eager")
            self.config = self.classifier.config

        def forward(self, **inputs: Any) -> Any:
            hidden = self.classifier.bert(**inputs).last_hidden_state
            mask = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            pooled = (hidden * mask).sum(1) / mask.sum(1)
            return type("Output", (), {"logits": self.classifier.classifier(pooled)})

    source = export_onnx(MeanPooled(), LEGACY, tmp_path / "mean.onnx")
    optimized, reports = optimize(source)

    report = report_of(reports, "first_token")
    assert not report.applied
    assert "mean pooling" in report.detail
    assert report_of(reports, "merge_qkv").detail.startswith("2 layers"), "the other passes still apply"
    assert np.abs(logits_of(optimized) - logits_of(source)).max() <= 1e-5


def test_a_model_that_reads_another_token_is_left_alone(bert):
    model = bert.clone()
    gather = next(n for n in model.graph if n.op_type == "Gather" and n.attributes.get_int("axis", 0) == 1)
    last = ir.Value(name="last", const_value=ir.tensor(np.array(-1, np.int64)))
    model.graph.register_initializer(last)
    gather.replace_input_with(1, last)
    before = logits_of(model)

    assert not prune_to_first_token(model).applied
    np.testing.assert_array_equal(logits_of(model), before)


def test_hidden_states_that_are_an_output_are_still_all_computed(bert):
    model = bert.clone()
    hidden = [node for node in model.graph if node.op_type == "LayerNormalization"][-1].outputs[0]
    model.graph.outputs.append(hidden)
    batch = random_batch(["input_ids", "attention_mask", "token_type_ids"], 3, 12)
    before = session_of(model).run(None, batch)
    prune_to_first_token(model)
    clean_graph(model)

    for old, new in zip(before, session_of(model).run(None, batch), strict=True):
        assert np.abs(old - new).max() <= 1e-5


def test_merged_projections_are_one_product_a_layer_without_a_scale(bert):
    model = bert.clone()
    report = merge_projections(model)
    clean_graph(model)

    assert report.detail.startswith("2 layers")
    widths = [
        node.inputs[1].shape[1] for node in model.graph if node.op_type == "MatMul" and len(node.inputs[1].shape) == 2
    ]
    assert widths == [96, 32, 64, 32] * 2
    assert operators(model).count("Div") == operators(bert).count("Div") - 2, "the scale is in the weights"
    assert np.abs(logits_of(model) - logits_of(bert)).max() <= 1e-5


def test_attention_with_the_scale_after_the_mask_is_not_taken_for_the_usual_one(bert):
    model = bert.clone()
    softmax = next(node for node in model.graph if node.op_type == "Softmax")
    half = ir.Value(name="half", const_value=ir.tensor(np.array(0.5, np.float32)))
    model.graph.register_initializer(half)
    scaled = ir.node("Mul", [softmax.inputs[0], half])
    scaled.outputs[0].name = "scaled"
    model.graph.insert_before(softmax, scaled)
    softmax.replace_input_with(0, scaled.outputs[0])

    assert len(find_attention(model.graph)) == 1


def test_masks_stay_at_one_row(sdpa):
    model = sdpa.clone()
    assert "Expand" in operators(model)
    assert narrow_masks(model).applied
    clean_graph(model)

    assert "Expand" not in operators(model)
    np.testing.assert_array_equal(logits_of(model), logits_of(sdpa))
    assert not narrow_masks(model).applied


def test_segments_still_count_after_the_tables_are_merged(bert):
    model = bert.clone()
    report = fold_embeddings(model)
    clean_graph(model)
    assert report.detail == "3 embedding tables became 2."

    batch = random_batch(["input_ids", "attention_mask", "token_type_ids"], 4, 20)
    one_segment = {**batch, "token_type_ids": np.zeros_like(batch["token_type_ids"])}
    for feeds in (batch, one_segment):
        assert np.abs(run(model, **feeds) - run(bert, **feeds)).max() <= 1e-5
    assert np.abs(run(model, **batch) - run(model, **one_segment)).max() > 0.01


def test_segments_of_one_row_are_added_to_another_table(tmp_path):
    source = cleaned(export_named("roberta", LEGACY, tmp_path / "roberta.onnx"))
    model = source.clone()

    assert fold_embeddings(model).detail == "3 embedding tables became 2."
    clean_graph(model)
    assert np.abs(logits_of(model) - logits_of(source)).max() <= 1e-5


def test_a_sum_of_other_things_is_not_taken_for_embeddings():
    model = parsed("g (float[2,3] a, float[2,3] b) => (float[2,3] y) { y = Add(a, b) }")
    assert not fold_embeddings(model).applied
    assert operators(model) == ["Add"]


def test_inputs_become_int32_and_arithmetic_in_int64_goes_on():
    model = parsed(
        """g (int64[N,S] input_ids) => (float[N,S] scores)
        <int64[1] one = {1}> { more = Add(input_ids, one)  wide = Unsqueeze(input_ids, one)
          same = Squeeze(wide, one)  a = Cast<to: int = 1>(more)  b = Cast<to: int = 1>(same)  scores = Add(a, b) }"""
    )
    ids = np.array([[3, 2**31 - 1]])
    before = run(model, input_ids=ids)
    report = unify_interface(model)
    clean_graph(model)

    assert report.applied
    assert model.graph.inputs[0].dtype == ir.DataType.INT32
    assert str(model.graph.inputs[0].shape) == "[batch,sequence]"
    assert model.graph.outputs[0].name == "logits"
    np.testing.assert_array_equal(run(model, input_ids=ids.astype(np.int32)), before)


def test_outputs_beside_the_logits_are_dropped():
    model = parsed(
        "g (int32[N,S] x) => (float[N,S] hidden, float[N,S] logits) { hidden = Cast<to: int = 1>(x) logits = Neg(hidden) }"
    )
    unify_interface(model)
    assert [value.name for value in model.graph.outputs] == ["logits"]


def test_opset_11_becomes_17_with_the_same_result():
    model = parsed(
        "g (float[N,S] x) => (float[N,1,S] y) { wide = Unsqueeze<axes: ints = [1]>(x)  y = Softmax<axis: int = 2>(wide) }",
        11,
    )
    x = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)
    before = run(model, x=x)

    assert raise_opset(model).applied
    assert model.opset_imports[""] == 17
    np.testing.assert_array_equal(run(model, x=x), before)


def test_a_softmax_over_several_axes_keeps_its_old_opset():
    model = parsed("g (float[N,3,S] x) => (float[N,3,S] y) { y = Softmax<axis: int = 1>(x) }", 11)
    report = raise_opset(model)
    assert not report.applied
    assert "softmax" in report.detail
    assert model.opset_imports[""] == 11


def test_operators_whose_meaning_changed_keep_their_old_opset():
    model = parsed("g (float[N,3] x) => (float[N,3] y) { y = Hardmax(x) }", 12)
    assert "Hardmax" in raise_opset(model).detail
    assert model.opset_imports[""] == 12


NORM = """g (float[N,S,4] x) => (float[N,S,4] y)
<float two = {2}, float eps = {0.001}, float[4] gamma = {1, 2, 3, 4}, float[4] beta = {4, 3, 2, 1}>
{ mean = ReduceMean<axes: ints = [-1]>(x)  centred = Sub(x, mean)  squared = Pow(centred, two)
  variance = ReduceMean<axes: ints = [AXIS]>(squared)  shifted = Add(variance, eps)  deviation = Sqrt(shifted)
  normal = Div(centred, deviation)  scaled = Mul(normal, gamma)  y = Add(scaled, beta) }"""


def test_layer_normalization_in_pieces_becomes_one_node():
    model = parsed(NORM.replace("AXIS", "-1"))
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    before = run(model, x=x)

    assert fuse_layer_norm(model).applied
    clean_graph(model)
    assert operators(model) == ["LayerNormalization"]
    np.testing.assert_allclose(run(model, x=x), before, atol=1e-6)


def test_a_normalization_over_another_axis_is_left_alone():
    model = parsed(NORM.replace("AXIS", "1"))
    assert not fuse_layer_norm(model).applied


def test_what_depends_on_fixed_dimensions_only_is_computed_beforehand():
    model = parsed(
        """g (float[N,S,16] x) => (float[N,S,16] y)
        <int64[1] last = {-1}, int64[1] end = {9223372036854775807}, float[1] unread = {1}>
        { shape = Shape(x)  width = Slice(shape, last, end)  real = Cast<to: int = 1>(width)  root = Sqrt(real)
          same = Identity(x)  also = Cast<to: int = 1>(same)  unused = Neg(x)  y = Div(also, root) }"""
    )
    assert operators(model) == ["Div"]
    assert list(model.graph.initializers) == [model.graph[0].inputs[1].name]
    assert model.graph[0].inputs[1].const_value.numpy().tolist() == [4.0]


# Whether x has as many rows as its own negative, or as y, which has others.
BRANCHES = """g (float[N,S,4] x, float[M,S,4] y) => (float[] out)
<int64[1] zero = {0}, int64[1] one = {1}, int64[1] two = {2}>
{ negative = Neg(x)
  own = Shape(x)  rows = Slice(own, zero, one)  other_own = Shape(OTHER)  other = Slice(other_own, zero, one)
  same = COMPARISON(rows, other)  scalar = Squeeze(same, zero)
  chosen = If(scalar) <then_branch = then () => (float[A,B,4] a) { twice = Add(negative, negative)  a = Neg(twice) },
                       else_branch = otherwise () => (float[C] b) { twice = ReduceSum(y)  b = Unsqueeze(twice, zero) }>
  doubled = Add(chosen, chosen)  out = ReduceSum<keepdims = 0>(doubled) }"""


def branches(other: str, comparison: str = "Equal") -> ir.Model:
    return parsed(BRANCHES.replace("OTHER", other).replace("COMPARISON", comparison))


@pytest.mark.parametrize(
    ("comparison", "taken"),
    [("Equal", "x"), ("LessOrEqual", "x"), ("GreaterOrEqual", "x"), ("Less", "y"), ("Greater", "y")],
)
def test_the_branch_that_is_taken_at_every_length_replaces_the_choice(comparison, taken):
    model = branches("negative", comparison)
    feeds = {name: np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) for name in ("x", "y")}
    feeds["y"] += 1
    before = run(model, **feeds)

    assert fold_branches(model).applied
    assert "If" not in operators(model)
    assert bool(model.graph.inputs[0].uses()) == (taken == "x")
    assert bool(model.graph.inputs[1].uses()) == (taken == "y"), "the branch that is dropped reads nothing"
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run(model, **feeds), before)


def test_a_branch_that_depends_on_the_input_stays():
    model = branches("y")
    report = fold_branches(model)

    assert not report.applied
    assert report.detail == "0 branches are always taken; 1 depend on the input."
    rng = np.random.default_rng(0)
    x, same, longer = (rng.normal(size=(rows, 3, 4)).astype(np.float32) for rows in (2, 2, 5))
    assert run(model, x=x, y=same) == pytest.approx(4 * x.sum(), abs=1e-4)
    assert run(model, x=x, y=longer) == pytest.approx(2 * longer.sum(), abs=1e-4)


def test_choices_inside_the_branch_that_is_taken_are_decided_too():
    model = parsed(
        """g (float[N,1,4] x, bool[1] flag) => (float[N,4] y)
        <int64[1] axis = {1}, int64 one = {1}>
        { shape = Shape(x)  length = Gather(shape, one)  is_one = Equal(length, one)
          y = If(is_one) <
            then_branch = squeezed () => (float[N,4] a) {
              inner = If(is_one) <
                then_branch = deep () => (float[N,4] c) { twice = Squeeze(x, axis)  c = Neg(twice) },
                else_branch = deeper () => (float[N,4] c) { twice = Squeeze(x, axis)  c = Abs(twice) }>
              twice = If(flag) <
                then_branch = plus () => (float[N,4] d) { d = Add(inner, inner) },
                else_branch = minus () => (float[N,4] d) { d = Sub(inner, inner) }>
              a = Identity(twice) },
            else_branch = kept () => (float[N,1,4] b) { b = Identity(x) }> }"""
    )
    x = np.random.default_rng(0).normal(size=(2, 1, 4)).astype(np.float32)
    report = fold_branches(model)

    assert report.detail == "2 branches are always taken; 1 depend on the input."
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    np.testing.assert_array_equal(run(model, x=x, flag=np.array([True])), -2 * x[:, 0])
    np.testing.assert_array_equal(run(model, x=x, flag=np.array([False])), 0 * x[:, 0])


def test_names_of_an_earlier_inference_make_no_dimensions_equal():
    model = parsed(
        """g (float[N] x, int64[1] a, int64[1] b) => (float[] out)
        { p = Expand(x, a)  q = Expand(x, b)  ps = Shape(p)  qs = Shape(q)  same = Equal(ps, qs)
          chosen = If(same) <then_branch = then () => (float[P] t) { t = Neg(p) },
                             else_branch = otherwise () => (float[Q] e) { e = Abs(q) }>
          out = ReduceSum<keepdims = 0>(chosen) }"""
    )
    first, second = (next(n for n in model.graph if n.inputs[1:] == (i,)) for i in model.graph.inputs[1:])
    # What inference names one way, an earlier one had named the other way, and knew no rank of the other value.
    first.outputs[0].shape, second.outputs[0].shape = ir.Shape(["unk__1"]), None
    clean_graph(model)
    x = np.array([1], np.float32)

    assert not fold_branches(model).applied
    for count, expected in ((3, -3), (2, 2)):
        assert run(model, x=x, a=np.array([3]), b=np.array([count])) == expected


def test_old_opsets_are_raised_inside_branches_too():
    model = parsed(
        """g (float[N,4] x, bool[1] flag) => (float[N,1,4] y) {
          y = If(flag) <then_branch = then () => (float[N,1,4] a) { a = Unsqueeze<axes: ints = [1]>(x) },
                        else_branch = otherwise () => (float[N,1,4] b) { n = Neg(x)  b = Unsqueeze<axes: ints = [1]>(n) }> }""",
        12,
    )
    x = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)
    assert raise_opset(model).applied
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    for flag, expected in ((True, x), (False, -x)):
        np.testing.assert_array_equal(run(model, x=x, flag=np.array([flag])), expected[:, None])
