"""Replace the attention that the pass merge_qkv writes by MultiHeadAttention.

Queries, keys and values become three products again: the operator takes [batch, sequence, hidden], and slices of one
product would be copies. Only the bias of the queries remains: that of the keys adds the same to all scores of a query,
which a softmax ignores; that of the values, as probabilities sum to one, goes into the bias of the output's product.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank_export.contrib.padding import padding_of
from crossrank_export.passes.attention import linear_of, merged_heads
from crossrank_export.passes.emit import (
    CONTRIB,
    Emitter,
    constant_of,
    integers_of,
    only_consumer,
    operand_beside,
    redirect,
)

_QKV_FIRST = [2, 0, 3, 1, 4]
_SWAP_LAST = [0, 1, 3, 2]


@dataclass(frozen=True)
class MergedAttention:
    """Attention block whose queries, keys and values are one product, with the scale folded in.

    Attributes:
        source: float32 [batch, sequence, hidden].
        weight: float32 [hidden, 3 * heads * head_dim].
        bias: float32 [3 * heads * head_dim].
        heads: Number of heads.
        padding: The graph input attention_mask, int32 [batch, sequence].
        output: float32 [batch, sequence, heads * head_dim].
    """

    source: ir.Value
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    heads: int
    padding: ir.Value
    output: ir.Value


def find_merged_attention(graph: ir.Graph) -> list[MergedAttention]:
    """Return the blocks whose mask only hides padding, in the order they are computed."""
    opset = graph.opset_imports.get("", 17)
    found = (_match(node, opset) for node in graph if node.op_type == "Softmax" and not node.domain)
    return [block for block in found if block is not None]


def fuse_attention(emit: Emitter, block: MergedAttention, lengths: ir.Value) -> None:
    """Write a block as one operator.

    Args:
        emit: Emitter for the nodes.
        block: The block to replace.
        lengths: int32 [batch], tokens of each pair.
    """
    wq, wk, wv = np.split(block.weight, 3, axis=1)
    bq, _, bv = np.split(block.bias, 3)
    query = emit.op("MatMul", block.source, emit.constant(wq, "q_weight"))
    query = emit.op("Add", query, emit.constant(bq, "q_bias"))
    key = emit.op("MatMul", block.source, emit.constant(wk, "k_weight"))
    value = emit.op("MatMul", block.source, emit.constant(wv, "v_weight"))
    if not _move_bias(emit, block.output, bv):
        value = emit.op("Add", value, emit.constant(bv, "v_bias"))
    output = emit.op(
        "MultiHeadAttention", query, key, value, None, lengths, domain=CONTRIB, num_heads=block.heads, scale=1.0
    )
    output.shape = block.output.shape
    redirect(block.output, output)


def _match(node: ir.Node, opset: int) -> MergedAttention | None:
    masked = node.inputs[0].producer() if node.inputs[0] is not None else None
    context = only_consumer(node.outputs[0])
    if masked is None or masked.op_type != "Add" or node.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    if context is None or context.op_type != "MatMul" or context.inputs[0] is not node.outputs[0]:
        return None
    output = merged_heads(context.outputs[0])
    scores = next((value for value in masked.inputs if _made_by(value, "MatMul") is not None), None)
    mask = operand_beside(masked, scores) if scores is not None else None
    padding = padding_of(mask, opset) if mask is not None else None
    product = _made_by(scores, "MatMul")
    if product is None or padding is None or output is None:
        return None
    key = _made_by(product.inputs[1], "Transpose")
    if key is None or _order(key) != _SWAP_LAST:
        return None
    pieces = (product.inputs[0], key.inputs[0], context.inputs[1])
    merged = {_piece(value, position) for position, value in enumerate(pieces)}
    split = _split(merged.pop()) if len(merged) == 1 else None
    linear = linear_of(split[0]) if split is not None else None
    if split is None or linear is None or linear[1].shape[1] != 3 * split[1] * split[2]:
        return None
    return MergedAttention(*linear, split[1], padding, output)


def _piece(value: ir.Value | None, position: int) -> ir.Value | None:
    """Return the value that this one is piece `position` of along axis 0; None where it is no such piece."""
    gather = _made_by(value, "Gather")
    if gather is None or gather.attributes.get_int("axis", 0) != 0 or integers_of(gather.inputs[1]) != [position]:
        return None
    return gather.inputs[0]


def _split(value: ir.Value | None) -> tuple[ir.Value, int, int] | None:
    """Return the product that [3, batch, heads, sequence, head_dim] was split from, heads and head_dim."""
    transpose = _made_by(value, "Transpose")
    reshape = _made_by(transpose.inputs[0], "Reshape") if transpose is not None else None
    if transpose is None or reshape is None or _order(transpose) != _QKV_FIRST or reshape.inputs[0] is None:
        return None
    dims = integers_of(reshape.inputs[1])
    if dims is None or len(dims) != 5 or dims[:3] != [0, 0, 3] or min(dims[3:]) < 1:
        return None
    return reshape.inputs[0], dims[3], dims[4]


def _move_bias(emit: Emitter, output: ir.Value, bias: NDArray[np.float32]) -> bool:
    """Move the bias of the values into that of the product that alone reads the block; return whether there is one."""
    product = only_consumer(output)
    weight = constant_of(product.inputs[1]) if product is not None and product.op_type == "MatMul" else None
    if product is None or weight is None or weight.ndim != 2 or product.inputs[0] is not output:
        return False
    add = only_consumer(product.outputs[0])
    old = operand_beside(add, product.outputs[0]) if add is not None and add.op_type == "Add" else None
    array = constant_of(old)
    if add is None or old is None or array is None or array.shape != weight.shape[1:]:
        return False
    moved = array + bias.astype(np.float64) @ weight.astype(np.float64)
    add.replace_input_with(list(add.inputs).index(old), emit.constant(moved.astype(np.float32), "output_bias"))
    return True


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == op_type and not node.domain else None


def _order(transpose: ir.Node) -> list[int]:
    return list(transpose.attributes["perm"].as_ints()) if "perm" in transpose.attributes else []
