"""Define the tables, and open them in SQLite or PostgreSQL: `Store` creates them and gives transactions."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Date,
    Engine,
    Float,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    make_url,
    select,
    text,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout

from crossrank.errors import BackendUnavailable, SetupError

_log = logging.getLogger("crossrank.accounts")

SCHEMA_VERSION = 1
RETRY_AFTER_S = 2.0

# How long a transaction waits for another one's lock, and for PostgreSQL to answer at all.
_LOCK_WAIT_S = 5
_CONNECT_S = 3
# Key of the advisory lock that serializes the creation of tables; any number that no other application uses.
_SCHEMA_LOCK = 7_226_553_013

_tables = MetaData()
schema = Table("crossrank_schema", _tables, Column("version", Integer, primary_key=True))

keys = Table(
    "crossrank_keys",
    _tables,
    Column("id", String, primary_key=True),
    Column("secret_sha256", String, nullable=False),
    Column("name", String, nullable=False),
    Column("scopes", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    Column("requests_per_minute", BigInteger),
    Column("documents_per_minute", BigInteger),
)

# Updated by every admission, one row a key. Money in nano-dollars. A NULL balance: the key is not prepaid.
# granted = spent + balance + the holds of all gateways.
allowances = Table(
    "crossrank_allowances",
    _tables,
    Column("key_id", String, primary_key=True),
    Column("granted", BigInteger, nullable=False, default=0),
    Column("spent", BigInteger, nullable=False, default=0),
    Column("balance", BigInteger),
    Column("window", BigInteger, nullable=False, default=0),
    Column("requests", BigInteger, nullable=False, default=0),
    Column("documents", BigInteger, nullable=False, default=0),
    Column("previous_requests", BigInteger, nullable=False, default=0),
    Column("previous_documents", BigInteger, nullable=False, default=0),
)

# Credit that a gateway took out of a balance for requests under way, as long as the gateway's lease lasts.
holds = Table(
    "crossrank_holds",
    _tables,
    Column("gateway_id", String, primary_key=True),
    Column("key_id", String, primary_key=True),
    Column("held", BigInteger, nullable=False),
)
gateways = Table(
    "crossrank_gateways",
    _tables,
    Column("id", String, primary_key=True),
    Column("lease_until", Float, nullable=False),
    Column("last_batch", BigInteger, nullable=False),
)

usage = Table(
    "crossrank_usage",
    _tables,
    Column("key_id", String, primary_key=True),
    Column("day", Date, primary_key=True),
    Column("model", String, primary_key=True),
    Column("tier", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("documents", BigInteger, nullable=False),
    Column("tokens", BigInteger, nullable=False),
    Column("cost", BigInteger, nullable=False),
)


class Store:
    """Open the database of keys, credit and usage.

    Args:
        url: `sqlite:///file` or `postgresql://user:password@host/database`.

    Attributes:
        url: As it was given.
        threads: Number of threads that may use it at a time.

    Raises:
        SetupError: The URL has another scheme, the database cannot be opened, or its tables are of another version.
    """

    def __init__(self, url: str) -> None:
        self._engine = _make_engine(url)
        self.url = url
        # One thread for SQLite, which has one writer anyway: they would only wait for each other.
        self.threads = 1 if self._engine.dialect.name == "sqlite" else 8
        try:
            self._create_tables()
        except BackendUnavailable as error:
            shown = self._engine.url.render_as_string(hide_password=True)
            reason = str(getattr(error.__cause__, "orig", error.__cause__)).strip()
            raise SetupError(f"--store {shown} cannot be opened: {reason}; check the address and its rights") from None

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Enter with a transaction that is committed when the block ends.

        Raises:
            BackendUnavailable: The database does not answer, or not in time.
        """
        with _reported(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Enter with a transaction that reads one state of the database.

        Raises:
            BackendUnavailable: The database does not answer, or not in time.
        """
        with _reported(), self._engine.connect().execution_options(crossrank_reads=True) as connection:
            yield connection

    def add_to(self, table: Table, sums: Sequence[str]) -> Any:
        """Return an INSERT that, where the row exists already, adds the columns named in `sums` to it."""
        dialect: Any = sqlite if self._engine.dialect.name == "sqlite" else postgresql
        statement = dialect.insert(table)
        return statement.on_conflict_do_update(
            index_elements=list(table.primary_key.columns),
            set_={name: table.c[name] + statement.excluded[name] for name in sums},
        )

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()

    def _create_tables(self) -> None:
        with self.write() as connection:
            if self._engine.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SCHEMA_LOCK})
            _tables.create_all(connection)
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
    """Turn errors of the database into BackendUnavailable; log their text, which callers do not see."""
    try:
        yield
    except (IntegrityError, ProgrammingError, DataError, NotSupportedError):
        raise  # the database answers; the error is in this code
    except (DatabaseError, InterfaceError, PoolTimeout) as error:
        _log.error("the account store failed: %s", str(getattr(error, "orig", error)).strip())
        raise BackendUnavailable(
            f"the account store does not answer, so that keys and credit cannot be checked; "
            f"try again in {RETRY_AFTER_S:g} s",
            code="accounts_unavailable",
            retry_after_s=RETRY_AFTER_S,
        ) from error


def _make_engine(address: str) -> Engine:
    try:
        url = make_url(address)
        kind = url.get_backend_name()
    except (ArgumentError, NoSuchModuleError):
        kind = ""
    if kind == "sqlite" and url.database:
        return _sqlite_engine(address, Path(url.database))
    if kind in ("postgresql", "postgres"):
        try:
            return create_engine(
                url.set(drivername="postgresql+psycopg"),
                pool_size=8,
                max_overflow=2,
                pool_timeout=_LOCK_WAIT_S,
                pool_pre_ping=True,
                connect_args={
                    "connect_timeout": _CONNECT_S,
                    "options": f"-c statement_timeout={_LOCK_WAIT_S}s -c idle_in_transaction_session_timeout=10s",
                    "tcp_user_timeout": _LOCK_WAIT_S * 1000,
                },
            )
        except ModuleNotFoundError:
            raise SetupError("--store postgresql:// needs psycopg: pip install 'crossrank[postgresql]'") from None
    # The address may hold a password: only its scheme is shown.
    shown = address.partition(":")[0] if "://" in address else address
    raise SetupError(
        f"--store is {shown[:40]!r}...: give sqlite:///file.db (four slashes for an absolute path) or "
        "postgresql://user:password@host/database"
    )


def _sqlite_engine(address: str, path: Path) -> Engine:
    if not path.parent.is_dir():
        raise SetupError(f"--store: the directory {path.parent} does not exist; make it, or choose another file")
    # Readable by its owner alone: it holds who used how much.
    try:
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
    except OSError as error:
        raise SetupError(f"--store: {path} cannot be opened: {error.strerror}; check its rights") from None
    engine = create_engine(address, connect_args={"timeout": _LOCK_WAIT_S})

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
