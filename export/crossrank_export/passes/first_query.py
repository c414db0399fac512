"""Write the attention of one query, without computing keys and values."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossrank_export.passes.attention import Attention
from crossrank_export.passes.emit import Emitter
from crossrank_export.shapes import dims_of


def emit_first_query(emit: Emitter, block: Attention, token: ir.Value) -> ir.Value:
    """Write the context of the first token of an attention block.

    Args:
        emit: Emitter for the nodes.
        block: The attention block, of which the new nodes read only the source and the masks.
        token: float32 [batch, 1, hidden], the first token of the block's source.

    Returns:
        float32 [batch, 1, heads * head_dim].
    """
    lookups = _emit_lookups(emit, block, token)
    scores = emit.op("MatMul", lookups, emit.op("Transpose", block.source, perm=[0, 2, 1]))
    for mask in block.masks:
        scores = emit.op("Add", scores, _first_row(emit, mask))
    probabilities = emit.op("Softmax", scores, axis=-1)
    mixed = emit.op("MatMul", probabilities, block.source)
    return _emit_context(emit, block, mixed)


def _emit_lookups(emit: Emitter, block: Attention, token: ir.Value) -> ir.Value:
    """Write Wk_h q0_h for each head, float32 [batch, heads, hidden], whose product with the source gives the scores."""
    q, k, heads = block.query, block.key, block.heads
    scale = np.float64(block.total_scale)
    query = emit.op("MatMul", token, emit.constant((q.weight * scale).astype(np.float32), "q_weight"))
    query = emit.op("Add", query, emit.constant((q.bias * scale).astype(np.float32), "q_bias"))
    # Heads before the batch: a product for each head over all pairs, instead of one for each pair and head.
    query = emit.op("Transpose", emit.reshape(query, 0, heads, -1), perm=[1, 0, 2])
    by_head = k.weight.reshape(k.weight.shape[0], heads, -1).transpose(1, 2, 0)
    return emit.op("Transpose", emit.op("MatMul", query, emit.constant(by_head, "k_weight")), perm=[1, 0, 2])


def _emit_context(emit: Emitter, block: Attention, mixed: ir.Value) -> ir.Value:
    """Write the values of averaged tokens [batch, heads, hidden], heads side by side."""
    v = block.value
    by_head = v.weight.reshape(v.weight.shape[0], block.heads, -1).transpose(1, 0, 2)
    context = emit.op("MatMul", emit.op("Transpose", mixed, perm=[1, 0, 2]), emit.constant(by_head, "v_weight"))
    context = emit.reshape(emit.op("Transpose", context, perm=[1, 0, 2]), 0, 1, v.weight.shape[1])
    return emit.op("Add", context, emit.constant(v.bias, "v_bias"))


def _first_row(emit: Emitter, mask: ir.Value) -> ir.Value:
    """Return the mask of the first query, [batch, heads or 1, sequence], of one whose axis 2 is the queries or 1."""
    dims = dims_of(mask)
    row = mask if dims is not None and dims[2] == 1 else emit.first(mask, axis=2)
    return emit.reshape(row, 0, 0, -1)
