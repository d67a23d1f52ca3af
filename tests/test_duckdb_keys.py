"""How DuckDB finds keys without an index: a few by scanning all keys, many by a hash of each key."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb import engine
from entityframes.frames.schema import KEY


@pytest.fixture
def by_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are found by hash, however few there are."""
    monkeypatch.setattr(engine, "SCANNED", 0)


def notes(*numbers: int, content: str = "text") -> pl.DataFrame:
    ids = pl.Series("id", [f"n{number}" for number in numbers], dtype=pl.String)
    return ids.to_frame().select(entity_type=pl.lit("note"), id="id", content=pl.format(f"{content} {{}}", "id"))


def exercise(path: Path) -> list[object]:
    """The answers of a store to all calls that look up keys."""
    answers: list[object] = []
    with ef.connect(path) as store:

        def record(result: ef.UpsertResult) -> None:
            answers.append(result.outcomes.sort(KEY).select(*KEY, "status").rows())

        record(store.upsert(notes(*range(40)), batch_size=7, progress=False))
        record(store.upsert(notes(*range(30, 50)), progress=False))
        plan = store.plan(notes(*range(5, 60), content="other"))
        answers.append(plan.frame.select("id", "action").rows())
        record(store.upsert(notes(3, content="between"), progress=False))
        record(plan.apply(progress=False))
        kept = store.get(ef.ids("note", ["n1", "n99"])).select("id", "content_hash")
        record(
            store.upsert(notes(1, 99, content="new").join(kept, on="id"), expected_hash="content_hash", progress=False)
        )
        record(store.delete(ef.ids("note", ["n2", "n50", "n98"])))
        answers.append(store.exists(ef.ids("note", [f"n{number}" for number in range(100)])).rows())
        answers.append(store.get(ef.ids("note", ["n4", "n2", "n59"])).select(*KEY, "found", "content").rows())
        answers.append(store.embed(ef.HashingEmbedder(16), progress=False).counts)
        store.upsert(notes(7, content="again"), embed=False, progress=False)
        answers.append(store.enqueue(ef.ids("note", ["n7", "n8"])))
        answers.append(store.embed(ef.HashingEmbedder(16), progress=False).counts)
        found = (store.search("again n7", mode=mode, k=3) for mode in ("vector", "text", "hybrid"))
        answers.extend(each["id"].to_list() for each in found)
        answers.append(store.verify().rows())
    return answers


@pytest.mark.slow
def test_both_lookups_give_the_same_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outcomes, answers, embedding and search do not depend on how keys are found."""
    monkeypatch.setattr(engine, "SCANNED", 1_000)
    few = exercise(tmp_path / "few.duckdb")
    monkeypatch.setattr(engine, "SCANNED", 0)
    assert exercise(tmp_path / "many.duckdb") == few


@contextmanager
def tampered(folder: Path, statement: str) -> Iterator[ef.EntityStore]:
    """A store of two notes that was modified without the package."""
    path = folder / "store.duckdb"
    with ef.connect(path) as store:
        store.upsert(notes(1, 2), progress=False)
    with duckdb.connect(str(path)) as connection:
        connection.execute(statement)
    with ef.connect(path) as store:
        yield store


@pytest.mark.usefixtures("by_hash")
def test_keys_of_one_hash(tmp_path: Path) -> None:
    """A key is not confused with another key of the same hash."""
    with tampered(tmp_path, "UPDATE entityframes.entities SET key_hash = hash('note', 'n2')") as store:
        assert store.get(ef.ids("note", ["n2"]))["content"].to_list() == ["text n2"]
        assert store.upsert(notes(2), progress=False).counts["unchanged"] == 1
        assert store.upsert(notes(2, content="new"), progress=False).counts["updated"] == 1
        assert store.delete(ef.ids("note", ["n2"])).counts["deleted"] == 1
        assert store.read("note")["content"].to_list() == ["text n1"]


@pytest.mark.usefixtures("by_hash")
def test_a_duckdb_with_different_hashes(tmp_path: Path) -> None:
    """A file written by a DuckDB version with different hashes is rehashed when it is opened."""
    other = "UPDATE entityframes.entities SET key_hash = 7; UPDATE entityframes.hashed_by SET version = 'v1.0'"
    with tampered(tmp_path, other) as store:
        assert store.exists(ef.ids("note", ["n1", "n2"]))["exists"].all()
        assert store.verify().rows() == []


@pytest.mark.usefixtures("by_hash")
def test_a_key_whose_hash_is_wrong(tmp_path: Path) -> None:
    """The key is not found; `verify` reports and repairs that."""
    with tampered(tmp_path, "UPDATE entityframes.entities SET key_hash = 7 WHERE id = 'n1'") as store:
        assert not store.entity_exists("note", "n1")
        found = store.verify(repair=True)
        assert found.select("check", "id", "found", "repaired").rows() == [("key_hash", "n1", "7", True)]
        assert store.verify().rows() == []
        assert store.entity_exists("note", "n1")
