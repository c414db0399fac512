"""Handle source graphs of less than fp32: widen fp16 to fp32, refuse quantized ones."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from crossrank.errors import ModelSourceError
from crossrank_export.passes.report import PassReport

NAME = "widen"
# Operators with weights of few bits, beside those whose names say so (DynamicQuantizeLinear, QGemm).
_QUANTIZED = frozenset({"MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "MatMulNBits", "MatMulBnb4"})
_COMPUTED = frozenset(
    {
        ir.DataType.FLOAT,
        ir.DataType.FLOAT16,
        ir.DataType.DOUBLE,
        ir.DataType.INT64,
        ir.DataType.INT32,
        ir.DataType.BOOL,
    }
)


def _factors() -> dict[float, float]:
    """Return exact factors by their fp16 value: square roots of 2 and 2 / pi (GELU), and of head sizes (attention)."""
    numbers = [2 / np.pi, *(float(size) for size in range(2, 513))]
    exact = [0.044715, *np.sqrt(numbers), *(1 / np.sqrt(numbers))]
    return {float(np.float16(number)): float(number) for number in exact}


_FACTORS = _factors()


def refuse_quantized(model: ir.Model, where: str) -> None:
    """Check that no weights or products of a graph have fewer bits than fp16.

    A dynamically quantized product scales its input by the largest number of the whole batch, so that the score of a
    pair depends on the other pairs, and every runtime fuses it differently.
    Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html

    Raises:
        ModelSourceError: The graph is quantized; the message says how, and what to give instead.
    """
    operators = sorted({node.op_type for node in _nodes(model) if _is_quantized(node.op_type)})
    if operators:
        how = "dynamically to int8" if {"MatMulInteger", "DynamicQuantizeLinear"} & set(operators) else "to few bits"
        raise ModelSourceError(
            f"{where} is quantized {how} ({', '.join(operators[:3])}): its scores change with what shares the batch "
            "and from engine to engine, so it is not served. Give the model's fp32 graph (onnx/model.onnx) or its "
            "safetensors; `crossrank export --precision fp32,int8` writes int8 beside fp32 and states its drift"
        )
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    strange = sorted({str(tensor.dtype) for tensor in tensors if tensor.size > 1 and tensor.dtype not in _COMPUTED})
    if strange:
        raise ModelSourceError(
            f"{where} has weights of type {strange[0]}, which ONNX Runtime does not compute with on CPUs: give the "
            "model's fp32 graph (onnx/model.onnx) or its safetensors"
        )


def widen_fp16(model: ir.Model) -> PassReport | None:
    """Convert every fp16 tensor of a graph to fp32, in place; each number stays exactly the same.

    Only the constant factors of GELU and attention get back the digits that fp16 had cut.

    Returns:
        A report of the change; None where the graph has no fp16 tensor.
    """
    count = 0
    for value in model.graph.initializers.values():
        if value.const_value is not None and value.const_value.dtype == ir.DataType.FLOAT16:
            value.const_value = _wide(value.const_value, value.name, [use.node for use in value.uses()])
            count += 1
    for node in _nodes(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype == ir.DataType.FLOAT16:
                readers = [use.node for output in node.outputs for use in output.uses()]
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.value, attribute.value.name, readers))
                count += 1
        if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.FLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
            count += 1
        for output in node.outputs:
            _widen_type(output)
    if not count:
        return None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        _widen_type(value)
    return PassReport(NAME, True, f"{count} fp16 tensors became fp32, with the same numbers.")


def _nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Return all nodes, including those in branches and loops."""
    return iter(ir.traversal.RecursiveGraphIterator(model.graph))


def _is_quantized(operator: str) -> bool:
    return operator in _QUANTIZED or "Quant" in operator or (operator[0] == "Q" and operator[1:2].isupper())


def _wide(tensor: ir.TensorProtocol, name: str | None, readers: list[ir.Node]) -> ir.TensorProtocol:
    array = tensor.numpy().astype(np.float32)
    if array.size == 1 and readers and all(node.op_type in ("Mul", "Div") for node in readers):
        array = np.full_like(array, _FACTORS.get(float(array.reshape(-1)[0]), array.reshape(-1)[0]))
    return ir.tensor(array, name=name)


def _widen_type(value: ir.Value) -> None:
    if value.dtype == ir.DataType.FLOAT16:
        value.type = ir.TensorType(ir.DataType.FLOAT)
