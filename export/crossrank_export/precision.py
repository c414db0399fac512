"""Precision variants of the optimized fp32 graph: strongly typed fp16, the same for ONNX Runtime, and dynamic int8.

In fp16 the types are in the graph, as TensorRT 11 requires and 10.4 accepts: weights and products in FLOAT16, with
explicit Casts around islands of FLOAT where 11 bits are too few: LayerNormalization, Softmax, and the head but for its
products (head.py).

The graph for ONNX Runtime has no islands: its kernels accumulate in float32 whatever they read, and each Cast would be
a kernel. The kernels of its CUDA provider that normalize embeddings and residual sums do so since May 2026; those of
1.24 accumulated in float16. Measured with 1.31.1 on an H200: no logit of TREC DL 2019 is more than 0.0047 off fp32
(perf/results/gpu-nvidia-h200).
Source: https://github.com/microsoft/onnxruntime/pull/28682
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx_ir import external_data

from crossrank.errors import SetupError
from crossrank_export.graph_files import WEIGHT_BYTES, open_graph, put_back, save_graph, set_aside
from crossrank_export.head import sum_narrow_products
from crossrank_export.passes import PassReport
from crossrank_export.shapes import infer_shapes

_FP32_OPS = ("LayerNormalization", "Softmax")
# Number added to the score of a padded token. The minimum of FLOAT is -inf in FLOAT16, and so is that of FLOAT16 once a
# negative score is added, and a row of -inf makes softmax NaN; exp(-10000) is 0 as well.
_MASKED = -1e4
# Bytes of weights that are converted at a time, as the converter makes several copies.
_PIECE = 1 << 20


def fp16_from_fp32(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return the strongly typed fp16 graph of an fp32 graph; integer inputs and FLOAT logits keep their types.

    Args:
        model: The optimized fp32 graph, whose normalizations are LayerNormalization nodes. It is not changed.

    Raises:
        SetupError: There is no LayerNormalization node: in separate operators, squares would overflow from 256 on.
    """
    copy = _prepared(model)
    return _converted(copy, _FP32_OPS, sum_narrow_products(copy) | _index_nodes(copy))


def fp16_for_onnxruntime(model: onnx_ir.Model) -> tuple[onnx_ir.Model | None, PassReport]:
    """Return an fp16 graph of ONNX Runtime's own operators, for its CUDA provider; integer inputs, FLOAT logits.

    Attention masks must be ones followed by zeros.

    Args:
        model: See `fp16_from_fp32`.

    Returns:
        The graph, None where no attention block fits the operator, and a report of the changes.

    Raises:
        SetupError: See `fp16_from_fp32`.
    """
    from crossrank_export.contrib import fuse_for_onnxruntime

    copy = _prepared(model)
    report = fuse_for_onnxruntime(copy)
    if not report.applied:
        return None, report
    _name_nodes(copy)
    return _converted(copy, (), _index_nodes(copy)), report


def _prepared(model: onnx_ir.Model) -> onnx_ir.Model:
    copy = model.clone()
    _name_nodes(copy)
    _clamp_masks(copy)
    if not any(node.op_type == "LayerNormalization" for node in copy.graph):
        raise SetupError(
            "this graph has no LayerNormalization that the passes recognise, so its fp16 variant could overflow: "
            "export without fp16"
        )
    return copy


