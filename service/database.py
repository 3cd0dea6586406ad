"""The database: connections, transactions and what their errors mean.

Reading and writing sessions are kept apart. SQLite refuses at once, whatever the busy timeout, to turn a reading transaction
into a writing one when somebody else has written in between; so a writing transaction takes the write lock when it begins.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, TimeoutError
from sqlalchemy.orm import Session, sessionmaker

from service.errors import ServiceError, StorageFull, Unavailable

LOCK_SECONDS = 10
MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x63686E72  # any number that nobody else uses in this Postgres database

SQLITE_UNAVAILABLE = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PROTOCOL,
    }
)
POSTGRES_UNAVAILABLE = ("08", "40", "53", "55P03", "57", "25006")  # connection, conflict, resources, lock, shutdown
POSTGRES_DISK_FULL = "53100"


class Store:
    """The job store. Sessions are short; values, never rows, leave them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._reading = sessionmaker(engine, expire_on_commit=False, autoflush=False)
        self._writing = sessionmaker(engine.execution_options(immediate=True), expire_on_commit=False)

    @contextmanager
    def read(self) -> Iterator[Session]:
        with translated_errors(), self._reading() as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """One transaction, committed when the block ends without an exception."""
        with translated_errors(), self._writing.begin() as session:
            yield session

    def close(self) -> None:
        self.engine.dispose()


def open_store(url: str) -> Store:
    """Opens the database of ``url``, creating and migrating it under a lock where needed."""
    with translated_errors():
        engine = _engine(url)
        with engine.execution_options(immediate=True).begin() as connection:
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": MIGRATION_LOCK})
            migrate(connection)
    return Store(engine)


def migrate(connection: Connection) -> None:
    """Brings the schema up to date within the connection's transaction: all of it, or nothing."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def database_now(session: Session) -> datetime:
    """The clock that all processes of the installation share: the server's, or with SQLite this machine's."""
    if session.get_bind().dialect.name == "postgresql":
        now: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now.astimezone(UTC)
    return datetime.now(UTC)


@contextmanager
def translated_errors() -> Iterator[None]:
    """Trouble with the database as such becomes a ServiceError; mistakes in our own statements stay what they are."""
    try:
        yield
    except TimeoutError as error:
        raise Unavailable("too many requests wait for the database; try again in a moment") from error
    except DBAPIError as error:
        if (meaning := _meaning(error)) is None:
            raise
        raise meaning from error


def _meaning(error: DBAPIError) -> ServiceError | None:
    cause = error.orig
    if isinstance(cause, sqlite3.Error):
        code = getattr(cause, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code == sqlite3.SQLITE_FULL:
            return StorageFull("the disk that holds the database is full")
        if code in SQLITE_UNAVAILABLE:
            return Unavailable("the database is busy or cannot be reached; try again in a moment")
        return None
    state = getattr(cause, "sqlstate", None)
    if state == POSTGRES_DISK_FULL:
        return StorageFull("the disk that holds the database is full")
    lost = state is None and type(cause).__name__ in ("OperationalError", "InterfaceError", "ConnectionTimeout")
    if lost or error.connection_invalidated or (state or "").startswith(POSTGRES_UNAVAILABLE):
        return Unavailable("the database cannot be reached; try again in a moment")
    return None


def _engine(address: str) -> Engine:
    url = make_url(address)
    if url.get_backend_name() == "sqlite":
        if not url.database or url.database == ":memory:":
            raise ValueError("the database must be a file: several processes share it")
        Path(url.database).parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        engine = create_engine(
            url.set(drivername="sqlite+pysqlite"),
            connect_args={"timeout": LOCK_SECONDS},
            pool_timeout=LOCK_SECONDS,
            max_overflow=40,
        )
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    if url.get_backend_name() != "postgresql":
        raise ValueError(f"database_url must be of sqlite or postgresql, not {url.get_backend_name()}")
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_timeout=LOCK_SECONDS,
        connect_args={
            "connect_timeout": 5,
            "prepare_threshold": None,  # prepared statements break behind transaction poolers
            "options": f"-c timezone=UTC -c lock_timeout={LOCK_SECONDS}s -c statement_timeout=30s"
            " -c idle_in_transaction_session_timeout=60s",
        },
    )


def _prepare_sqlite(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # the driver begins no transactions: _begin_sqlite does
    _use_wal(connection)
    connection.execute("PRAGMA synchronous = FULL")  # NORMAL may lose the last commits when the power fails
    connection.execute("PRAGMA foreign_keys = ON")


def _use_wal(connection: sqlite3.Connection) -> None:
    """The change to WAL, once in a database's life, does not wait for other connections: so we do."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            if connection.execute("PRAGMA journal_mode").fetchone() != ("wal",):
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _begin_sqlite(connection: Connection) -> None:
    options: Any = connection.get_execution_options()
    connection.exec_driver_sql("BEGIN IMMEDIATE" if options.get("immediate") else "BEGIN")
