"""Sum up a run of measure.sh: `python -m lab.gpu.summary DIRECTORY` writes and prints its summary.md."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


def summarize(directory: Path) -> str:
    """Return the steps and the figures of a run as Markdown, without the figures of failed steps.

    Args:
        directory: Directory with steps.tsv (name, outcome, seconds), machine.txt and the files of the steps.
    """
    steps = [line.split("\t") for line in (directory / "steps.tsv").read_text(encoding="utf-8").splitlines()]
    lines = ["```", (directory / "machine.txt").read_text(encoding="utf-8").strip(), "```", ""]
    lines += ["| step | outcome | s |", "|---|---|---|", *(f"| {' | '.join(step)} |" for step in steps), ""]
    quality = _read(directory / "eval" / "report.json").get("precisions", ())
    if quality:
        lines += ["| precision | engine | NDCG@10 | max difference of a logit from fp32 | overlap of the top 10 |"]
        lines += ["|---|---|---|---|---|", *map(_quality, quality), ""]
    figures = [*_engines(directory), *_triton(directory), *_loads(directory)]
    if figures:
        lines += ["| measured | documents/s | p50, ms | p99, ms |", "|---|---|---|---|", *figures, ""]
    return "\n".join(lines)


def _quality(found: dict[str, Any]) -> str:
    figures = f"{found['ndcg']:.4f} | {found['max_delta_logit']:.1e} | {found['top_10_overlap']:.3f}"
    return f"| {found['precision']} | {found['engine']} | {figures} |"


def _engines(directory: Path) -> Iterator[str]:
    report = _read(directory / "engines.json")
    for engine in report.get("engines", ()):
        text = f"{engine['name']} {engine['precision']}, one request at a time"
        delta = f"max difference of a logit from the first {engine['max_delta_logit']:.1e}"
        yield f"| {text}; {delta} | {engine['pairs_per_s']:,.0f} | | |"
    for rate in report.get("buckets", ()):
        text = f"{rate['engine']} {rate['precision']}, {rate['pairs_a_batch']} pairs of up to {rate['bucket']} tokens"
        yield f"| {text} | {rate['pairs_per_s']:,.0f} | | |"


def _triton(directory: Path) -> Iterator[str]:
    for series in _read(directory / "perf-analyzer.json").get("series", ()):
        best = max(series["points"], key=lambda point: float(point["documents_per_s"]))
        bucket = "text" if series["bucket"] is None else f"bucket {series['bucket']}"
        yield _row(f"perf_analyzer, {series['model']}, {bucket}", best["documents_per_s"], best["latency_ms"])


def _loads(directory: Path) -> Iterator[str]:
    """Yield a row for each setup: documents/s summed over the load generators, and the worst of their latencies."""
    for name in ("in-process", "triton"):
        loads = [_read(path)["load"] for path in sorted(directory.glob(f"load-{name}-*.json"))]
        if loads:
            latency = {p: max(load["latency_ms"][p] for load in loads) for p in ("p50", "p99")}
            speed = sum(load["documents_per_s"] for load in loads)
            yield _row(f"end to end over HTTP, {name}, {len(loads)} load generators", speed, latency)


def _row(text: str, documents_per_s: float, latency_ms: dict[str, float]) -> str:
    return f"| {text} | {documents_per_s:,.0f} | {latency_ms['p50']:,.1f} | {latency_ms['p99']:,.1f} |"


def _read(path: Path) -> dict[str, Any]:
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return report


def main(directory: Path) -> None:
    """Write summary.md into the directory and print it."""
    text = summarize(directory)
    (directory / "summary.md").write_text(text, encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
