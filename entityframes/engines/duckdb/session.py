"""A cursor that one call has, and the statements of a store that it runs there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import polars as pl
import pyarrow as pa

from entityframes import forks
from entityframes.engines.arrow import to_frame
from entityframes.engines.duckdb.connection import File
from entityframes.engines.duckdb.errors import streamed, translated
from entityframes.engines.queries import Statements
from entityframes.interrupt import Interrupt

#: Rows in a piece of an answer that comes in pieces.
_PIECE_ROWS = 50_000


class Session:
    """Runs named statements; used by one thread. Frames that they name are registered before.

    Args:
        cursor: a connection of its own.
        statements: the statements, for the namespace of the store.
        found: the name of the statement that looks up keys, for ``{found}`` in others.
        file: the database.
    """

    def __init__(self, cursor: Any, statements: Statements, found: str, file: File) -> None:
        self._cursor, self._statements, self._found, self._file = cursor, statements, found, file

    def register(self, name: str, frame: pl.DataFrame | pa.Table) -> None:
        """Let statements scan a frame under a name; it is not copied."""
        # Arrow, not the Polars frame: DuckDB scans it in place and faster.
        with translated():
            self._cursor.register(name, frame.to_arrow() if isinstance(frame, pl.DataFrame) else frame)

    def register_keys(self, frame: pl.DataFrame) -> None:
        """Let statements scan the keys of a frame under the name given, with their position."""
        self.register("given", frame[["entity_type", "id"]].with_row_index("position"))

    def ask(self, name: str, *parameters: Any, places: Mapping[str, object] | None = None) -> pl.DataFrame:
        """What a statement answers.

        Args:
            name: of the statement.
            parameters: for $1, $2, ...
            places: validated text for what stands in braces in it.
        """

        def ask() -> pl.DataFrame:
            with translated():
                found = self._cursor.sql(self._statement(name, places), params=list(parameters) or None)
                return to_frame(found.to_arrow_table())

        return self._file.with_memory(ask)

    def run(self, name: str, *parameters: Any, places: Mapping[str, object] | None = None) -> int:
        """Run statements; how many rows the last one changed."""
        with translated():
            row = self._cursor.execute(self._statement(name, places), list(parameters)).fetchone()
        return int(row[0]) if row else 0

    def pieces(self, name: str, *parameters: Any, places: Mapping[str, object] | None = None) -> Iterator[pl.DataFrame]:
        """What a statement answers, in pieces, as they come."""
        with translated():
            found = self._cursor.sql(self._statement(name, places), params=list(parameters) or None)
            reader = forks.keep(found.to_arrow_reader(_PIECE_ROWS))
            try:
                for batch in streamed(reader):
                    yield to_frame(batch)
            finally:
                if not self._file.is_inherited:
                    reader.close()

    def transaction(self, interrupt: Interrupt | None = None) -> AbstractContextManager[None]:
        """BEGIN and COMMIT; see `File.transaction`."""
        return self._file.transaction(self._cursor, interrupt or Interrupt())

    def _statement(self, name: str, places: Mapping[str, object] | None) -> str:
        return self._statements.filled(name, {"found": self._statements[self._found], **(places or {})})
