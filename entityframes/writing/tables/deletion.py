"""The deletion of rows of a table."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.tables import Relation, TableEngine
from entityframes.errors import ConnectionLostError
from entityframes.results import DELETE_STATUSES
from entityframes.writing.tables.target import OLD, TableNames, comparable_keys, usable_keys


class TableDeletion:
    """The deletion of rows of a table.

    Args:
        engine: the engine.
        relation: the table.
        soft: a column that is set to the current time instead.
        expected: the columns whose values are compared: the frame of keys has their text as ``old:<name>``, and a row
            with other values is reported as missing.
    """

    def __init__(
        self, engine: TableEngine, relation: Relation, soft: str | None = None, expected: Sequence[str] = ()
    ) -> None:
        self.engine, self._relation, self._soft, self._expected = engine, relation, soft, expected
        self._names = names = TableNames(relation)
        self.key, self.outcomes = names.key, names.outcomes(DELETE_STATUSES)
        self.columns = [*names.key, *(OLD + name for name in expected)]

    def keys(self, given: pl.DataFrame) -> pl.DataFrame:
        converted, usable = usable_keys(self._relation, given)
        named = converted.rename(dict(zip(converted.columns, self.key, strict=True)))
        expected = given.select(OLD + name for name in self._expected)
        return named.hstack(expected.get_columns()).with_columns(usable=usable).with_row_index("row")

    def comparable(self, rows: pl.DataFrame) -> pl.DataFrame:
        return comparable_keys(self.engine, self._names, rows)

    def delete(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        names = {name: f"c{number}" for number, name in enumerate(self.key)}
        names |= {OLD + name: f"e{number}" for number, name in enumerate(self._expected)}
        return self.engine.delete(self._relation, rows.rename(names), batch, self._soft, self._expected)

    def recovered(self, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None) -> pl.DataFrame | None:
        return self.engine.recovered(batch, lost.answer, later)
