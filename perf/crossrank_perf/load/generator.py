"""Load generator: sends requests over HTTP or gRPC in a closed or an open loop and times each as a client would.

It often shares the machine with the server, so it must cost little CPU (see `senders`): at 9,000 documents/s it takes
0.6% of a core.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Sequence

import numpy as np

from crossrank.errors import SetupError
from crossrank_perf.load.plan import LoadPlan, LoadResult, OnTick, Tick
from crossrank_perf.load.senders import CONNECTION, INCOMPLETE, TIMEOUT, Sender, opened_sender

_TICK_S = 0.5
# Connection failures in a row after which the run stops: the server is gone.
_MAX_LOST_IN_A_ROW = 50
_LOST_PAUSE_S = 0.05


OnWindow = Callable[[], None]


def run_load(
    url: str, bodies: Sequence[bytes], plan: LoadPlan, *, on_tick: OnTick, on_start: OnWindow, on_end: OnWindow
) -> LoadResult:
    """Send the bodies in order, again and again, and return the outcome.

    Args:
        url: Base URL of the server.
        bodies: From `Workload.bodies` for this URL.
        plan: Parameters of the load.
        on_tick: Called with the progress.
        on_start: Called as the measured window begins.
        on_end: Called as it ends.

    Raises:
        SetupError: The server cannot be reached, refuses the first request, or stopped answering.
    """
    work = _Generator(url, bodies, plan, on_tick, on_start, on_end).run()
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


class _Generator:
    def __init__(
        self, url: str, bodies: Sequence[bytes], plan: LoadPlan, on_tick: OnTick, on_start: OnWindow, on_end: OnWindow
    ) -> None:
        self._url = url
        self._bodies = itertools.cycle(bodies)
        self._plan = plan
        self._on_tick, self._on_start, self._on_end = on_tick, on_start, on_end
        self._result = LoadResult()
        self._window_start: float | None = None
        self._lost_in_a_row = 0
        self._stop = asyncio.Event()

    async def run(self) -> LoadResult:
        plan = self._plan
        async with opened_sender(self._url, plan.documents, plan.timeout_s, plan.tier) as sender:
            await self._probe(sender)
            ticker = asyncio.create_task(self._tick())
            try:
                await (self._closed_loop if plan.rate is None else self._open_loop)(sender)
            finally:
                ticker.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await ticker
        if self._lost_in_a_row >= _MAX_LOST_IN_A_ROW:
            last = next(reversed(self._result.examples.values()))
            raise SetupError(f"{self._url} stopped answering: {self._lost_in_a_row} requests in a row failed ({last})")
        return self._result

    async def _probe(self, sender: Sender) -> None:
        """Send one request first, so that a wrong address gives one clear message instead of thousands of errors."""
        problem, message = await sender.send(next(self._bodies))
        if problem is None:
            return
        if problem not in (CONNECTION, TIMEOUT, INCOMPLETE):
            raise SetupError(f"{sender.address} answered {problem} to the first request: {message}")
        raise SetupError(
            f"no usable answer from {sender.address} ({problem}: {message}); check --url, or leave it out to have the "
            "server started here"
        )

    def _record(self, latency_s: float, problem: str | None, message: str) -> None:
        """Count one request of the measured window."""
        if problem is None:
            self._result.latencies_s.append(latency_s)
        else:
            self._result.errors[problem] += 1
            self._result.examples.setdefault(problem, message)

    def _note_lost(self, problem: str | None, message: str) -> None:
        """Count connection failures in a row, and stop the run where the server is gone."""
        if problem != CONNECTION:
            self._lost_in_a_row = 0
            return
        self._lost_in_a_row += 1
        if self._lost_in_a_row >= _MAX_LOST_IN_A_ROW:
            self._result.examples.setdefault(problem, message)
            self._stop.set()

    async def _closed_loop(self, sender: Sender) -> None:
        """Keep `concurrency` requests under way; count those that end inside the window."""
        workers = [asyncio.create_task(self._worker(sender)) for _ in range(self._plan.concurrency)]
        try:
            await self._pause(self._plan.warm_up_s)
            self._open_window()
            await self._pause(None if self._plan.requests is not None else self._plan.duration_s)
            self._close_window()
            self._stop.set()
        finally:
            # A worker's own failure (a bug, an interrupt) must surface; the others end with their last answer.
            await asyncio.gather(*workers)

    async def _worker(self, sender: Sender) -> None:
        while not self._stop.is_set():
            started = time.perf_counter()
            problem, message = await sender.send(next(self._bodies))
            if self._window_start is not None and not self._stop.is_set():
                self._record(time.perf_counter() - started, problem, message)
                if self._plan.requests is not None and self._finished() >= self._plan.requests:
                    self._stop.set()
            self._note_lost(problem, message)
            if problem == CONNECTION:
                await asyncio.sleep(_LOST_PAUSE_S)

    async def _open_loop(self, sender: Sender) -> None:
        """Send at random moments; count the requests due inside the window, however late they are answered."""
        plan = self._plan
        assert plan.rate is not None
        duration_s = plan.duration_s if plan.requests is None else plan.requests / plan.rate
        rng = np.random.default_rng(plan.seed)
        under_way: set[asyncio.Task[None]] = set()
        begin = time.perf_counter()
        due = 0.0
        while due < plan.warm_up_s + duration_s and not self._stop.is_set():
            await self._pause(begin + due - time.perf_counter())
            measured = due >= plan.warm_up_s
            if measured and self._window_start is None:
                self._open_window()
            task = asyncio.create_task(self._send_one(sender, begin + due, measured))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            due += float(rng.exponential(1 / plan.rate))
        await asyncio.gather(*under_way)
        self._close_window()

    async def _send_one(self, sender: Sender, due: float, measured: bool) -> None:
        lag_s = time.perf_counter() - due
        problem, message = await sender.send(next(self._bodies))
        if measured:
            self._result.lags_s.append(lag_s)
            self._record(time.perf_counter() - due, problem, message)
        self._note_lost(problem, message)

    def _open_window(self) -> None:
        self._window_start = time.perf_counter()
        self._on_start()

    def _close_window(self) -> None:
        if self._window_start is not None:
            self._result.window_s = time.perf_counter() - self._window_start
            self._on_end()

    def _finished(self) -> int:
        return len(self._result.latencies_s) + sum(self._result.errors.values())

    async def _pause(self, seconds: float | None) -> None:
        """Wait for so many seconds, or until the run is stopped; None waits for the latter only."""
        if seconds is not None and seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._stop.wait(), seconds)
        except asyncio.TimeoutError:
            return

    async def _tick(self) -> None:
        begin = time.perf_counter()
        while True:
            await asyncio.sleep(_TICK_S)
            start = self._window_start
            elapsed_s = time.perf_counter() - (begin if start is None else start)
            failed = sum(self._result.errors.values())
            self._on_tick(Tick(start is not None, elapsed_s, len(self._result.latencies_s), failed))
