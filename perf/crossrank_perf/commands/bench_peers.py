"""`crossrank bench peers`: the same work done by sentence-transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from crossrank_perf.commands.bench_options import (
    SERVER_OPTIONS,
    check_installed,
    server_arguments,
    workload_facts,
    workload_options,
)
from crossrank_server.options import options_from_settings
from crossrank_server.settings import ServeSettings


@click.command()
@click.option(
    "--checkpoint",
    required=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Hugging Face directory with the weights that crossrank serves: the peers load it.",
)
@click.option("--model", "-m", default="builtin", show_default=True, help="What crossrank serves: the same weights.")
@click.option(
    "--peer",
    "peers",
    multiple=True,
    type=click.Choice(["torch", "torch-bf16", "onnx", "openvino"]),
    help="Back ends of sentence-transformers' CrossEncoder to compare with; repeat it.  [default: all four]",
)
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    default=Path(".venv-peers/bin/python"),
    show_default=True,
    help="Python of the environment that holds the peers (make peers).",
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
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True, help="Every system runs in each.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.2), default=5.0, show_default=True, help="For each system in each round."
)
@click.option("--concurrency", "-c", type=click.IntRange(min=1), default=4, show_default=True, help="Of crossrank.")
@workload_options
@options_from_settings(ServeSettings, only=SERVER_OPTIONS)
def peers(checkpoint: Path, model: str, peers: tuple[str, ...], json_path: Path | None, **options: Any) -> None:
    """Compare with sentence-transformers: same weights, same requests, interleaved in one run.

    crossrank answers over HTTP, JSON included; the peers are called in their own process, texts in, scores out,
    which favours them. They use as many threads as crossrank. Scores are compared too.

    \b
    Examples:
      make peers
      crossrank bench peers --checkpoint ../shared/models/crossrank-mini --json perf/results/peers.json
      crossrank bench peers --checkpoint DIR --peer openvino --rounds 7 --seconds 10
    """  # noqa: D301 - click reads the backspace itself
    from crossrank_perf.environment import available_cores, describe_run
    from crossrank_perf.peers import PeerPlan, check_python, compare
    from crossrank_perf.report import check_writable, print_peer_report, write_json
    from crossrank_perf.serving import started_server
    from crossrank_perf.workload import load_workload

    check_installed()
    check_python(options["python"])
    if json_path:
        check_writable(json_path)
    workload = load_workload(
        options["candidates"], options["documents"], synthetic=options["synthetic"], seed=options["seed"]
    )
    plan = PeerPlan(
        checkpoint=checkpoint,
        python=options["python"],
        backends=peers or ("torch", "torch-bf16", "onnx", "openvino"),
        batch_sizes=options["batch_sizes"],
        threads=options["threads"] or available_cores(),
        rounds=options["rounds"],
        round_s=options["seconds"],
        concurrency=options["concurrency"],
    )
    report: dict[str, Any] = {"kind": "peers", **describe_run(), "workload": workload_facts(workload)}
    with started_server(server_arguments(model, options)) as server:
        report |= compare(server, workload, plan)
    print_peer_report(report)
    if json_path:
        write_json(json_path, report)
