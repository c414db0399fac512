"""Convert old graphs to opset 17, which has LayerNormalization and one form of every operator used here."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossrank_export.passes.emit import Emitter
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import dims_of, infer_shapes

NAME = "opset"
TARGET = 17

_AXES_TO_INPUT = {"Squeeze": "axes", "Unsqueeze": "axes", "ReduceSum": "axes", "Split": "split"}
_SOFTMAX = {"Softmax", "LogSoftmax"}
# Operators whose meaning is the same in opsets 11 to 17.
# fmt: off
_UNCHANGED = frozenset({
    "Abs", "Add", "And", "Cast", "Ceil", "Clip", "Concat", "Constant", "ConstantOfShape", "CumSum", "Div",
    "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gemm",
    "Greater", "GreaterOrEqual", "Identity", "If", "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mul",
    "Neg", "Not", "Or", "Pow", "Range", "Reciprocal", "ReduceMean", "Relu", "Reshape", "Shape", "Sigmoid",
    "Sign", "Slice", "Sqrt", "Sub", "Tanh", "Tile", "Transpose", "Where",
})
# fmt: on


def raise_opset(model: ir.Model) -> PassReport:
    """Convert a graph of opset 11 to 16 to opset 17, in place; other graphs stay as they are."""
    opset = model.opset_imports.get("", 0)
    if opset >= TARGET:
        return PassReport(NAME, False, f"The graph is of opset {opset} already.")
    if opset < 11:
        return PassReport(NAME, False, f"Opset {opset} is older than 11: left as it is.")
    known = _UNCHANGED | _SOFTMAX | set(_AXES_TO_INPUT)
    strange = sorted({node.op_type for node in model.graph.all_nodes() if node.domain or node.op_type not in known})
    if strange:
        return PassReport(NAME, False, f"Left at opset {opset}: {', '.join(strange)} may mean something else later.")
    trial = model.clone()
    _convert(trial)
    infer_shapes(trial)
    if opset < 13 and any(_is_flattening_softmax(node) for node in trial.graph.all_nodes()):
        return PassReport(NAME, False, f"Left at opset {opset}: a softmax runs over several axes.")
    _convert(model)
    for node in model.graph.all_nodes():
        if node.op_type in _SOFTMAX and opset < 13:
            node.attributes["axis"] = ir.AttrInt64("axis", -1)
    return PassReport(NAME, True, f"Opset {opset} rewritten as {TARGET}.")


def _convert(model: ir.Model) -> None:
    """Turn attributes that became inputs into constants, also for the nodes of branches."""
    emit = Emitter(model.graph, NAME)
    for node in list(model.graph.all_nodes()):
        attribute = _AXES_TO_INPUT.get(node.op_type)
        if attribute is not None and attribute in node.attributes:
            axes = node.attributes.pop(attribute).as_ints()
            node.resize_inputs(2)
            node.replace_input_with(1, emit.constant(np.array(axes, np.int64), attribute))
    model.opset_imports[""] = TARGET


def _is_flattening_softmax(node: ir.Node) -> bool:
    """Return whether a softmax may run over several axes: before opset 13 it runs over all from `axis` on."""
    axis = node.attributes.get_int("axis", 1)
    if node.op_type not in _SOFTMAX or axis == -1:
        return False
    dims = dims_of(node.inputs[0])
    return dims is None or axis != len(dims) - 1
