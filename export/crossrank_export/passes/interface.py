"""Give all bundles the same signature: inputs int32 [batch, sequence], output float32 `logits` [batch, labels]."""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.passes.emit import Emitter
from crossrank_export.passes.report import PassReport

NAME = "interface"
OUTPUT = "logits"

# Operators that give the same result with int32 in place of int64, with the position of that input.
_INDIFFERENT = {("Gather", 1), ("Cast", 0), ("Shape", 0)}
# Operators that return the elements of their first input.
_MOVING = frozenset({"Unsqueeze", "Squeeze", "Reshape", "Expand", "Slice", "Transpose", "Identity"})


def unify_interface(model: ir.Model) -> PassReport:
    """Convert integer inputs to int32, name the output `logits` and the axes `batch` and `sequence`, in place."""
    graph = model.graph
    done = []
    emit = Emitter(graph, NAME)
    for value in [value for value in graph.inputs if value.dtype == ir.DataType.INT64]:
        value.type = ir.TensorType(ir.DataType.INT32)
        _widen_where_needed(value, emit)
        done.append(f"{value.name} is int32")
    for value in graph.inputs:
        if value.shape is not None and len(value.shape) == 2:
            value.shape = ir.Shape(_named(value.shape, ("batch", "sequence")))
    output = _keep_logits(graph)
    if output is not None and output.name != OUTPUT:
        _free_name(graph, output)
        done.append(f"output {output.name} is called {OUTPUT}")
        output.name = OUTPUT
    if output is not None and output.shape is not None and len(output.shape) > 0:
        output.shape = ir.Shape(_named(output.shape, ("batch",)))
    graph.sort()
    return PassReport(NAME, bool(done), (", ".join(done) or "The inputs and the output are as they should be") + ".")


def _widen_where_needed(value: ir.Value, emit: Emitter) -> None:
    """Insert a Cast back to int64 before readers that combine an int32 value with int64 ones."""
    widened: ir.Value | None = None
    for node, position in list(value.uses()):
        if (node.op_type, position) in _INDIFFERENT:
            continue
        if node.op_type in _MOVING and position == 0:
            node.outputs[0].type = ir.TensorType(ir.DataType.INT32)
            _widen_where_needed(node.outputs[0], emit)
            continue
        if widened is None:
            widened = emit.op("Cast", value, to=ir.DataType.INT64)
            widened.type = ir.TensorType(ir.DataType.INT64)
            widened.shape = value.shape
        node.replace_input_with(position, widened)


def _keep_logits(graph: ir.Graph) -> ir.Value | None:
    """Remove all outputs but the logits, and return the logits; None where they cannot be identified."""
    named = [value for value in graph.outputs if value.name == OUTPUT] or list(graph.outputs)
    if len(named) != 1:
        return None
    for value in [value for value in graph.outputs if value is not named[0]]:
        graph.outputs.remove(value)
    return named[0]


def _free_name(graph: ir.Graph, output: ir.Value) -> None:
    """Rename an inner value that has the name of the output."""
    for node in graph:
        for value in node.outputs:
            if value.name == OUTPUT and value is not output:
                value.name = f"{NAME}/{OUTPUT}"
    constant = graph.initializers.get(OUTPUT)
    if constant is not None:
        constant.name = f"{NAME}/{OUTPUT}"


def _named(shape: ir.Shape, names: tuple[str, ...]) -> list[int | str | None]:
    """Return the shape with names for its leading axes that are not fixed."""
    dims = [dim if isinstance(dim, int) else dim.value for dim in shape]
    return [name if not isinstance(dim, int) else dim for dim, name in zip(dims, names, strict=False)] + dims[
        len(names) :
    ]
