"""Upserts into a table of the user: this package, dbmerge, and COPY with INSERT ... ON CONFLICT (MERGE) by hand.

Rows of 570 bytes in five columns, and rows of 20 narrow columns; insert, update all, update 1 %, update none, and one
bad row among all of them. Contestants take turns, each in a table of its own, and each phase is repeated.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

import entityframes as ef
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server

_TEXT = "alpha beta gamma delta entity frame arrow polars duck postgres batch upsert merge staging copy index " * 4

_WIDE = """CREATE TABLE {table} (
    kind {text} NOT NULL, id {text} NOT NULL, content {text}, title {text}, n bigint CHECK (n >= 0),
    PRIMARY KEY (kind, id))"""
_NARROW = (
    "CREATE TABLE {table} (id bigint PRIMARY KEY, n bigint CHECK (n >= 0), "
    + ", ".join(f"c{number} {'bigint' if number % 2 else 'double precision'}" for number in range(18))
    + ")"
)
SHAPES = {"570 B": (_WIDE, ("kind", "id")), "20 columns": (_NARROW, ("id",))}


def frames(shape: str, rows: int) -> dict[str, pl.DataFrame]:
    """The frame of each phase, in order."""
    i = pl.int_range(rows, dtype=pl.Int64)
    scattered = (i * 2654435761) % 4294967296

    def wide(version: int) -> pl.DataFrame:
        kind = pl.when(i % 2 == 0).then(pl.lit("note")).otherwise(pl.lit("task"))
        return pl.select(
            kind=kind, id=pl.format("{}-{}", scattered, i), content=pl.format("v{} {} {}", version, i, pl.lit(_TEXT)),
            title=pl.format("document {}", i), n=i,
        )  # fmt: skip

    def narrow(version: int) -> pl.DataFrame:
        columns = {f"c{n}": i * n + version if n % 2 else i * 0.5 * n + version for n in range(18)}
        return pl.select(id=scattered, n=i, **columns)

    make, changing = (wide, "content") if shape == "570 B" else (narrow, "c1")
    first, second = make(0), make(1)
    few = second.with_row_index("at").with_columns(
        pl.when(pl.col("at") % 100 == 0).then(first[changing]).otherwise(pl.col(changing)).alias(changing)
    )
    few = few.drop("at")
    bad = few.with_row_index("at").with_columns(n=pl.when(pl.col("at") == rows // 2).then(-1).otherwise("n")).drop("at")
    return {
        "insert": first, "update all": second, "update 1 %": few, "no-op": few, "insert, 1 bad row": bad,
    }  # fmt: skip


class Ours:
    """This package."""

    def __init__(self, url: str) -> None:
        self.name, self._url = OURS, url

    def prepare(self, table: str) -> None:
        self._table = ef.table(self._url, table)

    def upsert(self, frame: pl.DataFrame, key: tuple[str, ...]) -> int:
        return self._table.upsert(frame, progress=False).counts["failed"]

    def close(self) -> None:
        self._table.close()


class DbMerge:
    """dbmerge 2, which has no outcomes and fails as a whole."""

    name = "dbmerge"

    def __init__(self, url: str) -> None:
        import sqlalchemy

        self._engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))

    def prepare(self, table: str) -> None:
        self._name = table

    def upsert(self, frame: pl.DataFrame, key: tuple[str, ...]) -> int:
        from dbmerge import dbmerge

        target = {"engine": self._engine, "table_name": self._name, "key": list(key)}
        with contextlib.redirect_stdout(io.StringIO()), dbmerge(data=frame, **target) as merge:
            merge.exec()
        return 0

    def close(self) -> None:
        self._engine.dispose()


class ByHand:
    """psycopg: COPY into a temporary table, then INSERT ... ON CONFLICT, in one transaction."""

    name = "by hand (COPY, ON CONFLICT)"

    def __init__(self, url: str) -> None:
        import psycopg

        self._connection = psycopg.connect(url)

    def prepare(self, table: str) -> None:
        self._name = table

    def upsert(self, frame: pl.DataFrame, key: tuple[str, ...]) -> int:
        names = ", ".join(frame.columns)
        sets = ", ".join(f"{name} = EXCLUDED.{name}" for name in frame.columns if name not in key)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.execute(f"CREATE TEMP TABLE given (LIKE {self._name}) ON COMMIT DROP")
            with cursor.copy(f"COPY given ({names}) FROM STDIN (FORMAT csv)") as copy:
                copy.write(frame.write_csv(include_header=False))
            cursor.execute(
                f"INSERT INTO {self._name} ({names}) SELECT {names} FROM given "
                f"ON CONFLICT ({', '.join(key)}) DO UPDATE SET {sets}"
            )
        return 0

    def close(self) -> None:
        self._connection.close()


class Merge:
    """DuckDB: MERGE from the frame, which is scanned in place."""

    name = "by hand (MERGE)"

    def __init__(self, url: str) -> None:
        import duckdb

        self._connection = duckdb.connect(url)

    def prepare(self, table: str) -> None:
        self._name = table

    def upsert(self, frame: pl.DataFrame, key: tuple[str, ...]) -> int:
        self._connection.register("given", frame.to_arrow())
        matches = " AND ".join(f"t.{name} = s.{name}" for name in key)
        others = [name for name in frame.columns if name not in key]
        differs = " OR ".join(f"t.{name} IS DISTINCT FROM s.{name}" for name in others)
        sets = ", ".join(f"{name} = s.{name}" for name in others)
        names, values = ", ".join(frame.columns), ", ".join(f"s.{name}" for name in frame.columns)
        self._connection.execute(
            f"MERGE INTO {self._name} AS t USING given AS s ON {matches} "
            f"WHEN MATCHED AND ({differs}) THEN UPDATE SET {sets} "
            f"WHEN NOT MATCHED THEN INSERT ({names}) VALUES ({values})"
        )
        return 0

    def close(self) -> None:
        self._connection.close()


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Measure each shape on each database; contestants take turns within each repetition."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    for size in rows or [100_000]:
        for shape in SHAPES:
            if chosen("postgresql", only):
                with server(postgres) as url:
                    _postgresql(measurements, url, shape, size, repeat)
            if chosen("duckdb", only):
                with tempfile.TemporaryDirectory() as folder:
                    _duckdb(measurements, Path(folder), shape, size, repeat)


def _postgresql(measurements: Measurements, url: str, shape: str, size: int, repeat: int) -> None:
    import psycopg

    ddl, key = SHAPES[shape]

    def create(table: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP TABLE IF EXISTS {table}")
            connection.execute(ddl.format(table=table, text="text"))
            connection.execute("CHECKPOINT")

    def checkpoint(table: str) -> None:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute("CHECKPOINT")

    def check(table: str) -> int:
        with psycopg.connect(url) as connection:
            return connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # type: ignore[index]

    contestants = {"mine": Ours(url), "merged": DbMerge(url), "hand": ByHand(url)}
    for _ in range(repeat):
        _phases(measurements, "postgresql", shape, size, contestants, create, check, key, checkpoint)
    for one in contestants.values():
        one.close()


def _duckdb(measurements: Measurements, folder: Path, shape: str, size: int, repeat: int) -> None:
    import duckdb

    ddl, key = SHAPES[shape]
    for number in range(repeat):
        made = []

        def create(table: str, number: int = number) -> None:
            with duckdb.connect(str(folder / f"{table}{number}.duckdb")) as connection:
                connection.execute(ddl.format(table=table, text="VARCHAR"))

        def checkpoint(table: str, number: int = number) -> None:
            with duckdb.connect(str(folder / f"{table}{number}.duckdb")) as connection:
                connection.execute("CHECKPOINT")

        for table in ("mine", "hand"):
            create(table)
            address = str(folder / f"{table}{number}.duckdb")
            made.append((table, Ours(address) if table == "mine" else Merge(address)))
        _phases(measurements, "duckdb", shape, size, dict(made), lambda table: None, None, key, checkpoint)
        for _, one in made:
            one.close()


def _phases(
    measurements: Measurements, database: str, shape: str, size: int, contestants: dict[str, Any], create: Any,
    check: Any, key: tuple[str, ...], checkpoint: Any,
) -> None:  # fmt: skip
    """One repetition: each phase by each contestant in turn."""
    for table, contestant in contestants.items():
        create(table)
        contestant.prepare(table)
    for phase, frame in frames(shape, size).items():
        for table, contestant in _turns(contestants):
            if "bad" in phase:
                if not isinstance(contestant, Ours) or database == "duckdb":
                    continue
                create(table)
            with measurements.timed(contestant.name, database=database, phase=f"{shape}, {phase}", rows=size):
                failed = contestant.upsert(frame, key)
            # Each phase begins without the log of the one before.
            checkpoint(table)
            assert failed == ("bad" in phase)
    if check is not None:
        assert {check(table) for table in contestants if table != "mine"} == {size}
        assert check("mine") == size - 1


_order = 0


def _turns(contestants: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The contestants, beginning with another one each time."""
    global _order
    _order += 1
    items = list(contestants.items())
    start = _order % len(items)
    yield from items[start:] + items[:start]
