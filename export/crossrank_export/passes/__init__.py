"""Graph passes over ONNX: the same scores with less arithmetic, in standard operators only.

    opset        rewrite opset 11 - 16 as 17               narrow_mask  keep one row for all queries
    clean        fold constants, remove dead nodes         first_token  compute the last layer for one token
    branches     replace an If by the branch it takes      merge_qkv    one product, scale folded in
    layer_norm   make its pieces one node                  interface    int32 inputs, output `logits`
    embeddings   add up constant tables beforehand

They find their patterns by structure (attention.py) and write through emit.py. They need onnx, onnx_ir and numpy, but
not torch: serving runs them on ONNX files of the hub.
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
        model: A sequence-classification encoder in ONNX with weights in memory. It is not changed.

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
