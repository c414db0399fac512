"""Read the weights of a LayerNormalization for ONNX Runtime's normalizing operators."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from crossrank_export.passes.emit import constant_of


@dataclass(frozen=True)
class NormWeights:
    """Weights of a normalization: constant vectors [hidden], and the number added to the variance."""

    gamma: ir.Value
    beta: ir.Value
    epsilon: float


def norm_weights(node: ir.Node) -> NormWeights | None:
    """Return the weights of a normalization over the last of three axes with one used output; None for other nodes."""
    if node.op_type != "LayerNormalization" or node.domain or node.attributes.get_int("axis", -1) not in (-1, 2):
        return None
    if len(node.inputs) < 3 or any(value.uses() for value in node.outputs[1:]):
        return None
    gamma, beta = node.inputs[1:3]
    arrays = constant_of(gamma), constant_of(beta)
    if gamma is None or beta is None or any(array is None or array.ndim != 1 for array in arrays):
        return None
    return NormWeights(gamma, beta, node.attributes.get_float("epsilon", 1e-5))
