"""Read an ONNX graph as the source of an export: in fp32, with logits as output, its own logits as reference."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx_ir

from crossrank_export import outputs, reduced
from crossrank_export.graphs import Scorer, describe_graph, load_graph, model_scorer, session_scorer
from crossrank_export.parity import agreeing
from crossrank_export.passes.report import PassReport


def read_graph(file: Path, opset: int | None, num_labels: int, where: str) -> tuple[onnx_ir.Model, list[PassReport]]:
    """Read a graph, convert it to fp32 and to logits as output, and return it with the changes made.

    Args:
        file: The graph file; its external data are no links (see `without_links`).
        opset: ONNX opset to convert to; None keeps the graph's own.
        num_labels: Logits of a pair.
        where: Name of the graph for messages.

    Raises:
        ModelSourceError: The graph is not readable, is quantized, or has no logits.
    """
    graph = load_graph(file, opset)
    reduced.refuse_quantized(graph, where)
    done = (outputs.take_logits(graph, num_labels, where), reduced.widen_fp16(graph))
    return graph, [report for report in done if report is not None]


def graph_scorer(
    file: Path, graph: onnx_ir.Model, done: list[PassReport], num_labels: int, pad_token_id: int, where: str
) -> tuple[Scorer, str]:
    """Return a function that scores as the graph's own file does, and its name for the manifest.

    A graph in fp16 is scored in its fp32 form, which is checked against the file.

    Args:
        file: The graph file.
        graph: The graph from `read_graph`.
        done: The changes from `read_graph`.
        num_labels: Logits of a pair.
        pad_token_id: Id of the padding token.
        where: Name of the file for messages.

    Raises:
        ModelSourceError: ONNX Runtime does not accept the graph.
    """
    runtime = f"onnxruntime {version('onnxruntime')}"
    entry = describe_graph(graph, file.name, "fp32", num_labels)
    names = {report.name for report in done}
    if outputs.NAME in names:
        own = load_graph(file, None)
        outputs.take_logits(own, num_labels, where)
        scorer, name = model_scorer(own, entry, pad_token_id), "source ONNX, its logits,"
    else:
        scorer, name = session_scorer(file, entry, pad_token_id), "source ONNX"
    if reduced.NAME in names:
        scorer = agreeing(model_scorer(graph, entry, pad_token_id), scorer, "fp16", where)
        name = f"{name.rstrip(',')}, its fp16 made fp32,"
    return scorer, f"{name} in {runtime}"
