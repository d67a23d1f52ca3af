"""The deletion of rows of a table."""

from __future__ import annotations

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.tables import Relation, TableEngine
from entityframes.errors import ConnectionLostError
from entityframes.results import DELETE_STATUSES
from entityframes.writing.tables.target import TableNames, usable_keys


class TableDeletion:
    """The deletion of rows of a table."""

    def __init__(self, engine: TableEngine, relation: Relation, statuses: tuple[str, ...] = DELETE_STATUSES) -> None:
        self.engine, self._relation = engine, relation
        names = TableNames(relation)
        self.key, self.columns, self.outcomes = names.key, list(names.key), names.outcomes(statuses)

    def keys(self, given: pl.DataFrame) -> pl.DataFrame:
        converted, usable = usable_keys(self._relation, given)
        named = converted.rename(dict(zip(converted.columns, self.key, strict=True)))
        return named.with_columns(usable=usable).with_row_index("row")

    def delete(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        keys = rows.rename({name: f"c{number}" for number, name in enumerate(rows.columns)})
        return self.engine.delete(self._relation, keys, batch)

    def recovered(self, batch: Batch, lost: ConnectionLostError) -> pl.DataFrame | None:
        return self.engine.recovered(batch, lost.answer)
