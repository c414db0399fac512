"""Compare a graph as exported with the same graph after the passes: same batches, ONNX Runtime, fp32.

They take turns, request by request and with one thread as in a server, which cancels the noise of the machine; the
ratio is taken within a round.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from crossrank_perf.base.workload import Request

if TYPE_CHECKING:
    import onnx_ir

    from crossrank.packed import PairBatch
    from crossrank_export.graphs import Scorer
    from crossrank_export.sources import SourceFiles

SOURCE, OPTIMIZED = "as exported", "after the passes"


@dataclass(frozen=True)
class _Timing:
    """One graph: its cost, its scorer, and the seconds of each round."""

    name: str
    mflop: float | None
    nodes: int
    score: Scorer
    seconds: list[float]


def compare_graphs(
    files: SourceFiles, requests: Sequence[Request], rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Time both graphs on the pairs of the requests; tokenization is left out.

    Args:
        files: Files of the model, from `find_source`.
        requests: Queries with documents.
        rounds: Number of rounds; in each, both graphs score all pairs once.
        say: Called with the progress.

    Returns:
        Figures of both graphs, their largest difference of a logit and the median of the ratios, ready for JSON.

    Raises:
        CrossrankError: The model cannot be exported.
    """
    from crossrank.checkpoints.config import read_config
    from crossrank.checkpoints.tokens import read_tokens
    from crossrank_export.graphs import check_graph
    from crossrank_export.passes import optimize

    config = read_config(files.directory)
    tokens = read_tokens(files.directory, config, None)
    batches = [tokens.encode([(request.query, text) for text in request.documents]) for request in requests]
    source = _source_graph(files)
    check_graph(source, config, tokens.template, files.source.name)
    with tempfile.TemporaryDirectory(prefix="crossrank-graphs-") as folder:
        graphs = {SOURCE: source, OPTIMIZED: optimize(source)[0]}
        timings = [
            _prepare(name, graph, Path(folder) / f"{i}.onnx", config.num_labels, tokens.pad_token_id)
            for i, (name, graph) in enumerate(graphs.items())
        ]
        difference = _warm_up(timings, batches)
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            _run_round(timings, batches)
    before, after = timings
    pairs = sum(len(batch) for batch in batches)
    ratios = [old / new for old, new in zip(before.seconds, after.seconds, strict=True)]
    return {
        "pairs": pairs,
        "mean_tokens": round(sum(int(batch.lengths.sum()) for batch in batches) / pairs, 1),
        "graphs": [
            {
                "name": timing.name,
                "nodes": timing.nodes,
                "mflop_per_96_token_pair": timing.mflop,
                "pairs_per_s": round(pairs / median(timing.seconds), 1),
            }
            for timing in timings
        ],
        "ratio": round(median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "max_delta_logit": difference,
    }


def _source_graph(files: SourceFiles) -> onnx_ir.Model:
    if files.graph is None:
        from crossrank_export.convert import graph_from_checkpoint, load_checkpoint

        return graph_from_checkpoint(load_checkpoint(files.directory), None)
    from crossrank_export.graphs import load_graph

    return load_graph(files.graph, None)


def _prepare(name: str, graph: onnx_ir.Model, path: Path, num_labels: int, pad_token_id: int) -> _Timing:
    """Write a graph and load it in ONNX Runtime."""
    from crossrank_export.cost import measure_cost
    from crossrank_export.graph_files import save_graph
    from crossrank_export.graphs import describe_graph, session_scorer

    cost = measure_cost(graph)
    entry = describe_graph(graph, path.name, "fp32", num_labels)
    save_graph(graph, path)
    return _Timing(name, cost.mflop, cost.nodes, session_scorer(path, entry, pad_token_id, threads=1), [])


def _warm_up(timings: Sequence[_Timing], batches: Sequence[PairBatch]) -> float:
    """Score all batches once with each graph, and return the largest difference of a logit."""
    first, second = (np.concatenate([timing.score(batch) for batch in batches]) for timing in timings)
    return float(np.abs(first - second).max())


def _run_round(timings: Sequence[_Timing], batches: Sequence[PairBatch]) -> None:
    """Time all batches with both graphs, in turn, the first alternating; add the seconds of each to its timing."""
    totals = [0.0 for _ in timings]
    for number, batch in enumerate(batches):
        for i in (0, 1) if number % 2 == 0 else (1, 0):
            start = time.perf_counter()
            timings[i].score(batch)
            totals[i] += time.perf_counter() - start
    for timing, total in zip(timings, totals, strict=True):
        timing.seconds.append(total)
