"""How other tools write a frame into an embedded database: two hand-written DuckDB statements, and sqlite-utils."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import duckdb
import polars as pl

import entityframes as ef
from benchmarks.peers_postgres import COLUMNS, KEY, Contestant, as_json

_CREATE = """CREATE TABLE entities (entity_type VARCHAR NOT NULL, id VARCHAR NOT NULL, content VARCHAR NOT NULL,
    metadata JSON NOT NULL, PRIMARY KEY (entity_type, id))"""


class _File:
    """A file that each upsert opens and closes, as a script does, so that a deferred checkpoint is part of the time."""

    max_rows = once_from = 10**9

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bench.db"

    def prepare(self) -> None:
        for suffix in ("", ".wal"):
            Path(f"{self._path}{suffix}").unlink(missing_ok=True)

    def close(self) -> None:
        pass


class EntityFrames(_File):
    """This package."""

    name = "entityframes"

    def prepare(self) -> None:
        super().prepare()
        ef.connect(self._path).close()

    def upsert(self, frame: pl.DataFrame) -> None:
        with ef.connect(self._path) as store:
            store.upsert(frame, progress=False).raise_for_failures()

    def stored(self) -> tuple[int, int]:
        with ef.connect(self._path) as store:
            content = store.scan().select(pl.col("content").str.len_bytes().sum(), n=pl.len()).collect()
        return int(content["n"][0]), int(content["content"][0])


class _DuckDB(_File):
    _sql = ""

    def prepare(self) -> None:
        super().prepare()
        with duckdb.connect(self._path) as connection:
            connection.execute(_CREATE)

    def upsert(self, frame: pl.DataFrame) -> None:
        with duckdb.connect(self._path) as connection:
            connection.register("given", as_json(frame).select(COLUMNS).to_arrow())
            connection.execute(self._sql)

    def stored(self) -> tuple[int, int]:
        with duckdb.connect(self._path) as connection:
            rows, size = connection.sql("SELECT count(*), sum(strlen(content)) FROM entities").fetchall()[0]
        return int(rows), int(size)


class OnConflict(_DuckDB):
    """One INSERT ... ON CONFLICT from the registered frame."""

    name = "by hand (INSERT ON CONFLICT)"
    _sql = """INSERT INTO entities SELECT * FROM given
        ON CONFLICT (entity_type, id) DO UPDATE SET content = EXCLUDED.content, metadata = EXCLUDED.metadata"""


class Merge(_DuckDB):
    """One MERGE from the registered frame."""

    name = "by hand (MERGE)"
    _sql = """MERGE INTO entities AS e USING given AS g ON e.entity_type = g.entity_type AND e.id = g.id
        WHEN MATCHED THEN UPDATE SET content = g.content, metadata = g.metadata WHEN NOT MATCHED THEN INSERT"""


class SqliteUtils(_File):
    """sqlite-utils: upsert_all of dicts into SQLite."""

    name = "sqlite-utils"
    max_rows = once_from = 500_000

    def upsert(self, frame: pl.DataFrame) -> None:
        import sqlite_utils

        database = sqlite_utils.Database(self._path)
        database["entities"].upsert_all(as_json(frame).select(COLUMNS).iter_rows(named=True), pk=KEY, batch_size=1_000)
        database.close()

    def stored(self) -> tuple[int, int]:
        connection = sqlite3.connect(self._path)
        rows, size = connection.execute("SELECT count(*), sum(length(CAST(content AS BLOB))) FROM entities").fetchone()
        connection.close()
        return int(rows), int(size)


def contestants(folder: Path) -> list[Callable[[], Contestant]]:
    """All contestants, ours first."""
    return [
        lambda: EntityFrames(folder),
        lambda: OnConflict(folder),
        lambda: Merge(folder),
        lambda: SqliteUtils(folder),
    ]
