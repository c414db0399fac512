"""Find the logits among the outputs of a graph: one column a label, before the sigmoid that some exporters add."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from crossrank.errors import ModelSourceError
from crossrank_export.passes.emit import Emitter
from crossrank_export.passes.report import PassReport

NAME = "logits"
# Activations of a score, whose input is the logit.
_ACTIVATIONS = frozenset({"Sigmoid", "Softmax", "LogSoftmax"})
# Operators that return all elements of their first input, in order.
_KEEPING = frozenset({"Identity", "Cast", "Squeeze", "Unsqueeze", "Reshape", "Flatten"})
_FLOATS = (None, ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
# Names that exporters give the outputs of an encoder without a head.
_ENCODER = frozenset({"last_hidden_state", "pooler_output", "token_embeddings", "sentence_embedding", "hidden_states"})


def take_logits(model: ir.Model, num_labels: int, where: str) -> PassReport | None:
    """Make the logits, [batch, labels], the graph's output, in place, and drop what follows them.

    Args:
        model: The graph as its exporter wrote it.
        num_labels: Labels of the model.
        where: Name of the graph for messages.

    Returns:
        A report of the change; None where the output is the logits already.

    Raises:
        ModelSourceError: The outputs are those of an encoder without a classification head, or cannot be told apart.
    """
    graph = model.graph
    output = _output(graph, where)
    activation, logits = _before_activation(output)
    if output.shape is None or len(output.shape) != 2 or activation is not None:
        ShapeInferencePass()(model)
    rank = None if output.shape is None else len(output.shape)
    if activation is None and rank in (2, None):
        return None
    if activation is None and rank != 1:
        raise ModelSourceError(_encoder_alone(where, f"{output.name} of shape {output.shape}"))
    matrix = _nearest_matrix(logits, num_labels)
    if matrix is None:
        emit = Emitter(graph, NAME)
        matrix = emit.op("Reshape", logits, emit.constant(np.array([-1, num_labels], np.int64), "shape"), like=output)
    graph.outputs[list(graph.outputs).index(output)] = matrix
    if output.name == NAME:
        output.name, matrix.name = f"{NAME}/activated", NAME
    matrix.shape = ir.Shape(["batch", num_labels])
    matrix.type = ir.TensorType(output.dtype or ir.DataType.FLOAT)
    RemoveUnusedNodesPass()(model)
    what = f"what goes into the graph's last {activation}" if activation else f"its output {output.name} as a column"
    return PassReport(NAME, True, f"The logits are {what}.")


def _output(graph: ir.Graph, where: str) -> ir.Value:
    names = [str(value.name) for value in graph.outputs]
    named = [value for value in graph.outputs if value.name == NAME] or list(graph.outputs)
    if _ENCODER & set(names) and NAME not in names:
        raise ModelSourceError(_encoder_alone(where, ", ".join(names)))
    if len(named) != 1:
        raise ModelSourceError(f"{where} has outputs {names}: a cross-encoder has one, `logits`")
    return named[0]


def _encoder_alone(where: str, outputs: str) -> str:
    return (
        f"{where} is an encoder without its classification head (it gives {outputs}), so it gives no score for a pair: "
        "export the whole model (optimum-cli export onnx --task text-classification), or give its safetensors"
    )


def _before_activation(value: ir.Value) -> tuple[str | None, ir.Value]:
    """Return the activation that makes the output and its input; None and the output if there is no activation."""
    at = value
    while (node := at.producer()) is not None and node.inputs and node.inputs[0] is not None:
        before = node.inputs[0]
        if node.op_type in _ACTIVATIONS and node.domain in ("", "ai.onnx"):
            return node.op_type, before
        if node.op_type not in _KEEPING or before.dtype not in _FLOATS:
            break
        at = before
    return None, value


def _nearest_matrix(value: ir.Value, num_labels: int) -> ir.Value | None:
    """Return the value, or the one it was reshaped from, that is [batch, labels]; None where neither is."""
    while True:
        shape = value.shape
        if shape is not None and len(shape) == 2 and (shape[1] == num_labels or not isinstance(shape[1], int)):
            return value
        node = value.producer()
        if node is None or node.op_type not in _KEEPING or node.op_type == "Cast" or node.inputs[0] is None:
            return None
        value = node.inputs[0]
