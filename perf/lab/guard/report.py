"""Write the result of `make bench-guard` as Markdown, readable in a log and shown as a table by a forge."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


def markdown_from_guard(report: Mapping[str, Any]) -> str:
    """Return heading, table and warnings as Markdown."""
    return "\n".join(_lines(report))


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    for reason in report["not_compared"]:
        yield f"Not compared: {reason}"
        yield ""
    if report["baseline"] is None:
        yield "Warning: no baseline, so nothing is known about the speed of this tree."
        return
    hardware, baseline = report["hardware"], report["baseline"]
    yield f"### Speed of this tree beside {baseline['name']}"
    yield ""
    yield f"{hardware['cpu']}, {hardware['cores']} cores; {report['rounds']} rounds in turn, {report['date']}"
    yield ""
    yield "| load | documents/s | baseline | ratio (spread) | CPU time, of the baseline's |"
    yield "|---|---|---|---|---|"
    for each in report["comparisons"]:
        low, high = each["spread"]
        cpu = "-" if each["cpu_ratio"] is None else f"{each['cpu_ratio']:.2f}"
        yield (
            f"| {each['load']} | {each['documents_per_s']:,.0f} | {each['baseline_documents_per_s']:,.0f} "
            f"| {each['ratio']:.2f} ({low:.2f} - {high:.2f}) | {cpu} |"
        )
    yield ""
    yield from _verdict(report)


def _verdict(report: Mapping[str, Any]) -> Iterator[str]:
    limit, name = report["limit"], report["baseline"]["name"]
    engines = report["engine"], report["baseline"]["engine"]
    if None not in engines and engines[0] != engines[1]:
        yield f"Warning: this tree served with {engines[0]}, {name} with {engines[1]}: the ratios compare these."
    slow = [each for each in report["comparisons"] if each["below_limit"]]
    for each in slow:
        low, high = each["spread"]
        yield (
            f"Warning: with {each['load']} this tree does {each['ratio']:.2f} times the documents/s of {name}, and "
            f"{low:.2f} to {high:.2f} times over the rounds: below the limit of {limit:g}, by more than the rounds "
            "differ. Measure again on a quiet machine."
        )
    if not slow:
        yield f"Nothing is below {limit:g} times {name} by more than the rounds differ."
