"""Contestants that are called in a process of their own."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from crossrank.errors import SetupError
from crossrank_perf.base.processes import Usage
from crossrank_perf.base.server import last_words
from crossrank_perf.base.workload import Workload
from lab.peers import worker as worker_package
from lab.peers.contestants import IN_PROCESS, Setting, Turn, offline_environment, turn_of

_STOP_LIMIT_S = 10.0


class WorkerContestant:
    """A system that is called in a process of its own: texts in, scores out.

    Args:
        name: Name in reports.
        command: Python of its environment, with flags.
        worker: NAME of the `worker/with_NAME.py` that calls it.
        workload: The requests.
        load: The message `load` of `worker/__main__.py`, without the requests.
    """

    over = IN_PROCESS

    def __init__(
        self, name: str, command: Sequence[str], worker: str, workload: Workload, load: Mapping[str, Any]
    ) -> None:
        self.name = name
        self.settings: list[Setting] = []
        self._command = [*command, str(Path(worker_package.__file__).parent), worker]
        self._workload = workload
        self._load = load
        self._stack = ExitStack()
        self._process: subprocess.Popen[str] | None = None

    def open(self) -> dict[str, Any]:
        """See `Contestant`.

        Raises:
            SetupError: It cannot be loaded; the message holds the last line that it printed.
        """
        self._log = Path(self._stack.enter_context(tempfile.TemporaryDirectory())) / "peer.log"
        with self._log.open("wb") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                encoding="utf-8",
                env=offline_environment(),
            )
        requests = [{"query": each.query, "documents": each.documents} for each in self._workload.requests]
        facts = self._ask(op="load", requests=requests, **self._load)
        self.settings = facts.pop("settings")
        return facts

    def logits(self, request: int) -> list[float]:
        """See `Contestant`."""
        answer = self._ask(op="score", request=request, setting=self.settings[0])
        scores: list[float] = answer["logits"]
        return scores

    def run(self, seconds: float, setting: Setting) -> Turn:
        """See `Contestant`."""
        assert self._process is not None
        usage = Usage(self._process.pid)
        usage.start()
        answer = self._ask(op="run", seconds=seconds, setting=setting)
        usage.end()
        documents = len(answer["latencies_s"]) * self._workload.documents
        return turn_of(documents, answer["seconds"], answer["latencies_s"], usage)

    def close(self) -> None:
        """See `Contestant`."""
        process, self._process = self._process, None
        if process is not None:
            # A worker ends with its input; one that still computes is killed after a while.
            try:
                process.communicate(timeout=_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
        self._stack.close()

    def _ask(self, **message: Any) -> dict[str, Any]:
        assert self._process is not None
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
