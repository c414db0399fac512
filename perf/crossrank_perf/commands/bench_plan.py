"""`crossrank bench plan`: the machines that a load needs, and their cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import POSITIVE

if TYPE_CHECKING:
    from crossrank_perf.plan.capacity import CapacityModel, MachinePlan
    from crossrank_perf.plan.fit import Check

# Measured on a host with an H200 (perf/results/gpu-nvidia-h200): 174,569 documents/s over HTTP with 4.83 cores of the
# server's busy (server_cpu_s), and what engine cuda does alone in three lanes, full batches of up to 96 tokens.
_GATEWAY_DOCUMENTS_PER_S = 36_000.0
_GPU_DOCUMENTS_PER_S = 1_294_000.0
_READABLE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--qps", type=POSITIVE, required=True, help="Requests/s, arriving at random.")
@click.option("--docs", type=click.IntRange(min=1), default=100, show_default=True, help="Documents in each request.")
@click.option(
    "--tokens",
    type=click.IntRange(4, 512),
    default=95,
    show_default=True,
    help="Mean tokens of a query with a document.",
)
@click.option(
    "--p99", type=POSITIVE, default=100.0, show_default=True, help="Limit of the p99 latency, in milliseconds."
)
@click.option(
    "--measured",
    type=_READABLE,
    default=Path("perf/results/scaling.json"),
    show_default=True,
    help="Report of make bench-scaling, in a checkout of crossrank on the machine that is to serve.",
)
@click.option(
    "--check",
    "checked",
    type=_READABLE,
    multiple=True,
    help="Report of crossrank bench load on the same machine, with --rate or --sweep for latency: what it measured is "
    "shown beside the prediction. Repeat it.",
)
@click.option("--usd-per-machine-hour", type=POSITIVE, help="Price of the measured machine.")
@click.option("--usd-per-gpu-hour", type=POSITIVE, help="Price of a GPU.")
@click.option(
    "--gpu-documents-per-s",
    type=POSITIVE,
    default=_GPU_DOCUMENTS_PER_S,
    show_default=True,
    help="What one GPU does, at 95 tokens; the default was measured on an H200.",
)
@click.option(
    "--gateway-documents-per-s",
    type=POSITIVE,
    default=_GATEWAY_DOCUMENTS_PER_S,
    show_default=True,
    help="What one core of the processes in front of a GPU does; the default was measured beside that H200.",
)
@click.option(
    "--json", "json_path", type=click.Path(dir_okay=False, path_type=Path), help="Write plan and checks to this file."
)
def plan(qps: float, docs: int, tokens: int, p99: float, measured: Path, **options: Any) -> None:
    """Tell how many gateways, cores and GPUs a load needs, and the cost of 1,000 documents.

    Machines without GPU are planned from measurements of one such machine; a third of the measurements is left out of
    the fit and shown beside its prediction. Machines with GPUs are planned from two figures of one H200, or from yours,
    on the assumption that enough processes feed one GPU at its full rate.

    \b
    Examples:
      make bench-scaling BENCH_ARGS="--json scaling.json"
      crossrank bench plan --measured scaling.json --qps 50 --docs 100 --p99 100
      crossrank bench load --documents 50 --sweep 30,50,70 --json load.json
      crossrank bench plan --measured scaling.json --check load.json --qps 10000 --usd-per-machine-hour 0.10
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.base.report import check_writable, write_json
    from crossrank_perf.plan.capacity import PUBLISHED_USD, plan_machines
    from crossrank_perf.plan.fit import checks_from_load, fit_capacity

    json_path: Path | None = options["json_path"]
    if json_path:
        check_writable(json_path)
    report = _read(measured)
    model, checks = fit_capacity(report)
    for path in options["checked"]:
        checks += checks_from_load(model, _read(path))
    made = plan_machines(model, qps, docs, tokens, p99 / 1e3)
    gpus = _with_gpus(made.documents_per_s, tokens, options)
    result = {
        "kind": "plan",
        "load": {"qps": qps, "documents": docs, "tokens": tokens, "p99_ms": p99},
        "measured_on": {key: report[key] for key in ("hardware", "versions", "date") if key in report},
        "cpu": _with_cpus(made, model, options["usd_per_machine_hour"]),
        "gpu": gpus,
        "published_usd_per_1000_documents": PUBLISHED_USD,
        "checks": [{**vars(check), "error": round(check.error, 3)} for check in checks],
    }
    _print(result, checks)
    if json_path:
        write_json(json_path, result)


