"""Replace a residual sum, the bias before it and the normalization after it by SkipLayerNormalization."""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.contrib.norm import NormWeights, norm_weights
from crossrank_export.passes.emit import CONTRIB, Emitter, constant_of, only_consumer, operand_beside, redirect
from crossrank_export.shapes import fixed_dims_of


def fuse_skip_norms(graph: ir.Graph, emit: Emitter) -> int:
    """Replace every normalization of a sum of two values of the same shape; return their number.

    Args:
        graph: Graph with all shapes in numbers.
        emit: Emitter for the nodes.
    """
    fused = 0
    for node in list(graph):
        weights = norm_weights(node)
        if weights is not None:
            fused += _fuse(node, weights, emit)
    return fused


def _fuse(node: ir.Node, weights: NormWeights, emit: Emitter) -> bool:
    source = node.inputs[0]
    total = source.producer() if source is not None else None
    if source is None or total is None or total.op_type != "Add" or only_consumer(source) is not node:
        return False
    left, right = total.inputs
    dims = fixed_dims_of(left)
    if left is None or right is None or dims is None or len(dims) != 3 or dims != fixed_dims_of(right):
        return False
    if _biased(left) is None:
        left, right = right, left
    value, bias = _biased(left) or (left, None)
    output = emit.op(
        "SkipLayerNormalization",
        *(value, right, weights.gamma, weights.beta),
        *([bias] if bias is not None else []),
        domain=CONTRIB,
        epsilon=weights.epsilon,
    )
    output.shape = node.outputs[0].shape
    redirect(node.outputs[0], output)
    return True


def _biased(value: ir.Value) -> tuple[ir.Value, ir.Value] | None:
    """Match x + constant vector, with no other reader; return x and the vector."""
    add = value.producer()
    if add is None or add.op_type != "Add" or only_consumer(value) is None:
        return None
    for bias in add.inputs:
        array = constant_of(bias)
        other = operand_beside(add, bias) if bias is not None else None
        if array is not None and array.ndim == 1 and other is not None and fixed_dims_of(other) == fixed_dims_of(value):
            return (other, bias) if bias is not None else None
    return None
