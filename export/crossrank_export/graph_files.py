"""Read and write graph files, with the weights inside, or in a file beside them where protobuf cannot hold them.

`set_aside` turns weights into graph inputs while a tool works that would copy them and needs their type and shape only;
`put_back` turns them into initializers again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx_ir as ir
from onnx_ir import external_data

INLINE_BYTES = (2 << 30) - (64 << 20)
"""Weights that a graph file holds at most: a protobuf message ends at 2 GiB, and nodes need room too.

Source: https://protobuf.dev/programming-guides/proto-limits/
"""

WEIGHT_BYTES = 1024
"""Constants that shapes depend on are smaller; whatever is larger is a weight."""

Weights = dict[str, ir.TensorProtocol]


def open_graph(path: Path) -> ir.Model:
    """Read a graph file; weights beside it are mapped into memory, and read when they are needed."""
    model = ir.load(path)
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            # For tools that get the graph without its folder.
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= WEIGHT_BYTES:
                value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)
    return model


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, those of subgraphs included."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save_graph(model: ir.Model, path: Path, *, external: bool | None = None) -> str | None:
    """Write a graph.

    Args:
        model: The graph, which is not changed.
        path: File to write.
        external: Whether the weights go to a file of their own. None means: only where protobuf cannot hold them. A
            single file takes several times its size of memory.

    Returns:
        The name of the file of weights, beside the graph file; None where there is none.
    """
    if external is None:
        external = weight_bytes(model) > INLINE_BYTES
    if not external:
        # Otherwise onnx_ir leaves weights that lie in a file already where they are.
        ir.save(external_data.load_to_model(model.clone()), path)
        return None
    data = data_file(path)
    # Each weight on pages of its own, as runtimes map them into memory.
    ir.save(model, path, external_data=data.name, alignment=4096, align_threshold=0)
    return data.name


def data_file(path: Path) -> Path:
    """Return the path of the file for weights that lie outside a graph file."""
    return path.with_name(f"{path.name}_data")


def set_aside(model: ir.Model, choose: Callable[[ir.Value, ir.TensorProtocol], bool]) -> Weights:
    """Turn initializers of the main graph into graph inputs, in place, and return their tensors by name."""
    tensors: Weights = {}
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or not choose(value, tensor):
            continue
        value.shape = ir.Shape(tensor.shape.numpy())
        value.type = ir.TensorType(tensor.dtype)
        del model.graph.initializers[name]
        if value not in model.graph.inputs:
            model.graph.inputs.append(value)
        tensors[name] = tensor
    return tensors


def put_back(model: ir.Model, tensors: Mapping[str, ir.TensorProtocol], order: Iterable[str]) -> None:
    """Turn graph inputs into initializers again, in place.

    Args:
        model: The graph as the tool returned it.
        tensors: Tensors by name, from `set_aside`, perhaps converted since.
        order: Names of the initializers in their former order; others follow.
    """
    graph = model.graph
    values = dict(graph.initializers)
    for value in [value for value in graph.inputs if value.name in tensors]:
        tensor = tensors[str(value.name)]
        graph.inputs.remove(value)
        value.const_value, value.shape = tensor, ir.Shape(tensor.shape.numpy())
        values[str(value.name)] = value
    graph.initializers.clear()
    first = [name for name in order if name in values]
    for name in dict.fromkeys([*first, *values]):
        graph.register_initializer(values[name])
