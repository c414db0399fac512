"""Usage that a store did not take is written by the next start exactly once, wherever `kill -9` strikes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event

from crossrank.errors import AccountsUnavailable
from crossrank_server.accounts.journal import Journal, replay
from crossrank_server.accounts.ledger import Ledger
from crossrank_server.accounts.meter import Meter
from crossrank_server.accounts.store import Store
from crossrank_server.accounts.usage import UsageFilter, usage_by_day
from tests.key_store import new_key

# Each process is forked from one that has imported all this.
_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload([__name__])


def _die_at(folder: Path, step: int | None) -> list[str]:
    """Kill this process before its n-th step: what it does with files of the folder, and its commits; list them."""
    steps: list[str] = []

    def take(name: str) -> None:
        steps.append(name)
        if len(steps) - 1 == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def hook(name: str, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], str | Path) and str(folder) in str(arguments[0]):
            take(name)

    sys.addaudithook(hook)
    event.listen(Engine, "commit", lambda _: take("commit"))
    return steps


def _record(meter: Meter, key_id: str) -> None:
    meter.record(key_id, "m", "realtime", documents=3, tokens=5, cost=7, hold=None)


def leave_usage(path: Path, folder: Path, key_id: str, step: int | None, told: Any) -> None:
    """Record two requests while the store is locked, and save each."""
    store = Store(f"sqlite:///{path}", timeout_s=0.05)
    meter = Meter(Ledger(store), Journal(folder))
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    steps = _die_at(folder, step)
    for _ in range(2):
        _record(meter, key_id)
        with contextlib.suppress(AccountsUnavailable):
            meter.flush()
        meter.keep()
    told.send(steps)
    os._exit(0)  # without closing anything


def take_up(path: Path, folder: Path, step: int | None, told: Any) -> None:
    """Start as the next process does."""
    store = Store(f"sqlite:///{path}")
    ledger = Ledger(store)
    steps = _die_at(folder, step)
    replay(folder, ledger)
    told.send(steps)


def run(work: Any, *arguments: Any, killed: bool) -> list[str]:
    """Run in a process of its own, and return its steps; none if it was killed."""
    receive, send = _PROCESSES.Pipe(duplex=False)
    process = _PROCESSES.Process(target=work, args=(*arguments, send))
    process.start()
    send.close()
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if killed else 0)
    return [] if killed else list(receive.recv())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, Path, str]]:
    """A file of a store, a folder for journals and the id of a key."""
    path = tmp_path / "s.db"
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        yield path, tmp_path / "usage", new_key(store).split("-")[1]


def recorded(path: Path) -> int:
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        rows = usage_by_day(store, UsageFilter())
    requests = sum(row["requests"] for row in rows)
    assert sum(row["documents"] for row in rows) == 3 * requests
    return requests


def forget(path: Path, folder: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM crossrank_usage")
    for file in folder.iterdir() if folder.exists() else ():
        file.unlink()


def test_what_was_saved_when_the_process_was_killed_is_written_and_nothing_else(place: tuple[Path, Path, str]) -> None:
    path, folder, key_id = place
    steps = run(leave_usage, path, folder, key_id, None, killed=False)
    assert steps.count("os.rename") == 2
    for step in range(len(steps)):
        forget(path, folder)
        run(leave_usage, path, folder, key_id, step, killed=True)
        run(take_up, path, folder, None, killed=False)
        assert recorded(path) == steps[:step].count("os.rename"), f"killed before step {step} of {steps}"
        assert not list(folder.glob("*.json"))


def test_a_start_that_is_killed_at_any_step_leaves_the_rest_to_the_next_one(place: tuple[Path, Path, str]) -> None:
    path, folder, key_id = place
    run(leave_usage, path, folder, key_id, None, killed=False)
    steps = run(take_up, path, folder, None, killed=False)
    assert "commit" in steps
    assert "os.remove" in steps
    for step in range(len(steps)):
        forget(path, folder)
        run(leave_usage, path, folder, key_id, None, killed=False)
        run(take_up, path, folder, step, killed=True)
        run(take_up, path, folder, None, killed=False)
        assert recorded(path) == 2, f"killed before step {step} of {steps}"
        assert not list(folder.glob("*.json"))


def test_usage_of_a_living_process_and_of_another_store_is_left_alone(
    place: tuple[Path, Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, folder, key_id = place
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        journal = Journal(folder)
        meter = Meter(Ledger(store), journal)
        _record(meter, key_id)
        meter.keep()
        replay(folder, Ledger(store))
        assert recorded(path) == 0  # its own process will write it, and perhaps more
        journal._lock.release()  # as the end of the process does
        with contextlib.closing(Store(f"sqlite:///{tmp_path}/other.db")) as other:
            replay(folder, Ledger(other))
        assert "is of another --store" in caplog.text
        assert f"key {key_id} 1 requests 3 documents 0.000000007 USD" in caplog.text
        assert json.loads(journal.path.read_bytes())
        for _ in range(2):
            replay(folder, Ledger(store))
        assert recorded(path) == 1


def test_a_folder_that_cannot_be_written_costs_what_the_log_names(
    place: tuple[Path, Path, str], caplog: pytest.LogCaptureFixture
) -> None:
    path, folder, key_id = place
    folder.write_text("a file, where a folder should be")
    with contextlib.closing(Store(f"sqlite:///{path}")) as store:
        meter = Meter(Ledger(store), Journal(folder))
        _record(meter, key_id)
        meter.close_without_store()
    assert "usage is lost, as neither the account store nor" in caplog.text
    assert f"key {key_id} 1 requests 3 documents 0.000000007 USD" in caplog.text
