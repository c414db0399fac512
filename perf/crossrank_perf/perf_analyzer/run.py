"""One run of perf_analyzer: a model, an input file and a number of requests under way, to figures.

Each figure of a sweep is a run of its own, so that progress shows and one that fails is named.
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
# It gives up, without any figure, where its windows differ more than this share in percent. On a machine that others
# use they do; so all differences are let pass here, and each window is reported.
_ANY_DIFFERENCE = "9999"
_TRIALS = 10
# For start, connection and the requests still under way after the last window.
_SPARE_S = 120.0
_PERCENTILES = ("p50", "p90", "p95", "p99")


@dataclass(frozen=True)
class Inference:
    """What is sent to which model.

    Attributes:
        model: Its name in Triton.
        input_data: The `--input-data` file.
        shapes: Fixed size of each input whose axis varies.
        rows: perf_analyzer's batch size; 1 for a model that does not batch.
        documents: In each inference.
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
        requests: That the figures come from.
        documents_per_s: Over all windows.
        window_documents_per_s: In each window; far apart where the machine was not quiet.
        latency_ms: By percentile: p50, p90, p95, p99.
        queue_ms: Mean time that a request waited in Triton.
        compute_ms: Mean time from input to output of the executions that it was part of.
        executions: Of the model in Triton, over all windows.
        documents_per_execution: How many documents Triton merged into one, on average.
        client_cpu_s: CPU seconds of perf_analyzer itself, its start included.
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
        inference: What to send.
        concurrency: Requests under way at any time.
        window_s: Length of a window in seconds.

    Raises:
        SetupError: It failed, or did not end; with its own words.
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
    """Read the CSV file and the verbose output of a run; throughput there counts rows, or requests where none batch.

    Raises:
        SetupError: They do not look as those of the version this was written for.
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
    # "Failed to obtain ..." and the like say what; lines before it say why.
    return " ".join(lines[-2:]).removeprefix("error: ")
