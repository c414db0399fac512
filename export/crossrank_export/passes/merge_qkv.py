"""Compute queries, keys and values in one matrix product, with 1/sqrt(d) folded into the queries' weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossrank_export.passes.attention import Attention, find_attention
from crossrank_export.passes.emit import Emitter, redirect
from crossrank_export.passes.report import PassReport

NAME = "merge_qkv"


def merge_projections(model: ir.Model) -> PassReport:
    """Rewrite every attention block that is found, in place."""
    blocks = find_attention(model.graph)
    if not blocks:
        return PassReport(NAME, False, "No attention block was recognised.")
    emit = Emitter(model.graph, NAME)
    for block in blocks:
        _merge(block, emit)
    model.graph.sort()
    return PassReport(NAME, True, f"{len(blocks)} layers compute queries, keys and values in one product.")


def _merge(block: Attention, emit: Emitter) -> None:
    q, k, v = block.query, block.key, block.value
    scale = np.float64(block.total_scale)
    weight = np.concatenate([(q.weight * scale).astype(np.float32), k.weight, v.weight], axis=1)
    bias = np.concatenate([(q.bias * scale).astype(np.float32), k.bias, v.bias])
    merged = emit.op("MatMul", block.source, emit.constant(weight, "qkv_weight"))
    merged = emit.op("Add", merged, emit.constant(bias, "qkv_bias"))
    # One transpose for all three: each is then a contiguous piece of the result.
    merged = emit.reshape(merged, 0, 0, 3, block.heads, weight.shape[1] // (3 * block.heads))
    merged = emit.op("Transpose", merged, perm=[2, 0, 3, 1, 4])
    query, key, value = (
        emit.op("Gather", merged, emit.constant(np.array(i, np.int64), "which"), axis=0) for i in range(3)
    )
    key = emit.op("Transpose", key, perm=[0, 1, 3, 2])
    scores = emit.op("MatMul", query, key)
    for mask in block.masks:
        scores = emit.op("Add", scores, mask)
    context = emit.op("MatMul", emit.op("Softmax", scores, axis=-1), value)
    context = emit.op("Transpose", context, perm=[0, 2, 1, 3])
    output = emit.reshape(context, 0, 0, v.weight.shape[1])
    output.shape = block.output.shape
    redirect(block.output, output)
