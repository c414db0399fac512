"""Graph passes over ONNX: the same answers with less arithmetic, in standard operators only.

    opset        opset 11 - 16 rewritten as 17             narrow_mask  one row for all queries
    clean        constants folded, dead nodes removed      first_token  the last layer for one token only
    branches     those always taken in place of the If     merge_qkv    one product, scale folded in
    layer_norm   its pieces made one node                  interface    int32 inputs, output `logits`
    embeddings   constant tables added up beforehand

They find what they look for by structure (attention.py) and write through emit.py. They need onnx, onnx_ir and numpy,
nothing of torch: serving runs them over hub ONNX files.
"""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.passes.branches import fold_branches
from crossrank_export.passes.clean import clean_graph, inline_functions
from crossrank_export.passes.embeddings import fold_embeddings
from crossrank_export.passes.first_token import prune_to_first_token
from crossrank_export.passes.interface import unify_interface
from crossrank_export.passes.layer_norm import fuse_layer_norm
from crossrank_export.passes.mask import narrow_masks
from crossrank_export.passes.merge_qkv import merge_projections
from crossrank_export.passes.opset import raise_opset
from crossrank_export.passes.report import PassReport

__all__ = ["PassReport", "optimize"]


def optimize(model: ir.Model) -> tuple[ir.Model, list[PassReport]]:
    """Apply every pass that fits the graph.

    Args:
        model: A sequence-classification encoder in ONNX, weights in memory; left as it is.

    Returns:
        The optimized model and one report for each pass, in the order they ran.
    """
    optimized = model.clone()
    inline_functions(optimized)
    reports = [raise_opset(optimized), clean_graph(optimized), fold_branches(optimized)]
    for run in (
        fuse_layer_norm,
        narrow_masks,
        prune_to_first_token,
        merge_projections,
        unify_interface,
        fold_embeddings,
    ):
        reports.append(run(optimized))
        clean_graph(optimized)
    return optimized, reports
