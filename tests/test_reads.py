"""Reading by id, by type and lazily."""

from __future__ import annotations

import datetime as dt

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb import session as duckdb_session
from entityframes.engines.postgres import probe as postgres_probe
from entityframes.reading import lookup
from tests.conftest import engine_and_keys

engine = engine_and_keys


@pytest.fixture
def filled(store: ef.EntityStore) -> ef.EntityStore:
    """A store with 100 typed notes and two tasks with JSON metadata."""
    notes = pl.DataFrame(
        {
            "k": [f"n{n:03}" for n in range(100)],
            "text": [f"note {n}" for n in range(100)],
            "rank": range(100),
            "score": [n / 8 for n in range(100)],
            "day": [dt.date(2026, 1, 1) + dt.timedelta(days=n) for n in range(100)],
            "content": ["shadow"] * 100,
        }
    )
    store.upsert(ef.entities(notes, "note", id="k", content="text"))
    tasks = pl.DataFrame(
        {
            "entity_type": ["task"] * 2,
            "id": ["a", "b"],
            "content": ["x", "y"],
            "metadata": ['{"n": 1, "mixed": [1], "s": "t", "b": true}', '{"n": 2.5, "mixed": "two", "other": null}'],
        }
    )
    store.upsert(tasks)
    return store


def test_get_keeps_order_and_shows_missing(filled: ef.EntityStore) -> None:
    """One row for each id, also for repeated and missing ones."""
    got = filled.get(ef.ids("note", ["n005", "nope", "n001", "n005"]))
    assert got.select("entity_type", "id", "found", "content").rows() == [
        ("note", "n005", True, "note 5"),
        ("note", "nope", False, None),
        ("note", "n001", True, "note 1"),
        ("note", "n005", True, "note 5"),
    ]
    assert got.schema == {
        "entity_type": pl.String,
        "id": pl.String,
        "found": pl.Boolean,
        "content": pl.String,
        "metadata": pl.String,
        "content_hash": pl.String,
        "created_at": pl.Datetime("us", "UTC"),
        "updated_at": pl.Datetime("us", "UTC"),
    }
    assert filled.get(ef.ids("note", [])).schema == got.schema


def test_content_hash_is_sha256_in_hex(filled: ef.EntityStore) -> None:
    """The hash can be recomputed by anyone."""
    import hashlib

    got = filled.get(ef.ids("note", ["n005"]))
    assert got["content_hash"].to_list() == [hashlib.sha256(b"note 5").hexdigest()]


def test_exists_and_missing(filled: ef.EntityStore) -> None:
    """exists flags each id in order; missing is the anti-join and keeps the caller's columns."""
    ids = ef.ids("note", ["x", "n001", "y\0", "x", "n099"])
    assert filled.exists(ids).rows() == [
        ("note", "x", False),
        ("note", "n001", True),
        ("note", "y\0", False),
        ("note", "x", False),
        ("note", "n099", True),
    ]
    with_more = ids.with_columns(mine=pl.int_range(5))
    assert filled.missing(with_more)["mine"].to_list() == [0, 2, 3]
    assert filled.missing(ef.ids("note", [])).height == 0


