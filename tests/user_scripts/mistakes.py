"""Mistakes that mypy and pyright find: each line with a comment has one."""

from __future__ import annotations

from pathlib import Path

import polars as pl

import entityframes as ef

frame = pl.DataFrame({"id": ["a"], "text": ["x"]})
with ef.connect("notes.duckdb") as store:
    store.upsert("notes.csv")  # a path is no frame
    store.upsert(Path("notes.csv"))  # nor is this one
    store.upsert(frame, on_duplicate="latest")  # no such policy
    ef.entities(frame, "note", content="text")  # the id is missing
    ef.entities(frame.lazy(), "note", id="id").height  # a LazyFrame has none  # noqa: B018
    store.upsert(frame).counts.created  # a dict has no attributes  # noqa: B018
    store.search("program", mode="words")  # no such mode
    store.exists(["a", "b"])  # ids without their type
    store.get("a")  # one id
    store.table("people").get("a")  # one key, not a list
    store.read(["note"])  # one type at a time
