"""An ONNX graph as a source: read, brought to logits in fp32, and scored as its own file scores."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import onnx_ir

from crossrank_export import outputs, reduced
from crossrank_export.graphs import Scorer, describe_graph, load_graph, model_scorer, session_scorer
from crossrank_export.parity import agreeing
from crossrank_export.passes.report import PassReport


def read_graph(file: Path, opset: int | None, num_labels: int, where: str) -> tuple[onnx_ir.Model, list[PassReport]]:
    """Read a graph and make it one of fp32 that gives logits; return it with what was done for that.

    Args:
        file: The graph; its external data are no links (`without_links`).
        opset: Converts it to another one if given.
        num_labels: Logits of a pair.
        where: Its name, for messages.

    Raises:
        ModelSourceError: It is not readable, is quantized, or gives no logits.
    """
    graph = load_graph(file, opset)
    reduced.refuse_quantized(graph, where)
    done = (outputs.take_logits(graph, num_labels, where), reduced.widen_fp16(graph))
    return graph, [report for report in done if report is not None]


def graph_scorer(
    file: Path, graph: onnx_ir.Model, done: list[PassReport], num_labels: int, pad_token_id: int, where: str
) -> tuple[Scorer, str]:
    """Return the logits that a graph's own file gives, and what that is called in the manifest.

    Of one in fp16 they are those of its fp32 form, once the two agree.

    Args:
        file: The graph's.
        graph: From `read_graph`.
        done: From `read_graph`.
        num_labels: Logits of a pair.
        pad_token_id: Fills shorter pairs.
        where: The file's name, for messages.

    Raises:
        ModelSourceError: ONNX Runtime does not accept it.
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