def test_ids_are_looked_up_concurrently(filled: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many ids are divided among connections, in pieces of one type or of many types; the result is the same."""
    filled.upsert(pl.DataFrame({"entity_type": [f"t{n}" for n in range(20)], "id": "a", "content": "x"}))
    ids = pl.concat(
        [
            filled.scan().select("entity_type", "id").collect(),
            pl.DataFrame({"entity_type": "note", "id": ["n001", "none", "n001", None]}),
            pl.DataFrame({"entity_type": ["t1", "gone", "task"], "id": ["a", "a", "n001"]}),
        ]
    ).sample(fraction=1, shuffle=True, seed=1)
    found = filled.get(ids)
    exists = filled.exists(ids)
    monkeypatch.setattr(lookup, "LEAST_LOOKUP", 5)
    monkeypatch.setattr(filled._engine.database, "lookup_rows", 7)
    monkeypatch.setattr(postgres_probe, "MANY_ROWS", 6)
    assert filled.get(ids).equals(found)
    assert filled.exists(ids).equals(exists)
    assert found.select("entity_type", "id").equals(ids)
    assert found["found"].sum() == filled.stats()["entities"].sum() + 3
    filled.close()
    with pytest.raises(ef.ClosedError):
        filled.get(ids)


@pytest.mark.parametrize("call", ["get", "exists", "read"])
def test_progress_ends_at_its_total(filled: ef.EntityStore, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Even if the last piece is smaller than the others; it never decreases, and never exceeds the total."""
    monkeypatch.setattr(lookup, "LEAST_LOOKUP", 5)
    monkeypatch.setattr(filled._engine.database, "lookup_rows", 7)
    reports: list[tuple[int, int | None]] = []

    def progress(done: int, total: int | None) -> None:
        reports.append((done, total))

    if call == "read":
        assert lookup.read(filled._engine, "note", progress).height == 100
    else:
        ids = ef.ids("note", [f"n{n:03}" for n in range(100)])
        getattr(lookup, call)(filled._engine, ids, filled._threads.submit, progress)
    dones = [done for done, _ in reports]
    assert dones == sorted(set(dones))
    assert {total for _, total in reports} == {100}
    assert dones[-1] == 100
    assert call == "read" or len(dones) > 10


def test_a_type_is_read_in_the_order_of_its_ids(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it was written, and in however many pieces it comes; each row is counted once on the way."""
    monkeypatch.setattr(duckdb_session, "_CHUNK_ROWS", 2_048)
    ids = [f"n{n:05}" for n in range(6_000)]
    for part in (ids[3_000:], ids[:3_000]):
        store.upsert(pl.DataFrame({"entity_type": "note", "id": part, "content": "x"}), embed=False, progress=False)
    calls: list[tuple[int, int | None]] = []
    found = store.read("note", progress=lambda done, total: calls.append((done, total)))
    assert found["id"].to_list() == ids
    dones = [done for done, _ in calls]
    assert dones == sorted(set(dones))
    assert calls[-1] == (6_000, 6_000)


def test_null_ids_are_not_found(filled: ef.EntityStore) -> None:
    """A null is neither an id nor an error."""
    ids = ef.ids("note", ["n001", None])
    assert filled.exists(ids)["exists"].to_list() == [True, False]
    assert filled.get(ids)["found"].to_list() == [True, False]


def test_invalid_text_is_not_found(filled: ef.EntityStore) -> None:
    """Nor is their escaped form, which may be the id of an entity."""
    filled.upsert_entity("note", "caf\ufffd", "the real one")
    ids = pl.DataFrame({"entity_type": ["note"] * 3, "id": [b"caf\xe9", "caf\ufffd".encode(), b"n\x00"]})
    assert filled.exists(ids)["exists"].to_list() == [False, True, False]
    assert filled.get(ids)["content"].to_list() == [None, "the real one", None]
    assert filled.missing(ids)["id"].to_list() == [b"caf\xe9", b"n\x00"]


@pytest.mark.parametrize("call", ["get", "exists", "missing", "delete"])
def test_a_frame_without_ids(filled: ef.EntityStore, call: str) -> None:
    """The error names the missing key column."""
    with pytest.raises(ef.SchemaError, match="'entity_type'"):
        getattr(filled, call)(pl.DataFrame({"id": ["a"]}))
    with pytest.raises(ef.SchemaError, match="'id' is Int64"):
        getattr(filled, call)(pl.DataFrame({"entity_type": ["a"], "id": [1]}))


def test_read_gives_typed_columns(filled: ef.EntityStore) -> None:
    """id, content, the original metadata, then hash and timestamps; a shadowed name gets a prefix."""
    notes = filled.read("note")
    assert notes.columns == [
        "id", "content", "rank", "score", "day", "metadata.content", "content_hash", "created_at", "updated_at",
    ]  # fmt: skip
    assert notes.schema["rank"] == pl.Int64
    assert notes.schema["day"] == pl.Date
    assert notes["id"].is_sorted()
    assert notes["score"].to_list() == [n / 8 for n in range(100)]
    assert notes["metadata.content"].unique().to_list() == ["shadow"]


def test_read_infers_dtypes_of_json_text(filled: ef.EntityStore) -> None:
    """Fields from JSON text have the dtype that their values share, else they are JSON text."""
    tasks = filled.read("task")
    assert tasks.select("id", "n", "mixed", "s", "b").rows() == [
        ("a", 1.0, "[1]", "t", True),
        ("b", 2.5, '"two"', None, None),
    ]
    assert tasks.schema["n"] == pl.Float64


def test_dtypes_are_those_of_the_type_and_of_what_is_stored(store: ef.EntityStore) -> None:
    """A frame has no field or dtype of another type, nor of a row that failed or was refused."""
    given = [
        ("a", "1", '{"x": 1}'),
        ("b", "1", '{"x": "s", "y": 2}'),
        ("a", "", '{"x": "s", "ghost": 1}'),
    ]
    frame = pl.DataFrame(given, ["entity_type", "id", "metadata"], orient="row").with_columns(content=pl.lit("text"))
    assert store.upsert(frame).counts["failed"] == 1
    assert store.read("a").select("x").schema == {"x": pl.Int64}
    assert "y" not in store.read("a").columns
    assert "ghost" not in store.read("a").columns
    assert store.read("b").select("x", "y").rows() == [("s", 2)]
    twice = pl.concat([frame[:1], frame[:1]]).with_columns(entity_type=pl.lit("c"))
    with pytest.raises(ef.DuplicateError, match="; nothing was written"):
        store.upsert(twice, on_duplicate="error")
    with pytest.warns(UserWarning, match="no entities of type 'c'"):
        assert "x" not in store.scan("c").collect_schema()


def test_read_of_a_type_that_does_not_exist(filled: ef.EntityStore) -> None:
    """An empty frame with the columns that every type has."""
    with pytest.warns(UserWarning, match="no entities of type 'nothing'"):
        nothing = filled.read("nothing")
    assert nothing.columns == ["id", "content", "content_hash", "created_at", "updated_at"]
    assert nothing.height == 0


def test_scan_is_read_made_lazy(filled: ef.EntityStore) -> None:
    """Without a filter it returns the same rows and columns."""
    assert filled.scan("note").collect().sort("id").equals(filled.read("note"))


def test_scan_filters_on_keys_timestamps_and_metadata(filled: ef.EntityStore) -> None:
    """A filter on the LazyFrame returns the same as on the frame."""
    notes, lazy = filled.read("note"), filled.scan("note")
    for predicate in (
        pl.col("rank") >= 90,
        pl.col("id").is_in(["n001", "n050", "zzz"]),
        (pl.col("score") < 2) & (pl.col("day") > dt.date(2026, 1, 5)),
        pl.col("created_at") > dt.datetime(2020, 1, 1, tzinfo=dt.UTC),
        (pl.col("rank") == 3) | (pl.col("id") == "n004"),
        pl.col("content").str.ends_with("7"),
    ):
        expected = notes.filter(predicate)
        assert expected.height > 0
        assert lazy.filter(predicate).sort("id").collect().equals(expected)
    assert lazy.select("id", "rank").filter(pl.col("rank") < 3).collect().height == 3
    assert lazy.head(7).collect().height == 7
    assert lazy.select(pl.len()).collect().item() == 100


def test_scan_filters_on_a_field_of_mixed_kinds(filled: ef.EntityStore) -> None:
    """Its values are JSON texts; a filter keeps the same rows as on the frame."""
    whole = filled.read("task")
    for text in whole["mixed"].to_list():
        kept = filled.scan("task").filter(pl.col("mixed") == text).collect()
        assert kept.rows() == whole.filter(pl.col("mixed") == text).rows()
        assert kept.height == 1


def test_scan_of_everything(filled: ef.EntityStore) -> None:
    """All types, with metadata as JSON text."""
    everything = filled.scan()
    assert everything.collect().height == 102
    assert everything.filter(pl.col("entity_type") == "task").select("id", "metadata").sort("id").collect().rows() == [
        ("a", '{"b":true,"mixed":[1],"n":1,"s":"t"}'),
        ("b", '{"mixed":"two","n":2.5,"other":null}'),
    ]


def test_metadata_dtypes_survive_a_new_connection(filled: ef.EntityStore, connect) -> None:
    """The result of `read` does not depend on which connection wrote."""
    before = filled.read("note")
    filled.close()
    assert connect().read("note").equals(before)


def test_delete(filled: ef.EntityStore) -> None:
    """Each id is deleted, missing or a duplicate, in input order."""
    result = filled.delete(ef.ids("note", ["n001", "nope", "n001", None, "n002"]))
    assert result.outcomes["status"].to_list() == ["deleted", "missing", "duplicate", "missing", "deleted"]
    assert result.counts["deleted"] == 2
    assert result.ok
    assert filled.read("note").height == 98


def test_delete_writes_a_ledger_row(filled: ef.EntityStore, sql) -> None:
    """The ledger has the number of deleted entities of a batch; deleting nothing writes no row."""
    filled.delete(ef.ids("note", ["n001", "n002"]))
    filled.delete(ef.ids("note", ["n001"]))
    assert sql("SELECT deleted FROM entityframes.batches WHERE deleted > 0") == [(2,)]


def test_stats(filled: ef.EntityStore) -> None:
    """One row per type; all content is due while nothing is embedded."""
    assert filled.stats().rows() == [("note", 100, 0, 100, 0), ("task", 2, 0, 2, 0)]
    assert filled.stats().columns == ["entity_type", "entities", "embedded", "due", "failed"]


def test_single_entity_calls(store: ef.EntityStore) -> None:
    """They do the same as the bulk calls, for one entity."""
    assert store.get_entity("note", "a") is None
    assert not store.entity_exists("note", "a")
    assert store.upsert_entity("note", "a", "text", {"tags": ["x"], "n": 1})["status"] == "created"
    assert store.upsert_entity("note", "a", "text", {"n": 1, "tags": ["x"]})["status"] == "unchanged"
    assert store.upsert_entity("note", "a", "text", '{"n": 2}')["status"] == "updated"
    assert store.entity_exists("note", "a")
    entity = store.get_entity("note", "a")
    assert entity["content"] == "text"
    assert entity["metadata"] == {"n": 2, "tags": ["x"]}
    assert store.delete_entity("note", "a")
    assert not store.delete_entity("note", "a")
    with pytest.raises(ef.ValidationError, match="id is empty"):
        store.upsert_entity("note", "", "text")
    with pytest.raises(ef.ValidationError, match="JSON"):
        store.upsert_entity("note", "a", "text", {"x": object()})
    with pytest.raises(TypeError, match="content must be str"):
        store.upsert_entity("note", "a", 5)  # type: ignore[arg-type]
