"""Write ONNX graphs with int32 inputs: Triton requires the graph's types, and clients send int32 to every target."""

from __future__ import annotations

from pathlib import Path


def write_int32_inputs(source: Path, target: Path) -> None:
    """Write a copy of a graph whose int64 inputs are int32; a Cast behind each keeps the rest as it was.

    Args:
        source: File of the graph.
        target: File to write. A file of weights must lie beside it already, under the name that it has in `source`.
    """
    import onnx
    from onnx import TensorProto, helper

    model = onnx.load(source, load_external_data=False)
    casts = []
    for value in model.graph.input:
        tensor = value.type.tensor_type
        if tensor.elem_type != TensorProto.INT64:
            continue
        tensor.elem_type = TensorProto.INT32
        wide = f"{value.name}_int64"
        for node in model.graph.node:
            for i, name in enumerate(node.input):
                if name == value.name:
                    node.input[i] = wide
        casts.append(helper.make_node("Cast", [value.name], [wide], name=f"{wide}_cast", to=TensorProto.INT64))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, target)
    onnx.checker.check_model(str(target))
