"""Run several server processes on the same ports: a parent starts them, watches them, and ends them together.

The parent serves nothing and imports little, so that each worker is forked from a process without threads. It reserves
the ports with sockets that never listen; every worker listens with SO_REUSEPORT, and the kernel spreads the
connections.

Source: https://man7.org/linux/man-pages/man7/socket.7.html (SO_REUSEPORT)
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import TYPE_CHECKING

import click

from crossrank.errors import CrossrankError, SetupError

if TYPE_CHECKING:
    from multiprocessing.context import ForkProcess  # Windows has none

_log = logging.getLogger("crossrank")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Windows has no SIGHUP, and no workers.
_RELOAD = getattr(signal, "SIGHUP", signal.SIGTERM)
# How often the parent checks whether a worker is due to be restarted, and a worker whether its parent is still there.
_POLL_S = 0.5
_LONGEST_PAUSE_S = 30.0

# Serves in a worker, and calls its argument once it listens.
Work = Callable[[Callable[[], None]], None]


def require_shared_ports(count: int) -> None:
    """Refuse several workers where processes can be neither forked nor share a port, as on Windows.

    Raises:
        SetupError: The operating system lacks one of the two.
    """
    if "fork" not in multiprocessing.get_all_start_methods() or not hasattr(socket, "SO_REUSEPORT"):
        raise SetupError(
            f"--workers is {count}, but this operating system cannot fork processes that share a port; use --workers 1 "
            "(Linux and macOS can)"
        )


@dataclass
class _Worker:
    """A worker process.

    Attributes:
        process: The process.
        listens: Becomes readable when the worker listens; None once that was read.
    """

    process: ForkProcess
    listens: Connection | None


class Workers:
    """Keep a number of workers alive until SIGTERM or SIGINT, which is passed on to them, as SIGHUP is.

    Args:
        count: Processes.
        work: Run in each of them.
        started: Called once, when the first worker listens; the others are started after it, so that a model is
            fetched once and a mistake is reported once.
        ended: Called with the process id of each worker that has ended.
        reload: Called on SIGHUP, for the workers that are started later; returns whether to pass it on.
    """

    def __init__(
        self,
        count: int,
        work: Work,
        *,
        started: Callable[[], None],
        ended: Callable[[int], None] = lambda pid: None,
        reload: Callable[[], bool] = lambda: False,
    ) -> None:
        self._count = count
        self._work = work
        self._started = started
        self._ended = ended
        self._reload = reload
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
        """Start the workers, wait until all have ended, and return the exit code: 0 if all ended after a signal."""
        for number in _SIGNALS:
            signal.signal(number, self._stop)
        signal.signal(_RELOAD, self._reload_all)
        self._due[0] = 0.0
        while self._workers or (self._due and not self._stopping):
            self._start_due()
            self._watch()
        return self._exit_code

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._pass_on(number)

    def _reload_all(self, number: int, frame: FrameType | None) -> None:
        if self._reload():
            self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        for worker in self._workers.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid or 0, number)

    def _start_due(self) -> None:
        for index in [index for index, at in self._due.items() if at <= time.monotonic()]:
            # A signal between the fork and the entry in self._workers would not be passed on to the worker.
            with _signals_blocked():
                if self._stopping:
                    return
                del self._due[index]
                listens, says = self._context.Pipe(duplex=False)
                process = self._context.Process(target=self._be_worker, args=(says,), daemon=True)
                process.start()
                says.close()
                self._workers[index] = _Worker(process, listens)

    def _watch(self) -> None:
        """Wait until a worker listens or ends, at most `_POLL_S` seconds."""
        ends = {worker.process.sentinel: index for index, worker in self._workers.items()}
        begins = {worker.listens: index for index, worker in self._workers.items() if worker.listens}
        happened = wait([*ends, *begins], _POLL_S)
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
                return  # it ended instead; its sentinel says so
        self._failures[index] = 0
        if not self._announced:
            self._announced = True
            self._started()
            self._due.update(dict.fromkeys(range(1, self._count), 0.0))

    def _note_end(self, index: int) -> None:
        with _signals_blocked():
            worker = self._workers.pop(index)
            worker.process.join()
        pid, code = worker.process.pid or 0, worker.process.exitcode or 0
        self._ended(pid)
        if self._stopping or not self._announced:
            # Before the first one listens, an error would be the same for all; it has printed it.
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
        # SIGHUP waits until the work handles it.
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
def _signals_blocked() -> Iterator[None]:
    """Block SIGTERM, SIGINT and SIGHUP until the block ends; they are delivered then."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {*_SIGNALS, _RELOAD})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_SIGNALS, _RELOAD})


def _end_after_parent(parent: int) -> None:
    """Wait for the end of the parent process, then begin to drain: nothing else would ever end this worker."""
    while os.getppid() == parent:
        time.sleep(_POLL_S)
    _log.error("the parent process %d is gone: this worker ends", parent)
    os.kill(os.getpid(), signal.SIGTERM)
