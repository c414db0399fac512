"""`crossrank bench load`: load a server and report throughput and latency."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import (
    POSITIVE,
    SERVER_OPTIONS,
    check_installed,
    chosen_workload,
    parse_numbers,
    plot_option,
    rate_option,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.commands.options import options_from_settings
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank_perf.base.server import StartedServer
    from crossrank_perf.base.workload import Workload
    from crossrank_perf.load.plan import LoadPlan

_SHARES_PERCENT = "10,30,50,60,70,80,90"


@click.command()
@click.option(
    "--url", help="Base URL of a running server, http:// or grpc://. Without it one is started for the measurement."
)
@click.option("--grpc", is_flag=True, help="Start the server with gRPC too and measure that beside HTTP.")
@click.option("--pid", type=click.IntRange(min=1), help="That server's process; found by its port if omitted.")
@click.option("--model", "-m", help="What the started server serves, as for crossrank serve.  [default: builtin]")
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="Closed loop: requests under way at any time.",
)
@rate_option("Open loop instead: mean requests/s at random times; latency counts from when each was due.")
@click.option(
    "--sweep",
    "shares",
    is_flag=False,
    flag_value=_SHARES_PERCENT,
    callback=parse_numbers,
    metavar="[PERCENTS]",
    help="After the closed loop, measure the open loop at these percentages of the requests/s that it reached.  "
    f"[{_SHARES_PERCENT} if none are named]",
)
@plot_option("Draw the latencies of --sweep against the rate")
@click.option("--duration", type=POSITIVE, default=20.0, show_default=True, help="Seconds measured, of each load.")
@click.option("--requests", type=click.IntRange(min=1), help="Measure this many requests instead of --duration.")
@click.option("--warm-up", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds before that.")
@click.option(
    "--timeout",
    type=POSITIVE,
    default=60.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def load(
    url: str | None,
    grpc: bool,
    pid: int | None,
    model: str | None,
    shares: tuple[int, ...],
    plot: Path | None,
    json_path: Path | None,
    **options: Any,
) -> None:
    """Send requests to a server and report documents/s, latency, errors, CPU and memory.

    Without --url the server is started here, and its time to ready, its memory and the latency of single documents
    are measured too. A server with keys gets the one of CROSSRANK_API_KEY. Exit code 1 if any request failed.

    --sweep tells how latency grows with the rate, without coordinated omission: requests come at random times whether
    or not earlier ones are answered, and each is timed from when it was due.

    \b
    Examples:
      crossrank bench load --duration 30 --json result.json
      crossrank bench load --engine onnxruntime --precision fp32 --concurrency 8
      crossrank bench load --grpc --concurrency 8
      crossrank bench load --sweep --duration 60 --plot latency.svg --json latency.json
      crossrank bench load --url http://127.0.0.1:8000 --documents 1 --rate 200
      crossrank bench load --url grpc://127.0.0.1:9000
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.processes import find_pid
    from crossrank_perf.base.report import check_writable, write_json
    from crossrank_perf.base.server import started_server
    from crossrank_perf.load.plan import LoadPlan
    from crossrank_perf.load.report import print_load_report
    from crossrank_perf.load.senders import check_url
    from crossrank_perf.load.sweep import check_shares, sweep_rates
    from crossrank_perf.load.sweep_report import plot_sweep, print_sweep_report

    check_installed()
    _refuse_contradictions(url, grpc, pid, model, options)
    _refuse_half_a_sweep(shares, plot, grpc, options["rate"])
    check_shares(shares)
    for path in (json_path, plot):
        if path:
            check_writable(path)
    workload = chosen_workload(options)
    plan = LoadPlan(
        documents=options["documents"],
        concurrency=options["concurrency"],
        rate=options["rate"],
        warm_up_s=options["warm_up"],
        duration_s=options["duration"],
        requests=options["requests"],
        timeout_s=options["timeout"],
        seed=options["seed"],
    )
    report: dict[str, Any] = {"kind": "load", **describe_run(), "workload": workload_facts(workload)}
    with ExitStack() as stack:
        if url is not None:
            base = check_url(url)
            process = pid or find_pid(base)
            report |= _measure(base, process, workload, plan)
        else:
            server = stack.enter_context(started_server(server_arguments(model, options), grpc=grpc))
            base, process = server.url, server.pid
            report |= _measure_started(server, workload, plan)
        if shares:
            capacity_per_s = report["load"]["requests_per_s"]
            report |= sweep_rates(partial(_put_load, base, process), workload, plan, capacity_per_s, shares)
    print_load_report(report)
    if shares:
        print_sweep_report(report)
    if json_path:
        write_json(json_path, report)
    if plot:
        plot_sweep(report, plot)
    _fail_on_errors(report)


