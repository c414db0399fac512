"""Show an evaluation as tables, as JSON and as a plot."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from rich.console import Console
from rich.table import Table

from crossrank_perf.base.plots import BETTER, NEUTRAL, WORSE, new_figure, save_figure
from crossrank_perf.eval.evaluation import Evaluation
from crossrank_perf.eval.quality import Comparison

# Most query ids that are legible below the bars.
_LABELLED_QUERIES = 80


def evaluation_as_json(evaluation: Evaluation) -> dict[str, Any]:
    """Return plain dicts, lists, strings and numbers, ready for json.dumps."""
    protocol = evaluation.protocol
    return {
        "candidates": {
            "source": evaluation.source,
            "queries": evaluation.queries,
            "documents": evaluation.documents,
            "longest_list": evaluation.longest_list,
        },
        "protocol": None
        if protocol is None
        else {
            "measures": list(protocol.names),
            "judged_queries": len(protocol.qrels),
            "relevant_grade": protocol.relevant_grade,
        },
        "rankings": {name: asdict(quality) for name, quality in evaluation.qualities.items()},
        "comparisons": [asdict(comparison) for comparison in evaluation.comparisons],
        "reference_precision": evaluation.reference_precision if evaluation.precisions else None,
        "precisions": [asdict(row) for row in evaluation.precisions],
        "published": [asdict(published) for published in evaluation.published],
        "notes": evaluation.notes,
    }


def print_evaluation(evaluation: Evaluation, console: Console) -> None:
    """Print the tables and notes of an evaluation."""
    console.print(
        f"{evaluation.source}: {evaluation.queries} queries, {evaluation.documents} pairs, "
        f"up to {evaluation.longest_list} a query",
        highlight=False,
    )
    if evaluation.qualities:
        console.print(_measures_table(evaluation))
    if evaluation.comparisons:
        console.print(_comparisons_table(evaluation))
    if evaluation.precisions:
        console.print(_precisions_table(evaluation))
    for published in evaluation.published:
        console.print(
            f"- {published.model} has a published NDCG@10 of {100 * published.ndcg:.2f} (in %), {published.protocol}; "
            "compare only where candidates and judgments are the same",
            highlight=False,
        )
    for note in evaluation.notes:
        console.print(f"- {note}", highlight=False, markup=False)


def plot_deltas(comparisons: list[Comparison], path: Path) -> None:
    """Draw each comparison as a row of bars, one for the delta of each query, the largest first.

    Args:
        comparisons: At least one comparison.
        path: File to write, .png or .svg.
    """
    queries = max(len(comparison.deltas) for comparison in comparisons)
    figure, axes = new_figure(len(comparisons), width_in=min(16.0, max(7.0, 2.0 + 0.16 * queries)))
    for comparison, axis in zip(comparisons, axes, strict=True):
        _draw_deltas(comparison, axis)
    save_figure(figure, path)


def _draw_deltas(comparison: Comparison, axis: Axes) -> None:
    ordered = sorted(comparison.deltas.items(), key=lambda item: -item[1])
    values = [delta for _, delta in ordered]
    axis.bar(range(len(values)), values, width=0.8, color=[BETTER if delta > 0 else WORSE for delta in values])
    axis.axhline(comparison.mean_delta, color=NEUTRAL, linewidth=1, linestyle="--")
    axis.annotate(
        f"mean {comparison.mean_delta:+.4f}",
        (1.0, comparison.mean_delta),
        xycoords=("axes fraction", "data"),
        ha="right",
        va="bottom",
        color=NEUTRAL,
    )
    axis.set_title(
        f"{comparison.system} against {comparison.baseline}: "
        f"{comparison.wins} better, {comparison.losses} worse, {comparison.ties} equal, "
        f"p = {_p(comparison.p_randomisation)} (randomisation)",
        loc="left",
        fontsize=10,
    )
    axis.set_ylabel(f"delta {comparison.measure}")
    axis.grid(False, axis="x")
    axis.set_xlim(-0.6, len(values) - 0.4)
    if len(values) <= _LABELLED_QUERIES:
        axis.set_xticks(range(len(values)), [qid for qid, _ in ordered], rotation=90, fontsize=6)
        axis.set_xlabel("query")
    else:
        axis.set_xticks([])
        axis.set_xlabel(f"{len(values)} queries")


def _table(title: str, first: str, columns: list[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _measures_table(evaluation: Evaluation) -> Table:
    names = list(evaluation.protocol.names) if evaluation.protocol else []
    table = _table("Quality, mean over the judged queries", "ranking", names)
    for name, quality in evaluation.qualities.items():
        table.add_row(name, *(f"{quality.means[measure]:.4f}" for measure in names))
    return table


def _comparisons_table(evaluation: Evaluation) -> Table:
    columns = ["delta NDCG@10", "+", "-", "=", "p (t)", "p (rand.)"]
    table = _table("Query by query: better, worse, equal; paired t-test and randomisation test", "ranking", columns)
    for c in evaluation.comparisons:
        counts = (str(c.wins), str(c.losses), str(c.ties))
        p_values = (_p(c.p_ttest), _p(c.p_randomisation))
        table.add_row(f"{c.system} against {c.baseline}", f"{c.mean_delta:+.4f}", *counts, *p_values)
    return table


def _precisions_table(evaluation: Evaluation) -> Table:
    columns = ["engine", "NDCG@10", "delta", "max |dl|", "mean |dl|", "top-10"]
    title = f"Precisions against {evaluation.reference_precision}: |dl| of the logits, overlap of the top 10"
    table = _table(title, "precision", columns)
    for row in evaluation.precisions:
        table.add_row(
            row.precision,
            row.engine,
            "-" if row.ndcg is None else f"{row.ndcg:.4f}",
            "-" if row.ndcg_delta is None else f"{row.ndcg_delta:+.4f}",
            f"{row.max_delta_logit:.2g}",
            f"{row.mean_delta_logit:.2g}",
            f"{row.top_10_overlap:.3f}",
        )
    return table


def _p(value: float | None) -> str:
    if value is None:
        return "-"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
