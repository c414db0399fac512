"""Contestants that are servers, called over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import orjson

from crossrank.errors import SetupError
from crossrank_perf.base.processes import Usage
from crossrank_perf.base.server import key_header
from crossrank_perf.base.workload import Workload
from crossrank_perf.load.generator import run_load
from crossrank_perf.load.plan import LoadPlan
from lab.peers.contestants import OVER_HTTP, Setting, Turn, turn_of

_WARM_UP_SHARE = 0.1  # share of a turn over HTTP, to open connections and meet shapes

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
        return turn_of(len(result.latencies_s) * plan.documents, result.window_s, result.latencies_s, usage)

    def close(self) -> None:
        """See `Contestant`."""
        self._setting = None
        self._stack.close()

    def _use(self, setting: Setting) -> None:
        if setting != self._setting:
            self.close()
            self.url, self._pid = self._stack.enter_context(self._start(setting))
            self._setting = setting