def _converted(model: onnx_ir.Model, fp32_ops: Sequence[str], fp32_nodes: set[str]) -> onnx_ir.Model:
    """Return the graph in fp16 except for some operators and nodes; `model` loses its weights."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    blocked = {*DEFAULT_OP_BLOCK_LIST, *fp32_ops}

    def is_halved(value: onnx_ir.Value, tensor: onnx_ir.TensorProtocol) -> bool:
        if tensor.dtype != onnx_ir.DataType.FLOAT or tensor.nbytes <= WEIGHT_BYTES:
            return False
        return any(use.node.op_type not in blocked and use.node.name not in fp32_nodes for use in value.uses())

    order = list(model.graph.initializers)
    weights = set_aside(model, is_halved)
    external_data.load_to_model(model)
    with _quiet():
        converted = convert_float_to_float16(
            onnx_ir.to_proto(model),
            # The other inputs are integers, or weights that become fp16.
            keep_io_types=[value.name for value in model.graph.outputs],
            op_block_list=sorted(blocked),
            node_block_list=sorted(fp32_nodes),
        )
    del converted.graph.value_info[:]
    fp16 = cast("onnx_ir.Model", onnx_ir.from_proto(converted))
    put_back(fp16, {name: _half(tensor) for name, tensor in weights.items()}, order)
    fp16.graph.sort()  # the converter appends its Casts at the end
    infer_shapes(fp16)
    _drop_needless_casts(fp16)
    return fp16


def _half(tensor: onnx_ir.TensorProtocol) -> onnx_ir.TensorProtocol:
    """Return a float32 tensor in fp16 that is converted each time it is read."""

    def convert() -> onnx_ir.TensorProtocol:
        return onnx_ir.tensor(_half_array(tensor.numpy()), name=tensor.name)

    shape = onnx_ir.Shape(tensor.shape.numpy())
    return onnx_ir.LazyTensor(convert, onnx_ir.DataType.FLOAT16, shape, name=tensor.name)


def _half_array(array: NDArray[Any]) -> NDArray[np.float16]:
    from onnxruntime.transformers.float16 import convert_np_to_float16

    flat, halved = array.reshape(-1), np.empty(array.size, np.float16)
    with _quiet():
        for start in range(0, len(flat), _PIECE):
            halved[start : start + _PIECE] = convert_np_to_float16(flat[start : start + _PIECE])
    return halved.reshape(array.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        # The converter warns of weights below fp16's smallest number: harmless, and parity is measured.
        warnings.simplefilter("ignore")
        yield


def write_int8(model: onnx_ir.Model, target: Path, *, external: bool = False) -> str | None:
    """Quantize the products with constant weights to int8: weights per output channel, activations per tensor.

    Args:
        model: The optimized fp32 graph, which is not changed.
        target: File to write.
        external: See `save_graph`.

    Returns:
        The name of the file with its weights; None where they are in the graph file.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    copy = model.clone()
    _name_nodes(copy)
    order = list(copy.graph.initializers)
    weights = set_aside(copy, lambda value, tensor: tensor.nbytes > WEIGHT_BYTES and not _is_multiplied(value))
    # Through files, as the quantizer makes two copies of a graph in memory.
    with tempfile.TemporaryDirectory(dir=target.parent) as folder, _without_advice():
        source, result = Path(folder) / "source.onnx", Path(folder) / "result.onnx"
        save_graph(copy, source, external=external)
        quantize_dynamic(
            str(source),
            str(result),
            op_types_to_quantize=["MatMul"],
            nodes_to_exclude=_stacked_products(copy),
            per_channel=True,
            # 7 of 8 bits: without VNNI, x86 adds pairs of products in 16 bits, which 8 would overflow.
            # Source: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=external,
        )
        int8 = open_graph(result)
        put_back(int8, weights, order)
        return save_graph(int8, target, external=external)


@contextmanager
def _without_advice() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    # The quantizer advises preprocessing in the root log; the passes have done it already.
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(level)


def _is_multiplied(value: onnx_ir.Value) -> bool:
    # The quantizer turns a Gemm into a MatMul first.
    return any(use.node.op_type in ("MatMul", "Gemm") for use in value.uses())


def _stacked_products(model: onnx_ir.Model) -> list[str]:
    """Return the names of products with a matrix for each head, for which the quantizer writes wrong scales."""
    found = []
    for node in model.graph:
        weight = node.inputs[1].const_value if node.op_type == "MatMul" and node.inputs[1] is not None else None
        if weight is not None and len(weight.shape) != 2:
            found.append(str(node.name))
    return found


def _name_nodes(model: onnx_ir.Model) -> None:
    """Give every node a unique name, as the converter's block list goes by name."""
    seen: set[str] = set()
    for number, node in enumerate(model.graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{number}"
        seen.add(node.name)


def _clamp_masks(model: onnx_ir.Model) -> None:
    """Raise huge negative constants of masks to one that fp16 holds after a score is added."""
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


def _index_nodes(model: onnx_ir.Model) -> set[str]:
    """Return the float nodes that compute indices of a table (MPNet's distances), for which 11 bits are too few."""
    queue = [node for node in model.graph if node.op_type == "Cast" and node.outputs[0].dtype in _integers()]
    found: set[str] = set()
    while queue:
        for parent in queue.pop().predecessors():
            if parent.outputs[0].dtype not in _integers() and str(parent.name) not in found:
                found.add(str(parent.name))
                queue.append(parent)
    return found


def _integers() -> tuple[onnx_ir.DataType, ...]:
    return onnx_ir.DataType.INT32, onnx_ir.DataType.INT64, onnx_ir.DataType.BOOL


def _drop_needless_casts(model: onnx_ir.Model) -> None:
    """Remove Casts to the type that a value has, and those back to FLOAT after one to FLOAT16.

    The converter puts a pair of Casts between any two neighbours in an island, which would round to fp16 there.
    """
    from crossrank_export.passes.clean import remove_dead

    for node in model.graph:
        if node.op_type != "Cast":
            continue
        source = node.inputs[0]
        target = node.attributes["to"].as_int()
        before = source.producer() if source is not None else None
        if before is not None and before.op_type == "Cast" and target == onnx_ir.DataType.FLOAT:
            original = before.inputs[0]
            if original is not None and original.dtype == target:
                node.replace_input_with(0, original)
                source = original
        if source is not None and source.dtype == target:
            del node.attributes["to"]
            node.op_type = "Identity"
    remove_dead(model)
