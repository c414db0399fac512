"""Common interface of the compared systems, called in a process of their own or over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import orjson

from crossrank.errors import SetupError
from crossrank_perf.base.processes import Usage
from crossrank_perf.base.server import key_header, last_words
from crossrank_perf.base.workload import Workload
from crossrank_perf.load.generator import LoadPlan, run_load
from lab.peers import worker as worker_package

Setting = dict[str, int]
IN_PROCESS, OVER_HTTP = "in process", "over HTTP"
_STOP_LIMIT_S = 10.0
_WARM_UP_SHARE = 0.1  # share of a turn over HTTP, to open connections and meet shapes


@dataclass(frozen=True)
class Turn:
    """Figures of a system in one turn.

    Attributes:
        documents_per_s: Documents scored, divided by the seconds until the last answer.
        latencies_s: Latency of each request.
        cpu_s_per_1000_documents: CPU seconds of its process and children; None where unknown.
        peak_rss_bytes: Resident memory of its process and children; None where unknown.
    """

    documents_per_s: float
    latencies_s: list[float]
    cpu_s_per_1000_documents: float | None
    peak_rss_bytes: int | None


class Contestant(Protocol):
    """A system that takes part in a comparison.

    Attributes:
        name: Name in reports.
        over: IN_PROCESS or OVER_HTTP.
        settings: Settings it can be called with, of which the fastest is used; known once it is open.
    """

    name: str
    over: str
    settings: list[Setting]

    def open(self) -> dict[str, Any]:
        """Load the system and return its versions and precision, as far as they are known."""
        ...

    def logits(self, request: int) -> list[float]:
        """Return the logits of the documents of one request, in their order."""
        ...

    def run(self, seconds: float, setting: Setting) -> Turn:
        """Score requests for so many seconds and return the figures."""
        ...

    def close(self) -> None:
        """End the processes of the system."""
        ...


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
        return _turn(documents, answer["seconds"], answer["latencies_s"], usage)

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


# Starts a server with a setting, gives its URL and process id, and ends it afterwards.
StartServer = Callable[[Setting], AbstractContextManager[tuple[str, int]]]


class HttpContestant:
    """A server that answers POST /v1/rerank.

    Args:
        name: Name in reports.
        start: Starts the server.
        settings: Settings that it can be started with; another one means another start.
        concurrency: Requests under way at any time.
        workload: The requests.
        facts: Facts for the report that are known beforehand.
    """

    over = OVER_HTTP

    def __init__(
        self,
        name: str,
        start: StartServer,
        settings: list[Setting],
        concurrency: int,
        workload: Workload,
        facts: Mapping[str, Any],
    ) -> None:
        self.name = name
        self.settings = settings
        self.url = ""
        self._start = start
        self._concurrency = concurrency
        self._workload = workload
        self._bodies = workload.bodies()
        self._facts = facts
        self._stack = ExitStack()
        self._setting: Setting | None = None
        self._pid = 0

    def open(self) -> dict[str, Any]:
        """See `Contestant`."""
        self._use(self.settings[0])
        return {"concurrency": self._concurrency, **self._facts}

    def logits(self, request: int) -> list[float]:
        """See `Contestant`."""
        import httpx

        text = self._workload.requests[request]
        body = orjson.dumps(
            {"query": text.query, "documents": text.documents, "raw_scores": True, "top_n": len(text.documents)}
        )
        headers = {"content-type": "application/json", **key_header()}
        try:
            response = httpx.post(f"{self.url}/v1/rerank", content=body, headers=headers, timeout=60)
        except httpx.HTTPError as error:
            raise SetupError(f"{self.name} did not answer at {self.url}/v1/rerank: {error}") from None
        if response.status_code != 200:
            raise SetupError(f"{self.url}/v1/rerank answered {response.status_code}: {response.text[:300]}")
        scores = [0.0] * len(text.documents)
        for each in response.json()["results"]:
            scores[each["index"]] = each["relevance_score"]
        return scores

    def run(self, seconds: float, setting: Setting) -> Turn:
        """See `Contestant`."""
        self._use(setting)
        usage = Usage(self._pid)
        plan = LoadPlan(
            documents=self._workload.documents,
            concurrency=self._concurrency,
            warm_up_s=seconds * _WARM_UP_SHARE,
            duration_s=seconds,
        )
        result = run_load(self.url, self._bodies, plan, on_tick=lambda _: None, on_start=usage.start, on_end=usage.end)
        if result.errors:
            raise SetupError(f"{self.name} failed requests: {result.examples}")
        if not result.latencies_s:
            raise SetupError(f"{self.name} answered no request within {seconds:g} s: give it more with --seconds")
        return _turn(len(result.latencies_s) * plan.documents, result.window_s, result.latencies_s, usage)

    def close(self) -> None:
        """See `Contestant`."""
        self._setting = None
        self._stack.close()

    def _use(self, setting: Setting) -> None:
        if setting != self._setting:
            self.close()
            self.url, self._pid = self._stack.enter_context(self._start(setting))
            self._setting = setting


def offline_environment() -> dict[str, str]:
    """Return environment variables with which no system asks a hub or sends statistics."""
    return {**os.environ, "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "true"}


def _turn(documents: int, seconds: float, latencies_s: list[float], usage: Usage) -> Turn:
    cpu_s = None if usage.cpu_s is None or not documents else usage.cpu_s / documents * 1000
    return Turn(documents / seconds, latencies_s, cpu_s, usage.peak_rss_bytes)
