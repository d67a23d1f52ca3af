"""exists, missing and get of many ids compared with hand-written SQL, on a large table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl

import entityframes as ef
from benchmarks import data
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server

DEFAULT_ROWS = (1_000, 100_000)
STORED = 1_000_000


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Nine in ten of the ids are stored."""
    import psycopg

    largest = max(rows or DEFAULT_ROWS)
    stored = data.entities(max(STORED if largest >= 100_000 else 100_000, largest), seed=measurements.seed)
    absent = data.entities(largest // 10 + 1, seed=measurements.seed + 1)
    keys = ["entity_type", "id"]
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        # Both sides reuse open connections.
        connection = stack.enter_context(psycopg.connect(url, autocommit=True))
        stores = {"postgresql": ef.connect(url, namespace="bench"), "duckdb": ef.connect(Path(folder) / "bench.duckdb")}
        for store in stores.values():
            stack.enter_context(store)
            store.upsert(stored, embed=False, progress=False).raise_for_failures()
        for size in rows or DEFAULT_ROWS:
            present = stored.select(keys).sample(size - size // 10, seed=1)
            ids = pl.concat([present, absent.select(keys)[: size // 10]]).sample(fraction=1, shuffle=True, seed=2)
            contests = [each for each in [*_ours(stores, ids), *_by_hand(connection, ids)] if chosen(each[2], only)]
            for number in range(repeat):
                turn = number * len(contests) // repeat
                for database, phase, name, call in contests[turn:] + contests[:turn]:
                    if size <= 100_000 or "VALUES" not in name:
                        with measurements.timed(name, database=database, phase=phase, rows=size):
                            found = call()
                        if found != present.height:
                            raise AssertionError(f"{name} found {found}, expected {present.height}")


Contest = tuple[str, str, str, Callable[[], int]]


def _ours(stores: dict[str, ef.EntityStore], ids: pl.DataFrame) -> list[Contest]:
    contests: list[Contest] = []
    for database, store in stores.items():
        calls: dict[str, Callable[[], int]] = {
            "exists": lambda store=store: int(store.exists(ids)["exists"].sum()),
            "missing": lambda store=store: ids.height - store.missing(ids).height,
            "get": lambda store=store: int(store.get(ids)["found"].sum()),
        }
        contests += [(database, phase, OURS, call) for phase, call in calls.items()]
    return contests


def _by_hand(connection: Any, ids: pl.DataFrame) -> list[Contest]:
    """psycopg, including the conversion of the result to a Polars frame."""
    methods = {
        "by hand (= ANY)": _any,
        "by hand (temporary table)": _temporary_table,
        "by hand (VALUES, 1,000 at a time)": _values,
    }
    columns = {"exists": "e.entity_type, e.id", "get": "e.entity_type, e.id, e.content, e.metadata::text"}
    return [
        ("postgresql", phase, name, lambda method=method, phase=phase: method(connection, ids, columns[phase]).height)
        for name, method in methods.items()
        for phase in columns
    ]


def _fetch(cursor: Any) -> pl.DataFrame:
    names = [column.name for column in cursor.description]
    return pl.DataFrame(cursor.fetchall(), schema=names, orient="row")


def _any(connection: Any, ids: pl.DataFrame, columns: str) -> pl.DataFrame:
    sql = f"SELECT {columns} FROM bench.entities AS e WHERE e.entity_type = %s AND e.id = ANY (%s)"
    return pl.concat(
        _fetch(connection.execute(sql, (kind, part["id"].to_list()))) for (kind,), part in ids.group_by("entity_type")
    )


def _temporary_table(connection: Any, ids: pl.DataFrame, columns: str) -> pl.DataFrame:
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute("CREATE TEMP TABLE wanted (entity_type text, id text) ON COMMIT DROP")
        with cursor.copy("COPY wanted FROM STDIN") as copy:
            for row in ids.iter_rows():
                copy.write_row(row)
        cursor.execute("ANALYZE wanted")
        return _fetch(cursor.execute(f"SELECT {columns} FROM wanted JOIN bench.entities AS e USING (entity_type, id)"))


def _values(connection: Any, ids: pl.DataFrame, columns: str) -> pl.DataFrame:
    frames = []
    for part in ids.iter_slices(1_000):
        listed = ", ".join(["(%s, %s)"] * part.height)
        values = [value for row in part.iter_rows() for value in row]
        sql = f"SELECT {columns} FROM bench.entities AS e WHERE (e.entity_type, e.id) IN (VALUES {listed})"
        frames.append(_fetch(connection.execute(sql, values)))
    return pl.concat(frames)
