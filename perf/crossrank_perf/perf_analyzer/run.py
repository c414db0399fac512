"""Run perf_analyzer once, at one concurrency, and read its figures.

Each point of a sweep is a run of its own, so that progress is seen and a run that fails is named.
"""

from __future__ import annotations

import csv
import re
import resource
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crossrank.errors import SetupError
from crossrank_perf.perf_analyzer.home import PerfAnalyzer

WINDOWS = 3
# perf_analyzer gives up, without any figure, where its windows differ by more than this many percent, as they do on a
# machine that others use. So any difference passes, and each window is reported.
_ANY_DIFFERENCE = "9999"
_TRIALS = 10
# Seconds for start, connection and the requests still under way after the last window.
_SPARE_S = 120.0
_PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Inference:
    """Requests to one model.

    Attributes:
        model: Name of the model in Triton.
        input_data: The `--input-data` file.
        shapes: Size of each input that has a variable axis.
        rows: perf_analyzer's batch size; 1 for a model that does not batch.
        documents: Documents in each request.
    """

    model: str
    input_data: Path
    shapes: Mapping[str, int]
    rows: int
    documents: int


@dataclass(frozen=True)
class Point:
    """Figures of one run.

    Attributes:
        concurrency: Requests under way at any time.
        requests: Number of requests measured.
        documents_per_s: Documents/s over all windows.
        window_documents_per_s: Documents/s in each window; far apart where other processes used the machine.
        latency_ms: Latency by percentile: p50, p90, p95, p99.
        queue_ms: Mean time that a request waited in Triton.
        compute_ms: Mean time that its execution took in Triton, input and output included.
        executions: Executions of the model in Triton, over all windows.
        documents_per_execution: Mean number of documents in an execution.
        client_cpu_s: CPU seconds of perf_analyzer itself, from its start on.
    """

    concurrency: int
    requests: int
    documents_per_s: float
    window_documents_per_s: list[float]
    latency_ms: dict[str, float]
    queue_ms: float
    compute_ms: float
    executions: int
    documents_per_execution: float
    client_cpu_s: float


def measure_point(
    analyzer: PerfAnalyzer, address: str, inference: Inference, concurrency: int, window_s: float
) -> Point:
    """Run perf_analyzer over gRPC for three windows.

    Args:
        analyzer: The program.
        address: `host:port` of Triton's gRPC service.
        inference: The requests.
        concurrency: Requests under way at any time.
        window_s: Seconds of a window.

    Raises:
        SetupError: perf_analyzer failed or did not end; the message holds what it printed last.
    """
    with tempfile.TemporaryDirectory(prefix="crossrank-perf-analyzer-") as folder:
        figures = Path(folder) / "figures.csv"
        command = [str(analyzer.binary), *_arguments(address, inference, concurrency, window_s), "-f", str(figures)]
        before = _children_cpu_s()
        try:
            done = subprocess.run(
                command,
                env=analyzer.environment(),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_TRIALS * window_s + _SPARE_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SetupError(
                f"perf_analyzer had no figure for {inference.model} after {error.timeout:g} s at concurrency "
                f"{concurrency}: does Triton still answer?"
            ) from None
        client_cpu_s = _children_cpu_s() - before
        if done.returncode != 0 or not figures.is_file():
            raise SetupError(
                f"perf_analyzer ended with exit code {done.returncode} for {inference.model} at concurrency "
                f"{concurrency}: {_last_words(done.stderr) or _last_words(done.stdout) or 'it said nothing'}"
            )
        return point_from_output(figures.read_text(), done.stdout, inference, client_cpu_s)


def _arguments(address: str, inference: Inference, concurrency: int, window_s: float) -> list[str]:
    arguments = ["-m", inference.model, "-i", "grpc", "-u", address, "-b", str(inference.rows)]
    arguments += ["--concurrency-range", f"{concurrency}:{concurrency}", "--percentile", "99"]
    arguments += ["--measurement-interval", str(round(1000 * window_s)), "--max-trials", str(_TRIALS)]
    arguments += ["--stability-percentage", _ANY_DIFFERENCE, "--input-data", str(inference.input_data)]
    for name, size in inference.shapes.items():
        arguments += ["--shape", f"{name}:{size}"]
    return [*arguments, "--verbose-csv", "-v"]


def point_from_output(figures: str, said: str, inference: Inference, client_cpu_s: float) -> Point:
    """Return the figures of a run from its CSV file and its verbose output.

    perf_analyzer counts rows as inferences, or requests where the model does not batch.

    Raises:
        SetupError: The format is not that of the version this was written for.
    """
    documents = inference.documents / inference.rows
    try:
        (row,) = csv.DictReader(figures.splitlines())
        server = said[said.index("Server:") :]
        executions, inferences = _count("Execution count", server), _count("Inference count", server)
        return Point(
            concurrency=int(row["Concurrency"]),
            requests=_count("Request count", said),
            documents_per_s=round(float(row["Inferences/Second"]) * documents, 1),
            window_documents_per_s=[
                round(float(rate) * documents, 1) for rate in re.findall(r"throughput: (\S+) infer/sec\. p99", said)
            ],
            latency_ms={name: int(row[f"{name} latency"]) / 1000 for name in _PERCENTILES},
            queue_ms=int(row["Server Queue"]) / 1000,
            compute_ms=sum(int(row[f"Server Compute {part}"]) for part in ("Input", "Infer", "Output")) / 1000,
            executions=executions,
            documents_per_execution=round(inferences * documents / executions, 1) if executions else 0.0,
            client_cpu_s=round(client_cpu_s, 3),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise SetupError(
            f"perf_analyzer's output is not as expected ({error}): use the version of make perf-analyzer-setup"
        ) from None


def _count(label: str, text: str) -> int:
    found = re.search(rf"{label}: (\d+)", text)
    if found is None:
        raise ValueError(f"no {label}")
    return int(found[1])


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _last_words(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # The last line says what failed, the line before it why.
    return " ".join(lines[-2:]).removeprefix("error: ")
