"""Show the result of `make bench-peers` as a table and as a chart."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from crossrank_perf.base.plots import BETTER, NEUTRAL, new_figure, save_figure
from crossrank_perf.base.report import print_header, print_table
from lab.peers.contestants import IN_PROCESS, OVER_HTTP
from lab.peers.rounds import describe_setting

OWN = ("crossrank", "crossrank-http")
_BAR_HEIGHT_IN = 0.34


def print_peer_report(report: Mapping[str, Any]) -> None:
    """Print documents/s of every system and how many times as fast crossrank was, and the systems that failed."""
    from rich.table import Table

    print_header(report)
    table = Table()
    table.add_column("system", no_wrap=True)
    for title in ("documents/s (min - max)", "CPU s/1,000", "crossrank is faster by", "over HTTP by"):
        table.add_column(title, justify="right")
    table.add_column("precision, setting")
    for name, system in _by_speed(report):
        speed, cpu_s = system["documents_per_s"], system["cpu_s_per_1000_documents"]
        table.add_row(
            _label(name, system),
            f"{speed['median']:,.0f} ({speed['min']:,.0f} - {speed['max']:,.0f})",
            "-" if cpu_s is None else f"{cpu_s:.2f}",
            *(_ratio(system, own) for own in OWN),
            ", ".join(filter(None, (system["precision"], describe_setting(_setting(system))))),
        )
    print_table(table)
    for over, name in report["fastest_peer"].items():
        click.echo(f"fastest peer {over}: {name}")
    for name, reason in report["failed"].items():
        click.echo(f"{name} is left out: {reason}")


def plot_peers(report: Mapping[str, Any], path: Path) -> None:
    """Draw documents/s of every system as bars, each with a line from its slowest to its fastest round."""
    systems = _by_speed(report)[::-1]
    figure, (axis,) = new_figure(row_height_in=1.0 + _BAR_HEIGHT_IN * len(systems))
    for place, (name, system) in enumerate(systems):
        speed = system["documents_per_s"]
        low, high = speed["median"] - speed["min"], speed["max"] - speed["median"]
        axis.barh(
            place,
            speed["median"],
            xerr=[[low], [high]],
            color=BETTER if name in OWN else NEUTRAL,
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        ratio = _like_with_like(system)
        text = f"{speed['median']:,.0f}" + ("" if ratio is None else f"  (crossrank: {ratio:.1f} x)")
        axis.annotate(text, (speed["max"], place), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(range(len(systems)), [_label(name, system) for name, system in systems])
    axis.set_xlabel(
        f"documents/s, {report['workload']['documents_per_request']} documents a request; "
        f"median of {report['rounds']} rounds, line from the slowest to the fastest"
    )
    axis.grid(axis="y", visible=False)
    axis.margins(x=0.25)
    hardware = report["hardware"]
    axis.set_title(f"{hardware['cpu']}, {hardware['cores']} cores, {report['date'][:10]}", loc="left")
    save_figure(figure, path)


def _by_speed(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return sorted(report["systems"].items(), key=lambda each: -float(each[1]["documents_per_s"]["median"]))


def _label(name: str, system: Mapping[str, Any]) -> str:
    """Return a system's name; only crossrank's says `in process`, which most are."""
    if name == "crossrank" or system["over"] == OVER_HTTP:
        return f"{name.removesuffix('-http')} {system['over']}"
    return name


def _setting(system: Mapping[str, Any]) -> dict[str, int]:
    over_http = {"concurrency": system["concurrency"]} if "concurrency" in system else {}
    return {**system["setting"], **over_http}


def _ratio(system: Mapping[str, Any], own: str) -> str:
    if "crossrank_ratio" not in system:
        return ""
    ratio = system["crossrank_ratio"][own]
    return f"{ratio['median']:.1f} x ({ratio['min']:.1f} - {ratio['max']:.1f})"


def _like_with_like(system: Mapping[str, Any]) -> float | None:
    """Return the ratio to crossrank called in the same way."""
    if "crossrank_ratio" not in system:
        return None
    own = "crossrank" if system["over"] == IN_PROCESS else "crossrank-http"
    return float(system["crossrank_ratio"][own]["median"])
