"""Replace embeddings by EmbedLayerNormalization: three lookups, their sum, its normalization, and tokens of each pair.

The operator takes positions and segments separately: the table in which the pass embeddings added them is split again.
Embeddings of another structure (RoBERTa's, whose positions are computed) are left alone.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from crossrank_export.contrib.norm import norm_weights
from crossrank_export.passes.embeddings import counts_from_zero, sum_of_lookups
from crossrank_export.passes.emit import CONTRIB, Emitter, only_consumer, operand_beside, redirect, scalar_of

# Tolerance, relative to the table's largest number: sums of float32 that were rounded once.
_MOST_ERROR = 1e-6


def fuse_embeddings(graph: ir.Graph, emit: Emitter, attention_mask: ir.Value) -> ir.Value | None:
    """Replace embeddings with BERT's structure.

    Returns:
        int32 [batch], the tokens of each pair; None where nothing was replaced.
    """
    for node in graph:
        source = node.inputs[0] if node.op_type == "LayerNormalization" else None
        weights = norm_weights(node) if source is not None else None
        if source is None or weights is None or only_consumer(source) is not node:
            continue
        root = source.producer()
        terms = sum_of_lookups(root) if root is not None else []
        words = next((term for term in terms if _is_input(term.index, "input_ids")), None)
        other = next((term for term in terms if term is not words), None)
        if len(terms) != 2 or words is None or other is None:
            continue
        split = _split_index(other.index)
        tables = _split_table(other.table, split[1]) if split is not None else None
        if split is None or tables is None:
            continue
        positions, segments = tables
        output, lengths = emit.ops(
            "EmbedLayerNormalization",
            *(words.index, split[0], emit.constant(words.table, "words")),
            *(emit.constant(positions, "positions"), emit.constant(segments, "segments")),
            *(weights.gamma, weights.beta, attention_mask),
            outputs=2,
            domain=CONTRIB,
            epsilon=weights.epsilon,
        )
        output.shape = node.outputs[0].shape
        lengths.type = ir.TensorType(ir.DataType.INT32)
        redirect(node.outputs[0], output)
        return lengths
    return None


def _is_input(value: ir.Value | None, name: str) -> bool:
    return value is not None and value.is_graph_input() and value.name == name and value.dtype == ir.DataType.INT32


def _split_index(index: ir.Value) -> tuple[ir.Value, int] | None:
    """Match token_type_ids * positions + (0, 1, 2 ...); return the input and the number of positions."""
    add = index.producer()
    if add is None or add.op_type != "Add":
        return None
    for product in add.inputs:
        node = product.producer() if product is not None else None
        counted = operand_beside(add, product) if product is not None else None
        if node is None or node.op_type != "Mul" or counted is None or not counts_from_zero(counted):
            continue
        for types in node.inputs:
            stride = scalar_of(operand_beside(node, types)) if types is not None else None
            if types is not None and stride is not None and _is_input(types, "token_type_ids"):
                return types, int(stride)
    return None


def _split_table(table: NDArray[np.float32], positions: int) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Return float32 [positions, hidden] and [segments, hidden] whose sums make up the table; None where none do."""
    if positions < 1 or len(table) % positions:
        return None
    sums = table.astype(np.float64).reshape(-1, positions, table.shape[1])
    segments = (sums - sums[:1]).mean(axis=1)
    error = np.abs(sums[:1] + segments[:, None] - sums).max()
    if not error <= _MOST_ERROR * np.abs(sums).max():
        return None
    return table[:positions], segments.astype(np.float32)
