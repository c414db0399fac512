"""`crossrank bench load`: the load generator against one server."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank_perf.commands.bench_options import (
    SERVER_OPTIONS,
    check_installed,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.errors import SetupError
from crossrank_server.options import options_from_settings
from crossrank_server.settings import ServeSettings

if TYPE_CHECKING:
    from crossrank_perf.load import LoadPlan
    from crossrank_perf.serving import StartedServer
    from crossrank_perf.workload import Workload

_SINGLE_SHARE = 0.25  # of the duration, spent on single documents


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
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Open loop instead: mean requests/s at random times; latency counts from when each was due.",
)
@click.option(
    "--duration", type=click.FloatRange(min=0, min_open=True), default=20.0, show_default=True, help="Seconds measured."
)
@click.option("--requests", type=click.IntRange(min=1), help="Measure this many requests instead of --duration.")
@click.option("--warm-up", type=click.FloatRange(min=0), default=3.0, show_default=True, help="Seconds before that.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=60.0,
    show_default=True,
    help="Seconds after which a request counts as failed.",
)
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def load(
    url: str | None, grpc: bool, pid: int | None, model: str | None, json_path: Path | None, **options: Any
) -> None:
    """Send requests to a server and report documents/s, latency, errors, CPU and memory.

    Without --url the server is started here, and its time to ready, its memory and the latency of single documents
    are measured too. A server with keys gets the one of CROSSRANK_API_KEY. Exit code 1 if any request failed.

    \b
    Examples:
      crossrank bench load --duration 30 --json result.json
      crossrank bench load --engine onnxruntime --precision fp32 --concurrency 8
      crossrank bench load --grpc --concurrency 8
      crossrank bench load --url http://127.0.0.1:8000 --documents 1 --rate 200
      crossrank bench load --url grpc://127.0.0.1:9000
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.environment import describe_run
    from crossrank_perf.load import LoadPlan
    from crossrank_perf.report import check_writable, print_load_report, write_json
    from crossrank_perf.senders import check_url
    from crossrank_perf.serving import find_pid, started_server
    from crossrank_perf.workload import load_workload

    check_installed()
    _refuse_contradictions(url, grpc, pid, model, options)
    if json_path:
        check_writable(json_path)
    workload = load_workload(
        options["candidates"], options["documents"], synthetic=options["synthetic"], seed=options["seed"]
    )
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
    if url is not None:
        base = check_url(url)
        report |= _measure(base, pid or find_pid(base), workload, plan)
    else:
        with started_server(server_arguments(model, options), grpc=grpc) as server:
            report |= _measure_started(server, workload, plan)
    print_load_report(report)
    if json_path:
        write_json(json_path, report)
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


def _measure(url: str, pid: int | None, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    from crossrank_perf.serving import served_models

    return {"server": {"url": url, "models": served_models(url)}, "load": _put_load(url, pid, workload, plan)}


def _put_load(url: str, pid: int | None, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    from crossrank_perf.measure import measure_load
    from crossrank_perf.report import Progress
    from crossrank_perf.senders import is_grpc

    documents = "1 document" if plan.documents == 1 else f"{plan.documents} documents"
    how = f"concurrency {plan.concurrency}" if plan.rate is None else f"{plan.rate:g} requests/s"
    how += ", gRPC" if is_grpc(url) else ""
    bodies = workload.bodies(grpc=is_grpc(url))
    with Progress(f"{documents} a request, {how}") as progress:
        return measure_load(url, pid, bodies, plan, lambda tick: progress.load_tick(plan.documents, tick))


def _measure_started(server: StartedServer, workload: Workload, plan: LoadPlan) -> dict[str, Any]:
    """Measure start, single documents and load, in this order: memory at ready is that of an idle server."""
    from dataclasses import replace

    from crossrank_perf.serving import Usage
    from crossrank_perf.workload import single_documents

    idle = Usage(server.pid)
    idle.sample()
    start = {
        "start_to_ready_s": round(server.start_to_ready_s, 3),
        "rss_at_ready_mb": round((idle.peak_rss_bytes or 0) / 1e6, 1),
    }
    single_plan = replace(
        plan,
        documents=1,
        concurrency=1,
        rate=None,
        requests=None,
        warm_up_s=min(1.0, plan.warm_up_s),
        duration_s=max(1.0, plan.duration_s * _SINGLE_SHARE),
    )
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
    from crossrank_perf.report import LOADS

    for name in LOADS:
        figures = report.get(name, {"errors": {}})
        failed = sum(figures["errors"].values())
        if failed:
            first = "; ".join(f"{kind}: {message}" for kind, message in figures["error_examples"].items())
            raise SetupError(f"{failed} of {failed + figures['requests']} requests failed: {first}")
