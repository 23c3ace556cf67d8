"""The ledger on PostgreSQL: connections, and the lock that one worker at a time holds.

SQLite lets one writer in at a time. Here several nodes write at once, at READ COMMITTED: whoever
decides about a case first locks its row (`rows.locked_case`), and what two receivers may both insert
goes through `steps.insert_new`. So a state is always advanced from the state that is stored.
"""

from __future__ import annotations

import logging
import threading
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.exc import SQLAlchemyError

_log = logging.getLogger(__name__)

# Keys of our advisory locks: "DCMN" in ASCII, and what is locked.
_OURS = 0x44434D4E
_MIGRATION, _WORK = 1, 2
# A server that has vanished without a word, and for the server a node that has: found out within
# 10 + 3 x 5 seconds, libpq's and the server's names for the same TCP options.
_KEEPALIVES = {"keepalives": 1, "keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3}
_SERVER_SIDE = (
    "-c tcp_keepalives_idle=10 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 "
    # A node that stops in the middle of a transaction must not keep a case locked for ever.
    "-c idle_in_transaction_session_timeout=120000 -c timezone=UTC"
)
_CONNECT_TIMEOUT_S = 10
_UNANSWERED_MS = 30_000
# Twenty associations may each ask whether an object is a result, beside the stages.
_POOL_SIZE, _POOL_OVERFLOW = 5, 20


def engine_for(url: URL, busy_timeout_s: float) -> Engine:
    """An engine whose every commit is durable on the server; lost connections are replaced.

    synchronous_commit stays on for batches, too: what SQLite loses in a power cut the node finds again
    at the start that follows; a database server that restarts is followed by no start of the node.
    """
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    engine = create_engine(
        url,
        # What a failing statement was given would stand in the log, patients' names with it.
        hide_parameters=True,
        pool_pre_ping=True,
        pool_size=_POOL_SIZE,
        max_overflow=_POOL_OVERFLOW,
        pool_timeout=busy_timeout_s,
        connect_args={
            "connect_timeout": _CONNECT_TIMEOUT_S,
            "application_name": "dicomnode",
            "tcp_user_timeout": _UNANSWERED_MS,
            "options": f"{_SERVER_SIDE} -c lock_timeout={max(1, int(busy_timeout_s * 1000))}",
            **_KEEPALIVES,
        },
    )
    event.listen(engine, "connect", _takes_every_text)
    return engine


def _takes_every_text(connection: Any, _record: Any) -> None:
    """PostgreSQL stores no NUL and no half of a surrogate pair; objects from outside may hold either.

    One such Patient ID would otherwise keep the whole batch out of the ledger for ever.
    """
    from psycopg.types.string import StrDumperUnknown

    class Plain(StrDumperUnknown):
        def dump(self, obj: str) -> Any:
            return super().dump(_storable(obj))

    connection.adapters.register_dumper(str, Plain)


def _storable(value: str) -> str:
    plain = value.replace("\0", "")
    return plain if plain.isascii() else plain.encode("utf-8", "replace").decode("utf-8")


def lock_migration(connection: Connection) -> None:
    """Until the transaction ends: two nodes that start at once migrate one after the other."""
    # The lock waits for a whole migration of the other.
    connection.execute(text("SET LOCAL lock_timeout = 0"))
    connection.execute(
        text("SELECT pg_advisory_xact_lock(:ours, :what)"), {"ours": _OURS, "what": _MIGRATION}
    )


class WorkLock:
    """Held by the one node that works (assembles, computes, delivers) of all that share the database.

    It belongs to a connection: the server takes it back when the node ends, however it ends. A node
    that has lost it without noticing does no harm: its attempts were closed by the one that took over,
    and the ledger refuses what comes of them.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: Connection | None = None
        self._turn = threading.Lock()

    def held(self) -> bool:
        """Whether this node has the lock now; takes it when it is free. Raises SQLAlchemyError."""
        with self._turn:
            try:
                if self._connection is not None:
                    self._connection.execute(text("SELECT 1"))
                    return True
                return self._take()
            except BaseException:
                self._drop()
                raise

    def release(self) -> None:
        """Let another node work, from now on."""
        with self._turn:
            try:
                if self._connection is not None:
                    # The server notices a closed connection only some time after we have gone on.
                    query = text("SELECT pg_advisory_unlock(:ours, :what)")
                    self._connection.execute(query, {"ours": _OURS, "what": _WORK})
            except SQLAlchemyError:
                # A server that cannot be asked has ended the connection, or will, and the lock with it.
                _log.debug("the lock of the work was not given back by asking", exc_info=True)
            finally:
                self._drop()

    def _take(self) -> bool:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            query = text("SELECT pg_try_advisory_lock(:ours, :what)")
            got = bool(connection.execute(query, {"ours": _OURS, "what": _WORK}).scalar_one())
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        if got:
            self._connection = connection
        else:
            connection.close()
        return got

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            # Closed for good, not given back to the pool with the lock on it.
            connection.invalidate()
            connection.close()
