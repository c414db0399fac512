"""Ask all questions about TensorRT on one GPU under a time limit: `make bench-tensorrt`, or `perf/lab/gpu/tensorrt.sh`.

On a machine with an NVIDIA GPU and the packages of requirements/cuda.txt:

    perf/lab/gpu/tensorrt.sh --out perf/results/gpu-NAME --limit-s 540

On one that reaches no package index, carry the wheels (here for the Python that is there) and name their folder:

    python perf/lab/gpu/wheels.py pack wheels --no-deps tensorrt-rtx-cu12 tensorrt-rtx-cu12-bindings ... cuda-bindings
    WHEELS=wheels perf/lab/gpu/tensorrt.sh --out ...

The order is that of the questions: bundles, load (does a plan for 8.0 load here at all), parity, rates, gateway, and
tests/gpu. Each is a process with a time limit of its own; one that fails loses nothing of the others. After each the
answers stand in OUT/tensorrt.json with the hardware. `load` decides what follows: where TensorRT for RTX does not list
the GPU and its plan runs all the same, the others are asked with CROSSRANK_TENSORRT_SM=80; else of engine cuda alone.

Without a GPU nothing is measured: a step is `not run`, with the reason, and the exit code is 3. `--rehearse` lets
engines onnxruntime and native stand in for cuda and tensorrt, to see that it works; those steps are `rehearsed`.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import click

from crossrank_perf.base.environment import describe_run
from crossrank_perf.base.report import write_json
from crossrank_perf.base.server import last_words
from lab.gpu.questions import NOT_RUN

State = Literal["ok", "failed", "timed out", "not run", "rehearsed"]
ENGINES = ("cuda", "tensorrt")
STAND_INS = ("onnxruntime", "native")
# Seconds of each question at most; usually they take half, so that all fit ten minutes.
_LIMITS_S = {"bundles": 60.0, "load": 90.0, "parity": 120.0, "rates": 200.0, "gateway": 150.0, "tests": 120.0}
_NEEDS_GPU = ("parity", "rates", "gateway", "tests")
_END_S = 5.0


@dataclass
class Step:
    """Say what became of one question.

    Attributes:
        name: The question.
        state: `not run` where it cannot be asked here, `rehearsed` where engines of the CPU stood in.
        seconds: Seconds that it took.
        reason: Why it is not `ok`.
        answer: What was found, also of a question that did not end.
    """

    name: str
    state: State
    seconds: float = 0.0
    reason: str = ""
    answer: dict[str, Any] = field(default_factory=dict)


class Script:
    """Ask one question after another, and write the answers after each.

    Args:
        out: Directory of the results.
        work: Directory for models and logs of this run.
        limit_s: Seconds of all questions together.
        rehearse: Let engines of the CPU stand in.
        gpu: Why there is no GPU; empty if there is one.
    """

    def __init__(self, out: Path, work: Path, limit_s: float, *, rehearse: bool, gpu: str) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.steps: list[Step] = []
        self._out = out
        self._work = work
        self._end = time.monotonic() + limit_s
        self._rehearse = rehearse
        self._no_gpu = gpu
        self._engines: Sequence[str] = STAND_INS if rehearse else ENGINES
        # Plans are built anew, as at a first start.
        self._environment = {**os.environ, "CROSSRANK_CACHE_DIR": str(work / "cache")}
        self._facts = {"kind": "gpu-tensorrt", **describe_run("python -m lab.gpu.tensorrt"), "gpu": describe_gpu(gpu)}

    def run(self, names: Sequence[str]) -> None:
        """Ask the questions."""
        for name in names:
            click.echo(f"{name:<10}", nl=False)
            step = self._ask(name)
            self.steps.append(step)
            if name == "load":
                self._learn(step)
            self.write()
            click.echo(f"{step.state}, {step.seconds:.0f} s{f': {step.reason}' if step.reason else ''}")

    def write(self) -> None:
        """Write the answers until now."""
        write_json(self._out / "tensorrt.json", {**self._facts, "steps": [asdict(step) for step in self.steps]})

    def exit_code(self) -> int:
        """Return 1 if a step failed, else 3 if one was not run, else 0."""
        states = {step.state for step in self.steps}
        return 1 if states & {"failed", "timed out"} else 3 if states & {"not run", "rehearsed"} else 0

    def _ask(self, name: str) -> Step:
        stands_in = self._rehearse and name in _NEEDS_GPU and name != "tests"
        if self._no_gpu and name in _NEEDS_GPU and not stands_in:
            return Step(name, "not run", reason=f"no GPU: {self._no_gpu}")
        left_s = self._end - time.monotonic()
        if left_s < 1:
            return Step(name, "not run", reason="the time is over")
        answer, log = self._work / f"{name}.json", self._out / "logs" / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        code = self._process(self._command(name, answer), log, min(_LIMITS_S[name], left_s))
        step = Step(name, "ok", round(time.monotonic() - begin, 1))
        if answer.is_file():
            step.answer = json.loads(answer.read_text(encoding="utf-8"))
        if code is None:
            step.state, step.reason = "timed out", f"it did not end within {min(_LIMITS_S[name], left_s):.0f} s"
        elif code == NOT_RUN:
            step.state, step.reason = "not run", last_words(log).removeprefix("not run: ")
        elif code:
            step.state, step.reason = "failed", f"exit code {code}: {last_words(log)}"
        elif stands_in:
            step.state, step.reason = "rehearsed", f"{' and '.join(self._engines)} stood in"
        return step

    def _command(self, name: str, answer: Path) -> list[str]:
        if name == "tests":
            return [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "tests/gpu"]
        return [sys.executable, "-m", "lab.gpu.questions", name, str(self._work), str(answer), *self._engines]

    def _process(self, command: Sequence[str], log: Path, limit_s: float) -> int | None:
        """Return the exit code of a command, or None after it was ended at its limit, with all that it started."""
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,
            )
            try:
                return process.wait(limit_s)
            except subprocess.TimeoutExpired:
                return None
            finally:
                _end_group(process)

    def _learn(self, step: Step) -> None:
        """Take from `load` with what the other questions are asked."""
        from crossrank.engines.tensorrt.choose import SM_VARIABLE
        from crossrank.engines.tensorrt.runtimes import RTX_SMS

        if self._rehearse or step.state == "not run" or step.answer.get("sm") in RTX_SMS:
            return
        if step.answer.get("runs"):
            self._environment[SM_VARIABLE] = "80"
        else:
            self._engines = tuple(engine for engine in self._engines if engine != "tensorrt")
            self._facts["left_out"] = "engine tensorrt, as its plan does not run on this GPU"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End a process and the servers that it left behind: its own session and nothing else."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            continue


def describe_gpu(fault: str) -> dict[str, Any]:
    """Return the GPU by the CUDA runtime and nvidia-smi, or why there is none."""
    from crossrank.engines.tensorrt.device import find_device

    device = find_device()
    if fault or device is None:
        return {"fault": fault}
    query = "name,driver_version,memory.total,power.limit,clocks.max.sm"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        lines = done.stdout.strip().splitlines()
    except OSError as error:
        lines = [str(error)]
    return {**asdict(device), "nvidia_smi": lines}


@click.command()
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Directory of the results."
)
@click.option(
    "--limit-s", type=click.FloatRange(min=1), default=540.0, show_default=True, help="Seconds, all together."
)
@click.option("--only", "names", multiple=True, type=click.Choice(list(_LIMITS_S)), help="Ask only this; repeat it.")
@click.option("--rehearse", is_flag=True, help="Let engines of the CPU stand in, to see that the script works.")
def main(out: Path, limit_s: float, names: tuple[str, ...], rehearse: bool) -> None:
    """Ask all questions about TensorRT on this machine's GPU, and write the answers to OUT/tensorrt.json."""
    from crossrank.engines.tensorrt.device import device_fault

    with tempfile.TemporaryDirectory(prefix="crossrank-gpu-") as work:
        script = Script(out, Path(work), limit_s, rehearse=rehearse, gpu=device_fault())
        script.run([name for name in _LIMITS_S if not names or name in names])
    click.echo(f"in {out / 'tensorrt.json'}")
    sys.exit(script.exit_code())


if __name__ == "__main__":
    main()
