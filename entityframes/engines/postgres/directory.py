"""The state of synced folders on PostgreSQL: their locks, their files, and the former keys of entities."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.postgres.session import Sessions


class PostgresDirectory:
    """The `DirectoryEngine` of a `PostgresEngine`."""

    def __init__(self, engine: Sessions) -> None:
        self._engine = engine

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        with self._engine.session() as session:
            taken = session.query("lock_folder", folder, holder, str(lease))
            if not taken.is_empty():
                return None
            other = session.query("folder_holder", folder)
        return str(other.item()) if other.height else "another sync, which has just ended"

    def unlock(self, folder: str, holder: str) -> None:
        with self._engine.session() as session:
            session.execute("unlock_folder", folder, holder)

    def filed(self, folder: str) -> pl.DataFrame:
        return self._engine.read("filed", folder)

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        wanted = None if entity_types is None else pl.Series(list(entity_types), dtype=pl.String)
        return self._engine.read("unfiled", folder, wanted)

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._engine.read("origins", keys["entity_type"], keys["id"])

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        forgotten = gone.filter(~gone.is_in(filed["path"].implode()))
        with self._engine.session() as session:
            held = session.query("record_files", folder, holder, forgotten, *filed, committing=True)
        return held.height == 1

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        header = [batch.batch_id, batch.run_id, batch.job_id]
        with self._engine.session(batch.interrupt) as session:
            return session.query("rename", *header, *pairs, committing=True)

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._engine.session() as session:
            session.check_primary()
            if not session.query("recorded", batch.batch_id).item():
                return None
            return session.query("renamed_by", batch.batch_id, *pairs)
