"""The deletion of entities."""

from __future__ import annotations

import polars as pl

from entityframes.engines.base import Engine
from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError
from entityframes.frames.schema import KEY, check_id_schema, numbered, readable_keys, usable_ids
from entityframes.results import DELETE_STATUSES
from entityframes.writing.outcomes import Outcomes


class EntityDeletion:
    """The deletion of entities.

    Args:
        engine: the engine of the store.
        unchanged: whether to delete only entities that still have the hashes in the columns content_hash and
            metadata_hash (Binary) of the id frame; the others are reported as missing.
    """

    key: tuple[str, ...] = KEY
    outcomes = Outcomes(KEY, readable_keys, DELETE_STATUSES)

    def __init__(self, engine: Engine, *, unchanged: bool = False) -> None:
        self.engine = engine
        self.columns = [*KEY, "content_hash", "metadata_hash"] if unchanged else list(KEY)

    def keys(self, given: pl.DataFrame) -> pl.DataFrame:
        check_id_schema(given.schema)
        given = numbered(given)
        return given.select("row", *self.columns).with_columns(usable_ids(given).get_columns())

    def comparable(self, rows: pl.DataFrame) -> pl.DataFrame:
        return rows

    def delete(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        return self.engine.delete(rows, batch)

    def recovered(self, batch: Batch, lost: ConnectionLostError, later: pl.DataFrame | None) -> pl.DataFrame | None:
        answer: pl.DataFrame | None = lost.answer
        return None if self.engine.deleted_by(batch) is None else answer
