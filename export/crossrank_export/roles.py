"""The weights of a BERT graph by role, whoever exported it: what the native engine needs instead of a graph.

A graph's nodes are in the order of their dependencies, and BERT is one chain: its linear layers come as query, key and
value (in any order; the attention says which is which), output, up, down, layer by layer, then pooler and classifier.
What only looks like BERT (another activation, another scale) is found out by its scores: native_weights.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank.bundles.bundle import Architecture
from crossrank.native.weights import WORD, Shape
from crossrank_export.passes.attention import Attention, find_attention
from crossrank_export.passes.clean import clean_graph, inline_functions
from crossrank_export.passes.emit import constant_of, only_consumer, operand_beside
from crossrank_export.passes.layer_norm import fuse_layer_norm
from crossrank_export.passes.opset import raise_opset

Array = NDArray[np.float32]
Linear = tuple[Array, Array]

_TABLES = {"input_ids": WORD, "token_type_ids": "embeddings.segment"}
_POSITION = "embeddings.position"


class NoRolesError(Exception):
    """The graph is not a BERT cross-encoder as the native engine knows it; the message says why."""


def find_roles(source: ir.Model, architecture: Architecture, label: int) -> tuple[Shape, dict[str, Array]]:
    """Return the shape and the float32 arrays of every role.

    Args:
        source: The graph as its exporter wrote it; left as it is.
        architecture: What config.json says.
        label: Which logit is the score.

    Raises:
        NoRolesError: Something is missing or different.
    """
    model = source.clone()
    inline_functions(model)
    for step in (raise_opset, clean_graph, fuse_layer_norm, clean_graph):
        step(model)
    layers = architecture.layers
    blocks = find_attention(model.graph)
    norms = [node for node in model.graph if node.op_type == "LayerNormalization"]
    linears = [linear for node in model.graph if (linear := _linear(node)) is not None]
    counts = (len(blocks), len(norms), len(linears))
    if counts != (layers, 2 * layers + 1, 6 * layers + 2):
        raise NoRolesError(
            f"{counts[0]} attention blocks, {counts[1]} layer normalizations and {counts[2]} linear layers, where BERT "
            f"of {layers} layers has {layers}, {2 * layers + 1} and {6 * layers + 2}"
        )
    arrays = _embeddings(model.graph) | _pair("embeddings.norm", _norm(norms[0]))
    for i, block in enumerate(blocks):
        parts = _projections(block)
        parts |= dict(zip(("output", "up", "down"), linears[6 * i + 3 : 6 * i + 6], strict=True))
        parts |= {"attention_norm": _norm(norms[2 * i + 1]), "output_norm": _norm(norms[2 * i + 2])}
        for name, pair in parts.items():
            arrays |= _pair(f"layer.{i}.{name}", pair)
    arrays |= _pair("pooler", linears[-2])
    weight, bias = linears[-1]
    arrays |= _pair("classifier", (_float32(weight[:, label]), _float32(bias[label : label + 1])))
    shape = Shape(
        layers=layers,
        hidden=architecture.hidden,
        heads=architecture.heads,
        ffn=architecture.ffn,
        vocab_size=architecture.vocab_size,
        positions=len(arrays[_POSITION]),
        segments=len(arrays["embeddings.segment"]),
        epsilon=_epsilon(norms),
    )
    try:
        shape.check(arrays)
    except ValueError as error:
        raise NoRolesError(str(error)) from None
    return shape, arrays


def _pair(role: str, pair: Linear) -> dict[str, Array]:
    return {f"{role}.weight": pair[0], f"{role}.bias": pair[1]}


def _linear(node: ir.Node) -> Linear | None:
    """Read `x W + b` with constant W [in, out] and b, as MatMul and Add or as Gemm."""
    weight = constant_of(node.inputs[1]) if node.op_type in ("MatMul", "Gemm") and not node.domain else None
    if weight is None or weight.ndim != 2:
        return None
    if node.op_type == "Gemm":
        if node.attributes.get_int("transB", 0):
            weight = weight.T
        bias = constant_of(node.inputs[2]) if len(node.inputs) > 2 else None
    else:
        add = only_consumer(node.outputs[0])
        is_sum = add is not None and add.op_type == "Add"
        bias = constant_of(operand_beside(add, node.outputs[0])) if add is not None and is_sum else None
    if bias is None or bias.shape != weight.shape[1:]:
        bias = np.zeros(weight.shape[1], np.float32)
    return _float32(weight), _float32(bias)


def _projections(block: Attention) -> dict[str, Linear]:
    head_dim = block.query.weight.shape[1] // block.heads
    if abs(block.total_scale * head_dim**0.5 - 1) > 1e-6:
        raise NoRolesError("attention scores are scaled otherwise than by 1 / sqrt(head size)")
    parts = {"query": block.query, "key": block.key, "value": block.value}
    return {name: (_float32(part.weight), _float32(part.bias)) for name, part in parts.items()}


def _norm(node: ir.Node) -> Linear:
    weight, bias = (constant_of(value) for value in (*node.inputs, None)[1:3])
    if weight is None or bias is None:
        raise NoRolesError("a layer normalization without constant weight and bias")
    return _float32(weight), _float32(bias)


def _epsilon(norms: list[ir.Node]) -> float:
    values = {node.attributes.get_float("epsilon", 1e-5) for node in norms}
    if len(values) != 1:
        raise NoRolesError(f"layer normalizations of different epsilons {sorted(values)}")
    return values.pop()


def _embeddings(graph: ir.Graph) -> dict[str, Array]:
    """Read the tables that rows are taken from, told apart by what chooses the rows."""
    tables: dict[str, Array] = {}
    for node in graph:
        table = constant_of(node.inputs[0]) if node.op_type == "Gather" else None
        if table is None or table.ndim != 2 or table.dtype.kind != "f":
            continue
        role = _TABLES.get(_input_of(node.inputs[1]), _POSITION)
        if role in tables:
            raise NoRolesError(f"two tables take the role {role}")
        tables[role] = _float32(table)
    missing = {*_TABLES.values(), _POSITION} - tables.keys()
    if missing:
        raise NoRolesError(f"no table takes the role {min(missing)}")
    return tables


def _input_of(value: ir.Value | None) -> str:
    """Return the name of the graph input that a value is, but for its dtype; empty where it is computed."""
    while value is not None and (node := value.producer()) is not None:
        if node.op_type not in ("Cast", "Identity"):
            return ""
        value = node.inputs[0]
    return str(value.name) if value is not None else ""


def _float32(array: NDArray[Any]) -> Array:
    return np.ascontiguousarray(array, np.float32)
