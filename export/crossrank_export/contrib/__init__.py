"""Rewrite a graph with ONNX Runtime's own operators ("com.microsoft"): fewer kernels, and attention as one.

    padding     masks that only hide padding                   attention   MultiHeadAttention
    embeddings  EmbedLayerNormalization                        skip_norm   SkipLayerNormalization

They start from an optimized graph and find their patterns by structure; the rest stays as it was. Attention takes the
number of tokens of each pair, so the graph is right for masks of ones followed by zeros, with at least one 1, which is
what every engine here sends.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from crossrank_export.contrib.attention import find_merged_attention, fuse_attention
from crossrank_export.contrib.embeddings import fuse_embeddings
from crossrank_export.contrib.padding import emit_lengths
from crossrank_export.contrib.skip_norm import fuse_skip_norms
from crossrank_export.passes.clean import remove_dead
from crossrank_export.passes.emit import CONTRIB, Emitter
from crossrank_export.passes.report import PassReport
from crossrank_export.shapes import infer_shapes

NAME = "onnxruntime"


# Sizes that no other dimension has, so that a sum of two [batch, sequence, hidden] is told from a broadcast.
_BATCH, _SEQUENCE = 3, 7


def fuse_for_onnxruntime(model: ir.Model) -> PassReport:
    """Rewrite attention, embeddings and residual sums, in place; nothing where no attention block fits."""
    with _fixed_shapes(model):
        blocks = find_merged_attention(model.graph)
        if not blocks:
            return PassReport(NAME, False, "No attention block is one of ONNX Runtime's operator.")
        emit = Emitter(model.graph, NAME)
        padding = blocks[0].padding
        lengths = fuse_embeddings(model.graph, emit, padding)
        embeddings = "the embeddings" if lengths is not None else "not the embeddings"
        if lengths is None:
            lengths = emit_lengths(emit, padding)
        # Searched again, as the source of the first block is another value now.
        for block in find_merged_attention(model.graph):
            fuse_attention(emit, block, lengths)
        remove_dead(model)
        norms = fuse_skip_norms(model.graph, emit)
        model.opset_imports[CONTRIB] = 1
        model.graph.sort()
        remove_dead(model)
    detail = f"{len(blocks)} attention blocks, {norms} normalizations of residual sums and {embeddings}"
    return PassReport(NAME, True, f"{detail} are ONNX Runtime's own operators in a further fp16 graph.")


@contextmanager
def _fixed_shapes(model: ir.Model) -> Iterator[None]:
    """Infer all shapes for one batch and length; afterwards they are as before, those of new values unknown."""
    computed = [value for node in model.graph for value in node.outputs]
    before = {value: value.shape for value in (*model.graph.inputs, *computed)}
    for value in computed:
        value.shape = None
    for value in model.graph.inputs:
        value.shape = ir.Shape([_BATCH, _SEQUENCE])
    infer_shapes(model)
    try:
        yield
    finally:
        for value in (*model.graph.inputs, *(value for node in model.graph for value in node.outputs)):
            value.shape = before.get(value)
