"""Open SQLite or PostgreSQL so that no call waits for them without end, and no message shows a password."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from crossrank.errors import SetupError

# Seconds that a connection may take beyond the time limit of its statements: the server's own error is the better one.
_SLACK_S = 1.0
# Connections of PostgreSQL: one for every thread that may use the store.
_CONNECTIONS = 16
_MAX_SHOWN = 40


def make_engine(address: str, timeout_s: float) -> Engine:
    """Return an engine for an address; nothing is connected yet.

    Args:
        address: `sqlite:///file` or `postgresql://user:password@host/database`.
        timeout_s: Seconds that a statement may wait for locks, and PostgreSQL for its answer.

    Raises:
        SetupError: The address has another form, its file cannot be opened, or a package is missing.
    """
    try:
        url = make_url(address)
        kind = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError, ValueError):
        raise _bad_address(address) from None
    if kind == "sqlite" and url.database and url.database != ":memory:":
        return _sqlite_engine(Path(url.database).absolute(), timeout_s)
    if kind in ("postgresql", "postgres") and "@" not in (url.host or ""):
        return _postgresql_engine(url, timeout_s)
    raise _bad_address(address)


def shown_address(url: URL) -> str:
    """Return where a database is, without user, password and options."""
    where = f"{url.host or ''}{f':{url.port}' if url.port else ''}/" if url.get_backend_name() != "sqlite" else ""
    return f"{url.get_backend_name()}://{where}{url.database}"


def _bad_address(address: str) -> SetupError:
    # The address may hold a password: only its scheme is shown.
    shown = address.partition(":")[0] if ":" in address else address
    return SetupError(
        f"--store is {shown[:_MAX_SHOWN]!r}...: give sqlite:///file.db (four slashes for an absolute path) or "
        "postgresql://user:password@host/database, with @, : and / in a password written %40, %3A and %2F"
    )


def _postgresql_engine(url: URL, timeout_s: float) -> Engine:
    try:
        import psycopg
        from psycopg.errors import _WaitTimeout
    except ModuleNotFoundError:
        raise SetupError("--store postgresql:// needs psycopg: pip install 'crossrank[postgresql]'") from None

    class BoundedConnection(psycopg.Connection[Any]):
        """Gives up a server that accepts packets and never answers, which no timeout of libpq or TCP notices."""

        def wait(self, gen: Generator[Any, Any, Any], interval: float = 0.1, timeout: float | None = None) -> Any:
            try:
                return super().wait(gen, interval=interval, timeout=timeout or timeout_s + _SLACK_S)
            except _WaitTimeout:
                self.pgconn.finish()
                raise psycopg.OperationalError(f"no answer within {timeout_s + _SLACK_S:g} s") from None

    millis = round(timeout_s * 1000)
    connect_args = {
        "connect_timeout": max(2, round(timeout_s)),  # libpq takes 1 for 2
        "options": f"-c statement_timeout={millis} -c idle_in_transaction_session_timeout=10s",
        "tcp_user_timeout": millis,
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 3,
    }
    engine = create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=_CONNECTIONS,
        max_overflow=0,
        pool_timeout=timeout_s,
        pool_pre_ping=True,
        connect_args=connect_args,
    )

    # Source: https://docs.sqlalchemy.org/en/20/core/events.html#sqlalchemy.events.DialectEvents.do_connect
    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> Any:
        return BoundedConnection.connect(*arguments, **options)

    return engine


def _sqlite_engine(path: Path, timeout_s: float) -> Engine:
    if not path.parent.is_dir():
        raise SetupError(f"--store: the directory {path.parent} does not exist; make it, or choose another file")
    try:
        # Readable by its owner alone: it holds who used how much.
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
    except FileExistsError:
        # Not opened here: closing it again would drop the locks of all connections that this process has to it.
        # Source: https://www.sqlite.org/howtocorrupt.html (section 2.2)
        pass
    except OSError as error:
        raise SetupError(f"--store: {path} cannot be opened: {error.strerror}; check its rights") from None
    # mode=rw: a file that was deleted meanwhile is an error, and not made anew without the keys.
    # Source: https://www.sqlite.org/uri.html
    uri = f"file:{quote(str(path))}?mode=rw"
    engine = create_engine(
        URL.create("sqlite", database=str(path)), connect_args={"timeout": timeout_s, "uri": True}, paramstyle="named"
    )

    @event.listens_for(engine, "do_connect")
    def connect(_: Any, __: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        arguments[:] = [uri]

    # Source: https://docs.sqlalchemy.org/en/20/dialects/sqlite.html (transactions begun by us, not by the driver).
    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: Any) -> None:
        connection.isolation_level = None
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A writer that began as a reader could fail at once when another one wrote meanwhile, without any waiting.
        reads = connection.get_execution_options().get("crossrank_reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine
