"""The store of keys, credit and usage: transactions in SQLite or PostgreSQL, and the store's own time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Connection,
    Float,
    Table,
    bindparam,
    cast,
    extract,
    func,
    insert,
    literal_column,
    select,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from crossrank.errors import AccountsUnavailable, SetupError
from crossrank_server.accounts.base import unavailable
from crossrank_server.accounts.clock import SYSTEM_CLOCK, Clock
from crossrank_server.accounts.databases import make_engine, shown_address
from crossrank_server.accounts.tables import SCHEMA_VERSION, schema, tables

# Seconds that a statement may wait where nobody waits for a request, as in `crossrank keys`.
_PATIENT_S = 5.0
# Key of the advisory lock that serializes the creation of tables; any number that no other application uses.
_SCHEMA_LOCK = 7_226_553_013


class Store:
    """Open the database of keys, credit and usage.

    Args:
        url: `sqlite:///file` or `postgresql://user:password@host/database`.
        timeout_s: Seconds that a statement may wait for a lock or an answer.
        clock: Of this process, and of the store itself in tests; None is the system's.

    Attributes:
        url: As it was given.
        clock: Of this process.
        writers: Number of threads that may write at a time with profit.
        now: SQL expression of the store's Unix time in seconds, the same within one statement. PostgreSQL's own clock,
            so that gateways whose clocks differ agree; the machine's for SQLite.

    Raises:
        SetupError: The URL has another form, the database cannot be opened, or its tables are of another version.
    """

    def __init__(self, url: str, *, timeout_s: float = _PATIENT_S, clock: Clock | None = None) -> None:
        # The tables are made with patience: many gateways may start at once.
        self._engine = make_engine(url, max(timeout_s, _PATIENT_S))
        self.url = url
        self.clock = clock or SYSTEM_CLOCK
        self._timeout_s = timeout_s
        self._file = Path(self._engine.url.database or "") if self._engine.dialect.name == "sqlite" else None
        self._inode = self._found_inode()
        # SQLite has one writer at a time; who waits here, and not inside it, goes on as soon as the other is done.
        self._writer = threading.Lock()
        self.writers = 1 if self._file else 8
        if self._file is None and clock is None:
            self.now: Any = cast(extract("epoch", func.statement_timestamp()), Float)
        else:
            self.now = bindparam("store_now", callable_=self.clock.time, type_=Float)
        try:
            self._create_tables()
        except (AccountsUnavailable, DatabaseError) as error:
            reason = error.reason if isinstance(error, AccountsUnavailable) else str(error.orig).strip()
            shown = shown_address(self._engine.url)
            raise SetupError(f"--store {shown} cannot be opened: {reason}; check the address and its rights") from None
        if timeout_s < _PATIENT_S:
            self._engine.dispose()
            self._engine = make_engine(url, timeout_s)

    @property
    def minute(self) -> Any:
        """SQL expression of the number of the store's minute since 1970."""
        minutes = self.now / literal_column("60.0", Float)
        # SQLite cuts, PostgreSQL rounds.
        return cast(minutes if self._file else func.floor(minutes), BigInteger)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Enter with a transaction that is committed when the block ends.

        Raises:
            AccountsUnavailable: The database does not answer, or not in time.
        """
        if self._file is None:
            with _reported(), self._engine.begin() as connection:
                yield connection
            return
        if not self._writer.acquire(timeout=self._timeout_s):
            raise unavailable("another write of this process takes too long")
        try:
            self.check()
            with _reported(), self._engine.begin() as connection:
                yield connection
        finally:
            self._writer.release()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Enter with a transaction that reads one state of the database.

        Raises:
            AccountsUnavailable: The database does not answer, or not in time.
        """
        self.check()
        with _reported(), self._engine.connect().execution_options(crossrank_reads=True) as connection:
            yield connection

    def check(self) -> None:
        """Notice that the file of a SQLite store was deleted or replaced: its open connections would not.

        Raises:
            AccountsUnavailable: It was.
        """
        if self._file is not None and self._found_inode() != self._inode:
            raise unavailable(
                f"the file {self._file} was deleted or replaced while it was open: put it back, or restart to use "
                "what is there now",
                "the account store is gone",
            )

    def probe_read(self) -> None:
        """Read from the store.

        Raises:
            AccountsUnavailable: It does not answer.
        """
        with self.read() as connection:
            connection.execute(select(schema.c.version))

    def probe_write(self) -> None:
        """Write to the store and change nothing.

        Raises:
            AccountsUnavailable: It does not answer.
        """
        with self.write() as connection:
            # A full disk and a read-only file show only here.
            connection.execute(update(schema).values(version=schema.c.version))

    def add_to(self, table: Table, sums: Sequence[str]) -> Any:
        """Return an INSERT that, where the row exists already, adds the columns named in `sums` to it."""
        dialect: Any = sqlite if self._file else postgresql
        statement = dialect.insert(table)
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={name: table.c[name] + statement.excluded[name] for name in sums},
        )

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def _found_inode(self) -> tuple[int, int] | None:
        if self._file is None:
            return None
        try:
            found = os.stat(self._file)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _create_tables(self) -> None:
        with self.write() as connection:
            if self._file is None:
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            tables.create_all(connection)
            version = connection.scalar(select(schema.c.version))
            if version is None:
                connection.execute(insert(schema).values(version=SCHEMA_VERSION))
            elif version != SCHEMA_VERSION:
                raise SetupError(
                    f"the store has tables of version {version}, this crossrank needs {SCHEMA_VERSION}: "
                    "run the version that made them, or start with a new store"
                )


@contextmanager
def _reported() -> Iterator[None]:
    """Turn errors of the database into AccountsUnavailable."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError, NotSupportedError):
        raise  # the database answers; the error is in this code
    except (DatabaseError, InterfaceError, PoolTimeout) as error:
        raise unavailable(str(getattr(error, "orig", error)).strip()) from error
