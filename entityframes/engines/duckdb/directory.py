"""Folders on DuckDB: who syncs them, what their files were, and the keys that entities had before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import polars as pl

from entityframes.engines.base import Batch

if TYPE_CHECKING:
    from entityframes.engines.duckdb.engine import DuckDBEngine


class DuckDBDirectory:
    """The folders' side of a `DuckDBEngine`, on its cursors."""

    def __init__(self, engine: DuckDBEngine) -> None:
        self._engine = engine

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        with self._engine.session(writing=True) as session:
            if session.run("lock_folder", folder, holder, lease):
                return None
            return str(session.ask("folder_holder", folder).item())

    def unlock(self, folder: str, holder: str) -> None:
        with self._engine.session(writing=True) as session:
            session.run("unlock_folder", folder, holder)

    def filed(self, folder: str) -> pl.DataFrame:
        return self._engine.read("filed", folder)

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        wanted = None if entity_types is None else list(entity_types)
        return self._engine.read("unfiled", folder, wanted)

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine.session() as session:
            session.register("given", keys.select("entity_type", "id").with_row_index("position"))
            return session.ask("origins")

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            # Writers come one after the other: nobody takes the lock over before this one is done.
            held = session.ask("folder_holder", folder)
            if held.is_empty() or held.item() != holder:
                return False
            forgotten = pl.concat([gone.cast(pl.String).alias("path"), filed["path"]])
            session.register("given", forgotten.to_frame())
            session.run("forget_files", folder)
            if filed.height:
                session.register("given", filed)
                session.run("record_files", folder)
        return True

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        engine = self._engine
        numbered = pairs.with_row_index("position")
        with engine.session(batch.interrupt, writing=True) as session, session.transaction(batch.interrupt):
            session.register("pairs", numbered)
            can = session.ask("renamable")
            if can.height:
                session.register("pairs", numbered[can["position"]].with_columns(can["due"], can["place"]))
                for name in ("rename_vectors", "rename"):
                    session.run(name)
                session.run("record_renames", batch.batch_id)
                due = int(can["due"].sum())
                session.run("ledger", batch.batch_id, batch.run_id, 0, can.height, 0, due)
                if due:
                    session.run("job", batch.job_id, batch.batch_id, due)
                    session.run("keys_of_renamed", batch.job_id)
        return can.select("position")

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._engine.session() as session:
            if not session.ask("recorded", batch.batch_id).item():
                return None
            session.register("pairs", pairs.with_row_index("position"))
            return session.ask("renamed_by", batch.batch_id)
