"""Graph passes over ONNX: the same answers with less arithmetic, in standard operators only.

    clean         constants folded, dead nodes and inputs removed, shapes inferred
    ...

They need onnx, onnx_ir and numpy, nothing of torch: serving runs them over hub ONNX files.
"""

from __future__ import annotations

import onnx_ir as ir

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
    reports: list[PassReport] = []
    return optimized, reports
