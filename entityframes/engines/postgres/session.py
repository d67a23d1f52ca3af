"""A connection that one call has borrowed, and the statements of a store that it runs there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import polars as pl
import pyarrow as pa

from entityframes.engines.arrow import one_row
from entityframes.engines.postgres.errors import READ_ONLY
from entityframes.engines.postgres.pool import PooledConnection
from entityframes.engines.queries import Statements
from entityframes.errors import ConnectionLostError
from entityframes.interrupt import Interrupt


class Session:
    """Runs named statements; used by one thread. Their parameters are scalars, as text, and Series, as arrays.

    Args:
        connection: the one that is borrowed.
        statements: the statements, for the namespace of the store.
        address: of the store, for messages.
    """

    def __init__(self, connection: PooledConnection, statements: Statements, address: str) -> None:
        self.connection = connection
        self._statements, self._address = statements, address

    def ask(
        self, name: str, *parameters: Any, places: Mapping[str, object] | None = None, committing: bool = False
    ) -> pl.DataFrame:
        """What a statement answers; a column ``position`` is UInt32.

        Args:
            name: of the statement.
            parameters: for $1, $2, ...
            places: validated text for what stands in braces in it.
            committing: whether the statement may be committed although it fails.

        Raises:
            DatabaseError: with the SQLSTATE; its ``committing`` says whether it may have been committed all the same.
        """
        with self.connection.statement(committing=committing) as cursor:
            found: pl.DataFrame = cursor.answer(self._statement(name, places), one_row(parameters))
        # PostgreSQL has no unsigned integers.
        return found.with_columns(found["position"].cast(pl.UInt32)) if "position" in found.columns else found

    def run(
        self, name: str, *parameters: Any, places: Mapping[str, object] | None = None, committing: bool = False
    ) -> None:
        """Run a statement whose answer is of no interest; without parameters it may be several, in one message.

        Raises:
            DatabaseError: as `ask`.
        """
        with self.connection.statement(committing=committing) as cursor:
            if parameters:
                cursor.execute(self._statement(name, places), one_row(parameters))
            else:
                cursor.script(self._statement(name, places))

    def pieces(self, name: str, *parameters: Any, places: Mapping[str, object] | None = None) -> Iterator[pl.DataFrame]:
        """What a statement answers, in pieces, as they come."""
        with self.connection.statement() as cursor:
            yield from cursor.pieces(self._statement(name, places), one_row(parameters) if parameters else None)

    def copy(self, table: str, rows: pa.Table | pl.DataFrame) -> None:
        """Copy rows into a table of the store."""
        self._ingest(table, rows, db_schema_name=self._statements.namespace)

    def stage(self, table: str, rows: pa.Table | pl.DataFrame) -> None:
        """Copy rows into a temporary table, which is there."""
        self._ingest(table, rows, temporary=True)

    def _ingest(self, table: str, rows: pa.Table | pl.DataFrame, **where: Any) -> None:
        with self.connection.statement() as cursor:
            cursor.ingest(table, rows.to_arrow() if isinstance(rows, pl.DataFrame) else rows, **where)

    def transaction(self, interrupt: Interrupt | None = None, *settings: str) -> AbstractContextManager[None]:
        """BEGIN and COMMIT; see `PooledConnection.transaction`."""
        return self.connection.transaction(interrupt or Interrupt(), *settings)

    def rollback(self) -> None:
        """Leave the transaction that is open, if one is."""
        self.connection.rollback()

    def is_primary(self) -> bool:
        """Whether the server is no standby."""
        return self.connection.primary or not self.ask("in_recovery").item()

    def check_primary(self) -> None:
        """Make sure that the server is no standby, which may not have what was committed.

        Raises:
            ConnectionLostError: it is one; the connection is not used again.
        """
        if not self.is_primary():
            raise ConnectionLostError(
                f"the server that answers at {self._address} is a standby, which may be behind and takes no writes: "
                "connect to the primary, or promote the standby",
                READ_ONLY,
            )

    def _statement(self, name: str, places: Mapping[str, object] | None) -> str:
        return self._statements.filled(name, places or {})
