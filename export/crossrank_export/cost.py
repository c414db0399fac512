"""Count what a graph costs for one pair: parameters, nodes and arithmetic.

Only matrix products are counted (two operations for each multiply-add), as papers and profilers do: everything
else in a transformer encoder is below two per cent of them.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import onnx_ir as ir

from crossrank_export.passes.opset import raise_opset
from crossrank_export.shapes import fixed_dims_of, infer_shapes

PAIR_TOKENS = 96
"""The mean pair of MS MARCO passages, rounded up to a multiple of 32."""

_BATCH = 2
"""Inferred for two pairs and halved: ONNX leaves a broadcast of 1 with an unknown dimension unknown."""


@dataclass(frozen=True)
class Cost:
    """The cost of scoring one pair.

    Attributes:
        parameters: Elements of the floating-point weights that a node reads.
        nodes: Nodes of the main graph without constants.
        mflop: Millions of floating-point operations in matrix products for one pair; None where the graph
            holds operators or shapes that cannot be read.
        sequence: Tokens of the pair.
    """

    parameters: int
    nodes: int
    mflop: float | None
    sequence: int = PAIR_TOKENS

    def as_dict(self) -> dict[str, Any]:
        """Return the cost as plain JSON types."""
        return asdict(self)


def measure_cost(model: ir.Model, sequence: int = PAIR_TOKENS) -> Cost:
    """Count parameters, nodes and matrix arithmetic of one pair.

    Args:
        model: The graph, which is not changed.
        sequence: Tokens of the pair.
    """
    fixed = _with_fixed_shapes(model, sequence)
    flops = [_flops(node) for node in fixed.graph]
    known = [flop for flop in flops if flop is not None]
    return Cost(
        parameters=sum(
            value.const_value.size
            for value in model.graph.initializers.values()
            if value.const_value is not None and value.const_value.dtype.is_floating_point() and value.uses()
        ),
        nodes=sum(node.op_type != "Constant" for node in model.graph),
        mflop=round(sum(known) / _BATCH / 1e6, 4) if len(known) == len(flops) else None,
        sequence=sequence,
    )


def _with_fixed_shapes(model: ir.Model, sequence: int) -> ir.Model:
    """Return a copy with every shape inferred for a batch of `_BATCH` pairs."""
    copy = model.clone()
    # Before opset 13 the shapes that Unsqueeze computes are not followed.
    raise_opset(copy)
    for value in copy.graph.inputs:
        if not value.is_initializer():
            value.shape = ir.Shape([_BATCH, sequence])
    for value in copy.graph.outputs:
        value.shape = None
    infer_shapes(copy)
    return copy


def _flops(node: ir.Node) -> int | None:
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type in ("MatMul", "Gemm"):
        left, out = fixed_dims_of(node.inputs[0]), fixed_dims_of(node.outputs[0])
        if left is None or out is None:
            return None
        inner = left[0] if node.op_type == "Gemm" and node.attributes.get_int("transA", False) else left[-1]
        return 2 * prod(out) * inner
    if node.op_type == "Attention":
        query, key, out = (fixed_dims_of(value) for value in (node.inputs[0], node.inputs[1], node.outputs[0]))
        if query is None or key is None or out is None or len(query) != 4:
            return None
        return 2 * key[-2] * (prod(query) + prod(out))
    return None if node.op_type in ("Einsum", "Conv", "If", "Loop", "Scan", "QLinearMatMul") else 0
