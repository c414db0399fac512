"""Find the masks that only hide padding, and compute the number of tokens before it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from crossrank_export.passes.emit import ELEMENTWISE, Emitter, constant_of
from crossrank_export.shapes import dims_of

_INPUT = "attention_mask"
# Scores this far below the others become 0 in a softmax, in fp16 and in fp32.
_MASKED = -1e4


def padding_of(mask: ir.Value, opset: int) -> ir.Value | None:
    """Return the graph input attention_mask if adding `mask` to scores hides its zeros and changes nothing else.

    A mask that is computed element by element, with constants of one element, is a function of one number, which is 0
    or 1: trying both proves it.

    Args:
        mask: float32 [batch, 1, 1, sequence].
        opset: Opset of the graph.
    """
    dims = dims_of(mask)
    nodes: list[ir.Node] = []
    source = _collect(mask, nodes) if dims is not None and len(dims) == 4 and dims[1:3] == [1, 1] else None
    if source is None or source.dtype != ir.DataType.INT32 or len(dims_of(source) or ()) != 2:
        return None
    sample = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
    bias = _evaluate(mask, nodes, sample, opset)
    if bias.shape != (2, 1, 1, 3):
        return None
    bias = bias.reshape(sample.shape)
    is_padding = bool((bias[sample == 1] == 0).all() and (bias[sample == 0] <= _MASKED).all())
    return source if is_padding else None


def emit_lengths(emit: Emitter, attention_mask: ir.Value) -> ir.Value:
    """Write nodes for the number of tokens of each pair, and return it, int32 [batch]."""
    lengths = emit.op("ReduceSum", attention_mask, emit.dims(1), like=attention_mask, keepdims=0)
    return lengths


def _collect(value: ir.Value, nodes: list[ir.Node]) -> ir.Value | None:
    """Collect the nodes that compute a mask, in their order, and return the one input that they read."""
    node = value.producer()
    if node is None:
        return value if value.name == _INPUT and value.is_graph_input() else None
    if node.domain or node.op_type not in (*ELEMENTWISE, "Unsqueeze") or len(node.outputs) > 1:
        return None
    operands = node.inputs[:1] if node.op_type == "Unsqueeze" else node.inputs
    sources: set[ir.Value | None] = set()
    for operand in operands:
        array = constant_of(operand)
        if operand is not None and array is None:
            sources.add(_collect(operand, nodes))
        elif array is not None and array.size > 1:
            return None
    if node not in nodes:
        nodes.append(node)
    return sources.pop() if len(sources) == 1 else None


def _evaluate(value: ir.Value, nodes: list[ir.Node], sample: NDArray[np.int32], opset: int) -> NDArray[Any]:
    constants = {operand for node in nodes for operand in node.inputs if constant_of(operand) is not None}
    graph = onnx.helper.make_graph(
        [ir.to_proto(node) for node in nodes],
        "mask",
        [onnx.helper.make_tensor_value_info(_INPUT, onnx.TensorProto.INT32, sample.shape)],
        [onnx.ValueInfoProto(name=value.name)],
        [
            onnx.numpy_helper.from_array(array, operand.name)
            for operand in constants
            if operand is not None and (array := constant_of(operand)) is not None
        ],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    results: Any = ReferenceEvaluator(model).run(None, {_INPUT: sample})
    return np.asarray(results[0])
