"""The graphs of a bundle, each of them compared with the source once it is written.

fp32, fp16, int8          those asked for: one that does not agree ends the export
fp16 for ONNX Runtime     beside fp16 where it can be had: every engine runs the standard one
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
# Beside the fp16 graph of standard operators: the one for ONNX Runtime's CUDA provider.
FILE_FOR_ONNXRUNTIME = "model.fp16.onnxruntime.onnx"


@dataclass(frozen=True)
class Reference:
    """What a graph has to agree with.

    Attributes:
        name: Whose logits they are, for the manifest.
        samples: Pairs with the source's logits.
        num_labels: Logits a pair.
        label: Which of them is the score.
        pad_token_id: Fills shorter pairs.
    """

    name: str
    samples: Sequence[SampleSet]
    num_labels: int
    label: int
    pad_token_id: int

    def prove(self, entry: Graph, directory: Path) -> Graph:
        """Return a written graph's entry with the manifest's record of how well it agrees.

        Raises:
            SetupError: It is beyond its threshold.
            ModelSourceError: ONNX Runtime does not accept it.
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
    """Optimize a graph, write and check it.

    Args:
        source: The graph as it was exported; left as it is.
        reference: What it has to agree with.
        directory: Where it is written.
        on_step: Told what begins.
        inline_bytes: Weights that stay in the graph file; where there are more, those of all variants lie beside it.

    Returns:
        The manifest's entry, what each pass did, and the cost before and after.

    Raises:
        SetupError: It is beyond its threshold.
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
    """Write and check the variants that are made from the fp32 graph.

    Args:
        precisions: Which; fp32 itself is passed over.
        fp32: As it was written.
        reference: What each has to agree with.
        directory: Where the fp32 graph lies and the others go.
        on_step: Told what begins.

    Returns:
        The manifest's entries, and what was done for ONNX Runtime's fp16 graph.

    Raises:
        SetupError: A variant cannot be made, or it is beyond its threshold.
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
    """Write and check the fp16 graph of ONNX Runtime's operators; whatever goes wrong, it is missing and no more."""
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
        # Of any type: the rewriting meets graphs that nobody has seen, and ONNX Runtime raises types of its own.
        logger.debug("the fp16 graph for ONNX Runtime is left out", exc_info=True)
        for file in (path, data_file(path)):
            file.unlink(missing_ok=True)
        reason = error.message if isinstance(error, CrossrankError) else reason_of(error)
        return None, PassReport(NAME, False, f"Left out: {reason}")
