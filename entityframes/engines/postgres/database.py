"""A PostgreSQL database: sessions on the connections of a pool."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import polars as pl

from entityframes.engines.postgres.errors import READ_ONLY
from entityframes.engines.postgres.pool import Pool, for_writing
from entityframes.engines.postgres.session import Session
from entityframes.engines.queries import Statements
from entityframes.engines.url import Location
from entityframes.errors import DatabaseError, PermanentError, StatementCancelledError
from entityframes.interrupt import Interrupt
from entityframes.retry import retry

#: The first version of PostgreSQL with RETURNING old.
RETURNS_OLD = 180_000


class PostgresDatabase:
    """A PostgreSQL database; each session borrows a separate connection from a pool.

    Args:
        location: the address.
        namespace: the schema of the store, if there is one.
        workers: how many batches are processed concurrently; None for 2.
        read_only: whether writing is forbidden.

    Raises:
        ConnectError: the address is not supported.
    """

    name = "postgresql"

    def __init__(self, location: Location, namespace: str | None, workers: int | None, read_only: bool = False) -> None:
        self.address, self.origin, self.read_only = location.address, location.origin, read_only
        self.workers = self.writers = workers or 2
        self.batch_bytes, self.batch_rows, self.lookup_rows, self.by_key = 8 << 20, 50_000, 50_000, True
        self.statements = Statements("postgres", namespace)
        # Each embedding worker has an additional thread that writes.
        self._pool = Pool(
            location.target if read_only else for_writing(location.target), 2 * self.workers, self.statements
        )
        #: Whether the database was opened on a primary.
        self._opened_on_primary = False

    @property
    def namespace(self) -> str:
        return self.statements.namespace

    @property
    def losses(self) -> int:
        return self._pool.losses

    @property
    def has_citus(self) -> bool:
        """Whether the extension Citus is there, so that the schema of the store may be distributed."""
        return self._pool.citus

    @property
    def created(self) -> str:
        """SQL for whether an INSERT ... ON CONFLICT has inserted the entity that it returns, rather than updated it."""
        if self._pool.version >= RETURNS_OLD:
            return "old.id IS NULL"
        # Citus returns no system columns. These times are those of the transactions that created and updated the
        # entity, which are equal by accident only if both began in the same microsecond.
        return "e.created_at = e.updated_at" if self._pool.citus else "xmax = 0"

    def opened(self, session: Session) -> None:
        """Remember that the first session was on a primary, so that a standby later means a lost connection."""
        self._opened_on_primary = session.is_primary()

    @contextmanager
    def session(self, interrupt: Interrupt | None = None, *, writing: bool = False) -> Iterator[Session]:
        """A session on a connection of the pool. A standby that rejects writes is treated like a lost connection.

        Args:
            interrupt: cancels its statements.
            writing: ignored by this engine.

        Raises:
            ConnectionLostError: the database was opened on a primary, but the server is a standby now.
        """
        with self._pool.borrow(interrupt) as connection:
            session = Session(connection, self.statements, self.address)
            try:
                yield session
            except PermanentError as error:
                if error.sqlstate == READ_ONLY and self._opened_on_primary:
                    session.rollback()
                    session.check_primary()
                raise

    def read(self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None) -> pl.DataFrame:
        """Execute a statement without side effects in a new session and return its result, with retries."""

        def query() -> pl.DataFrame:
            with self.session() as session:
                return session.query(name, *parameters, placeholders=placeholders)

        return retry(query, what=name)

    def replicated(self, seconds: float) -> bool:
        # Cancelling a COMMIT that waits for a standby makes it succeed, with a notice, which the driver drops. To find
        # out, wait for the standby with another COMMIT; if this side cancels that one, the answer is no.
        if not self._pool.synchronous:
            return True
        late = threading.Event()
        try:
            with self.session() as session:

                def end() -> None:
                    late.set()
                    session.connection.cancel()

                timer = threading.Timer(seconds, end)
                timer.start()
                try:
                    session.query("wait_for_standby")
                finally:
                    timer.cancel()
                    timer.join()
                if late.is_set():
                    # The connection is not reused, because the cancellation may arrive only now.
                    raise StatementCancelledError("the standby has not responded")
        except DatabaseError:
            if late.is_set():
                return False
            raise
        return True

    def close(self) -> None:
        self._pool.close()
