"""Execution of named statements on a cursor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import polars as pl
import pyarrow as pa

from entityframes import forks
from entityframes.engines.arrow import to_frame
from entityframes.engines.duckdb.connection import File
from entityframes.engines.duckdb.errors import streamed, translated
from entityframes.engines.queries import Statements
from entityframes.interrupt import Interrupt

#: The number of rows in a chunk of a streamed result.
_CHUNK_ROWS = 50_000

#: For each statement that looks up keys, the condition that looks up one.
_OF_ONE = {"found": "one", "found_by_hash": "one_by_hash"}


class Session:
    """Executes named statements, in a single thread. Frames that they refer to must be registered before.

    Args:
        cursor: a separate DuckDB connection.
        statements: the statements, for the namespace of the store.
        found: the name of the statement that looks up keys, which is substituted for ``{found}`` in others.
        file: the database.
    """

    def __init__(self, cursor: Any, statements: Statements, found: str, file: File) -> None:
        self._cursor, self._statements, self._found, self._file = cursor, statements, found, file

    def register(self, name: str, frame: pl.DataFrame | pa.Table) -> None:
        """Register a frame under a name for statements, without copying it."""
        # As Arrow, which DuckDB scans in place, and faster than a Polars frame.
        with translated():
            self._cursor.register(name, frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame)

    def register_keys(self, frame: pl.DataFrame) -> None:
        """Register the keys of a frame with their position, under the name ``given``."""
        self.register("given", frame[["entity_type", "id"]].with_row_index("position"))

    def query(self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None) -> pl.DataFrame:
        """Execute a statement and return its result.

        Args:
            name: the name of the statement.
            parameters: the values of $1, $2, ...
            placeholders: validated text for the placeholders in braces.
        """

        def query() -> pl.DataFrame:
            with translated():
                found = self._cursor.sql(self._statement(name, placeholders), params=list(parameters) or None)
                return to_frame(found.to_arrow_table())

        return self._file.with_memory(query)

    def rows(self, name: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Execute a statement and return its few rows as tuples, which takes half of the time of a frame."""

        def rows() -> list[tuple[Any, ...]]:
            with translated():
                return self._cursor.execute(self._statement(name, None), list(parameters)).fetchall()  # type: ignore[no-any-return]

        return self._file.with_memory(rows)

    def execute(self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None) -> int:
        """Execute statements and return the number of rows that the last one changed."""
        with translated():
            row = self._cursor.execute(self._statement(name, placeholders), list(parameters)).fetchone()
        return int(row[0]) if row else 0

    def stream(
        self, name: str, *parameters: Any, placeholders: Mapping[str, object] | None = None
    ) -> Iterator[pl.DataFrame]:
        """Execute a statement and yield its result in chunks."""
        with translated():
            found = self._cursor.sql(self._statement(name, placeholders), params=list(parameters) or None)
            reader = forks.keep(found.to_arrow_reader(_CHUNK_ROWS))
            try:
                for batch in streamed(reader):
                    yield to_frame(batch)
            finally:
                if not self._file.is_inherited:
                    reader.close()

    def transaction(self, interrupt: Interrupt | None = None) -> AbstractContextManager[None]:
        """BEGIN and COMMIT; see `File.transaction`."""
        return self._file.transaction(self._cursor, interrupt or Interrupt())

    def _statement(self, name: str, placeholders: Mapping[str, object] | None) -> str:
        lookups = {"found": self._statements[self._found], "one": self._statements[_OF_ONE[self._found]]}
        return self._statements.format(name, {**lookups, **(placeholders or {})})


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
