"""Graphs on disk: weights inside the graph file, or in a file beside it where protobuf cannot hold them.

While a tool works on a graph that it would copy, weights are set aside: they become graph inputs, whose type and shape
are all that is read, and initializers again afterwards.
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
            # Tools that are given a graph without its folder need the constants all the same.
            if isinstance(tensor, ir.ExternalTensor) and tensor.nbytes <= WEIGHT_BYTES:
                value.const_value = ir.tensor(tensor.numpy().copy(), name=tensor.name)
    return model


def weight_bytes(model: ir.Model) -> int:
    """Return how many bytes the initializers take, those of subgraphs included."""
    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def save_graph(model: ir.Model, path: Path, *, external: bool | None = None) -> str | None:
    """Write a graph.

    Args:
        model: Left as it is.
        path: The graph file.
        external: Whether the weights go to a file of their own; where they have to if None. A single file is built in
            memory, several times over.

    Returns:
        The name of that file, which lies beside the graph's; None where all is in one.
    """
    if external is None:
        external = weight_bytes(model) > INLINE_BYTES
    if not external:
        # Weights that lie outside already would be left where they are.
        ir.save(external_data.load_to_model(model.clone()), path)
        return None
    data = data_file(path)
    # On pages of their own, as runtimes map them into memory.
    ir.save(model, path, external_data=data.name, alignment=4096, align_threshold=0)
    return data.name


def data_file(path: Path) -> Path:
    """Return where the weights of a graph file lie if they lie outside it."""
    return path.with_name(f"{path.name}_data")


def set_aside(model: ir.Model, choose: Callable[[ir.Value, ir.TensorProtocol], bool]) -> Weights:
    """Make initializers of the main graph into graph inputs, in place; return their tensors by name."""
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
    """Make graph inputs into initializers again, in place.

    Args:
        model: What the tool made of the graph.
        tensors: What `set_aside` returned, or what became of it.
        order: Names of the initializers as they were; others follow.
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
