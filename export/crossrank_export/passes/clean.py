"""Fold constants, remove nodes without effect or readers, and infer shapes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes import common

from crossrank_export.passes.emit import axes_of, constant_of, integers_of, redirect
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import dims_of, infer_shapes

NAME = "clean"
_GROWTH_BYTES = 1 << 16
# Comparison operators, and their result for two equal numbers.
_COMPARISONS = {"Equal": True, "LessOrEqual": True, "GreaterOrEqual": True, "Less": False, "Greater": False}
_INT64_MAX = np.iinfo(np.int64).max
_NEVER_FOLDED = frozenset(
    {"RandomNormal", "RandomUniform", "Bernoulli", "Multinomial", "If", "Loop", "Scan", "QuantizeLinear"}
)


def inline_functions(model: ir.Model) -> None:
    """Replace calls of local functions by their bodies, and Constant nodes by their values, in place."""
    common.InlinePass()(model)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def clean_graph(model: ir.Model) -> PassReport:
    """Fold, simplify and remove until nothing changes, in place."""
    before = len(model.graph)
    while True:
        infer_shapes(model)
        changed = sum(_simplify(model.graph, node) for node in list(model.graph))
        remove_dead(model)
        if not changed:
            break
    common.CommonSubexpressionEliminationPass()(model)
    remove_dead(model)
    after = len(model.graph)
    return PassReport(NAME, after < before, f"{before} nodes became {after}.")


def remove_dead(model: ir.Model) -> None:
    """Remove Identity nodes, and nodes and initializers that no output depends on, in place."""
    # Where a branch of an If returns a value from outside (DeBERTa), its Identity must stay; the pass would remove it
    # and fail. Then _simplify removes those of the main graph, except one at a graph output.
    if not any(_has_subgraph(node) for node in model.graph):
        common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)


def _has_subgraph(node: ir.Node) -> bool:
    return any(value.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for value in node.attributes.values())


def _simplify(graph: ir.Graph, node: ir.Node) -> bool:
    """Replace a node by its constant value or by its own input, if possible; return whether it was."""
    if node.domain or len(node.outputs) != 1 or node.outputs[0].is_graph_output():
        return False
    output = node.outputs[0]
    if not output.uses():
        return False
    if _is_without_effect(node) and node.inputs[0] is not None:
        redirect(output, node.inputs[0])
        return True
    array = _fold(node, graph.opset_imports.get("", 17))
    if array is None:
        return False
    value = ir.Value(name=f"{output.name}/folded", const_value=ir.tensor(array, name=f"{output.name}/folded"))
    value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    value.shape = ir.Shape(array.shape)
    graph.register_initializer(value)
    redirect(output, value)
    return True


def _is_without_effect(node: ir.Node) -> bool:
    source, output = (node.inputs[0] if node.inputs else None), node.outputs[0]
    if source is None:
        return False
    if node.op_type == "Cast":
        return source.dtype is not None and source.dtype == output.dtype
    if node.op_type == "Slice":
        starts, ends = integers_of(node.inputs[1]), integers_of(node.inputs[2])
        steps = integers_of(node.inputs[4]) if len(node.inputs) > 4 else [1]
        return starts == [0] and ends is not None and ends[0] >= _INT64_MAX - 1 and steps == [1]
    if node.op_type == "Identity":
        return True
    return node.op_type == "Dropout" and (len(node.inputs) < 3 or node.inputs[2] is None)


def _fold(node: ir.Node, opset: int) -> NDArray[Any] | None:
    if node.op_type in ("Shape", "Gather", "Slice", "Concat", "Unsqueeze", "Squeeze"):
        dims = _known_dims(node.outputs[0])
        if dims is not None and all(isinstance(dim, int) for dim in dims):
            scalar = node.outputs[0].shape is not None and len(node.outputs[0].shape) == 0
            return np.array(dims[0] if scalar else dims, np.int64)
    if node.op_type in _COMPARISONS and node.outputs[0].shape is not None and _are_equal_dims(*node.inputs):
        return np.full([1] * len(node.outputs[0].shape), _COMPARISONS[node.op_type])
    if node.op_type in _NEVER_FOLDED or not node.inputs:
        return None
    feeds: dict[str, NDArray[Any]] = {}
    for value in node.inputs:
        array = constant_of(value)
        if value is not None and array is None:
            return None
        if value is not None and array is not None:
            feeds[value.name or ""] = array
    return _evaluate(node, opset, feeds)


def _evaluate(node: ir.Node, opset: int, feeds: dict[str, NDArray[Any]]) -> NDArray[Any] | None:
    """Evaluate a node in numpy; None where the result would be too large for the file."""
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in feeds.items()
    ]
    output = onnx.ValueInfoProto(name=node.outputs[0].name)
    graph = onnx.helper.make_graph([ir.to_proto(node)], "fold", inputs, [output])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    results: Any = ReferenceEvaluator(model).run(None, feeds)
    result = np.asarray(results[0])
    return result if result.nbytes <= _GROWTH_BYTES + sum(array.nbytes for array in feeds.values()) else None


def _are_equal_dims(left: ir.Value | None, right: ir.Value | None) -> bool:
    """Return whether both are the same dimension, whatever its length: a name stands for one number."""
    dims = _known_dims(left), _known_dims(right)
    return dims[0] == dims[1] and dims[0] is not None and len(dims[0]) == 1 and dims[0][0] is not None


def _known_dims(value: ir.Value | None) -> list[int | str | None] | None:
    """Return the elements of an int64 vector that is computed from shapes, as far as they are known."""
    node = value.producer() if value is not None else None
    if node is None:
        return list(numbers) if (numbers := integers_of(value)) is not None else None
    if node.op_type == "Shape":
        dims = dims_of(node.inputs[0])
        start, end = node.attributes.get("start"), node.attributes.get("end")
        cut = slice(start.as_int() if start else None, end.as_int() if end else None)
        return None if dims is None else dims[cut]
    if node.op_type in ("Unsqueeze", "Squeeze") and axes_of(node) == [0]:
        return _known_dims(node.inputs[0])
    if node.op_type == "Concat":
        parts = [_known_dims(part) for part in node.inputs]
        return None if any(part is None for part in parts) else [dim for part in parts for dim in part or []]
    data = _known_dims(node.inputs[0]) if node.op_type in ("Gather", "Slice") else None
    if data is None:
        return None
    if node.op_type == "Gather":
        index = integers_of(node.inputs[1])
        within = index is not None and all(-len(data) <= i < len(data) for i in index)
        return [data[i] for i in index] if index is not None and within else None
    bounds = [integers_of(bound) for bound in node.inputs[1:3]]
    if bounds[0] is None or bounds[1] is None or (len(node.inputs) > 4 and integers_of(node.inputs[4]) != [1]):
        return None
    return data[bounds[0][0] : bounds[1][0]]
