"""Several server processes on the same ports: a parent that starts them, watches them, and ends them together.

The parent serves nothing and imports little, so that each worker is forked from a process without threads. It holds
the ports by sockets that never listen; every worker listens with SO_REUSEPORT, and the kernel spreads the connections.

Source: https://man7.org/linux/man-pages/man7/socket.7.html (SO_REUSEPORT)
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from types import FrameType

import click

from crossrank.engines.cpu import available_cores
from crossrank.engines.cuda_session import cuda_installed
from crossrank.errors import CrossrankError
from crossrank_server.settings import ServeSettings

_log = logging.getLogger("crossrank")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# How often the parent looks whether a worker is due to be started again, and a worker whether it has lost its parent.
_LOOK_S = 0.5
_LONGEST_PAUSE_S = 30.0

# The directory of all workers' counts (telemetry/shared_metrics.py); prometheus_client reads it when it is imported.
COUNTS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

# What a worker does: serve, and call what it is given once it listens.
Work = Callable[[Callable[[], None]], None]


def worker_count(settings: ServeSettings) -> int:
    """Return how many processes serve: `--workers`, where `auto` depends on what computes.

    In front of Triton it is one a core. A GPU computes more documents than one process hands over: one for every four
    cores, as each holds a copy of the model there and a gigabyte here. On a CPU one process keeps all cores busy.
    """
    if settings.workers != "auto":
        return int(settings.workers)
    if settings.engine == "triton":
        return available_cores()
    return max(1, available_cores() // 4) if _takes_gpu(settings) else 1


def worker_settings(settings: ServeSettings, workers: int) -> ServeSettings:
    """Return the settings of one worker, which has its share of the cores, unless a GPU computes."""
    if workers == 1 or settings.threads or _takes_gpu(settings):
        return settings
    return settings.model_copy(update={"threads": max(1, available_cores() // workers)})


def _takes_gpu(settings: ServeSettings) -> bool:
    return settings.engine == "cuda" or (settings.engine == "auto" and cuda_installed())


@dataclass
class _Worker:
    """A process, and where it says that it listens; None once it has."""

    process: ForkProcess
    listens: Connection | None


class Workers:
    """Keeps a number of workers alive until SIGTERM or SIGINT, which is passed on to them.

    Args:
        count: Processes.
        work: What each does.
        started: Called once, when the first worker listens; the others are started after it, so that a model is
            fetched once and a mistake is reported once.
        ended: Told the id of each process that is gone.
    """

    def __init__(
        self, count: int, work: Work, *, started: Callable[[], None], ended: Callable[[int], None] = lambda pid: None
    ) -> None:
        self._count = count
        self._work = work
        self._started = started
        self._ended = ended
        self._parent = os.getpid()
        self._context = multiprocessing.get_context("fork")
        self._workers: dict[int, _Worker] = {}
        # Workers to start, by number, and when (time.monotonic); how often each ended before it listened.
        self._due: dict[int, float] = {}
        self._failures = [0] * count
        self._announced = False
        self._stopping = False
        self._exit_code = 0

    def run(self) -> int:
        """Return when all workers have ended: 0 if each ended cleanly after a signal."""
        for number in _SIGNALS:
            signal.signal(number, self._pass_on)
        self._due[0] = 0.0
        while self._workers or (self._due and not self._stopping):
            self._start_due()
            self._watch()
        return self._exit_code

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, number)

    def _start_due(self) -> None:
        for index in [index for index, at in self._due.items() if at <= time.monotonic()]:
            # A signal between fork and note would miss the worker.
            with _signals_held():
                if self._stopping:
                    return
                del self._due[index]
                listens, says = self._context.Pipe(duplex=False)
                process = self._context.Process(target=self._be_worker, args=(says,), daemon=True)
                process.start()
                says.close()
                self._workers[index] = _Worker(process, listens)

    def _watch(self) -> None:
        """Wait for a worker that listens or ends, `_LOOK_S` at most."""
        ends = {worker.process.sentinel: index for index, worker in self._workers.items()}
        begins = {worker.listens: index for index, worker in self._workers.items() if worker.listens}
        happened = wait([*ends, *begins], _LOOK_S)
        for index in [begins[found] for found in happened if isinstance(found, Connection)]:
            self._note_listening(index)
        for index in [ends[found] for found in happened if isinstance(found, int)]:
            self._note_end(index)

    def _note_listening(self, index: int) -> None:
        worker = self._workers[index]
        if worker.listens is None:
            return
        with worker.listens as listens:
            worker.listens = None
            try:
                listens.recv_bytes()
            except EOFError:
                return  # it ended instead, which its sentinel tells
        self._failures[index] = 0
        if not self._announced:
            self._announced = True
            self._started()
            self._due.update(dict.fromkeys(range(1, self._count), 0.0))

    def _note_end(self, index: int) -> None:
        with _signals_held():
            worker = self._workers.pop(index)
            worker.process.join()
        pid, code = worker.process.pid or 0, worker.process.exitcode or 0
        self._ended(pid)
        if self._stopping or not self._announced:
            # Before the first one listens, what is wrong is wrong for all; it has said so.
            self._exit_code = self._exit_code or (0 if code == 0 else 1)
            return
        pause_s = min(2.0 ** self._failures[index] - 1, _LONGEST_PAUSE_S)
        self._failures[index] += 1
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        _log.error(
            "worker %d of %d (process %d) %s; another is started%s",
            index + 1,
            self._count,
            pid,
            how,
            f" in {pause_s:g} s" if pause_s else "",
        )
        self._due[index] = time.monotonic() + pause_s

    def _be_worker(self, says: Connection) -> None:
        # Its own group: a terminal sends Ctrl+C to a whole group, and here the parent passes it on.
        os.setpgid(0, 0)
        for number in _SIGNALS:
            signal.signal(number, lambda *_: sys.exit(0))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        threading.Thread(target=_end_after_parent, args=(self._parent,), daemon=True).start()

        def listening() -> None:
            says.send_bytes(b"1")
            says.close()

        try:
            self._work(listening)
        except CrossrankError as error:
            click.secho(f"error: {error.message}", fg="red", err=True)
            sys.exit(1)


@contextlib.contextmanager
def _signals_held() -> Iterator[None]:
    """Let signals wait until the block ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _end_after_parent(parent: int) -> None:
    """Drain when the parent was killed: nobody else would end this process or start a new one."""
    while os.getppid() == parent:
        time.sleep(_LOOK_S)
    _log.error("the parent process %d is gone: this worker ends", parent)
    os.kill(os.getpid(), signal.SIGTERM)
