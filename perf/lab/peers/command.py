"""`make bench-peers`: compare with other libraries and servers on the same weights and requests."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crossrank.errors import SetupError
from crossrank_perf.commands.options import (
    SERVER_OPTIONS,
    check_installed,
    chosen_workload,
    plot_option,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.commands.options import options_from_settings
from crossrank_server.settings import ServeSettings
from lab.peers.systems import PEERS

if TYPE_CHECKING:
    from crossrank_perf.base.workload import Workload
    from lab.peers.entrants import Lineup


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Hugging Face directory with the weights that crossrank serves: the peers load it, or its ONNX export.",
)
@click.option(
    "--model", "-m", default="builtin", show_default=True, help="Model that crossrank serves: the same weights."
)
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(list(PEERS)),
    help="Systems to compare with; repeat it.  [default: all]",
)
@click.option(
    "--environments",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    show_default=True,
    help="Directory with .venv-peer-NAME for each system (make peers).",
)
@click.option(
    "--batch-size",
    "batch_sizes",
    multiple=True,
    type=click.IntRange(min=1),
    default=[32, 100],
    show_default=True,
    help="Tried for each peer before the rounds; its best is used. Repeat it.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=3),
    default=5,
    show_default=True,
    help="Number of rounds; every system runs in each.",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.2),
    default=5.0,
    show_default=True,
    help="Seconds for each system in each round.",
)
@click.option(
    "--concurrency",
    "-c",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Requests under way at a server; in process it is tried beside 1 where calls can overlap.",
)
@plot_option("Draw the result as a chart into this file")
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def peers(
    checkpoint: Path, model: str, peers: tuple[str, ...], json_path: Path | None, plot: Path | None, **options: Any
) -> None:
    """Compare with other libraries and servers: same weights, same requests, interleaved in one run.

    Every system is called in process, texts in, scores out, by one caller or by several where it takes several; those
    that serve are measured over HTTP too. They use as many threads as crossrank, each with its best batch size. Scores
    are compared first. A system that fails is left out and named at the end, with exit code 1; --json holds the rounds
    so far also when the run is interrupted.

    All systems with the default rounds take about nine minutes.

    \b
    Examples:
      make bench-peers BENCH_ARGS="--checkpoint ../shared/models/crossrank-mini --json perf/results/peers.json"
      make bench-peers BENCH_ARGS="--checkpoint DIR --peer sentence-transformers-openvino --rounds 7"
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.base.environment import describe_run
    from crossrank_perf.base.report import check_writable, write_json
    from lab.peers.report import plot_peers, print_peer_report
    from lab.peers.systems import check_environments, export_plain_onnx

    check_installed()
    chosen = [PEERS[name] for name in peers or PEERS]
    check_environments(chosen, options["environments"])
    for path in (json_path, plot):
        if path:
            check_writable(path)
    workload = chosen_workload(options)
    report: dict[str, Any] = {"kind": "peers", **describe_run("python -m lab"), "workload": workload_facts(workload)}

    def keep(figures: dict[str, Any]) -> None:
        report.update(figures)
        # Where the other benchmarks have it, too.
        report["server"] = {"models": report["systems"]["crossrank-http"].pop("models")}
        if json_path:
            write_json(json_path, report)

    with tempfile.TemporaryDirectory(prefix="crossrank-peers-") as folder:
        onnx = Path(folder)
        if any(peer.needs_onnx for peer in chosen):
            export_plain_onnx(checkpoint, onnx)
        _compare(_lineup(checkpoint, onnx, model, options), workload, [peer.name for peer in chosen], options, keep)
    print_peer_report(report)
    if plot:
        plot_peers(report, plot)
    if report["failed"]:
        raise SetupError(f"{len(report['failed'])} of {len(chosen)} peers failed: {', '.join(report['failed'])}")


def _lineup(checkpoint: Path, onnx: Path, model: str, options: dict[str, Any]) -> Lineup:
    from crossrank.engines.cpu import available_cores
    from crossrank.resolve import resolve_model
    from lab.peers.entrants import Lineup

    return Lineup(
        checkpoint=checkpoint,
        onnx=onnx,
        environments=options["environments"],
        model=model,
        server_options={name: options[name] for name in sorted(SERVER_OPTIONS) if options[name] is not None},
        serve_arguments=server_arguments(model, options),
        threads=options["threads"] or available_cores(),
        max_length=resolve_model(model).manifest.max_length,
        batch_sizes=options["batch_sizes"],
        concurrency=options["concurrency"],
    )


def _compare(lineup: Lineup, workload: Workload, names: list[str], options: dict[str, Any], keep: Any) -> None:
    from crossrank_perf.base.report import Progress
    from lab.peers.entrants import own_contestants, peer_contestant
    from lab.peers.rounds import Rounds, compare

    contestants = [peer_contestant(PEERS[name], lineup, workload) for name in names]
    rounds = Rounds(options["rounds"], options["seconds"], min(5, len(workload.requests)))
    with Progress("peers") as progress:
        compare(own_contestants(lineup, workload), contestants, rounds, progress, keep)
