"""Infer the shapes of a graph whose weights may be larger than the 2 GiB that protobuf holds.

The pass of `onnx_ir` turns every initializer into an input, which hides the constants that Slice and Reshape depend on;
here only large ones become inputs meanwhile.
"""

from __future__ import annotations

import onnx
import onnx_ir as ir

from crossrank_export.graph_files import WEIGHT_BYTES, set_aside


def infer_shapes(model: ir.Model) -> None:
    """Write the inferred shape and dtype into every value of the main graph.

    Shapes that inference leaves open stay as the exporter wrote them. Afterwards a name of a dimension stands for one
    number wherever it occurs: names that an earlier inference made up are removed.

    Args:
        model: The graph, changed in place. The shapes of its inputs are taken as given.
    """
    skeleton = model.clone()
    set_aside(skeleton, lambda _, tensor: tensor.nbytes > WEIGHT_BYTES)
    proto = ir.to_proto(skeleton)
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, check_type=False, strict_mode=False, data_prop=True)
    infos = {info.name: info for info in (*inferred.graph.value_info, *inferred.graph.output)}
    for node in model.graph:
        for value in node.outputs:
            info = infos.get(value.name or "")
            _set_type(value, info.type.tensor_type if info is not None else onnx.TypeProto.Tensor())


def dims_of(value: ir.Value | None) -> list[int | str | None] | None:
    """Return the dimensions as numbers, names, or None where unknown; None where even the rank is unknown."""
    if value is None or value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


def fixed_dims_of(value: ir.Value | None) -> list[int] | None:
    """Return the dimensions where all of them are numbers, None otherwise."""
    dims = dims_of(value)
    if dims is None:
        return None
    fixed = [dim for dim in dims if isinstance(dim, int)]
    return fixed if len(fixed) == len(dims) else None


def _set_type(value: ir.Value, inferred: onnx.TypeProto.Tensor) -> None:
    if inferred.elem_type:
        value.type = ir.TensorType(ir.DataType(inferred.elem_type))
    # Each inference numbers its made-up names from the start.
    known = [None if _is_unknown(dim) else dim for dim in dims] if (dims := dims_of(value)) is not None else None
    if inferred.HasField("shape"):
        found = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or None for dim in inferred.shape.dim]
        if known is not None and len(known) == len(found):
            found = [new if old is None or not _is_unknown(new) else old for new, old in zip(found, known, strict=True)]
        known = found
    value.shape = None if known is None else ir.Shape(known)


def _is_unknown(dim: int | str | None) -> bool:
    return dim is None or (isinstance(dim, str) and dim.startswith("unk__"))
