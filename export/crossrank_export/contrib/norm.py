"""What ONNX Runtime's normalizing operators take over from a LayerNormalization."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from crossrank_export.passes.emit import constant_of


@dataclass(frozen=True)
class NormWeights:
    """Constant vectors [hidden], and what is added to the variance."""

    gamma: ir.Value
    beta: ir.Value
    epsilon: float


def norm_weights(node: ir.Node) -> NormWeights | None:
    """Read a normalization over the last of three axes whose other outputs nobody reads; None for any other node."""
    if node.op_type != "LayerNormalization" or node.domain or node.attributes.get_int("axis", -1) not in (-1, 2):
        return None
    if len(node.inputs) < 3 or any(value.uses() for value in node.outputs[1:]):
        return None
    gamma, beta = node.inputs[1:3]
    arrays = constant_of(gamma), constant_of(beta)
    if gamma is None or beta is None or any(array is None or array.ndim != 1 for array in arrays):
        return None
    return NormWeights(gamma, beta, node.attributes.get_float("epsilon", 1e-5))
