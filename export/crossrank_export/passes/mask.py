"""Keep the attention mask at one row for all queries: [batch, 1, 1, sequence].

Exporters of scaled_dot_product_attention expand it to [batch, 1, sequence, sequence] before they compute the bias,
which costs as much memory traffic as the scores.
"""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.passes.attention import find_attention
from crossrank_export.passes.emit import ELEMENTWISE, Emitter, redirect
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import dims_of

NAME = "narrow_mask"


def narrow_masks(model: ir.Model) -> PassReport:
    """Remove the expansion of masks that attention blocks add to their scores, in place."""
    masks = {mask for block in find_attention(model.graph) for mask in block.masks}
    wide = [mask for mask in masks if (dims := dims_of(mask)) is None or len(dims) != 4 or dims[2] != 1]
    if not wide:
        return PassReport(NAME, False, "No attention mask is expanded over the queries.")
    emit = Emitter(model.graph, NAME)
    narrowed = 0
    for mask in wide:
        readers = {node.op_type for node, _ in mask.uses()}
        narrow = _narrow(mask, emit, {}) if readers <= {"Add", "Attention"} else None
        if narrow is not None and narrow is not mask:
            redirect(mask, narrow)
            narrowed += 1
    model.graph.sort()
    if not narrowed:
        return PassReport(NAME, False, "The expanded attention mask is not elementwise: left as it is.")
    return PassReport(NAME, True, "The attention mask stays at one row for all queries.")


def _narrow(value: ir.Value, emit: Emitter, done: dict[ir.Value, ir.Value | None]) -> ir.Value | None:
    """Return the value with one row, computed without the expansion; None where that is not possible."""
    if value in done:
        return done[value]
    done[value] = _rebuild(value, emit, done)
    return done[value]


def _rebuild(value: ir.Value, emit: Emitter, done: dict[ir.Value, ir.Value | None]) -> ir.Value | None:
    dims, node = dims_of(value), value.producer()
    if dims is not None and (len(dims) < 3 or dims[-2] == 1):
        return value
    if node is None or node.domain:
        return None
    if node.op_type == "Expand" and node.inputs[0] is not None:
        source = dims_of(node.inputs[0])
        is_one_row = source is not None and len(source) == 4 and source[1:3] == [1, 1]
        return node.inputs[0] if is_one_row else None
    if node.op_type not in ELEMENTWISE:
        return None
    inputs = [None if operand is None else _narrow(operand, emit, done) for operand in node.inputs]
    if any(new is None for new, old in zip(inputs, node.inputs, strict=True) if old is not None):
        return None
    return emit.copy(node, inputs)
