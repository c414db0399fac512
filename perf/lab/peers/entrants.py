"""Build the contestants of `make bench-peers`: crossrank itself and the chosen peers, not yet opened."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from crossrank_perf.base.server import free_ports, running_server_process, served_models, started_server
from crossrank_perf.base.workload import Workload
from lab.peers.contestants import Contestant, Setting, offline_environment
from lab.peers.in_process import WorkerContestant
from lab.peers.over_http import HttpContestant
from lab.peers.systems import PeerSystem


@dataclass(frozen=True)
class Lineup:
    """Parameters that all contestants share.

    Attributes:
        checkpoint: Hugging Face directory that the peers load.
        onnx: Directory with its plain ONNX export; unused where no peer needs one.
        environments: Directory with the peers' environments.
        model: Model that crossrank loads: the same weights.
        server_options: Settings of crossrank that the user chose.
        serve_arguments: The same, as arguments of `crossrank serve`.
        threads: Threads of every system that lets one choose.
        max_length: Most tokens of a pair.
        batch_sizes: Batch sizes to try where a system has one.
        concurrency: Requests under way at a server; where calls can overlap in process, tried beside 1.
    """

    checkpoint: Path
    onnx: Path
    environments: Path
    model: str
    server_options: dict[str, Any]
    serve_arguments: Sequence[str]
    threads: int
    max_length: int
    batch_sizes: Sequence[int]
    concurrency: int


def own_contestants(lineup: Lineup, workload: Workload) -> list[Contestant]:
    """Return crossrank over HTTP, whose scores are the reference, and in process."""

    @contextmanager
    def start(_: Setting) -> Iterator[tuple[str, int]]:
        with started_server(lineup.serve_arguments) as server:
            yield server.url, server.pid

    served = _CrossrankServer("crossrank-http", start, [{}], lineup.concurrency, workload, {})
    called = WorkerContestant(
        "crossrank", [sys.executable], "crossrank", workload, _load_message(lineup, lineup.server_options)
    )
    return [served, called]


class _CrossrankServer(HttpContestant):
    """crossrank over HTTP, which reports its models too."""

    def open(self) -> dict[str, Any]:
        facts = super().open()
        models = served_models(self.url)
        return {**facts, "precision": models[0]["precision"], "models": models}


def peer_contestant(peer: PeerSystem, lineup: Lineup, workload: Workload) -> Contestant:
    """Return the contestant of a peer, called in its own environment."""
    python = peer.python(lineup.environments)
    if peer.worker:
        # -I keeps this environment's packages out of the worker's import path.
        message = _load_message(lineup, dict(peer.options))
        return WorkerContestant(peer.name, [str(python), "-I"], peer.worker, workload, message)
    return HttpContestant(
        peer.name,
        partial(_infinity_server, python, lineup.checkpoint, lineup.threads),
        [{"batch_size": size} for size in lineup.batch_sizes],
        lineup.concurrency,
        workload,
        {"precision": "float32"},
    )


def _load_message(lineup: Lineup, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "checkpoint": str(lineup.checkpoint.resolve()),
        "onnx": str(lineup.onnx),
        "model": lineup.model,
        "options": options,
        "threads": lineup.threads,
        "max_length": lineup.max_length,
        "batch_sizes": list(lineup.batch_sizes),
        "concurrency": lineup.concurrency,
    }


@contextmanager
def _infinity_server(python: Path, checkpoint: Path, threads: int, setting: Setting) -> Iterator[tuple[str, int]]:
    """Run infinity's own server on a free port of 127.0.0.1, and yield its URL and process id."""
    (port,) = free_ports(1)
    command = [str(python.parent / "infinity_emb"), "v2", "--model-id", str(checkpoint.resolve()), "--engine", "torch"]
    command += ["--device", "cpu", "--batch-size", str(setting["batch_size"]), "--url-prefix", "/v1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    # PyTorch takes its threads from here.
    env = {**offline_environment(), "OMP_NUM_THREADS": str(threads)}
    with running_server_process(command, "infinity", port, "/health", env) as pid:
        yield f"http://127.0.0.1:{port}", pid
