"""Compute everything after the last layer's attention for the first token only.

A classifier over [CLS] reads only position 0 of the last hidden states. The selection moves from there up through all
operators that treat tokens one by one (residual sums, layer normalization, products with constant matrices,
activations) to the last attention, where only the first query remains. Keys and values then need not be computed:

    scores_h = (x Wk_h + bk_h) q0_h = x (Wk_h q0_h) + constant          (a softmax ignores the constant)
    context_h = p_h (x Wv_h + bv_h) = (p_h x) Wv_h + bv_h               (p_h sums to one)

Both are exact except for rounding. Their cost is 4 h H S + 4 H^2 operations a layer against 4 H^2 S + 4 H S.
"""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.passes.attention import Attention, find_attention
from crossrank_export.passes.emit import ELEMENTWISE, Emitter, axes_of, constant_of, integers_of
from crossrank_export.passes.first_query import emit_first_query
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import dims_of

NAME = "first_token"


def prune_to_first_token(model: ir.Model) -> PassReport:
    """Rewrite the last layer for one token, in place, if only the first token is read."""
    selectors = [node for node in model.graph if _selects_first_token(node)]
    if not selectors:
        return PassReport(NAME, False, "Nothing selects the first token (mean pooling, perhaps): left as it is.")
    blocks = find_attention(model.graph)
    emit = Emitter(model.graph, NAME)
    pruned = 0
    for selector in selectors:
        last = _last_attention(selector.inputs[0], blocks)
        if last is not None and selector.inputs[0] is not None:
            selector.replace_input_with(0, _Pruner(emit, last).first(selector.inputs[0]))
            pruned += 1
    if not pruned:
        return PassReport(NAME, False, "What selects the first token follows no attention block that is recognised.")
    model.graph.sort()
    return PassReport(NAME, True, "The last layer is computed for the first token, without keys and values.")


def _selects_first_token(node: ir.Node) -> bool:
    """Return whether a node selects position 0 of axis 1 of [batch, sequence, hidden]."""
    if node.domain or node.op_type not in ("Gather", "Slice"):
        return False
    dims = dims_of(node.inputs[0])
    if dims is None or len(dims) != 3 or node.inputs[0] is None or constant_of(node.inputs[0]) is not None:
        return False
    if node.op_type == "Gather":
        return node.attributes.get_int("axis", 0) in (1, -2) and integers_of(node.inputs[1]) == [0]
    bounds = [integers_of(bound) for bound in node.inputs[1:]]
    return bounds[:2] == [[0], [1]] and len(bounds) > 2 and bounds[2] in ([1], [-2]) and bounds[3:] in ([], [[1]])


def _last_attention(value: ir.Value | None, blocks: list[Attention]) -> Attention | None:
    """Return the last attention block from which only token-wise operators lead to the value."""
    order = {block.output: position for position, block in enumerate(blocks)}
    seen: set[ir.Value] = set()
    queue = [value]
    while queue:
        current = queue.pop()
        if current is None or current in seen:
            continue
        seen.add(current)
        node = current.producer()
        if current not in order and node is not None:
            queue.extend(_token_operands(node) or ())
    # Residual connections lead to earlier blocks too: take the last one in the order of computation.
    reached = [order[output] for output in seen & set(order)]
    return blocks[max(reached)] if reached else None


def _token_operands(node: ir.Node) -> list[ir.Value] | None:
    """Return the operands [batch, sequence, ...] of a token-wise node; None for other nodes."""
    dims = dims_of(node.outputs[0])
    if node.domain or len(node.outputs) > 1 or dims is None or len(dims) != 3:
        return None
    first = node.inputs[0]
    if node.op_type in ELEMENTWISE:
        shapes = {value: dims_of(value) for value in node.inputs if value is not None}
        if any(shape is None for shape in shapes.values()):
            return None
        return [value for value, shape in shapes.items() if shape is not None and len(shape) == 3 and shape[1] != 1]
    if node.op_type == "LayerNormalization" and node.attributes.get_int("axis", -1) in (-1, 2):
        return [first] if first is not None else None
    if node.op_type == "ReduceMean" and axes_of(node) in ([-1], [2]) and node.attributes.get_int("keepdims", 1) == 1:
        return [first] if first is not None else None
    if node.op_type == "MatMul" and first is not None:
        weight = dims_of(node.inputs[1])
        return [first] if weight is not None and len(weight) == 2 else None
    return None


class _Pruner:
    """Writes the first token [batch, 1, ...] of values [batch, sequence, ...], each once."""

    def __init__(self, emit: Emitter, last: Attention) -> None:
        self._emit = emit
        self._last = last
        self._done: dict[ir.Value, ir.Value] = {}

    def first(self, value: ir.Value) -> ir.Value:
        """Return the first token of a value, computed for that token alone where possible."""
        if value not in self._done:
            self._done[value] = self._compute(value)
        return self._done[value]

    def _compute(self, value: ir.Value) -> ir.Value:
        if value is self._last.output:
            return emit_first_query(self._emit, self._last, self.first(self._last.source))
        node = value.producer()
        operands = _token_operands(node) if node is not None else None
        # The attention reads every token of its source: nothing can be saved above it.
        if value is self._last.source or node is None or operands is None:
            return self._emit.first(value, axis=1)
        reduced = {operand: self.first(operand) for operand in operands}
        return self._emit.copy(node, [None if i is None else reduced.get(i, i) for i in node.inputs])
