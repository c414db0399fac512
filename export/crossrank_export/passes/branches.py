"""Replace an If whose condition is known by the branch that it takes.

Scripted functions leave such nodes: DeBERTa checks in each layer whether queries and keys are equally many, which shape
inference can answer, and squeezing an axis of unknown length checks whether that is 1. OpenVINO cannot load an If whose
branches differ in rank, and no other pass looks into one.
"""

from __future__ import annotations

import onnx_ir as ir

from crossrank_export.passes.clean import clean_graph
from crossrank_export.passes.emit import Emitter, constant_of, redirect
from crossrank_export.passes.report import PassReport

NAME = "branches"


def fold_branches(model: ir.Model) -> PassReport:
    """Replace every If with a constant condition by the nodes of its branch, nested ones too, in place.

    Args:
        model: A graph after clean_graph, which folds the conditions that can be decided for every batch and length.
    """
    folded = 0
    while decided := [node for node in model.graph if _condition_of(node) is not None]:
        for node in decided:
            _splice(model.graph, node)
        model.graph.sort()
        clean_graph(model)
        folded += len(decided)
    left = sum(node.op_type == "If" for node in model.graph.all_nodes())
    if not folded and not left:
        return PassReport(NAME, False, "The graph has no branches.")
    return PassReport(NAME, folded > 0, f"{folded} branches are always taken; {left} depend on the input.")


def _condition_of(node: ir.Node) -> bool | None:
    """Return the constant condition of an If; None where it is computed, and for other nodes."""
    condition = constant_of(node.inputs[0]) if node.op_type == "If" and not node.domain else None
    return None if condition is None else bool(condition.reshape(-1)[0])


def _splice(graph: ir.Graph, node: ir.Node) -> None:
    """Move the nodes of the taken branch to the end of the graph, and remove the If."""
    taken, other = ("then_branch", "else_branch") if _condition_of(node) else ("else_branch", "then_branch")
    results = Emitter(graph, NAME).adopt(node.attributes[taken].as_graph())
    for output, result in zip(node.outputs, results, strict=True):
        redirect(output, result)
    _detach(node.attributes[other].as_graph())
    graph.remove(node, safe=True)


def _detach(branch: ir.Graph) -> None:
    """Disconnect the nodes of a removed branch from the values that they read, as passes count readers."""
    for node in branch.all_nodes():
        for place in range(len(node.inputs)):
            node.replace_input_with(place, None)
