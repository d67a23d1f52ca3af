"""Connections to PostgreSQL: kept in a pool, each used by one thread at a time."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any

import adbc_driver_manager
import adbc_driver_postgresql
from adbc_driver_manager.dbapi import Connection

from entityframes.engines import Interrupt
from entityframes.engines.arrow import one_row
from entityframes.engines.postgres_errors import translated
from entityframes.errors import ClosedError, ConnectionLostError, DatabaseError, RowError


class Pool:
    """Connections of one process to one database.

    Args:
        target: the connection URI.
        keep: how many idle connections are kept.
        session: the statement that every new connection begins with.
    """

    def __init__(self, target: str, keep: int, session: str) -> None:
        self._target = target
        self._keep = keep
        self._session = session
        self._idle: list[Any] = []
        self._lock = threading.Lock()
        self._database: _Database | None = None
        self._first = threading.Lock()
        self._closed = False
        self._process = os.getpid()

    @contextmanager
    def borrow(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        """A connection of one's own; it goes back to the pool unless something failed on it.

        Raises:
            ClosedError: the pool was closed, or belongs to another process.
        """
        if os.getpid() != self._process:
            raise ClosedError("this store was opened in another process: after a fork, connect again in the child")
        with self._lock:
            if self._closed:
                raise ClosedError("the store is closed: open it again with entityframes.connect()")
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect()
            execute(connection, self._session)
        try:
            if interrupt is None:
                yield connection
            else:
                interrupt.check()
                with interrupt.cancelling(connection.adbc_cancel):
                    yield connection
        except RowError:
            # The server said no and is well: the rows are tried again, on the same connection.
            if _rolled_back(connection):
                self._give_back(connection)
            raise
        except BaseException as error:
            # Whatever state it is in, closing it rolls back; a new one costs ten round trips, a wrong one the data.
            _discard(connection)
            if isinstance(error, ConnectionLostError):
                # The idle ones are from before it, too.
                self._empty()
            raise
        self._give_back(connection)

    def _connect(self) -> Any:
        with self._first, translated(connecting=True):
            if self._database is None:
                self._database = _Database(self._target)
        with translated(connecting=True):
            return self._database.connect()

    def close(self) -> None:
        """Close every connection that is not lent out, and the others when they come back. May be called again."""
        with self._lock:
            self._closed = True
        if os.getpid() == self._process:
            self._empty()

    def _empty(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            _discard(connection)

    def _give_back(self, connection: Any) -> None:
        with self._lock:
            keep = not self._closed and len(self._idle) < self._keep
            if keep:
                self._idle.append(connection)
        if not keep:
            _discard(connection)


class _Database:
    """What the driver reads of the types of a database, in ten times the time of connecting, for all connections."""

    def __init__(self, target: str) -> None:
        self._handle = adbc_driver_postgresql.connect(target)

    def connect(self) -> Connection:
        return Connection(self, adbc_driver_manager.AdbcConnection(self._handle), autocommit=True)  # type: ignore[arg-type]

    def close(self) -> None:
        """What a connection does at its end to a database of its own; this one outlives it."""


@contextmanager
def transaction(connection: Any, interrupt: Interrupt) -> Iterator[None]:
    """BEGIN and COMMIT; an error leaves the transaction to the connection's end, which rolls it back."""
    execute(connection, "BEGIN")
    yield
    interrupt.check()
    execute(connection, "COMMIT", committing=True)


def execute(connection: Any, statement: str, *parameters: Any, committing: bool = False) -> None:
    """Run a statement whose answer is of no interest.

    Raises:
        DatabaseError: with the SQLSTATE; `committing` says whether it may have been committed all the same.
    """
    with translated(committing=committing), closing(connection.cursor()) as cursor:
        cursor.execute(statement, one_row(parameters))


def _rolled_back(connection: Any) -> bool:
    try:
        execute(connection, "ROLLBACK")
    except DatabaseError:
        _discard(connection)
        return False
    return True


def _discard(connection: Any) -> None:
    # An error means that it was broken already; the server rolls back when the socket goes.
    with suppress(adbc_driver_manager.Error):
        connection.close()
