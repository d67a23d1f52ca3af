"""The state of synced folders on DuckDB: their locks, their files, and the former keys of entities."""

from __future__ import annotations

from collections.abc import Iterable

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.duckdb.session import Sessions


class DuckDBDirectory:
    """The `DirectoryEngine` of a `DuckDBEngine`."""

    def __init__(self, engine: Sessions) -> None:
        self._engine = engine

    def lock(self, folder: str, holder: str, lease: float) -> str | None:
        with self._engine.session(writing=True) as session:
            if session.execute("lock_folder", folder, holder, lease):
                return None
            return str(session.query("folder_holder", folder).item())

    def unlock(self, folder: str, holder: str) -> None:
        with self._engine.session(writing=True) as session:
            session.execute("unlock_folder", folder, holder)

    def filed(self, folder: str) -> pl.DataFrame:
        return self._engine.read("filed", folder)

    def unfiled(self, folder: str, entity_types: Iterable[str] | None) -> pl.DataFrame:
        wanted = None if entity_types is None else list(entity_types)
        return self._engine.read("unfiled", folder, wanted)

    def origins(self, keys: pl.DataFrame) -> pl.DataFrame:
        with self._engine.session() as session:
            session.register("given", keys.select("entity_type", "id").with_row_index("position"))
            return session.query("origins")

    def record(self, folder: str, holder: str, filed: pl.DataFrame, gone: pl.Series) -> bool:
        engine = self._engine
        with engine.session(writing=True) as session, session.transaction():
            # There is one writer at a time, so the lock cannot be taken over before this transaction ends.
            held = session.query("folder_holder", folder)
            if held.is_empty() or held.item() != holder:
                return False
            forgotten = pl.concat([gone.cast(pl.String).alias("path"), filed["path"]])
            session.register("given", forgotten.to_frame())
            session.execute("forget_files", folder)
            if filed.height:
                session.register("given", filed)
                session.execute("record_files", folder)
        return True

    def rename(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        engine = self._engine
        numbered = pairs.with_row_index("position")
        with engine.session(batch.interrupt, writing=True) as session, session.transaction(batch.interrupt):
            session.register("pairs", numbered)
            renamable = session.query("renamable")
            if renamable.height:
                found = numbered[renamable["position"]].with_columns(renamable["due"], renamable["place"])
                session.register("pairs", found)
                for name in ("rename_passages", "rename"):
                    session.execute(name)
                session.execute("record_renames", batch.batch_id)
                due = int(renamable["due"].sum())
                session.execute("ledger", batch.batch_id, batch.run_id, 0, renamable.height, 0, due)
                if due:
                    session.execute("job", batch.job_id, batch.batch_id, due)
                    session.execute("keys_of_renamed", batch.job_id)
        return renamable.select("position")

    def renamed_by(self, pairs: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._engine.session() as session:
            if not session.query("recorded", batch.batch_id).item():
                return None
            session.register("pairs", pairs.with_row_index("position"))
            return session.query("renamed_by", batch.batch_id)
