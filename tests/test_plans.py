"""Plans and expected hashes: what an upsert would do, applying exactly that, and respecting concurrent changes."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterable
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.metadata import merging
from tests.conftest import engine_and_keys

engine = engine_and_keys

SCHEMA = dict.fromkeys(["entity_type", "id", "content", "metadata"], pl.String)


def rows(*given: tuple[str | None, str, str | None]) -> pl.DataFrame:
    return pl.DataFrame([("note", *row) for row in given], SCHEMA, orient="row")


def statuses(result: ef.UpsertResult) -> dict[str, str]:
    return dict(result.outcomes.select("id", pl.col("status").cast(pl.String)).iter_rows())


STORED = rows(
    ("same", "x", '{"a":1}'), ("text", "old", None), ("meta", "x", '{"a":1,"b":[1]}'), ("both", "old", '{"a":1}')
)
WANTED = rows(
    ("new", "x", '{"a":1}'),
    ("same", "x", '{"a":1.0}'),
    ("text", "new", None),
    ("meta", "x", '{"a":"é","c":null}'),
    ("both", "loses", None),
    ("both", "new", '{"a":2}'),
    (None, "x", None),
)


def test_a_plan_shows_what_an_upsert_does(store: ef.EntityStore, sql) -> None:
    """For each row the action, both hashes and the fields that change; nothing is written until it is applied."""
    store.upsert(STORED)
    # Of whole documents, so that a field can be removed as well.
    before = [sql(f"SELECT * FROM entityframes.{name}") for name in ("entities", "batches", "metadata_fields")]
    plan = store.plan(WANTED, absent="clear")
    assert plan.frame["action"].to_list() == [
        "create", "unchanged", "update", "update", "duplicate", "update", "invalid",
    ]  # fmt: skip
    assert plan.frame["row"].to_list() == list(range(7))
    changes = [
        None if row is None else [tuple(item.values()) for item in row] for row in plan.frame["changes"].to_list()
    ]
    assert changes == [
        [("a", None, "1")],
        None,
        [],
        [("a", "1", '"é"'), ("b", "[1]", None), ("c", None, "null")],
        None,
        [("a", "1", "2")],
        None,
    ]
    stored = store.get(WANTED)["content_hash"].to_list()
    assert plan.frame["old_hash"].to_list() == [None, *stored[1:4], None, stored[5], None]
    assert plan.frame["error"].to_list() == [None] * 6 + ["id is null"]
    assert plan.counts == {"create": 1, "update": 3, "unchanged": 1, "duplicate": 1, "invalid": 1}
    assert "1 to create, 3 to update" in plan.summary()
    assert "the content of 2, a of 2" in plan.summary()
    assert before == [sql(f"SELECT * FROM entityframes.{name}") for name in ("entities", "batches", "metadata_fields")]

    result = plan.apply()
    words = {"create": "created", "update": "updated", "invalid": "failed"}
    assert result.outcomes["status"].to_list() == [words.get(action, action) for action in plan.frame["action"]]
    assert store.get(WANTED)["content_hash"].to_list()[:4] == plan.frame["new_hash"].to_list()[:4]
    assert [plan.apply().counts[status] for status in ("unchanged", "duplicate", "failed")] == [5, 1, 1]


@pytest.mark.parametrize("count", [1, 5_000])
def test_concurrent_changes_are_conflicts(store: ef.EntityStore, count: int) -> None:
    """Changed, created and deleted since, and changed in its metadata only: all are conflicts; others are written."""
    store.upsert(STORED)
    more = rows(*((f"e{n:05}", "x", None) for n in range(count)))
    wanted = pl.concat([WANTED[:4], WANTED[5:6], rows(("gone", "x", None)), more])
    store.upsert(rows(("gone", "y", None)))
    plan = store.plan(wanted)
    store.upsert(rows(("new", "theirs", None), ("same", "x", '{"a":7}'), ("text", "theirs", None)))
    store.delete(ef.ids("note", ["gone"]))
    result = plan.apply()
    outcomes = statuses(result)
    assert {id for id, status in outcomes.items() if status == "conflict"} == {"new", "same", "text", "gone"}
    assert outcomes["meta"] == outcomes["both"] == "updated"
    assert result.counts["created"] == count
    assert not result.ok
    assert result.outcomes.filter(status="conflict")["error"].str.contains("another writer").fill_null(False).all()
    left = store.get(ef.ids("note", ["new", "same", "text", "gone"]))
    assert left["content"].to_list() == ["theirs", "x", "theirs", None]
    assert json.loads(left["metadata"][1]) == {"a": 7}


def test_an_identical_concurrent_change_is_not_a_conflict(store: ef.EntityStore) -> None:
    """An entity that already is as planned is not a conflict: a plan may be applied twice."""
    plan = store.plan(WANTED[:4])
    store.upsert(WANTED[:2])
    assert list(statuses(plan.apply()).values()) == ["unchanged", "unchanged", "created", "created"]


def test_a_plan_of_typed_metadata_declares_nothing(store: ef.EntityStore) -> None:
    """Typed columns are compared as they would be stored; an incompatible dtype is refused."""
    frame = ef.entities(pl.DataFrame({"k": ["a", "b"], "n": [1, 2]}), "t", id="k")
    plan = store.plan(frame)
    with pytest.warns(UserWarning, match="no entities of type 't'"):
        columns = store.read("t").columns
    assert columns == ["id", "content", "content_hash", "created_at", "updated_at"]
    assert plan.apply().counts["created"] == 2
    assert store.read("t")["n"].to_list() == [1, 2]
    assert store.plan(frame).counts["unchanged"] == 2
    with pytest.raises(ef.SchemaError, match="'n' is Int64 there"):
        store.plan(ef.entities(pl.DataFrame({"k": ["c"], "n": ["x"]}), "t", id="k"))


def test_plans_of_other_frames(store: ef.EntityStore) -> None:
    """A LazyFrame, an iterator and an empty frame can be planned; duplicates can be refused."""
    assert store.plan(WANTED.lazy()).counts["create"] == 5
    assert store.plan(iter([WANTED[:2], WANTED[2:]])).counts["create"] == 5
    assert store.plan(WANTED[:0]).frame.height == 0
    assert store.plan(WANTED[:0]).apply().ok
    with pytest.raises(ef.DuplicateError, match="note/both"):
        store.plan(WANTED, on_duplicate="error")
    assert store.plan(WANTED[4:6], on_duplicate="first").frame["action"].to_list() == ["create", "duplicate"]


@pytest.mark.parametrize("batch_size", [None, 2])
def test_expected_hash(store: ef.EntityStore, batch_size: int | None) -> None:
    """A frame built by the user: compared with the content hash from `get`, null where no entity is expected."""
    store.upsert(rows(("a", "1", None), ("b", "1", None), ("c", "1", None)))
    mine = store.get(ef.ids("note", ["a", "b", "c", "d", "e"])).with_columns(content=pl.lit("2"))
    store.upsert(rows(("b", "theirs", None), ("e", "theirs", None)))
    result = store.upsert(mine, expected_hash="content_hash", batch_size=batch_size)
    assert statuses(result) == {"a": "updated", "b": "conflict", "c": "updated", "d": "created", "e": "conflict"}
    assert store.get(mine)["content"].to_list() == ["2", "theirs", "2", "2", "theirs"]


def test_invalid_expected_hashes(store: ef.EntityStore) -> None:
    """A column that is missing or not a string is refused; a string that is not a hash fails its row."""
    frame = rows(("a", "x", None), ("b", "x", None))
    with pytest.raises(ef.SchemaError, match="'seen'"):
        store.upsert(frame, expected_hash="seen")
    with pytest.raises(ef.SchemaError, match="'seen' is Int64"):
        store.upsert(frame.with_columns(seen=pl.lit(1, pl.Int64)), expected_hash="seen")
    result = store.upsert(frame.with_columns(seen=pl.Series(["nonsense", None])), expected_hash="seen")
    assert statuses(result) == {"a": "failed", "b": "created"}
    assert result.failed["error"].to_list() == ["seen is not a SHA-256 hash in hex"]
    assert store.upsert(frame.with_columns(seen=None), expected_hash="seen").counts["conflict"] == 0


def test_the_first_row_that_is_wrong_is_named(store: ef.EntityStore) -> None:
    """Whatever is wrong with it, and with others."""
    frame = pl.DataFrame(
        {"entity_type": "note", "id": ["a", "b", None], "content": "x", "seen": [None, "no hash", None]}
    )
    with pytest.raises(ef.ValidationError, match=r"^row 1 \(note/b\): .* \(and 1 more rows\)"):
        store.upsert(frame, expected_hash="seen", on_error="raise")
    assert store.stats().is_empty()


def test_expected_hashes_of_a_key_that_repeats(store: ef.EntityStore) -> None:
    """The last row with a valid hash counts, whatever the name of the column."""
    store.upsert(rows(("a", "1", None)))
    seen = store.get_entity("note", "a")["content_hash"]
    frame = rows(("a", "2", None), ("a", "3", None), ("a", "4", None))
    result = store.upsert(frame.with_columns(expected=pl.Series([seen, seen, "none"])), expected_hash="expected")
    assert result.outcomes["status"].cast(pl.String).to_list() == ["duplicate", "updated", "failed"]
    assert store.get_entity("note", "a")["content"] == "3"


@pytest.mark.slow
def test_one_of_many_writers_wins_each_step(store: ef.EntityStore) -> None:
    """Counters incremented by compare-and-swap from six threads: no step is lost or counted twice."""
    keys = [f"k{n}" for n in range(30)]
    won = [0] * 6

    def raise_them(number: int) -> None:
        for _ in range(8):
            seen = store.get(ef.ids("note", keys))
            mine = seen.with_columns(content=(pl.col("content").cast(pl.Int64).fill_null(0) + 1).cast(pl.String))
            mine = mine.with_columns(metadata=pl.lit(f'{{"by":{number}}}'))
            result = store.upsert(mine, expected_hash="content_hash", progress=False)
            counts = result.counts
            assert counts["created"] + counts["updated"] + counts["conflict"] + counts["unchanged"] == len(keys), result
            won[number] += counts["created"] + counts["updated"]

    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            raise_them(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.get(ef.ids("note", keys))["content"].cast(pl.Int64).sum() == sum(won)


@pytest.mark.slow
def test_nested_fields_are_compared_alike_by_column_and_by_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of many objects with the same fields are cut out of the JSON text; parsing each object gives the same."""
    draw = random.Random(20)

    def value(depth: int) -> Any:
        if depth == 0 or draw.random() < 0.5:
            return draw.choice([1, -2.5, 1e22, True, None, "a", 'x,"b":1', "[", "]}", "\\", 'q"', "é\n", ""])
        if draw.random() < 0.5:
            return [value(depth - 1) for _ in range(draw.randint(0, 3))]
        return {draw.choice("abcd"): value(depth - 1) for _ in range(draw.randint(0, 3))}

    def objects(names: Iterable[str], depth: int) -> pl.Series:
        rows = [{name: value(depth) for name in names} for _ in range(merging._MANY)]
        return pl.Series([json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) for row in rows])

    for _ in range(40):
        depth, names = draw.randint(0, 4), draw.sample("abcdefgh", draw.randint(1, 5))
        old, new = objects(names, depth), objects([*names, *draw.sample("yz", draw.randint(0, 2))], depth)
        ways = []
        for many in (merging._MANY, 10**9):
            with monkeypatch.context() as patch:
                patch.setattr(merging, "_MANY", many)
                merged = [
                    merging.merged_texts(new, old, absent=absent, nulls=nulls).to_list()
                    for absent in ("keep", "clear")
                    for nulls in ("keep", "write")
                ]
                ways.append((merging.differences(old, new).rows(), merged))
        assert ways[0] == ways[1]
