"""Replace a layer normalization in separate operators by one LayerNormalization (opset 17).

The engines fuse the operators themselves; with one node, converters can keep it in float32 by name.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossrank_export.passes.emit import (
    Emitter,
    axes_of,
    constant_of,
    operand_beside,
    redirect,
    scalar_of,
)
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import dims_of

NAME = "layer_norm"


def fuse_layer_norm(model: ir.Model) -> PassReport:
    """Replace every (x - mean) / sqrt(variance + epsilon) * gamma + beta over the last axis, in place."""
    if model.opset_imports.get("", 0) < 17:
        return PassReport(NAME, False, "The graph's opset has no LayerNormalization.")
    emit = Emitter(model.graph, NAME)
    fused = sum(_fuse(node, emit) for node in list(model.graph) if node.op_type == "Add")
    if not fused:
        return PassReport(NAME, False, "No layer normalization is in pieces.")
    model.graph.sort()
    return PassReport(NAME, True, f"{fused} layer normalizations became one node each.")


def _fuse(final: ir.Node, emit: Emitter) -> bool:
    """Replace a layer normalization, matched upwards from its Add of beta; return whether it is one."""
    shifted = _split_constant(final)
    scaled = _split_constant(_above(shifted[0], "Mul")) if shifted is not None else None
    if shifted is None or scaled is None:
        return False
    division = _above(scaled[0], "Div")
    if division is None:
        return False
    centred, deviation = division.inputs
    subtraction, root = _above(centred, "Sub"), _above(deviation, "Sqrt")
    if subtraction is None or root is None or centred is None:
        return False
    source = subtraction.inputs[0]
    mean = _above(subtraction.inputs[1], "ReduceMean")
    epsilon = _epsilon(root.inputs[0], centred)
    if source is None or mean is None or mean.inputs[0] is not source or not _is_over_last_axis(mean):
        return False
    if epsilon is None:
        return False
    gamma, beta = scaled[1], shifted[1]
    output = emit.op("LayerNormalization", source, gamma, beta, axis=-1, epsilon=epsilon)
    output.shape = source.shape
    redirect(final.outputs[0], output)
    return True


def _epsilon(variance: ir.Value | None, centred: ir.Value) -> float | None:
    """Match mean(centred^2) + epsilon, and return epsilon."""
    addition = _above(variance, "Add")
    if addition is None:
        return None
    for operand in addition.inputs:
        epsilon = scalar_of(operand)
        mean = _above(operand_beside(addition, operand), "ReduceMean") if operand is not None else None
        if epsilon is None or mean is None or not _is_over_last_axis(mean):
            continue
        square = mean.inputs[0].producer() if mean.inputs[0] is not None else None
        if square is None or square.inputs[0] is not centred:
            continue
        if square.op_type == "Pow" and scalar_of(square.inputs[1]) == 2.0:
            return epsilon
        if square.op_type == "Mul" and square.inputs[1] is centred:
            return epsilon
    return None


def _above(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type else None


def _split_constant(node: ir.Node | None) -> tuple[ir.Value, ir.Value] | None:
    """Return (computed operand, constant vector) of a node that has one of each."""
    for vector in node.inputs if node is not None else ():
        array = constant_of(vector)
        other = operand_beside(node, vector) if node is not None and vector is not None else None
        if array is not None and array.ndim == 1 and array.dtype == np.float32 and other is not None:
            return (other, vector) if vector is not None else None
    return None


def _is_over_last_axis(mean: ir.Node) -> bool:
    axes = axes_of(mean)
    dims = dims_of(mean.inputs[0])
    last = {-1} if dims is None else {-1, len(dims) - 1}
    return axes is not None and len(axes) == 1 and axes[0] in last and mean.attributes.get_int("keepdims", 1) == 1
