"""Small answers: types, counts, membership, runs, and a result as a dict."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef


def notes(*ids: str, kind: str = "note", **metadata: object) -> pl.DataFrame:
    """Entities with the same content and metadata."""
    fields = {"metadata": [metadata] * len(ids)} if metadata else {}
    return pl.DataFrame({"entity_type": [kind] * len(ids), "id": list(ids), "content": "x", **fields})


def test_types(store: ef.EntityStore) -> None:
    """One row per type that has entities, with the names of its fields."""
    schema = {"entity_type": pl.String, "entities": pl.Int64, "fields": pl.List(pl.String)}
    assert store.types().is_empty()
    assert store.types().schema == {**schema, "updated_at": pl.Datetime("us", "UTC")}
    store.upsert(notes("a", "b", year=1, color="red"))
    store.upsert(notes("a", kind="Person"))
    store.upsert(notes("a", kind="gone", year=1))
    store.delete(notes("a", kind="gone"))
    types = store.types()
    assert types.select("entity_type", "entities", pl.col("fields").list.sort()).rows() == [
        ("Person", 1, []),
        ("note", 2, ["color", "year"]),
    ]
    assert types["updated_at"][1] == store.read("note")["updated_at"].max()


def test_count(store: ef.EntityStore) -> None:
    """All, of a type, or those that pass a filter; an unknown type gives 0 and a warning."""
    assert store.count() == 0
    store.upsert(notes("a", "b", year=1))
    store.upsert(notes("c", year=2))
    store.upsert(notes("a", kind="person"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.count() == 4
        assert store.count("note") == 3
        assert store.count("note", pl.col("year") == 1) == 2
        assert store.count("note", pl.col("year") == 3) == 0
        assert store.count(where=pl.col("id") == "a") == 2
    with pytest.warns(UserWarning, match="did you mean 'note'") as caught:
        assert store.count("notes") == 0
    assert caught[0].filename == __file__


def test_membership(store: ef.EntityStore) -> None:
    """A pair of type and id; anything else is no key."""
    store.upsert(notes("a"))
    assert ("note", "a") in store
    assert ("note", "b") not in store
    for wrong in ("note", "a", ("a",), ("note", "a", "b"), ("note", 1), None):
        with pytest.raises(TypeError):
            assert wrong not in store


def test_membership_and_count_of_a_table(store: ef.EntityStore) -> None:
    """A value of the key, or a tuple for a key of several columns."""
    people = ef.create_table(store, "people", {"id": pl.Int64, "name": pl.String}, key="id")
    assert people.count() == 0
    people.upsert(pl.DataFrame({"id": [1, 2], "name": ["Ada", None]}))
    assert people.count() == 2
    assert 1 in people
    assert 3 not in people
    assert None not in people
    pairs = ef.create_table(store, "pairs", {"a": pl.Int64, "b": pl.String}, key=["b", "a"])
    pairs.upsert(pl.DataFrame({"a": [1], "b": ["x"]}))
    key = {"a": 1, "b": "x"}
    assert tuple(key[name] for name in pairs.key) in pairs
    for wrong in (1, (1,), (1, "x", 2)):
        with pytest.raises(TypeError, match="is a tuple"):
            assert wrong not in pairs


def test_runs(store: ef.EntityStore) -> None:
    """One row per call that wrote something, the latest first."""
    assert store.runs().is_empty()
    first = store.upsert(notes("a", "b", "c"), batch_size=2)
    store.upsert(notes("a", "b", "c"))
    second = store.mirror(notes("a", "d"), max_delete=5)
    third = store.delete(notes("d"))
    runs = store.runs()
    assert runs.select("run_id", "created", "updated", "deleted").rows() == [
        (third.run_id, 0, 0, 1),
        (second.run_id, 1, 0, 2),
        (first.run_id, 3, 0, 0),
    ]
    assert runs["batches"].to_list() == [1, 2, 2]
    assert (runs["first_written_at"] <= runs["last_written_at"]).all()
    assert store.runs(limit=1).equals(runs[:1])
    with pytest.raises(ValueError, match="limit"):
        store.runs(limit=0)


def test_a_sync_is_one_run(store: ef.EntityStore, tmp_path: Path) -> None:
    """Imports, renames and deletions of a sync have its id."""
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.md").write_text(f"text of {name}")
    sync = ef.DirectorySync(store, tmp_path)
    first = sync.sync(progress=False)
    (tmp_path / "a.md").write_text("other")
    (tmp_path / "b.md").rename(tmp_path / "d.md")
    (tmp_path / "c.md").unlink()
    second = sync.sync(delete=True, progress=False)
    assert store.runs()["run_id"].to_list() == [second.run_id, first.run_id]


def test_result_as_a_dict(store: ef.EntityStore) -> None:
    """The totals, as JSON."""
    result = store.upsert(pl.concat([notes("a"), ef.ids("note", [None, None]).with_columns(content=pl.lit("x"))]))
    summary = json.loads(json.dumps(result.to_dict()))
    assert summary.pop("elapsed") == pytest.approx(result.elapsed, abs=0.001)
    [reason] = summary.pop("failed_by_reason")
    assert (reason["rule"], reason["n"], reason["row"]) == ("null_key", 2, 1)
    assert summary == {
        "call": "UpsertResult", "run_id": result.run_id, "ok": False, "rows": 3, "batches": 1, "counts": result.counts,
    }  # fmt: skip
    embedded = store.embed(ef.HashingEmbedder(16)).to_dict()
    assert (embedded["call"], embedded["run_id"], embedded["space"], embedded["calls"]) == (
        "EmbedResult", None, "hashing-16", 1,
    )  # fmt: skip
    assert json.loads(json.dumps(store.delete(notes("a")).to_dict()))["counts"]["deleted"] == 1
