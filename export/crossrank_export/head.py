"""Keep the head of an fp16 graph, pooler and classifier, in fp32 but for its products.

TensorRT for RTX has no fp32 product for Turing (a T4): "FP32 GEMM is not supported". So the wide products of the head
run in fp16, between fp32 activations. Those of few columns become a multiplication and a sum in fp32: an fp16 product
would round the logits themselves, to steps of 0.008 from 8 on. Measured on TREC DL 2019 with the built-in model (4,300
pairs), the largest difference of a logit from fp32 is 0.0032, as with a head all in fp32, and NDCG@10 is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank_export.passes.emit import Emitter, constant_of, redirect

NAME = "head"
# Classifiers have one to three labels, poolers as many columns as the encoder is wide. A sum holds rows x columns x
# hidden numbers in between.
MOST_SUMMED_COLUMNS = 8


def sum_narrow_products(model: ir.Model) -> set[str]:
    """Write the narrow products between the last normalization and the logits as sums, in place.

    Args:
        model: An fp32 graph in which every node has a name of its own.

    Returns:
        The names of the nodes that are to stay in fp32: all between the last normalization and the logits but products.
    """
    emit = Emitter(model.graph, NAME)
    products = [node for node in _head_nodes(model.graph) if node.op_type in ("MatMul", "Gemm")]
    for node in products:
        weight = _weight(node)
        if weight is not None and len(weight) <= MOST_SUMMED_COLUMNS:
            product, total = node.outputs[0], _sum(emit, node, weight, model.opset_imports[""])
            redirect(product, total)
            model.graph.remove(node, safe=True)
            total.name, total.shape = product.name, product.shape  # the logits keep their name
    model.graph.sort()
    return {str(node.name) for node in _head_nodes(model.graph) if node.op_type not in ("MatMul", "Gemm")}


def _sum(emit: Emitter, node: ir.Node, weight: NDArray[np.float32], opset: int) -> ir.Value:
    """Write x W + b, with W^T [columns, hidden], as the sum of x * W^T over the last axis, plus b."""
    columns = len(weight)

    def along(op_type: str, value: ir.Value | None, axis: int, **attributes: Any) -> ir.Value:
        if opset >= 13:
            return emit.op(op_type, value, emit.dims(axis), **attributes)
        return emit.op(op_type, value, axes=[axis], **attributes)

    x = along("Unsqueeze", node.inputs[0], -2) if columns > 1 else node.inputs[0]
    weighted = emit.op("Mul", x, emit.constant(weight if columns > 1 else weight[0], "weight"))
    total = along("ReduceSum", weighted, -1, keepdims=int(columns == 1))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    return total if bias is None else emit.op("Add", total, bias)


def _weight(node: ir.Node) -> NDArray[np.float32] | None:
    """Return W^T, float32 [columns, hidden], of x W + b; None where W is not a constant matrix or terms are scaled."""
    weight, attributes = constant_of(node.inputs[1]), node.attributes
    if weight is None or weight.ndim != 2 or attributes.get_int("transA", 0) != 0:
        return None
    if attributes.get_float("alpha", 1.0) != 1 or attributes.get_float("beta", 1.0) != 1:
        return None
    return weight if attributes.get_int("transB", 0) else weight.T


def _head_nodes(graph: ir.Graph) -> list[ir.Node]:
    """Return the nodes between the last normalization and the logits."""
    nodes = list(graph)
    after_norm: set[ir.Node] = set()
    before_norm: set[ir.Node] = set()
    for node in nodes:
        if any(parent.op_type == "LayerNormalization" or parent in after_norm for parent in node.predecessors()):
            after_norm.add(node)
    for node in reversed(nodes):
        if any(child.op_type == "LayerNormalization" or child in before_norm for child in node.successors()):
            before_norm.add(node)
    return [node for node in nodes if node in after_norm - before_norm and node.op_type != "LayerNormalization"]
