"""The real PostgreSQL and Redis of the system's packages, each in a folder of its own on a free port of loopback."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_START_S = 60.0


class PostgresServer:
    """A cluster that can be stopped and started again; `new_database()` gives the URL of an empty database."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self._folder, self._programs = folder, programs
        self._port = free_port()
        self._databases = 0
        # PostgreSQL refuses to run as root.
        self._user = pwd.getpwnam("postgres") if os.getuid() == 0 else None
        if self._user:
            os.chown(folder, self._user.pw_uid, self._user.pw_gid)
        self._run("initdb", "--pgdata", str(folder / "data"), "--username", "crossrank", "--auth", "trust", "--no-sync")
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    *("-D", str(self._folder / "data"), "-p", str(self._port), "-k", str(self._folder)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "max_connections=100", "-c", "fsync=off"),
                ],
                stdout=log,
                stderr=log,
                cwd=self._folder,
                **self._identity(),
            )
        give_up_at = time.monotonic() + _START_S
        while True:
            try:
                self._execute("SELECT 1")
                return
            except Exception:
                if self._process.poll() is not None or time.monotonic() > give_up_at:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as an administrator would who cannot wait: connections are cut, data is kept."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        self._process.wait(30)

    @property
    def pid(self) -> int:
        """Process id of its first process, which is the parent of the others."""
        assert self._process is not None
        return self._process.pid

    def new_database(self) -> str:
        self._databases += 1
        name = f"test_{self._databases}"
        self._execute(f"CREATE DATABASE {name}")
        return f"postgresql://crossrank@127.0.0.1:{self._port}/{name}"

    def _execute(self, statement: str) -> None:
        import psycopg

        url = f"postgresql://crossrank@127.0.0.1:{self._port}/postgres"
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
            connection.execute(statement.encode())

    def _run(self, program: str, *arguments: str) -> None:
        done = subprocess.run(
            [str(self._programs / program), *arguments], capture_output=True, cwd=self._folder, **self._identity()
        )
        assert done.returncode == 0, done.stderr.decode()

    def _identity(self) -> dict[str, object]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}


@contextlib.contextmanager
def running_postgresql() -> Iterator[PostgresServer]:
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not versions:
        pytest.skip("PostgreSQL is not installed: make services")
    with tempfile.TemporaryDirectory(prefix="crossrank-postgresql-") as folder:
        server = PostgresServer(Path(folder), versions[-1].parent)
        try:
            yield server
        finally:
            server.stop()


@contextlib.contextmanager
def running_redis() -> Iterator[str]:
    """Give the URL of an empty Redis."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("Redis is not installed: make services")
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="crossrank-redis-") as folder:
        process = subprocess.Popen(
            [program, "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait_for_port(port, process)
            yield f"redis://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    give_up_at = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, "the server ended at once"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < give_up_at, "the server does not listen"
            time.sleep(0.02)
