"""Score with one system of `make bench-peers`, in that system's own environment.

Started by that environment's Python with this directory and the name of a system, which `with_NAME.py` beside this file
calls. It reads a JSON object a line from stdin and answers each with one on stdout:

    {"op": "load", "checkpoint", "onnx", "model", "options", "threads", "max_length", "batch_sizes", "concurrency",
     "requests"}                                      -> {"versions", "precision", "settings": [{..}, ..]}
    {"op": "score", "request": 0, "setting": {..}}    -> {"logits": [..]}
    {"op": "run", "seconds": 5, "setting": {..}}      -> {"seconds", "latencies_s": [..]}

The class `System` has `packages` (whose versions are reported), `precision`, `settings` (the ways it can be called, of
which the fastest is used) and `score(query, documents, setting)`, which returns logits in the order of the documents.
Where that is a coroutine function, `setting["concurrency"]` calls are under way at a time.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import itertools
import json
import os
import sys
import time
import warnings
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class _Worker:
    """A loaded system and the requests it is given.

    Args:
        name: Name of the system.
        message: The message `load`.
    """

    def __init__(self, name: str, message: dict[str, Any]) -> None:
        self._loop = asyncio.new_event_loop()
        self._requests = [(request["query"], request["documents"]) for request in message.pop("requests")]
        self._order = itertools.cycle(self._requests)
        self._system = importlib.import_module(f"with_{name}").System(**message)
        self._awaits = inspect.iscoroutinefunction(self._system.score)

    def facts(self) -> dict[str, Any]:
        """Return versions, precision and settings of the loaded system."""
        found = {}
        for name in self._system.packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                continue
        return {"versions": found, "precision": self._system.precision, "settings": self._system.settings}

    def score(self, request: int, setting: dict[str, int]) -> dict[str, Any]:
        """Return the logits of one request's documents."""
        scores = self._system.score(*self._requests[request], setting)
        if self._awaits:
            scores = self._loop.run_until_complete(scores)
        return {"logits": [float(score) for score in scores]}

    def run(self, seconds: float, setting: dict[str, int]) -> dict[str, Any]:
        """Score requests in order until the time is up, and return the latency of each."""
        latencies_s: list[float] = []
        begin = time.perf_counter()
        if self._awaits:
            self._loop.run_until_complete(self._run_side_by_side(begin + seconds, setting, latencies_s))
        else:
            while (start := time.perf_counter()) < begin + seconds:
                self._system.score(*next(self._order), setting)
                latencies_s.append(time.perf_counter() - start)
        return {"seconds": time.perf_counter() - begin, "latencies_s": latencies_s}

    async def _run_side_by_side(self, end: float, setting: dict[str, int], latencies_s: list[float]) -> None:
        async def call_on() -> None:
            while (start := time.perf_counter()) < end:
                await self._system.score(*next(self._order), setting)
                latencies_s.append(time.perf_counter() - start)

        await asyncio.gather(*(call_on() for _ in range(setting["concurrency"])))


def main() -> None:
    """Answer messages until stdin ends."""
    # Libraries print to stdout too: answers get a file descriptor of their own, and stdout becomes stderr.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    worker: _Worker | None = None
    for line in sys.stdin:
        message = json.loads(line)
        operation = message.pop("op")
        if operation == "load":
            worker = _Worker(sys.argv[1], message)
            answer = worker.facts()
        elif worker is None:
            raise RuntimeError("load comes first")
        else:
            answer = worker.score(**message) if operation == "score" else worker.run(**message)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
    # Some systems leave threads behind that would keep the process alive.
    sys.stdout.flush()
    os._exit(0)
