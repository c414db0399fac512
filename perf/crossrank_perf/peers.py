"""crossrank beside sentence-transformers: the same weights and requests, taking turns in one run.

Turns cancel what a noisy machine does to one of them; the ratio is taken within a round, and the median over rounds.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from crossrank_perf import peer_worker
from crossrank_perf.load import LoadPlan
from crossrank_perf.measure import latency_ms, measure_load
from crossrank_perf.report import Progress
from crossrank_perf.serving import StartedServer, last_words, served_models
from crossrank_perf.workload import Workload
from crossrank_server.errors import SetupError

# bf16 against fp32 stays within 0.05; different weights differ by whole units.
_MAX_LOGIT_DIFFERENCE = 0.25
_COMPARED_REQUESTS = 5
_TUNING_SHARE = 0.5  # of a round, for each batch size
_STOP_LIMIT_S = 10.0


@dataclass(frozen=True)
class PeerPlan:
    """What is compared, and how long.

    Attributes:
        checkpoint: Hugging Face directory that the peers load.
        python: Interpreter of their environment.
        backends: Of CrossEncoder: torch, torch-bf16, onnx, openvino.
        batch_sizes: Tried for each back end; its best is used.
        threads: For each back end.
        rounds: Each system runs once in each.
        round_s: Seconds for each system in each round.
        concurrency: Requests under way at crossrank.
    """

    checkpoint: Path
    python: Path
    backends: Sequence[str]
    batch_sizes: Sequence[int]
    threads: int
    rounds: int
    round_s: float
    concurrency: int


class Peer:
    """A worker process with one back end loaded."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: Path) -> None:
        self.name = name
        self.batch_size = 0
        self._process = process
        self._log = log

    def ask(self, **message: Any) -> dict[str, Any]:
        """Send one message and return the answer.

        Raises:
            SetupError: The worker ended instead; with its last words.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise SetupError(f"{self.name} failed at {message['op']}: {last_words(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def documents_per_s(self, seconds: float, batch_size: int, documents: int) -> tuple[float, list[float]]:
        """Score requests for some seconds; return documents/s and the latency of each request."""
        answer = self.ask(op="run", seconds=seconds, batch_size=batch_size)
        latencies_s: list[float] = answer["latencies_s"]
        return len(latencies_s) * documents / answer["seconds"], latencies_s


def compare(server: StartedServer, workload: Workload, plan: PeerPlan) -> dict[str, Any]:
    """Run every system in turn and return the figures, ready for JSON.

    Raises:
        SetupError: A peer cannot be loaded, its scores are of other weights, or crossrank failed a request.
    """
    models = served_models(server.url)
    with ExitStack() as stack, Progress("peers") as progress:
        loaded = []
        for backend in plan.backends:
            progress.say(f"loading {backend}")
            peer = stack.enter_context(running_peer(plan.python, f"sentence-transformers {backend}"))
            facts = peer.ask(
                op="load",
                checkpoint=str(plan.checkpoint),
                backend=backend,
                threads=plan.threads,
                max_length=models[0]["max_length"],
                requests=[{"query": each.query, "documents": each.documents} for each in workload.requests],
            )
            facts["max_logit_difference"] = _check_same_scores(server.url, peer, workload, plan.batch_sizes[0])
            loaded.append((peer, facts))
        for peer, facts in loaded:
            progress.say(f"trying batch sizes on {peer.name}")
            facts |= _tune(peer, workload.documents, plan)
        speeds, latencies = _run_rounds(server, workload, plan, [peer for peer, _ in loaded], progress)
    systems: dict[str, Any] = {"crossrank": {"documents_per_s": _spread(speeds["crossrank"])}}
    for peer, facts in loaded:
        ratios = [own / other for own, other in zip(speeds["crossrank"], speeds[peer.name], strict=True)]
        systems[peer.name] = {
            "documents_per_s": _spread(speeds[peer.name]),
            "crossrank_ratio": _spread(ratios),
            "latency_ms": latency_ms(latencies[peer.name]),
            **facts,
        }
    fastest = max((peer.name for peer, _ in loaded), key=lambda name: median(speeds[name]))
    return {
        "server": {"models": models, "concurrency": plan.concurrency, "over": "HTTP"},
        "plan": {"rounds": plan.rounds, "round_s": plan.round_s, "peer_threads": plan.threads, "over": "function call"},
        "fastest_peer": fastest,
        "systems": systems,
    }


def check_python(python: Path) -> None:
    """Raise SetupError where the peers' interpreter is missing, before minutes are spent."""
    if not os.access(python, os.X_OK):
        raise SetupError(
            f"no Python at {python}: make peers prepares the peers' environment, or name another with --python"
        )


