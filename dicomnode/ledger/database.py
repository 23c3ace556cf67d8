"""Connections to the database, and its migrations."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config as AlembicConfig
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    DisconnectionError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from dicomnode.errors import ConfigurationError, LedgerUnavailable, RowRefused
from dicomnode.ledger.postgres import WorkLock, engine_for, lock_migration

BUSY_TIMEOUT_S = 30.0
MIGRATIONS = Path(__file__).parent.parent / "migrations"
# Alembic keeps the migration under way in module globals.
_MIGRATING = threading.Lock()


class Database:
    """Three kinds of transaction: to decide, to register in batches, to read."""

    def __init__(self, url: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self._decisions = _engine(url, "FULL", busy_timeout_s)
        self._batches = _engine(url, "NORMAL", busy_timeout_s) if _is_sqlite(url) else self._decisions
        self._work = None if _is_sqlite(url) else WorkLock(self._decisions)

    @classmethod
    def open(cls, url: str, busy_timeout_s: float = BUSY_TIMEOUT_S) -> Self:
        """Create or migrate the database at `url` and open it.

        busy_timeout_s: how long to wait for another writer. Raises ConfigurationError when the URL
        is wrong and LedgerUnavailable when the database cannot be used.
        """
        try:
            database = cls(url, busy_timeout_s)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ConfigurationError(
                f"[node] database_url {_without_password(url)} cannot be used: {error}",
                "Give sqlite:////PATH or postgresql://USER@HOST/DATABASE; the latter needs "
                "`pip install 'dicomnode[postgres]'`",
            ) from None
        _make_folder(url)
        try:
            database._migrate()
        except BaseException:
            database.close()
            raise
        return database

    @property
    def where(self) -> str:
        """The database's URL, without the password."""
        url = self._decisions.url
        return url.set(drivername=url.get_backend_name()).render_as_string(hide_password=True)

    def probe(self) -> None:
        """Raises LedgerUnavailable when the database does not answer."""
        with self._read() as connection:
            connection.exec_driver_sql("SELECT id FROM cases LIMIT 1")

    def close(self) -> None:
        """Let go of every connection, and of the work."""
        if self._work is not None:
            self._work.release()
        self._decisions.dispose()
        self._batches.dispose()

    def has_work(self) -> bool:
        """Whether this node is the one that works; takes that part when it is free.

        On SQLite always: `data_dir` belongs to one node.
        """
        if self._work is None:
            return True
        with answering():
            return self._work.held()

    def _migrate(self) -> None:
        config = AlembicConfig()
        # The percent sign begins an interpolation there.
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        with _MIGRATING, answering(), self._decisions.connect() as connection:
            config.attributes["connection"] = connection
            if connection.dialect.name == "postgresql":
                lock_migration(connection)
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise ConfigurationError(
                    f"the ledger was not written by this version of the software: {error}",
                    "Run the version that wrote it, or a newer one",
                ) from None
            connection.commit()

    @contextmanager
    def _decide(self) -> Iterator[Connection]:
        """A transaction that survives a power cut once it is committed."""
        with answering(), self._decisions.begin() as connection:
            yield connection

    @contextmanager
    def _batch(self) -> Iterator[Connection]:
        """A transaction that survives `kill -9`; the spool can rebuild what a power cut takes."""
        with answering(), self._batches.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        with answering(), self._decisions.connect().execution_options(read_only=True) as connection:
            yield connection


@contextmanager
def answering() -> Iterator[None]:
    """Say in the node's words that the database does not answer."""
    try:
        yield
    except SQLAlchemyError as error:
        raise _in_our_words(error) from error
    except (UnicodeEncodeError, OverflowError) as error:
        # SQLite's driver, before it asks the database: half of a surrogate pair, an integer of 65 bits.
        raise _refused(error) from error


def _in_our_words(error: SQLAlchemyError) -> LedgerUnavailable:
    if _is_about_values(error):
        return _refused(error)
    if isinstance(error, OperationalError | InterfaceError | PoolTimeoutError):
        return LedgerUnavailable(
            # PostgreSQL's driver answers in several lines.
            f"the ledger does not answer: {' '.join(str(getattr(error, 'orig', error)).split())}",
            "Check [node] database_url; the disk and its rights, or the database server and the way to it",
        )
    # SQLite's driver raises exactly this class for a file that is damaged or is no database.
    if type(error) is DatabaseError:
        return LedgerUnavailable(
            f"the ledger is damaged: {error.orig}", "Restore it from a backup; the spool is untouched"
        )
    return LedgerUnavailable(f"the ledger refused: {error}", "This is a bug: please report it")


def _is_about_values(error: SQLAlchemyError) -> bool:
    """Whether the database refused what it was given, and not the giving."""
    orig = getattr(error, "orig", None)
    state = getattr(orig, "sqlstate", None)
    if state is not None:
        # PostgreSQL's classes "data exception", "integrity constraint violation" and "program limit
        # exceeded" (an index takes 2704 bytes of a row), which its driver mixes with other failures.
        return str(state)[:2] in ("22", "23", "54")
    return isinstance(error, (DataError, IntegrityError))


def _refused(error: Exception) -> RowRefused:
    """Without the values: the database's details name them."""
    orig = getattr(error, "orig", None) or error
    said = getattr(getattr(orig, "diag", None), "message_primary", None) or str(orig)
    return RowRefused(f"the ledger does not take a value: {said}", "This is a bug: please report it")


def _make_folder(url: str) -> None:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return
    folder = Path(parsed.database).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerUnavailable(
            f"the ledger's folder {folder} cannot be made: {error.strerror}", "Check [node] database_url"
        ) from None


def _is_sqlite(url: str) -> bool:
    return make_url(url).get_backend_name() == "sqlite"


def _without_password(url: str) -> str:
    try:
        return repr(make_url(url).render_as_string(hide_password=True))
    except ArgumentError:
        return repr(url)


def _engine(url: str, synchronous: str, busy_timeout_s: float) -> Engine:
    parsed = make_url(url)
    match parsed.get_backend_name():
        case "sqlite":
            return _sqlite_engine(url, synchronous, busy_timeout_s)
        case "postgresql":
            return engine_for(parsed, busy_timeout_s)
        case other:
            raise ArgumentError(f"{other!r} is neither sqlite nor postgresql")


def _sqlite_engine(url: str, synchronous: str, busy_timeout_s: float) -> Engine:
    # What a failing statement was given would stand in the log, patients' names with it.
    engine = create_engine(url, connect_args={"timeout": busy_timeout_s}, hide_parameters=True)
    file = engine.url.database

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: `_begin` does.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "checkout")
    def _still_there(_connection: Any, _record: Any, _proxy: Any) -> None:
        # SQLite would go on writing to a file that was deleted. Connecting anew tells what is wrong.
        if file and not Path(file).exists():
            raise DisconnectionError(f"{file} is gone")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("read_only", False)
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine
