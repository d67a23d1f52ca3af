"""Case 56: a frame with fewer columns than are stored leaves the absent ones unchanged."""

from __future__ import annotations

import itertools
import json
import os
import random
import threading
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb import engine as duckdb_engine
from entityframes.engines.postgres import engine as postgres_engine
from entityframes.frames.schema import KEY
from entityframes.metadata import merging
from entityframes.metadata.canonical_json import canonical_json
from entityframes.writing.entities import keeping
from entityframes.writing.entities import target as entity_target
from tests.conftest import engine_and_keys
from tests.faults.servers import Background

engine = engine_and_keys

#: Sizes for each code path: one statement, and staged or copied.
SIZES = [3, 2_500]

PEOPLE = {"bio": "First programmer", "born": 1815, "city": "London"}


def people(ids: range | list[Any], *columns: str, **values: Any) -> pl.DataFrame:
    """Rows of people, with some of the columns."""
    made = PEOPLE | values
    return pl.DataFrame({"id": [f"p{number}" for number in ids]}).with_columns(
        pl.lit(made[name]).alias(name) for name in columns
    )


def full(ids: range | list[Any], **values: Any) -> pl.DataFrame:
    return ef.entities(people(ids, "bio", "born", "city", **values), "person", id="id", content="bio")


def statuses(result: ef.UpsertResult) -> list[str]:
    return result.outcomes["status"].cast(pl.String).to_list()


def texts(*rows: tuple[str, str | None, str | None], columns: str = "content metadata") -> pl.DataFrame:
    """An entity frame of JSON text with id, content and metadata."""
    frame = pl.DataFrame(rows, dict.fromkeys(["id", "content", "metadata"], pl.String), orient="row")
    return frame.select(pl.lit("doc").alias("entity_type"), "id", *columns.split())


def held(store: ef.EntityStore, kind: str = "doc") -> dict[str, tuple[str, Any]]:
    """Content and metadata of every entity of a type."""
    rows = store.scan().filter(pl.col("entity_type") == kind).collect()
    return {row["id"]: (row["content"], json.loads(row["metadata"])) for row in rows.iter_rows(named=True)}


@pytest.mark.parametrize("count", SIZES)
def test_absent_columns_are_not_changed(store: ef.EntityStore, sql, count: int) -> None:
    """Case 56: fewer columns and no content change only what they contain; the rest stays, and nothing becomes due."""
    store.upsert(full(range(count)), progress=False)
    before = store.get(full(range(count)))
    jobs = store.jobs().height
    moved = ef.entities(people(range(count + 1), "city", city="Marylebone"), "person", id="id")
    assert moved.columns == ["entity_type", "id", "metadata"]
    result = store.upsert(moved, progress=False)
    assert statuses(result) == ["updated"] * count + ["created"]
    assert result.outcomes["job_id"].null_count() == count + 1
    assert result.batches == 1
    assert sql("SELECT created, updated, due FROM entityframes.batches ORDER BY written_at")[-1] == (1, count, 0)
    stored = store.read("person").sort(pl.col("id").str.slice(1).cast(pl.Int64))
    assert stored["content"].to_list() == ["First programmer"] * count + [""]
    assert stored["born"].to_list() == [1815] * count + [None]
    assert stored["city"].to_list() == ["Marylebone"] * (count + 1)
    after = store.get(full(range(count)))
    assert after["created_at"].to_list() == before["created_at"].to_list()
    assert (after["updated_at"] > before["updated_at"]).all()
    assert store.jobs().height == jobs
    # The text is the same as for the whole document, so the hashes are too: a wide frame finds it unchanged.
    assert store.upsert(moved, progress=False).counts["unchanged"] == count + 1
    assert store.upsert(full(range(count), city="Marylebone"), progress=False).counts["unchanged"] == count
    assert store.verify().is_empty()


@pytest.mark.parametrize("count", SIZES)
def test_clear_replaces_the_whole(store: ef.EntityStore, count: int) -> None:
    """Case 56: absent="clear" replaces the content and fields of the entity by those of the frame."""
    store.upsert(full(range(count)), progress=False)
    moved = ef.entities(people(range(count), "city"), "person", id="id")
    assert store.upsert(moved, absent="clear", progress=False).counts["updated"] == count
    assert all(value == ("", {"city": "London"}) for value in held(store, "person").values())


def test_content_alone_and_metadata_alone(store: ef.EntityStore) -> None:
    """Case 56: a frame without metadata keeps it, one without content keeps that; also with single-entity calls."""
    store.upsert(texts(("a", "one", '{"n":1}'), ("b", "two", None)))
    assert statuses(store.upsert(texts(("a", "ONE", None), columns="content"))) == ["updated"]
    assert statuses(store.upsert(texts(("b", None, '{"n":2}'), columns="metadata"))) == ["updated"]
    assert held(store) == {"a": ("ONE", {"n": 1}), "b": ("two", {"n": 2})}
    # Keys alone create an entity, and change none.
    assert statuses(store.upsert(texts(("a", None, None), ("c", None, None)).select(KEY))) == ["unchanged", "created"]
    assert store.upsert_entity("doc", "a", metadata={"m": [1]})["status"] == "updated"
    assert store.upsert_entity("doc", "a", "text")["status"] == "updated"
    assert store.upsert_entity("doc", "a")["status"] == "unchanged"
    assert store.upsert_entity("doc", "d")["status"] == "created"
    assert held(store) == {"a": ("text", {"m": [1], "n": 1}), "b": ("two", {"n": 2}), "c": ("", {}), "d": ("", {})}


def test_json_text_is_merged_by_its_top_level_fields(store: ef.EntityStore) -> None:
    """Case 56: a field in the text replaces the stored field as a whole; null and {} contain no fields."""
    store.upsert(texts(*((id, "x", '{"a":{"p":1,"q":2},"b":[1,2],"c":"s"}') for id in "abcd")))
    result = store.upsert(
        texts(("a", "x", '{"a":{"p":3}}'), ("b", "x", '{"d":null,"b":null}'), ("c", "x", None), ("d", "x", "{}"))
    )
    assert statuses(result) == ["updated", "updated", "unchanged", "unchanged"]
    whole = {"a": {"p": 1, "q": 2}, "b": [1, 2], "c": "s"}
    assert held(store) == {
        "a": ("x", whole | {"a": {"p": 3}}), "b": ("x", whole | {"d": None, "b": None}), "c": ("x", whole),
        "d": ("x", whole),
    }  # fmt: skip


def test_every_digit_and_name_survives_a_merge(store: ef.EntityStore) -> None:
    """Case 56: numbers keep their digits, names are ordered by code point, and the text is canonical."""
    numbers = '{"big":123456789012345678901234567890,"exact":0.1000000000000000055511151231257827,"small":1e-320}'
    odd = '{"Z":1,"a\\"b":"}{,\\"x\\":","é":"\\u0001\\ud83d\\ude00","ｚ":2,"\\ud83d\\ude00":3,"content":4,"id":"i"}'
    for number, (first, second) in enumerate(itertools.permutations([numbers, odd], 2)):
        whole = json.loads(first) | json.loads(second)
        both = f"{first[:-1]},{second[1:]}"
        id = f"m{number}"
        store.upsert(texts((id, "x", first)))
        assert statuses(store.upsert(texts((id, "x", second)))) == ["updated"]
        store.upsert(texts((f"w{number}", "x", both)))
        got = store.get(ef.ids("doc", [id, f"w{number}"]))["metadata"].to_list()
        assert got[0] == got[1]
        assert json.loads(got[0]).keys() == whole.keys()
        assert "123456789012345678901234567890" in got[0]
        assert "0.1000000000000000055511151231257827" in got[0]
        assert statuses(store.upsert(texts((id, "x", both)))) == ["unchanged"]
        assert statuses(store.upsert(texts((id, "x", first)))) == ["unchanged"]
    assert store.verify().is_empty()


def test_typed_values_of_every_kind_stay(store: ef.EntityStore) -> None:
    """Case 56: a narrow typed frame leaves other typed columns bit-identical, and JSON text can be merged too."""
    wide = pl.DataFrame(
        {
            "id": ["a", "b"],
            "f": [float("nan"), -0.0],
            "g": [0.1, 1e300],
            "u": pl.Series([2**64 - 1, 0], dtype=pl.UInt64),
            "d": pl.Series(["12345678901234567890.123456", "0.000001"]).str.to_decimal(scale=6),
            "l": [[{"x": 1, "y": None}], []],
            "id2": [b"\x00\xff", None],
            "content": ["metadata", "called content"],
        }
    )
    store.upsert(ef.entities(wide, "t", id="id", content="content"))
    store.upsert(ef.entities(wide, "t", id="id"))
    before = store.read("t")
    assert before["metadata.content"].to_list() == ["metadata", "called content"]
    result = store.upsert(ef.entities(wide.select("id", g=pl.Series([0.5, 0.25])), "t", id="id"))
    assert statuses(result) == ["updated"] * 2
    stamps = ("content_hash", "created_at", "updated_at")
    assert store.read("t").drop("g", *stamps).equals(before.drop("g", *stamps))
    assert store.read("t")["g"].to_list() == [0.5, 0.25]
    text = pl.DataFrame({"entity_type": ["t"], "id": ["a"], "metadata": ['{"g":0.1}']})
    assert statuses(store.upsert(text)) == ["updated"]
    assert store.read("t")[:1].drop(stamps).equals(before[:1].drop(stamps), null_equal=True)
    assert store.verify().is_empty()


def test_null_structs_and_empty_structs_carry_nothing(store: ef.EntityStore) -> None:
    """Case 56: a null struct, a null of dtype Null and a struct without fields leave the metadata as it is."""
    store.upsert(full(range(2)))
    whole = held(store, "person")
    typed = full(range(2)).with_columns(metadata=pl.when(pl.col("id") == "p0").then(None).otherwise(pl.col("metadata")))
    assert statuses(store.upsert(typed)) == ["unchanged"] * 2
    for nothing in (
        pl.Series([None, None], dtype=pl.Null),
        pl.Series([None, None], dtype=pl.String),
        pl.Series([{}, None], dtype=pl.Struct([])),
    ):
        frame = full(range(2)).with_columns(nothing.alias("metadata"))
        assert store.plan(frame).counts["unchanged"] == 2
        assert statuses(store.upsert(frame)) == ["unchanged"] * 2
    assert held(store, "person") == whole
    assert statuses(store.upsert(full([5]).with_columns(metadata=pl.lit(None)))) == ["created"]
    assert store.get_entity("person", "p5")["metadata"] == {}


@pytest.mark.parametrize("count", SIZES)
def test_null_structs_beside_others(store: ef.EntityStore, count: int) -> None:
    """Case 56: a row without any field keeps all of them, one with a single field the others."""
    store.upsert(full(range(count)), progress=False)
    moved = whole = held(store, "person")
    for values in ({"born": 1816, "city": "Marylebone"}, {"city": "Paris"}):
        given = (
            pl.when(pl.col("id") == "p0").then(None).otherwise(pl.struct(**{k: pl.lit(v) for k, v in values.items()}))
        )
        result = store.upsert(full(range(count)).with_columns(metadata=given), progress=False)
        assert (result.counts["unchanged"], result.counts["updated"]) == (1, count - 1)
        moved = {key: (content, {**fields, **values}) for key, (content, fields) in moved.items()}
        moved["p0"] = whole["p0"]
        assert held(store, "person") == moved


@pytest.mark.parametrize("count", SIZES)
def test_nulls_keep(store: ef.EntityStore, count: int) -> None:
    """Case 56: with nulls="keep" null fields and null or empty content leave stored values; new rows get them."""
    store.upsert(full(range(count)), progress=False)
    frame = people(range(count + 1), "bio", "born", "city", bio=None, born=None, city="Marylebone")
    frame = frame.with_columns(pl.col("bio").cast(pl.String), pl.col("born").cast(pl.Int32))
    sent = ef.entities(frame, "person", id="id", content="bio")
    plan = store.plan(sent, nulls="keep")
    assert plan.changed_fields == {"city": count}
    assert plan.changed_contents == 0
    assert statuses(store.upsert(sent, nulls="keep", progress=False)) == ["updated"] * count + ["created"]
    stored = held(store, "person")
    whole = {"born": 1815, "city": "Marylebone"}
    assert all(stored[f"p{number}"] == ("First programmer", whole) for number in range(count))
    assert stored[f"p{count}"] == ("", {"born": None, "city": "Marylebone"})
    assert store.upsert(sent, nulls="keep", progress=False).counts["unchanged"] == count + 1
    # A null content too, which is an error when nulls are written.
    raw = sent.with_columns(content=pl.lit(None, pl.String))
    assert store.upsert(raw, nulls="keep", progress=False).counts["unchanged"] == count + 1
    with pytest.raises(ef.SchemaError, match="only nulls"):
        store.upsert(raw, progress=False)
    assert store.upsert(sent, progress=False).counts["updated"] == count
    assert held(store, "person")["p0"] == ("", {"born": None, "city": "Marylebone"})


def test_nulls_keep_with_absent_clear(store: ef.EntityStore) -> None:
    """Case 56: absent="clear" removes absent fields, nulls="keep" retains fields that are null."""
    store.upsert(texts(("a", "x", '{"n":1,"m":2,"o":{"p":null}}')))
    frame = texts(("a", None, '{"n":null,"o":{"q":null},"r":null}'))
    assert statuses(store.upsert(frame, absent="clear", nulls="keep")) == ["updated"]
    assert held(store) == {"a": ("x", {"n": 1, "o": {"q": None}})}
    assert statuses(store.upsert(frame, absent="clear", nulls="keep")) == ["unchanged"]


@pytest.mark.parametrize("policy", ["last", "first"])
def test_rows_of_one_key_are_not_merged_with_each_other(store: ef.EntityStore, policy: str) -> None:
    """Case 56: one row of a key is written, whatever the other contains; the other is a duplicate."""
    store.upsert(texts(("a", "x", '{"n":0,"m":0}')))
    rows = texts(("a", "x", '{"n":1}'), ("a", "x", '{"m":1,"n":null}'))
    result = store.upsert(rows, on_duplicate=policy, nulls="keep")
    assert sorted(statuses(result)) == ["duplicate", "updated"]
    assert held(store)["a"][1] == ({"n": 0, "m": 1} if policy == "last" else {"n": 1, "m": 0})


@pytest.mark.parametrize("count", SIZES)
def test_expected_hashes_and_narrow_rows(store: ef.EntityStore, count: int) -> None:
    """Case 56: expected hashes are compared with the stored value before merging."""
    store.upsert(full(range(count)), progress=False)
    seen = store.get(full(range(count + 2)))["content_hash"]
    moved = ef.entities(people(range(count + 2), "city", city="Marylebone"), "person", id="id").with_columns(seen)
    store.upsert_entity("person", "p1", "theirs")
    store.upsert_entity("person", f"p{count}", "theirs")
    result = store.upsert(moved, expected_hash="content_hash", progress=False)
    expected = ["updated"] * count + ["conflict", "created"]
    expected[1] = "conflict"
    assert statuses(result) == expected
    stored = held(store, "person")
    assert stored["p0"] == ("First programmer", {"born": 1815, "city": "Marylebone"})
    assert stored["p1"] == ("theirs", {"born": 1815, "city": "London"})
    assert stored[f"p{count}"] == ("theirs", {})


@pytest.mark.parametrize("count", SIZES)
def test_a_plan_of_narrow_rows(store: ef.EntityStore, count: int) -> None:
    """Case 56: the plan shows the merged result and only the fields that change; a later change is a conflict."""
    store.upsert(full(range(count)), progress=False)
    moved = ef.entities(people(range(count + 1), "city", city="Marylebone"), "person", id="id")
    plan = store.plan(moved)
    assert plan.counts | {"update": count, "create": 1, "unchanged": 0} == plan.counts
    assert plan.changed_fields == {"city": count}
    assert plan.changed_contents == 0
    assert plan.frame["changes"][0].to_list() == [{"field": "city", "old": '"London"', "new": '"Marylebone"'}]
    assert plan.frame["old_hash"][0] == plan.frame["new_hash"][0]
    cleared = store.plan(moved, absent="clear")
    assert cleared.changed_fields == {"born": count, "city": count}
    assert cleared.changed_contents == count
    # A change of a field that the plan does not contain counts as well.
    store.upsert_entity("person", "p2", metadata={"born": 1900})
    result = plan.apply(progress=False)
    assert result.outcomes.filter(pl.col("status") == "conflict")["id"].to_list() == ["p2"]
    assert result.counts["updated"] == count - 1
    assert store.get(moved)["content_hash"].to_list()[:2] == plan.frame["new_hash"].to_list()[:2]
    assert held(store, "person")["p0"] == ("First programmer", {"born": 1815, "city": "Marylebone"})
    assert [cleared.apply(progress=False).counts[status] for status in ("conflict", "unchanged")] == [count, 1]
    assert store.plan(moved, absent="clear").apply(progress=False).counts["updated"] == count
    assert held(store, "person")["p0"] == ("", {"city": "Marylebone"})


def test_streams_and_frames_of_different_width(store: ef.EntityStore) -> None:
    """Case 56: each batch of a stream changes its own columns, and a later one adds to what an earlier one wrote."""
    parts = [people(range(4), name) for name in ("city", "born", "bio")]
    frames = [ef.entities(part, "person", id="id", content="bio" if "bio" in part.columns else None) for part in parts]
    result = store.upsert(iter(frames), progress=False)
    assert result.ok
    assert held(store, "person")["p3"] == ("First programmer", {"born": 1815, "city": "London"})
    lazy = ef.entities(people(range(4), "city", city="Paris").lazy(), "person", id="id")
    assert store.upsert(lazy, batch_size=2, progress=False).counts["updated"] == 4
    assert held(store, "person")["p3"] == ("First programmer", {"born": 1815, "city": "Paris"})


def test_more_fields_than_are_recorded(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Case 56: if a type has too many fields to record all of them, every row may lack one."""
    for module in ("entityframes.metadata.fields", "entityframes.writing.entities.keeping"):
        monkeypatch.setattr(f"{module}.MAX_INFERRED", 3)
    store.upsert(texts(("a", "x", '{"a":1,"b":2,"c":3,"d":4,"e":5}')))
    assert statuses(store.upsert(texts(("a", "x", '{"a":9,"b":2,"c":3}')))) == ["updated"]
    assert held(store)["a"] == ("x", {"a": 9, "b": 2, "c": 3, "d": 4, "e": 5})
    store.upsert(texts(("b", "x", '{"f":1}')))
    assert {"a", "b", "c"} < set(store.read("doc").columns)
    assert not {"d", "e", "f"} & set(store.read("doc").columns)


@pytest.mark.parametrize("count", SIZES)
def test_rows_that_the_database_rejects(store: ef.EntityStore, sql, engine: str, connect, count: int) -> None:
    """Case 56: rejected rows fail, the others are merged and written; rollback undoes all of them."""
    rule = "CHECK (metadata::text NOT LIKE '%Mars%')"
    if engine == "duckdb":
        # DuckDB cannot add a constraint to an existing table.
        [(ddl,)] = sql("SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'")
        sql("DROP TABLE entityframes.entities", ddl.replace(");", f", {rule});"))
    store.upsert(full(range(count)), progress=False)
    if engine == "postgresql":
        sql(f"ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content {rule}")
    frame = people(range(count), "city", city="Paris").with_columns(
        city=pl.when(pl.col("id") == "p1").then(pl.lit("Mars")).otherwise("city")
    )
    moved = ef.entities(frame, "person", id="id")
    assert set(statuses(store.upsert(moved, on_error="rollback", progress=False))) == {"failed"}
    assert held(store, "person")["p0"][1]["city"] == "London"
    result = store.upsert(moved, progress=False)
    assert result.counts | {"updated": count - 1, "failed": 1} == result.counts
    assert result.failed["id"].to_list() == ["p1"]
    assert held(store, "person")["p0"] == ("First programmer", {"born": 1815, "city": "Paris"})
    assert held(store, "person")["p1"] == ("First programmer", {"born": 1815, "city": "London"})


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 2_500])
def test_writers_of_different_fields_at_once(connect, count: int) -> None:
    """Case 56: two writers with disjoint fields on the same keys: after every round both fields are there."""
    stores = [connect(workers=2), connect(workers=2)]
    rounds = 12 if count < 100 else 3
    stores[0].upsert(full(range(count)), progress=False)
    for turn in range(rounds):
        start = threading.Barrier(2)
        values = ({"city": f"c{turn}"}, {"born": turn})

        def write(number: int, start: threading.Barrier = start, values: Any = values) -> ef.UpsertResult:
            [(name, value)] = values[number].items()
            frame = ef.entities(people(range(count), name, **{name: value}), "person", id="id")
            start.wait()
            return stores[number].upsert(frame.sample(fraction=1, shuffle=True, seed=number), progress=False)

        results = [work.outcome() for work in [Background(lambda n=n: write(n)) for n in range(2)]]
        assert all(result.counts["updated"] == count for result in results), results
        stored = held(stores[0], "person")
        assert set(map(str, stored.values())) == {str(("First programmer", {"born": turn, "city": f"c{turn}"}))}
    assert stores[0].verify().is_empty()


@pytest.mark.parametrize("count", [20, 2_500])
def test_writers_that_create_the_same_entities_at_once(connect, count: int) -> None:
    """Case 56: an entity that did not exist when read and exists when written is merged as well."""
    stores = [connect(), connect()]
    parts = [people(range(count), "city"), people(range(count), "born")]
    frames = [ef.entities(part, "person", id="id") for part in parts]
    for turn in range(4 if count < 100 else 2):
        stores[0].delete(frames[0])
        start = threading.Barrier(2)

        def write(number: int, start: threading.Barrier = start) -> ef.UpsertResult:
            start.wait()
            return stores[number].upsert(frames[number], progress=False)

        results = [work.outcome() for work in [Background(lambda n=n: write(n)) for n in range(2)]]
        assert all(result.ok for result in results), results
        assert sum(result.counts["created"] for result in results) == count, turn
        assert all(value == ("", {"born": 1815, "city": "London"}) for value in held(stores[0], "person").values())


@pytest.mark.parametrize("count", SIZES)
def test_a_field_that_is_recorded_in_between(connect, monkeypatch: pytest.MonkeyPatch, engine: str, count: int) -> None:
    """Case 56: a row as wide as its type at the time of the comparison does not remove a field that was added since.

    The wider writer writes as late as possible: when the batch is on its way to the database.
    """
    store, other = connect(), connect()
    store.upsert(full(range(count)), progress=False)
    kind = {"duckdb": duckdb_engine.DuckDBEngine, "postgresql": postgres_engine.PostgresEngine}[engine]
    write = kind.write
    wider = ef.entities(
        people(range(count), "bio", "born", "city").with_columns(wife=pl.lit("Mary")), "person", id="id", content="bio"
    )
    late: list[str] = []

    def write_late(self, rows, batch):
        if not late and self is store._engine:
            late.append("written")
            assert other.upsert(wider, progress=False).ok
        return write(self, rows, batch)

    monkeypatch.setattr(kind, "write", write_late)
    result = store.upsert(full(range(count + 1), born=1900), progress=False)
    assert late == ["written"]
    assert statuses(result) == ["updated"] * count + ["created"]
    stored = held(store, "person")
    assert all(
        stored[f"p{number}"] == ("First programmer", {"born": 1900, "city": "London", "wife": "Mary"})
        for number in range(count)
    )


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
@pytest.mark.parametrize("count", SIZES)
def test_a_row_that_was_changed_while_a_batch_waited_for_it(connect, sql, url: str, count: int) -> None:
    """Case 56: a full row that waits for a wider writer's row keeps the new field, which its snapshot lacks."""
    import adbc_driver_postgresql.dbapi as adbc

    store = connect(workers=1)
    store.upsert(full(range(count)), progress=False)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with adbc.connect(url, autocommit=True) as connection, connection.cursor() as wider:
        # As the package writes it: with a ledger row in the same transaction.
        batch = "6f2c2f5e-8d0f-4a39-9c35-0f6e5b3b9a11"
        wider.execute("BEGIN")
        wider.execute(
            f"""INSERT INTO entityframes.batches (batch_id, run_id, written_at, created, updated, deleted)
            VALUES ('{batch}', '{batch}', now(), 0, 1, 0)"""
        )
        wider.execute(
            f"""UPDATE entityframes.entities SET metadata = '{{"born":1815,"city":"London","wife":"Mary"}}',
            metadata_hash = sha256('{{"born":1815,"city":"London","wife":"Mary"}}'::bytea), batch_id = '{batch}'
            WHERE id = 'p1'"""
        )
        run = Background(lambda: store.upsert(full(range(count), born=1900), progress=False))
        while not sql(waiting)[0][0]:
            assert run.is_alive()
        # The field is recorded after the batch has read the fields, before the row is visible.
        sql(
            """INSERT INTO entityframes.metadata_fields (entity_type, field, dtype, declared)
            VALUES ('person', 'wife', '"String"', true)"""
        )
        wider.execute("COMMIT")
    result = run.outcome()
    assert result.counts["updated"] == count, result
    assert held(store, "person")["p1"][1] == {"born": 1900, "city": "London", "wife": "Mary"}
    assert held(store, "person")["p2"][1] == {"born": 1900, "city": "London"}


# A store and a model in plain Python: random frames, row by row.

VALUES: list[Any] = [None, 0, 1, -7, 2.5, "", "x", 'é"\\', True, [1, None], {"p": None}]
NAMES = ["a", "b", "c", "content", "é"]
TYPED = {"n": [None, 1, 2], "s": [None, "", "x"], "f": [None, 0.5, -1.25], "id": [None, "i", "j"]}


class Model:
    """The stored entities, and the effect of an upsert on them."""

    def __init__(self) -> None:
        self.entities: dict[str, tuple[str, dict[str, Any]]] = {}

    def upsert(self, rows: list[tuple[str, Any, Any]], absent: str, nulls: str) -> list[str]:
        """Outcomes of rows of id, content (... if absent) and metadata."""
        last = {row[0]: place for place, row in enumerate(rows)}
        return [
            self._write(*row, absent, nulls) if last[row[0]] == place else "duplicate" for place, row in enumerate(rows)
        ]

    def _write(self, id: str, content: Any, metadata: Any, absent: str, nulls: str) -> str:
        stored = self.entities.get(id)
        given = metadata or {}
        if stored is None:
            self.entities[id] = ("" if content in (..., None) else content, given)
            return "created"
        keep_content = (content is ... and absent == "keep") or (content in ("", None) and nulls == "keep")
        text = stored[0] if keep_content else "" if content is ... else content
        fields = dict(stored[1]) if absent == "keep" else {}
        for name, value in given.items():
            if value is not None or nulls == "write":
                fields[name] = value
            elif name in stored[1]:
                fields[name] = stored[1][name]
        self.entities[id] = (text, fields)
        return "unchanged" if canonical(stored) == canonical(self.entities[id]) else "updated"


def canonical(entity: tuple[str, dict[str, Any]]) -> str:
    return json.dumps(entity, sort_keys=True)


def member(fields: dict[str, Any], name: str) -> str | None:
    """A field as JSON, in which 1 is not true."""
    return json.dumps(fields[name], sort_keys=True) if name in fields else None


def random_rows(random: random.Random, nulls: str) -> tuple[pl.DataFrame, list[tuple[str, Any, Any]]]:
    """A frame of random width, typed or of JSON text, and its rows for the model."""
    count = random.randint(1, 8)
    ids = [random.choice("ABCDEF") for _ in range(count)]
    rows: dict[str, Any] = {"id": ids}
    contents: list[Any] = [...] * count
    if random.random() < 0.6:
        contents = [random.choice(["", "one", "two", *([None] if nulls == "keep" else [])]) for _ in ids]
        contents[0] = "one"
        rows["content"] = contents
    frame = pl.DataFrame(rows, schema_overrides={"content": pl.String} if "content" in rows else None)
    form = random.choice(["typed", "json", "none"])
    documents: list[Any] = [None] * count
    if form == "json":
        for place in range(count):
            if random.random() < 0.85:
                names = random.sample(NAMES, random.randint(0, len(NAMES)))
                documents[place] = {name: random.choice(VALUES) for name in names}
        encoded = [None if one is None else json.dumps(one, ensure_ascii=random.random() < 0.5) for one in documents]
        frame = frame.with_columns(metadata=pl.Series(encoded, dtype=pl.String))
    elif form == "typed":
        names = random.sample(sorted(TYPED), random.randint(0, len(TYPED)))
        for place in range(count):
            if random.random() < 0.85:
                documents[place] = {name: random.choice(TYPED[name]) for name in names}
        kinds = {"n": pl.Int64, "s": pl.String, "f": pl.Float64, "id": pl.String}
        dtype = pl.Struct([pl.Field(name, kinds[name]) for name in names])
        frame = frame.with_columns(metadata=pl.Series(documents, dtype=dtype))
    kind = "typed" if form == "typed" else "json" if form == "json" else random.choice(["typed", "json"])
    return frame.select(pl.lit(kind).alias("entity_type"), pl.all()), list(zip(ids, contents, documents, strict=True))


@pytest.mark.slow
def test_random_frames_against_a_model(engine: str, tmp_path, request: pytest.FixtureRequest, monkeypatch) -> None:
    """Case 56: outcome, stored value and re-run of random narrow, wide, typed and JSON frames equal the model's."""
    url = str(tmp_path / "random.duckdb") if engine == "duckdb" else request.getfixturevalue("postgres_url")
    seed = int(os.environ.get("ENTITYFRAMES_SEED", "56"))
    lives = int(os.environ.get("ENTITYFRAMES_LIVES", "2"))
    for life in range(lives):
        draw = random.Random(seed * 1_000 + life)
        models = {"typed": Model(), "json": Model()}
        with ef.connect(url, namespace=f"life_{life}") as store, monkeypatch.context() as patch:
            if life % 2:
                # Use the code paths of large batches for small ones.
                patch.setattr(keeping, "FEW_ROWS", 0)
                patch.setattr(postgres_engine, "ARRAY_ROWS", 0)
                patch.setattr(entity_target, "_FEW_TYPES", 8)
            for step in range(20):
                absent, nulls = draw.choice(["keep", "keep", "clear"]), draw.choice(["write", "write", "keep"])
                frame, rows = random_rows(draw, nulls)
                kind = frame["entity_type"][0]
                options = {"absent": absent, "nulls": nulls}
                run = f"seed {seed}, life {life}, step {step}, {options}, {frame.rows()}"
                plan = store.plan(frame, **options)
                before = dict(models[kind].entities)
                expected = models[kind].upsert(rows, absent, nulls)
                words = {"create": "created", "update": "updated"}
                assert [words.get(one, one) for one in plan.frame["action"].cast(pl.String)] == expected, run
                changed = {
                    id: {name for name in {**old[1], **new[1]} if member(old[1], name) != member(new[1], name)}
                    for id, new in models[kind].entities.items()
                    if (old := before.get(id, ("", {})))
                }
                for row in plan.frame.filter(pl.col("action").is_in(["create", "update"])).iter_rows(named=True):
                    assert {one["field"] for one in row["changes"]} == changed[row["id"]], run
                result = plan.apply(progress=False) if draw.random() < 0.3 else store.upsert(frame, **options)
                assert statuses(result) == expected, run
                assert {id: canonical(one) for id, one in held(store, kind).items()} == {
                    id: canonical(one) for id, one in models[kind].entities.items()
                }, run
                again = store.upsert(frame, progress=False, **options)
                assert set(statuses(again)) <= {"unchanged", "duplicate"}, run
                assert again.ok
            assert store.verify().is_empty()


@pytest.mark.slow
@pytest.mark.parametrize("nested", [False, True])
def test_merging_by_column_equals_merging_one_by_one(nested: bool) -> None:
    """Case 56: objects with equal fields are merged and compared by column, with the same result as one by one."""
    draw = random.Random(56)
    names = ["a", 'b"\\', "c.*(+)?[]{}|^$", "d e", "-#&~", "é", "\u0001\n", "", "ｚ", "null", ":null", '","a":']
    odd = ["", "x", 'a"b', "\\", '\\"', '","a":1', "}", "{", "[", ":null", "null", "é\n\u0001", "1", "😀"]
    numbers = ["0", "-1", "2.5", "1e-320", "123456789012345678901234567890", "true", "false", "null"]

    def document(fields: list[str]) -> str:
        values = [draw.choice([json.dumps(draw.choice(odd), ensure_ascii=False), *numbers]) for _ in fields]
        if nested and fields and draw.random() < 0.1:
            values[0] = '{"x":[1,{"y":"}"}],"z":null}'
        members = zip([json.dumps(name, ensure_ascii=False) for name in sorted(fields)], values, strict=True)
        return "{" + ",".join(f"{name}:{value}" for name, value in members) + "}"

    for _ in range(12):
        given = draw.sample(names, draw.randint(0, len(names)))
        held = draw.choice([draw.sample(names, draw.randint(0, len(names))), given, [*given, "more"]])
        new = pl.Series("metadata", [document(given) for _ in range(150)], dtype=pl.String)
        old = pl.Series([document(held) for _ in range(150)], dtype=pl.String)
        old = old.zip_with(pl.Series([draw.random() < 0.9 for _ in range(150)]), new)
        before = new.to_list()
        for absent, nulls in itertools.product(["keep", "clear"], ["write", "keep"]):
            found = merging.merged_texts(new, old, absent=absent, nulls=nulls)
            assert found.to_list() == [
                merging.merged(one, other, absent=absent, nulls=nulls) for one, other in zip(new, old, strict=True)
            ]
            assert [error for error in canonical_json(found.to_list())[1] if error] == []
        assert new.to_list() == before
        differences = merging.differences(old, new).rows()
        expected = []
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            was, now = merging.members(one), merging.members(other)
            for name in sorted(was.keys() | now.keys()):
                if was.get(name) != now.get(name):
                    texts = [None if (text := of.get(name)) is None else text for of in (was, now)]
                    quoted = json.dumps(name, ensure_ascii=False) + ":"
                    expected.append((place, name, *(text and text.removeprefix(quoted) for text in texts)))
        assert differences == expected


@pytest.mark.parametrize(
    ("stored", "given", "a", "b"),
    [
        (("{}", '{"a":1}'), ('{"b":2}', '{"b":2}'), None, 2),
        (('{"a":1}', '{"a":1}'), ("{}", '{"b":2}'), 1, None),
    ],
)
def test_many_objects_the_first_of_which_is_empty(
    store: ef.EntityStore, stored: tuple[str, str], given: tuple[str, str], a: int | None, b: int | None
) -> None:
    """JSON text is merged row by row: an object without fields does not affect others in the store or frame."""
    rows = pl.DataFrame({"entity_type": "note", "id": [f"{n:03}" for n in range(150)], "content": "x"})
    for first, others in (stored, given):
        assert store.upsert(rows.with_columns(metadata=pl.Series([first] + [others] * 149)), progress=False).ok
    found = store.read("note").sort("id")
    assert (found["a"].to_list(), found["b"].to_list()) == ([a] + [1] * 149, [b] + [2] * 149)
