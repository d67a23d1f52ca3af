"""Execution of named statements on a connection."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from entityframes.engines.arrow import one_row
from entityframes.engines.postgres.errors import READ_ONLY
from entityframes.engines.postgres.literals import literals
from entityframes.engines.postgres.pool import PooledConnection
from entityframes.engines.queries import Statements
from entityframes.errors import ConnectionLostError
from entityframes.interrupt import Interrupt


class Session:
    """Executes named statements, in a single thread. Parameters are scalars, sent as text, or Series, sent as arrays.

    Args:
        connection: a connection borrowed from the pool.
        statements: the statements, for the namespace of the store.
        address: the address of the store, for messages.
    """

    def __init__(self, connection: PooledConnection, statements: Statements, address: str) -> None:
        self.connection = connection
        self._statements, self._address = statements, address

    def query(
        self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None, committing: bool = False
    ) -> pl.DataFrame:
        """Execute a statement and return its result; a column ``position`` is UInt32.

        Args:
            name: the name of the statement.
            parameters: the values of $1, $2, ...
            placeholders: validated text for the placeholders in braces.
            committing: whether the statement may have been committed if it fails.

        Raises:
            DatabaseError: with the SQLSTATE; ``committing`` is set if it may have been committed nevertheless.
        """
        with self.connection.statement(committing=committing) as cursor:
            found = cursor.query(*self._with_parameters(name, parameters, placeholders or {}))
        # PostgreSQL has no unsigned integers.
        return found.with_columns(found["position"].cast(pl.UInt32)) if "position" in found.columns else found

    def execute(
        self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None, committing: bool = False
    ) -> None:
        """Execute a statement without using its result; without parameters, it may consist of several statements.

        Raises:
            DatabaseError: as in `query`.
        """
        with self.connection.statement(committing=committing) as cursor:
            if parameters:
                cursor.execute(*self._with_parameters(name, parameters, placeholders or {}))
            else:
                cursor.script(self._statement(name, placeholders))

    def stream(
        self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Execute a statement and yield its result in chunks."""
        with self.connection.statement() as cursor:
            yield from cursor.stream(self._statement(name, placeholders), one_row(parameters) if parameters else None)

    def copy(self, table: str, rows: pa.Table | pl.DataFrame, schema: str | None = None) -> None:
        """Copy rows into a table, by default of the store."""
        self._ingest(table, rows, db_schema_name=schema or self._statements.namespace)

    def stage(self, table: str, rows: pa.Table | pl.DataFrame) -> None:
        """Copy rows into an existing temporary table."""
        self._ingest(table, rows, temporary=True)

    def _ingest(self, table: str, rows: pa.Table | pl.DataFrame, **where: Any) -> None:
        with self.connection.statement() as cursor:
            cursor.ingest(table, rows.to_arrow() if isinstance(rows, pl.DataFrame) else rows, **where)

    def text(self, name: str, placeholders: Mapping[str, object]) -> str:
        """The text of a statement, to be used in another one."""
        return self._statement(name, placeholders)

    def transaction(self, interrupt: Interrupt | None = None, *settings: str) -> AbstractContextManager[None]:
        """BEGIN and COMMIT; see `PooledConnection.transaction`."""
        return self.connection.transaction(interrupt or Interrupt(), *settings)

    def begin(self) -> None:
        """Start a transaction that `rollback` ends."""
        self.connection.begin()

    def rollback(self) -> None:
        """Roll back the open transaction, if any."""
        self.connection.rollback()

    def is_primary(self) -> bool:
        """Whether the server is a primary, not a standby."""
        return self.connection.primary or not self.query("in_recovery").item()

    def check_primary(self) -> None:
        """Check that the server is not a standby, which may lack committed transactions.

        Raises:
            ConnectionLostError: the server is a standby; the connection is not used again.
        """
        if not self.is_primary():
            raise ConnectionLostError(
                f"the server at {self._address} is a standby, which may be behind and accepts no writes",
                READ_ONLY,
                advice="connect to the primary, or promote the standby",
            )

    def _with_parameters(
        self, name: str, parameters: tuple[Any, ...], placeholders: Mapping[str, object]
    ) -> tuple[str, pa.RecordBatch | None]:
        """A statement with its parameters: within its text if they are small, otherwise as a row."""
        # The text of a placeholder may refer to parameters.
        plain = not any("$" in str(text) for text in placeholders.values())
        if plain and (within := literals(parameters)) is not None:
            return self._statement(name, {**placeholders, **within}), None
        return self._statement(name, placeholders), one_row(parameters)

    def _statement(self, name: str, placeholders: Mapping[str, object] | None) -> str:
        return self._statements.format(name, placeholders or {})


class Sessions(Protocol):
    """Opens sessions: the engine, as its embedding, text search and directory halves use it."""

    statements: Statements
    read_only: bool

    @property
    def namespace(self) -> str:
        """The schema of the store."""

    def session(self, interrupt: Interrupt | None = None, *, writing: bool = False) -> AbstractContextManager[Session]:
        """A session for one call."""

    def read(self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None) -> pl.DataFrame:
        """Execute a statement in a new session and return its result."""
