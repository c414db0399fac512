"""Write the graphs of a bundle, and compare each with the source.

fp32, fp16, int8          as asked for; one that does not agree with the source ends the export
fp16 for ONNX Runtime     beside fp16 where the graph allows; every engine can run the standard one instead
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx_ir

from crossrank.bundles.bundle import Graph, Precision
from crossrank.engines.memory import return_memory
from crossrank.errors import CrossrankError
from crossrank.reasons import reason_of
from crossrank_export.graph_files import INLINE_BYTES, data_file, open_graph, save_graph, weight_bytes
from crossrank_export.graphs import describe_graph, session_scorer
from crossrank_export.parity import SampleSet, check, compare
from crossrank_export.passes.report import PassReport

logger = logging.getLogger(__name__)

FILES: dict[Precision, str] = {"fp32": "model.onnx", "fp16": "model.fp16.onnx", "int8": "model.int8.onnx"}
# File of the fp16 graph for ONNX Runtime's CUDA provider.
FILE_FOR_ONNXRUNTIME = "model.fp16.onnxruntime.onnx"


@dataclass(frozen=True)
class Reference:
    """Reference that every written graph is compared with.

    Attributes:
        name: Origin of the logits, for the manifest.
        samples: Pairs with the source's logits.
        num_labels: Logits of a pair.
        label: Index of the logit that is the score.
        pad_token_id: Id of the padding token.
    """

    name: str
    samples: Sequence[SampleSet]
    num_labels: int
    label: int
    pad_token_id: int

    def prove(self, entry: Graph, directory: Path) -> Graph:
        """Score with a written graph, and return its manifest entry with the agreement.

        Raises:
            SetupError: The graph is beyond its threshold.
            ModelSourceError: ONNX Runtime does not accept the graph.
        """
        scorer = session_scorer(directory / entry.file, entry, self.pad_token_id)
        record: dict[str, Any] = {
            "reference": self.name,
            "runtime": f"onnxruntime {version('onnxruntime')} CPU",
        }
        for sample in self.samples:
            agreement = compare(sample, scorer(sample.batch)[:, self.label])
            check(agreement, entry.precision, f"the {sample.name} pairs")
            record[sample.name] = agreement.judged_as(entry.precision)
        del scorer
        return_memory()
        return entry.model_copy(update={"parity": record})


def write_fp32(
    source: onnx_ir.Model,
    reference: Reference,
    directory: Path,
    on_step: Callable[[str], None],
    inline_bytes: int = INLINE_BYTES,
) -> tuple[Graph, list[PassReport], dict[str, Any]]:
    """Optimize a graph, write it and compare it with the reference.

    Args:
        source: The graph as exported, which is not changed.
        reference: Reference to compare with.
        directory: Directory to write to.
        on_step: Called with the title of each step as it begins.
        inline_bytes: Largest size of weights inside a graph file; larger ones lie beside it, in all variants.

    Returns:
        The manifest entry, the report of each pass, and the cost before and after.

    Raises:
        SetupError: The graph is beyond its threshold.
    """
    from crossrank_export.cost import measure_cost
    from crossrank_export.passes import optimize

    on_step("optimizing the graph")
    optimized, reports = optimize(source)
    cost = {"before": measure_cost(source).as_dict(), "after": measure_cost(optimized).as_dict()}
    on_step("writing and checking fp32")
    path = directory / FILES["fp32"]
    data = save_graph(optimized, path, external=weight_bytes(optimized) > inline_bytes)
    entry = describe_graph(optimized, path.name, "fp32", reference.num_labels, data)
    return reference.prove(entry, directory), reports, cost


def write_others(
    precisions: Sequence[Precision],
    fp32: Graph,
    reference: Reference,
    directory: Path,
    on_step: Callable[[str], None],
) -> tuple[list[Graph], list[PassReport]]:
    """Write the variants that are made from the fp32 graph, and compare them with the reference.

    Args:
        precisions: Precisions to write; fp32 itself is skipped.
        fp32: Manifest entry of the written fp32 graph.
        reference: Reference to compare with.
        directory: Directory of the fp32 graph, which the others are written to.
        on_step: Called with the title of each step as it begins.

    Returns:
        The manifest entries, and the reports on ONNX Runtime's fp16 graph.

    Raises:
        SetupError: A variant cannot be made, or is beyond its threshold.
    """
    from crossrank_export.precision import fp16_from_fp32, write_int8

    wanted = [precision for precision in FILES if precision in precisions and precision != "fp32"]
    if not wanted:
        return [], []
    optimized, external = open_graph(directory / fp32.file), fp32.data_file is not None
    graphs: list[Graph] = []
    reports: list[PassReport] = []
    for precision in wanted:
        on_step(f"writing and checking {precision}")
        path = directory / FILES[precision]
        if precision == "fp16":
            data = save_graph(fp16_from_fp32(optimized), path, external=external)
        else:
            data = write_int8(optimized, path, external=external)
        entry = describe_graph(optimized, path.name, precision, reference.num_labels, data)
        graphs.append(reference.prove(entry, directory))
    if "fp16" in wanted:
        on_step("writing and checking fp16 for ONNX Runtime on GPUs")
        graph, report = _write_for_onnxruntime(optimized, reference, directory, external)
        graphs += [graph] if graph is not None else []
        reports.append(report)
    return graphs, reports


def _write_for_onnxruntime(
    optimized: onnx_ir.Model, reference: Reference, directory: Path, external: bool
) -> tuple[Graph | None, PassReport]:
    """Write and compare the fp16 graph of ONNX Runtime's operators; a failure only leaves this graph out."""
    from crossrank_export.contrib import NAME
    from crossrank_export.precision import fp16_for_onnxruntime

    path = directory / FILE_FOR_ONNXRUNTIME
    try:
        graph, report = fp16_for_onnxruntime(optimized)
        if graph is None:
            return None, report
        data = save_graph(graph, path, external=external)
        entry = describe_graph(optimized, path.name, "fp16", reference.num_labels, data)
        return reference.prove(entry.model_copy(update={"operators": "onnxruntime"}), directory), report
    except Exception as error:
        # Of any type: unknown graphs may break the rewriting, and ONNX Runtime raises many types.
        logger.debug("the fp16 graph for ONNX Runtime is left out", exc_info=True)
        for file in (path, data_file(path)):
            file.unlink(missing_ok=True)
        reason = error.message if isinstance(error, CrossrankError) else reason_of(error)
        return None, PassReport(NAME, False, f"Left out: {reason}")
