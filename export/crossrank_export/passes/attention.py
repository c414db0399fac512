"""Find multi-head self-attention in a graph, in the forms that exporters write.

    x [B, S, H] -> MatMul, Add -> Reshape [B, S, h, d] -> Transpose -> QK^T (scaled somewhere) -> Add(mask)
      -> Softmax -> MatMul V -> Transpose -> Reshape [B, S, h*d]

The search starts at each Softmax (or `Attention` node of opset 23) and walks up and down from there; what it does not
recognise is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank_export.passes.emit import constant_of, only_consumer, operand_beside, scalar_of
from crossrank_export.shapes import dims_of

_TO_HEADS = (0, 2, 1, 3)
_TO_HEADS_TRANSPOSED = (0, 2, 3, 1)


@dataclass(frozen=True)
class Projection:
    """`source @ weight + bias`, split into heads.

    Attributes:
        source: float32 [batch, sequence, inputs].
        weight: float32 [inputs, heads * head_dim].
        bias: float32 [heads * head_dim]; zeros where the model has none.
        scale: Factor that the exporter applied to the result.
        heads: Number of heads.
        transposed: Whether `heads_value` is [batch, heads, head_dim, sequence], not [batch, heads, sequence, head_dim].
        heads_value: The value in the graph that holds the split heads.
    """

    source: ir.Value
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    scale: float
    heads: int
    transposed: bool
    heads_value: ir.Value


@dataclass(frozen=True)
class Attention:
    """One self-attention block.

    Attributes:
        query, key, value: The projections of the same source.
        scale: Factor on the scores beyond those in the projections.
        masks: Values added to the scores, each broadcastable to [batch, heads, sequence, sequence].
        output: float32 [batch, sequence, heads * head_dim], heads side by side.
    """

    query: Projection
    key: Projection
    value: Projection
    scale: float
    masks: tuple[ir.Value, ...]
    output: ir.Value

    @property
    def source(self) -> ir.Value:
        """Return the input of the block, float32 [batch, sequence, hidden]."""
        return self.query.source

    @property
    def heads(self) -> int:
        """Return the number of heads."""
        return self.query.heads

    @property
    def total_scale(self) -> float:
        """Return the factor on QK^T, wherever the exporter put it."""
        return self.scale * self.query.scale * self.key.scale


def find_attention(graph: ir.Graph) -> list[Attention]:
    """Return the attention blocks of a graph in the order they are computed."""
    found = (_match_softmax(node) or _match_attention_op(node) for node in graph)
    return [block for block in found if block is not None]


def _match_softmax(node: ir.Node) -> Attention | None:
    if node.op_type != "Softmax" or node.domain or node.attributes.get_int("axis", -1) not in (-1, 3):
        return None
    scores = _peel_scores(node.inputs[0])
    context = only_consumer(node.outputs[0])
    if scores is None or context is None or context.op_type != "MatMul":
        return None
    if context.inputs[0] is not node.outputs[0]:
        return None
    product, scale, masks = scores
    return _assemble(product.inputs[0], product.inputs[1], context.inputs[1], scale, masks, context)


def _match_attention_op(node: ir.Node) -> Attention | None:
    if node.op_type != "Attention" or node.domain or len(node.outputs) > 1 or any(node.inputs[4:]):
        return None
    attributes = node.attributes
    if attributes.get_int("is_causal", 0) or attributes.get_float("softcap", 0):
        return None
    key_dims = dims_of(node.inputs[1])
    if key_dims is None or len(key_dims) != 4 or not isinstance(key_dims[-1], int):
        return None
    scale = attributes["scale"].as_float() if "scale" in attributes else float(key_dims[-1] ** -0.5)
    mask = node.inputs[3] if len(node.inputs) > 3 else None
    if mask is not None and mask.dtype != ir.DataType.FLOAT:
        return None
    masks = () if mask is None else (mask,)
    return _assemble(node.inputs[0], node.inputs[1], node.inputs[2], scale, masks, node)


def _assemble(
    query: ir.Value | None,
    key: ir.Value | None,
    value: ir.Value | None,
    scale: float,
    masks: tuple[ir.Value, ...],
    context: ir.Node,
) -> Attention | None:
    q, k, v = _trace_projection(query), _trace_projection(key), _trace_projection(value)
    output = merged_heads(context.outputs[0])
    if q is None or k is None or v is None or output is None:
        return None
    key_is_transposed = context.op_type == "MatMul"
    if q.transposed or v.transposed or k.transposed != key_is_transposed or v.scale != 1.0:
        return None
    if not (q.source is k.source is v.source and q.heads == k.heads == v.heads):
        return None
    dims = dims_of(output)
    if (
        not (q.weight.shape == k.weight.shape == v.weight.shape)
        or dims is None
        or len(dims) != 3
        or dims[2] != v.weight.shape[1]
    ):
        return None
    return Attention(q, k, v, scale, masks, output)


def _peel_scores(value: ir.Value | None) -> tuple[ir.Node, float, tuple[ir.Value, ...]] | None:
    """Walk up from a softmax's input to QK^T, through masks, and then the scaling."""
    node = value.producer() if value is not None else None
    if node is None or node.domain or value is None or only_consumer(value) is None:
        return None
    if node.op_type == "MatMul":
        return node, 1.0, ()
    if node.op_type in ("Mul", "Div"):
        step = _scaled_input(node)
        inner = _peel_scores(step[0]) if step is not None else None
        if step is None or inner is None or inner[2]:
            return None
        return inner[0], inner[1] * step[1], ()
    if node.op_type != "Add":
        return None
    for candidate in node.inputs:
        inner = _peel_scores(candidate)
        mask = operand_beside(node, candidate) if candidate is not None else None
        if inner is not None and mask is not None:
            return inner[0], inner[1], (*inner[2], mask)
    return None