@contextmanager
def running_peer(python: Path, name: str) -> Iterator[Peer]:
    """Start a worker in the peers' environment, and end it afterwards."""
    with tempfile.TemporaryDirectory() as directory:
        log = Path(directory) / "peer.log"
        with log.open("wb") as errors:
            # -I keeps this package's directory out of the worker's import path.
            process = subprocess.Popen(
                [str(python), "-I", peer_worker.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"},
            )
        try:
            yield Peer(name, process, log)
        finally:
            # The end of its input ends a worker; one that still computes is not waited for long.
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.communicate(timeout=_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def _check_same_scores(url: str, peer: Peer, workload: Workload, batch_size: int) -> float:
    """Return the largest difference of logits over a few requests."""
    import httpx

    worst = 0.0
    for number, request in enumerate(workload.requests[:_COMPARED_REQUESTS]):
        body = {"query": request.query, "documents": request.documents, "raw_scores": True}
        response = httpx.post(f"{url}/v1/rerank", json=body, timeout=60)
        if response.status_code != 200:
            raise SetupError(f"{url}/v1/rerank answered {response.status_code}: {response.text[:300]}")
        own = {each["index"]: each["relevance_score"] for each in response.json()["results"]}
        theirs = peer.ask(op="score", request=number, batch_size=batch_size)["logits"]
        worst = max(worst, *(abs(own[index] - logit) for index, logit in enumerate(theirs)))
    if worst > _MAX_LOGIT_DIFFERENCE:
        raise SetupError(
            f"scores of crossrank and {peer.name} differ by up to {worst:.3f}, more than {_MAX_LOGIT_DIFFERENCE}: "
            "these are not the same weights; give the --checkpoint of the --model"
        )
    return round(worst, 6)


def _tune(peer: Peer, documents: int, plan: PeerPlan) -> dict[str, Any]:
    """Choose the faster batch size, after one short run of each to warm up."""
    tried = {}
    for warm in (True, False):
        for size in plan.batch_sizes:
            seconds = plan.round_s * _TUNING_SHARE * (0.25 if warm else 1)
            tried[size] = round(peer.documents_per_s(seconds, size, documents)[0], 1)
    peer.batch_size = max(tried, key=lambda size: tried[size])
    return {"batch_size": peer.batch_size, "tried_documents_per_s": {str(size): speed for size, speed in tried.items()}}


def _run_rounds(
    server: StartedServer, workload: Workload, plan: PeerPlan, peers: Sequence[Peer], progress: Progress
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return documents/s of every system in every round, and the peers' latencies."""
    bodies = workload.bodies()
    speeds: dict[str, list[float]] = {"crossrank": [], **{peer.name: [] for peer in peers}}
    latencies: dict[str, list[float]] = {peer.name: [] for peer in peers}
    for number in range(1, plan.rounds + 1):
        for peer in peers:
            progress.say(f"round {number} of {plan.rounds}, {peer.name}")
            speed, took = peer.documents_per_s(plan.round_s, peer.batch_size, workload.documents)
            speeds[peer.name].append(speed)
            latencies[peer.name] += took
        progress.say(f"round {number} of {plan.rounds}, crossrank")
        speeds["crossrank"].append(_crossrank_documents_per_s(server, bodies, workload.documents, plan))
    return speeds, latencies


def _crossrank_documents_per_s(server: StartedServer, bodies: Sequence[bytes], documents: int, plan: PeerPlan) -> float:
    load = LoadPlan(
        documents=documents, concurrency=plan.concurrency, warm_up_s=plan.round_s * 0.1, duration_s=plan.round_s
    )
    figures = measure_load(server.url, server.pid, bodies, load, lambda _: None)
    if figures["errors"]:
        raise SetupError(f"crossrank failed requests: {figures['error_examples']}")
    return float(figures["documents_per_s"])


def _spread(values: Iterable[float]) -> dict[str, Any]:
    each = [round(value, 3) for value in values]
    return {"median": round(median(each), 3), "min": min(each), "max": max(each), "rounds": each}
