"""Compute queries, keys and values in one matrix product, with 1/sqrt(d) folded into the queries' weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from crossrank_export.passes.attention import Attention, find_attention
from crossrank_export.passes.emit import Emitter, redirect
from crossrank_export.passes.report import PassReport

NAME = "merge_qkv"


def merge_qkv(model: ir.Model) -> PassReport:
    """Rewrite every attention block that is recognised, in place."""
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
    widths = emit.dims(*(part.weight.shape[1] for part in (q, k, v)))
    parts = emit.ops("Split", merged, widths, outputs=3, axis=-1)
    heads = [
        emit.reshape(part, 0, 0, block.heads, part_of.weight.shape[1] // block.heads)
        for part, part_of in zip(parts, (q, k, v), strict=True)
    ]
    query = emit.op("Transpose", heads[0], perm=[0, 2, 1, 3])
    key = emit.op("Transpose", heads[1], perm=[0, 2, 3, 1])
    value = emit.op("Transpose", heads[2], perm=[0, 2, 1, 3])
    scores = emit.op("MatMul", query, key)
    for mask in block.masks:
        scores = emit.op("Add", scores, mask)
    context = emit.op("MatMul", emit.op("Softmax", scores, axis=-1), value)
    context = emit.op("Transpose", context, perm=[0, 2, 1, 3])
    output = emit.reshape(context, 0, 0, v.weight.shape[1])
    output.shape = block.output.shape
    redirect(block.output, output)
