"""Read constants of a graph, and write new nodes into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

# fmt: off
ELEMENTWISE = frozenset({
    "Abs", "Add", "And", "Cast", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp", "Gelu", "Identity", "Log",
    "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal", "Relu", "Sigmoid", "Sign",
    "Softplus", "Sqrt", "Sub", "Tanh", "Where",
})
# fmt: on
"""Operators that compute each element from the elements at the same place, broadcasting aside."""

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


class Emitter:
    """Appends nodes and constants under unused names; the caller sorts the graph once at the end."""

    def __init__(self, graph: ir.Graph, prefix: str) -> None:
        self._graph = graph
        self._prefix = prefix
        self._count = 0
        self._taken: set[str | None] = {value.name for node in graph for value in node.outputs}
        self._taken.update(graph.initializers)

    def op(self, op_type: str, *inputs: ir.Value | None, like: ir.Value | None = None, **attributes: Any) -> ir.Value:
        """Append a node with one output of float32, or of the dtype of `like`, and return that output."""
        return self.ops(op_type, *inputs, outputs=1, like=like, **attributes)[0]

    def ops(
        self,
        op_type: str,
        *inputs: ir.Value | None,
        outputs: int,
        like: ir.Value | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Sequence[ir.Value]:
        """Append a node with several outputs and return them."""
        node = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        return self._append(node, ir.DataType.FLOAT if like is None else like.dtype)

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None]) -> ir.Value:
        """Append a copy of a node with other inputs, and return its output."""
        copied = ir.Node(node.domain, node.op_type, inputs, node.attributes.values(), num_outputs=1)
        return self._append(copied, node.outputs[0].dtype)[0]

    def constant(self, array: NDArray[Any], name: str) -> ir.Value:
        """Add an initializer and return it."""
        name = self._free_name(name)
        value = ir.Value(name=name, const_value=ir.tensor(np.asarray(array, order="C"), name=name))
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
        self._graph.register_initializer(value)
        return value

    def dims(self, *dims: int) -> ir.Value:
        """Add an int64 vector, as Reshape and Slice take it, and return it."""
        return self.constant(np.array(dims, np.int64), "dims_" + "_".join(str(dim) for dim in dims))

    def reshape(self, value: ir.Value, *dims: int) -> ir.Value:
        """Append a Reshape and return its output; 0 copies a dimension, -1 is inferred."""
        return self.op("Reshape", value, self.dims(*dims))

    def first(self, value: ir.Value, axis: int) -> ir.Value:
        """Append a Gather of position 0 of an axis, which stays with length 1, and return its output."""
        return self.op("Gather", value, self.dims(0), like=value, axis=axis)

    def adopt(self, subgraph: ir.Graph) -> list[ir.Value]:
        """Move the nodes and initializers of a subgraph without inputs here, renamed, and return its outputs."""
        outputs, nodes = list(subgraph.outputs), list(subgraph)
        subgraph.outputs.clear()
        for value in list(subgraph.initializers.values()):
            del subgraph.initializers[str(value.name)]
            value.name = self._free_name("constant")
            self._graph.register_initializer(value)
        subgraph.remove(nodes)
        for node in nodes:
            for value in node.outputs:
                value.name = self._free_name(node.op_type)
            node.name = node.outputs[0].name
        self._graph.extend(nodes)
        return outputs

    def _append(self, node: ir.Node, dtype: ir.DataType | None) -> Sequence[ir.Value]:
        for value in node.outputs:
            value.name = self._free_name(node.op_type)
            value.type = None if dtype is None else ir.TensorType(dtype)
        node.name = node.outputs[0].name
        self._graph.append(node)
        return node.outputs

    def _free_name(self, stem: str) -> str:
        while True:
            name = f"crossrank/{self._prefix}/{stem}_{self._count}"
            self._count += 1
            if name not in self._taken:
                self._taken.add(name)
                return name


def constant_of(value: ir.Value | None) -> NDArray[Any] | None:
    """Return the array of an initializer or a Constant node; None for a computed value."""
    if value is None:
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def integers_of(value: ir.Value | None) -> list[int] | None:
    """Return the elements of a constant as integers; None for a computed value or other numbers."""
    array = constant_of(value)
    if array is None or array.dtype.kind not in "iu":
        return None
    return [int(element) for element in array.reshape(-1)]


def scalar_of(value: ir.Value | None) -> float | None:
    """Return a constant of one element as a number; None for other values."""
    array = constant_of(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def operand_beside(node: ir.Node, value: ir.Value) -> ir.Value | None:
    """Return the other input of a node with two inputs."""
    left, right = node.inputs
    return right if left is value else left


def only_consumer(value: ir.Value) -> ir.Node | None:
    """Return the node that reads the value, if it is the only one and the value is no output of the graph.

    Shape nodes do not count, as they read no element.
    """
    readers = {node for node, _ in value.uses() if node.op_type != "Shape"}
    return readers.pop() if len(readers) == 1 and not value.is_graph_output() else None


def axes_of(node: ir.Node, position: int = 1) -> list[int] | None:
    """Return the axes of a Reduce, Squeeze or Unsqueeze node, from its attribute or its input."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    return integers_of(node.inputs[position]) if len(node.inputs) > position else None


def redirect(old: ir.Value, new: ir.Value) -> None:
    """Replace `old` by `new` in all readers and in the outputs of the graph."""
    ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