def _scaled_input(node: ir.Node) -> tuple[ir.Value, float] | None:
    """Match a Mul or Div by one number; return the other operand and the factor."""
    left, right = node.inputs
    factor = scalar_of(right)
    if factor is not None and left is not None:
        return left, factor if node.op_type == "Mul" else 1.0 / factor
    factor = scalar_of(left)
    return (right, factor) if node.op_type == "Mul" and factor is not None and right is not None else None


def _trace_projection(heads_value: ir.Value | None) -> Projection | None:
    """Walk up from split heads, through transposes, reshapes and scales, to the projection."""
    scale, views, value = 1.0, list[ir.Node](), heads_value
    for node in _producers(value):
        value = node.outputs[0]
        if node.op_type in ("Mul", "Div") and (step := _scaled_input(node)) is not None:
            scale *= step[1]
        elif node.op_type in ("Reshape", "Transpose"):
            views.insert(0, node)
        else:
            break
    shape = _head_shape(views)
    linear = linear_of(value)
    if heads_value is None or shape is None or linear is None:
        return None
    source, weight, bias = linear
    heads, head_dim, transposed = shape
    if weight.shape[1] != heads * head_dim:
        return None
    return Projection(source, weight, bias, scale, heads, transposed, heads_value)


def _producers(value: ir.Value | None) -> Iterator[ir.Node]:
    """Yield the nodes above a value, following the operand that is not a constant."""
    while value is not None and (node := value.producer()) is not None:
        yield node
        value = next((operand for operand in node.inputs if constant_of(operand) is None), None)


def _head_shape(views: list[ir.Node]) -> tuple[int, int, bool] | None:
    """Return (heads, head_dim, transposed) if the chain of views only splits heads; None otherwise."""
    if not views or views[0].op_type != "Reshape":
        return None
    source, split = dims_of(views[0].inputs[0]), dims_of(views[0].outputs[0])
    if source is None or split is None or len(source) != 3 or len(split) != 4:
        return None
    heads, head_dim = split[2:]
    if not isinstance(heads, int) or not isinstance(head_dim, int) or source[2] != heads * head_dim:
        return None
    order = _composed_order(views[1:])
    if order not in (_TO_HEADS, _TO_HEADS_TRANSPOSED):
        return None
    return heads, head_dim, order == _TO_HEADS_TRANSPOSED


def _composed_order(views: list[ir.Node]) -> tuple[int, ...] | None:
    """Compose transposes of four axes; one of three axes in between may only swap the last two."""
    order: tuple[int, ...] = (0, 1, 2, 3)
    while views:
        if views[0].op_type == "Transpose":
            permutation = tuple(views[0].attributes["perm"].as_ints()) if "perm" in views[0].attributes else ()
            views = views[1:]
        elif [node.op_type for node in views[:3]] == ["Reshape", "Transpose", "Reshape"]:
            flat, back = dims_of(views[0].outputs[0]), dims_of(views[2].outputs[0])
            swap = list(views[1].attributes["perm"].as_ints()) if "perm" in views[1].attributes else []
            if flat is None or back is None or len(flat) != 3 or len(back) != 4 or swap != [0, 2, 1]:
                return None
            permutation = (0, 1, 3, 2)
            views = views[3:]
        else:
            return None
        if len(permutation) != 4:
            return None
        order = tuple(order[axis] for axis in permutation)
    return order


def linear_of(value: ir.Value | None) -> tuple[ir.Value, NDArray[np.float32], NDArray[np.float32]] | None:
    """Match `x @ W + b` with constant W and b; return (x, W, b)."""
    node = value.producer() if value is not None else None
    bias: NDArray[Any] | None = None
    if node is not None and node.op_type == "Add":
        constants = [constant_of(operand) for operand in node.inputs]
        side = next((i for i, array in enumerate(constants) if array is not None and array.ndim == 1), None)
        if side is None:
            return None
        bias, product = constants[side], node.inputs[1 - side]
        node = product.producer() if product is not None else None
    if node is None or node.op_type != "MatMul" or node.inputs[0] is None:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or weight.ndim != 2 or weight.dtype != np.float32:
        return None
    if bias is None:
        bias = np.zeros(weight.shape[1], np.float32)
    return (node.inputs[0], weight, bias) if bias.shape == weight.shape[1:] else None


def merged_heads(context: ir.Value) -> ir.Value | None:
    """Follow [B, h, S, d] -> Transpose -> Reshape [B, S, h*d], and return the last."""
    transpose = only_consumer(context)
    if transpose is None or transpose.op_type != "Transpose" or "perm" not in transpose.attributes:
        return None
    reshape = only_consumer(transpose.outputs[0])
    if tuple(transpose.attributes["perm"].as_ints()) != _TO_HEADS or reshape is None:
        return None
    return reshape.outputs[0] if reshape.op_type == "Reshape" else None
