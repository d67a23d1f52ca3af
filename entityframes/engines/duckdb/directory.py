"""Folders on DuckDB: who syncs them, what their files were, and the keys that entities had before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import polars as pl

from entityframes.engines.base import Batch
from entityframes.engines.duckdb.engine import _register
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.duckdb.engine import DuckDBEngine


class DuckDBDirectory:
    """The folders' side of a `DuckDBEngine`, on its cursors."""

    def __init__(self, engine: DuckDBEngine) -> None:
        self._engine = engine

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        with self._engine._writer(Interrupt()) as cursor:
            if self._engine._run(cursor, "lock_folder", [folder, holder, lease]):
                return None
            return str(self._engine._ask(cursor, "folder_holder", [folder]).item())

    def unlock(self, folder: str, holder: str) -> None:
        with self._engine._writer(Interrupt()) as cursor:
            self._engine._run(cursor, "unlock_folder", [folder, holder])

    def filed(self, folder: str) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "filed", [folder])

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        wanted = None if entity_types is None else list(entity_types)
        with self._engine._cursor() as cursor:
            return self._engine._ask(cursor, "unfiled", [folder, wanted])

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine._cursor() as cursor:
            _register(cursor, "given", keys.select("entity_type", "id").with_row_index("position"))
            return self._engine._ask(cursor, "origins")

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        engine = self._engine
        with engine._writer(Interrupt()) as cursor, engine._transaction(cursor, Interrupt()):
            # Writers come one after the other: nobody takes the lock over before this one is done.
            held = engine._ask(cursor, "folder_holder", [folder])
            if held.is_empty() or held.item() != holder:
                return False
            forgotten = pl.concat([gone.cast(pl.String).alias("path"), filed["path"]])
            _register(cursor, "given", forgotten.to_frame())
            engine._run(cursor, "forget_files", [folder])
            if filed.height:
                _register(cursor, "given", filed)
                engine._run(cursor, "record_files", [folder])
        return True

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        engine = self._engine
        numbered = pairs.with_row_index("position")
        with engine._writer(batch.interrupt) as cursor, engine._transaction(cursor, batch.interrupt):
            _register(cursor, "pairs", numbered)
            can = engine._ask(cursor, "renamable")
            if can.height:
                _register(cursor, "pairs", numbered[can["position"]].with_columns(can["due"], can["place"]))
                for name in ("rename_vectors", "rename"):
                    engine._run(cursor, name)
                engine._run(cursor, "record_renames", [batch.batch_id])
                due = int(can["due"].sum())
                engine._run(cursor, "ledger", [batch.batch_id, batch.run_id, 0, can.height, 0, due])
                if due:
                    engine._run(cursor, "job", [batch.job_id, batch.batch_id, due])
                    engine._run(cursor, "keys_of_renamed", [batch.job_id])
        return can.select("position")

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._engine._cursor() as cursor:
            if not self._engine._ask(cursor, "recorded", [batch.batch_id]).item():
                return None
            _register(cursor, "pairs", pairs.with_row_index("position"))
            return self._engine._ask(cursor, "renamed_by", [batch.batch_id])
