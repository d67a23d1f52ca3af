"""A script of a user, with which mypy and pyright are content. `test_typing.py` checks it; it is not run."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import polars as pl
import pyarrow as pa
from pydantic import BaseModel

import entityframes as ef


@dataclass
class Note:
    entity_type: str
    id: str


class Person(BaseModel):
    entity_type: str = "person"
    id: str


class Pair(NamedTuple):
    entity_type: str
    id: str


def pages() -> Iterator[list[dict[str, object]]]:
    yield [{"entity_type": "note", "id": "a", "metadata": {"year": 1843}}]


frame = pl.DataFrame({"id": ["a", "b"], "text": ["x", "y"], "year": [1843, 1941]})
with ef.connect(Path("notes.duckdb"), workers=4) as store:
    notes: pl.DataFrame = ef.entities(frame, "note", id="id", content="text")
    lazy: pl.LazyFrame = ef.entities(frame.lazy(), "note", id=["id", "year"], content=pl.col("text").str.strip_chars())
    result = store.upsert(notes, on_duplicate="first", progress=lambda done, total: print(done, total))
    created: int = result.counts["created"]
    for source in (lazy, pa.table({"id": ["a"]}), {"entity_type": "note", "id": ["a"]}):
        store.upsert(source)
    store.upsert([Note("note", "a")])
    store.upsert(iter([Person(id="a")]))
    store.upsert([Pair("note", "a")])
    store.upsert(pages())
    store.upsert(pl.read_csv(path) for path in Path().glob("*.csv"))
    store.upsert(sqlite3.connect("old.db").execute("SELECT * FROM notes").fetchall())
    cursor = sqlite3.connect("old.db").cursor()
    cursor.row_factory = sqlite3.Row
    rows: list[sqlite3.Row] = cursor.execute("SELECT * FROM notes").fetchall()
    store.upsert(rows)
    found = store.get(ef.ids("note", ["a", "b"])).filter("found")
    years: list[int] = store.read("note")["year"].to_list()
    hits: pl.DataFrame = store.search("program", mode="text", entity_type="note", where=pl.col("year") > 1900)
    store.embed(ef.HashingEmbedder(64), workers=2)
    near = store.search([0.0] * 64, k=3)
    if ("note", "a") in store and store.count("note") > 1:
        print(store.types(), store.runs(limit=3), result.to_dict()["counts"])
    people = ef.create_table(store, "people", {"id": pl.Int64, "name": pl.String}, key="id")
    people.upsert({"id": [1], "name": ["Ada"]}, nulls="keep", ignore="name")
    names: pl.DataFrame = people.get([1, 2]).select("name")
    people.delete(pl.Series([1]))
    plan = people.plan(pl.DataFrame({"id": [2]}), mirror=True)
    if plan.counts["delete"] < 10:
        plan.apply(on_error="rollback").raise_for_failures()
