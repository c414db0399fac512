"""Precision variants of the optimized fp32 graph: strongly typed fp16, and dynamic int8.

fp16 means that the types are in the graph, as TensorRT 11 requires and 10.4 accepts: weights and products in FLOAT16, with
explicit Casts around islands of FLOAT where 11 bits do not do (LayerNormalization, Softmax, the head).
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    import onnx
    import onnx_ir

# Whole, or as the operators older opsets decompose LayerNormalization into: the squares overflow at 256.
_FP32_OPS = ("LayerNormalization", "Softmax", "ReduceMean", "Pow", "Sqrt")
# Added to the score of a padded token. FLOAT's minimum is -inf in FLOAT16, and so is FLOAT16's own minimum once a negative
# score is added; a row of -inf only makes softmax NaN. exp(-10000) is 0 all the same.
_MASKED = -1e4


def fp16_from_fp32(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return the strongly typed fp16 graph; integer inputs and the FLOAT logits stay as they are.

    Args:
        model: The fp32 graph; left as it is.
    """
    import onnx
    import onnx_ir
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    copy = model.clone()
    _name_nodes(copy)
    _clamp_masks(copy)
    islands = _head_nodes(copy) | _decomposed_norm_nodes(copy)
    proto = cast(onnx.ModelProto, onnx_ir.to_proto(copy))
    with warnings.catch_warnings():
        # Weights below fp16's smallest number become it: harmless, and parity is measured.
        warnings.simplefilter("ignore")
        converted = convert_float_to_float16(
            proto,
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, *_FP32_OPS],
            node_block_list=sorted(islands),
        )
    _sort_nodes(converted)
    _drop_unused_types(converted)
    return onnx_ir.from_proto(converted)


def write_int8(source: Path, target: Path) -> None:
    """Quantize the products with constant weights: int8 per output channel, activations per tensor at run time.

    Args:
        source: The fp32 graph.
        target: Where the int8 graph goes.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    root = logging.getLogger()
    level = root.level
    # The quantizer logs advice on preprocessing, which the passes have done already, to the root logger.
    root.setLevel(logging.ERROR)
    try:
        quantize_dynamic(
            str(source),
            str(target),
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            # 7 of 8 bits: without VNNI, x86 adds pairs of products in 16 bits, which 8 would overflow.
            # Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
            reduce_range=True,
            weight_type=QuantType.QInt8,
        )
    finally:
        root.setLevel(level)


def _name_nodes(model: onnx_ir.Model) -> None:
    """Give every node a name of its own, as the converter's block list goes by name."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def _clamp_masks(model: onnx_ir.Model) -> None:
    """Raise huge negative constants to a value that fp16 holds with room to add to."""
    import onnx_ir

    values = [value for value in model.graph.initializers.values() if value.const_value is not None]
    for value in values:
        tensor = value.const_value
        if tensor is None or tensor.dtype != onnx_ir.DataType.FLOAT or tensor.size > 1:
            continue
        array = tensor.numpy()
        if array.size and float(array.min()) < _MASKED:
            value.const_value = onnx_ir.tensor(np.maximum(array, np.float32(_MASKED)), name=value.name)
    for node in model.graph:
        if node.op_type != "Constant" or "value" not in node.attributes:
            continue
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype == onnx_ir.DataType.FLOAT and tensor.size and float(tensor.numpy().min()) < _MASKED:
            clamped = np.maximum(tensor.numpy(), np.float32(_MASKED))
            node.attributes["value"] = onnx_ir.AttrTensor("value", onnx_ir.tensor(clamped))


def _head_nodes(model: onnx_ir.Model) -> set[str]:
    """Return the nodes between the last normalization and the logits: pooler and classifier."""
    nodes = list(model.graph)
    after_norm: set[str] = set()
    before_norm: set[str] = set()
    for node in nodes:
        if any(p.op_type in ("LayerNormalization", "Sqrt") or p.name in after_norm for p in _parents(node)):
            after_norm.add(str(node.name))
    for node in reversed(nodes):
        if any(c.op_type in ("LayerNormalization", "Sqrt") or c.name in before_norm for c in _children(node)):
            before_norm.add(str(node.name))
    norms = {str(node.name) for node in nodes if node.op_type in ("LayerNormalization", "Sqrt")}
    return after_norm - before_norm - norms


def _decomposed_norm_nodes(model: onnx_ir.Model) -> set[str]:
    """Return what surrounds each Sqrt of a decomposed normalization: x - mean, variance + eps, division, scale, shift."""
    found: set[str] = set()
    for node in model.graph:
        if node.op_type == "Pow":
            found |= {str(parent.name) for parent in _parents(node) if parent.op_type == "Sub"}
        if node.op_type == "Sqrt" and any(parent.op_type == "Add" for parent in _parents(node)):
            found |= {str(parent.name) for parent in _parents(node)}
            for division in _children(node):
                found.add(str(division.name))
                for scale in _children(division):
                    if scale.op_type == "Mul":
                        found.add(str(scale.name))
                        found |= {str(shift.name) for shift in _children(scale) if shift.op_type == "Add"}
    return found


def _parents(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    producers = [value.producer() for value in node.inputs if value is not None]
    return [producer for producer in producers if producer is not None]


def _children(node: onnx_ir.Node) -> list[onnx_ir.Node]:
    return [use.node for value in node.outputs for use in value.uses()]


def _sort_nodes(model: onnx.ModelProto) -> None:
    """Order nodes by their inputs; the converter appends its Casts at the end."""
    graph = model.graph
    ready = {"", *(value.name for value in graph.input), *(value.name for value in graph.initializer)}
    waiting = list(graph.node)
    ordered: list[onnx.NodeProto] = []
    while waiting:
        later = []
        for node in waiting:
            if all(name in ready for name in node.input):
                ordered.append(node)
                ready.update(node.output)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise ValueError(f"{later[0].name} has an input that nothing produces")
        waiting = later
    copies = [type(node)() for node in ordered]
    for copied, node in zip(copies, ordered, strict=True):
        copied.CopyFrom(node)
    del graph.node[:]
    graph.node.extend(copies)


def _drop_unused_types(model: onnx.ModelProto) -> None:
    """Infer all types anew, so that the graph says of every value what it is."""
    import onnx

    del model.graph.value_info[:]
    model.CopyFrom(onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True))