def _read(path: Path) -> dict[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SetupError(f"{path} is no JSON report of a benchmark: {error}") from None
    if not isinstance(report, dict):
        raise SetupError(f"{path} is no report of a benchmark: it holds no object")
    return report


def _with_cpus(made: MachinePlan, model: CapacityModel, usd_per_hour: float | None) -> dict[str, Any]:
    from crossrank_perf.plan.capacity import usd_per_1000_documents

    cost = None if usd_per_hour is None else usd_per_1000_documents(made.machines, usd_per_hour, made.documents_per_s)
    return {
        "gateways": made.machines,
        "cores": made.machines * model.cores,
        "utilization": round(made.utilization, 3),
        "p99_ms": round(made.p99_s * 1e3, 1),
        "usd_per_1000_documents": cost,
    }


def _with_gpus(documents_per_s: float, tokens: int, options: dict[str, Any]) -> dict[str, Any]:
    """Return GPUs and gateway cores for a rate; the work of a document grows with its tokens."""
    from crossrank_perf.plan.capacity import MAX_UTILIZATION, MEAN_PAIR_TOKENS, usd_per_1000_documents

    share = tokens / MEAN_PAIR_TOKENS
    gpus = math.ceil(documents_per_s * share / (options["gpu_documents_per_s"] * MAX_UTILIZATION))
    cores = math.ceil(documents_per_s * share / (options["gateway_documents_per_s"] * MAX_UTILIZATION))
    price = options["usd_per_gpu_hour"]
    return {
        "gpus": gpus,
        "gateway_cores": cores,
        "gpu_documents_per_s": options["gpu_documents_per_s"],
        "gateway_documents_per_s_per_core": options["gateway_documents_per_s"],
        "usd_per_1000_documents": None if price is None else usd_per_1000_documents(gpus, price, documents_per_s),
    }


def _print(result: dict[str, Any], checks: list[Check]) -> None:
    from rich.console import Console
    from rich.table import Table

    from crossrank_perf.plan.fit import worst

    load, cpu, gpu = result["load"], result["cpu"], result["gpu"]
    hardware = result["measured_on"].get("hardware", {})
    documents_per_s = load["qps"] * load["documents"]
    click.echo(
        f"{load['qps']:,g} requests/s of {load['documents']} documents of {load['tokens']} tokens: "
        f"{documents_per_s:,.0f} documents/s, p99 within {load['p99_ms']:g} ms"
    )
    click.echo(
        f"by measurement ({hardware.get('cpu')}, {hardware.get('cores')} cores each): {cpu['gateways']:,} gateways, "
        f"{cpu['cores']:,} cores, busy {cpu['utilization']:.0%}, p99 {cpu['p99_ms']:g} ms{_cost(cpu)}"
    )
    click.echo(
        f"with GPUs, if enough processes can feed one at its full rate ({gpu['gpu_documents_per_s']:,.0f} documents/s "
        f"a GPU, {gpu['gateway_documents_per_s_per_core']:,.0f} a core in front of it): {gpu['gpus']:,} GPUs, "
        f"{gpu['gateway_cores']:,} gateway cores{_cost(gpu)}"
    )
    table = Table(title="measurements that the model has not seen")
    for title in ("what", "predicted", "measured", "error"):
        table.add_column(title, justify="left" if title == "what" else "right")
    for check in checks:
        table.add_row(check.what, f"{check.predicted:,.1f}", f"{check.measured:,.1f}", f"{check.error:+.0%}")
    Console(width=120).print(table)
    click.echo(f"largest error {worst(checks):.0%}: plan with at least that much in reserve")
    click.echo(
        "to check the planned load on one machine like it: crossrank bench load "
        f"--documents {load['documents']} --rate {load['qps'] / cpu['gateways']:.4g} --json load.json, then add "
        "--check load.json"
    )


def _cost(part: dict[str, Any]) -> str:
    from crossrank_perf.plan.capacity import PUBLISHED_USD

    cost = part["usd_per_1000_documents"]
    return "" if cost is None else f", {cost:.6f} USD per 1,000 documents (published: {PUBLISHED_USD})"