def _refuse_contradictions(
    url: str | None, grpc: bool, pid: int | None, model: str | None, options: dict[str, Any]
) -> None:
    given = [f"--{name}" for name in sorted(SERVER_OPTIONS) if options[name] is not None]
    given += [name for name, value in (("--model", model), ("--grpc", grpc)) if value]
    if url is not None and given:
        raise click.UsageError(f"{', '.join(given)} would start a server, but --url names one that runs; drop either")
    if url is None and pid is not None:
        raise click.UsageError("--pid belongs to --url: a server started here is known")


def _refuse_half_a_sweep(shares: tuple[int, ...], plot: Path | None, grpc: bool, rate: float | None) -> None:
    if shares and rate is not None:
        raise click.UsageError("--sweep finds its rates itself: drop --rate")
    if shares and grpc:
        raise click.UsageError("--sweep takes one protocol: drop --grpc, or name a server by --url grpc://..")
    if plot and not shares:
        raise click.UsageError("--plot draws a sweep: add --sweep")


def _measure(url: str, pid: int | None, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    from crossrank_perf.base.server import served_models

    return {"server": {"url": url, "models": served_models(url)}, "load": _put_load(url, pid, workload, plan)}


def _put_load(url: str, pid: int | None, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    from crossrank_perf.base.report import Progress, count_documents
    from crossrank_perf.load.measure import measure_load
    from crossrank_perf.load.report import show_tick
    from crossrank_perf.load.senders import is_grpc

    how = f"concurrency {plan.concurrency}" if plan.rate is None else f"{plan.rate:g} requests/s"
    how += ", gRPC" if is_grpc(url) else ""
    bodies = workload.bodies(grpc=is_grpc(url))
    with Progress(f"{count_documents(plan.documents)} a request, {how}") as progress:
        return measure_load(url, pid, bodies, plan, lambda tick: show_tick(progress, plan.documents, tick))


def _measure_started(server: StartedServer, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    """Measure start, single documents and load, in this order: memory at ready is that of an idle server."""
    from crossrank_perf.base.processes import Usage
    from crossrank_perf.base.workload import single_documents
    from crossrank_perf.load.sweep import alone_plan

    idle = Usage(server.pid)
    idle.sample()
    start = {
        "start_to_ready_s": round(server.start_to_ready_s, 3),
        "rss_at_ready_mb": round((idle.peak_rss_bytes or 0) / 1e6, 1),
    }
    single_plan = alone_plan(plan, 1)
    single = single_documents(workload)
    report: dict[str, Any] = {"single_document": _put_load(server.url, server.pid, single, single_plan)}
    if server.grpc_url:
        report["grpc_single_document"] = _put_load(server.grpc_url, server.pid, single, single_plan)
    report |= _measure(server.url, server.pid, workload, plan)
    report["server"] |= start
    if server.grpc_url:
        report["grpc_load"] = _put_load(server.grpc_url, server.pid, workload, plan)
    return report


def _fail_on_errors(report: dict[str, Any]) -> None:
    from crossrank_perf.load.report import LOADS

    alone = [report[name] for name in (*LOADS, "load_after") if name in report]
    for figures in (*alone, *report.get("idle", ()), *report.get("rates", ())):
        failed = sum(figures["errors"].values())
        if failed:
            first = "; ".join(f"{kind}: {message}" for kind, message in figures["error_examples"].items())
            raise SetupError(f"{failed} of {failed + figures['requests']} requests failed: {first}")
