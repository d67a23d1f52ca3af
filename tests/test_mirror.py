"""Mirrors of tables and entities: what a frame lacks is deleted, within a scope and a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import entityframes as ef

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def table(store: ef.EntityStore) -> ef.Table:
    """Six people in two countries."""
    people = ef.create_table(
        store, "people", {"id": pl.Int64, "name": pl.String, "land": pl.String, "gone": pl.Datetime("us")}, key="id"
    )
    people.upsert(_people(range(1, 7)), progress=False).raise_for_failures()
    return people


def _people(ids: Any) -> pl.DataFrame:
    numbers = pl.Series(list(ids), dtype=pl.Int64)
    return pl.DataFrame({"id": numbers}).with_columns(
        name=pl.format("name {}", "id"), land=pl.when(pl.col("id") % 2 == 0).then(pl.lit("se")).otherwise(pl.lit("no"))
    )


def _ids(table: ef.Table) -> list[int]:
    return table.read("id")["id"].to_list()


def test_what_the_frame_lacks_is_deleted(table: ef.Table) -> None:
    """Deletions are outcomes after those of the frame, with a null row; a second time nothing is left to do."""
    frame = _people([1, 2, 3, 9]).with_columns(name=pl.when(pl.col("id") == 2).then(pl.lit("x")).otherwise("name"))
    result = table.mirror(frame, max_delete=3, progress=False)
    assert result.outcomes.select("row", "id", "status").rows() == [
        (0, 1, "unchanged"), (1, 2, "updated"), (2, 3, "unchanged"), (3, 9, "created"),
        (None, 4, "deleted"), (None, 5, "deleted"), (None, 6, "deleted"),
    ]  # fmt: skip
    assert result.counts["deleted"] == 3
    assert result.succeeded.height == result.rows == 7
    assert table.last_result is result
    assert _ids(table) == [1, 2, 3, 9]
    assert table.mirror(frame, progress=False).counts["unchanged"] == 4


@pytest.mark.parametrize(("max_delete", "refused"), [(0.2, True), (0.5, False), (2, True), (3, False), (0, True)])
def test_the_limit(table: ef.Table, max_delete: float, refused: bool) -> None:
    """More deletions than expected are refused before anything is written."""
    frame = _people([1, 2, 3, 9])
    if refused:
        with pytest.raises(ef.ValidationError, match="3 of 6 stored rows .* nothing was written"):
            table.mirror(frame, max_delete=max_delete, progress=False)
        assert _ids(table) == [1, 2, 3, 4, 5, 6]
    else:
        table.mirror(frame, max_delete=max_delete, progress=False)
        assert _ids(table) == [1, 2, 3, 9]


@pytest.mark.parametrize("max_delete", [-1, 1.5, True, "1"])
def test_limits_that_mean_nothing(table: ef.Table, max_delete: Any) -> None:
    """A limit is a share or a whole number."""
    with pytest.raises(ValueError, match="max_delete"):
        table.mirror(_people([1]), max_delete=max_delete)


def test_an_empty_frame_is_refused(table: ef.Table) -> None:
    """It would delete everything."""
    with pytest.raises(ef.SchemaError, match="no rows"):
        table.mirror(_people([]), max_delete=100)
    assert len(_ids(table)) == 6


@pytest.mark.parametrize("scope", [pl.col("land") == "se", "t.land = 'se'"])
def test_a_scope(table: ef.Table, scope: Any) -> None:
    """Rows outside of the scope are not deleted, and do not count."""
    result = table.mirror(_people([2]), scope=scope, max_delete=0.7, progress=False)
    assert result.counts["deleted"] == 2
    assert _ids(table) == [1, 2, 3, 5]
    with pytest.raises(ef.SchemaError, match="no column 'nope'"):
        table.mirror(_people([2]), scope=pl.col("nope") == 1)


def test_an_unknown_key_deletes_nothing(table: ef.Table) -> None:
    """A row with an invalid key may be any stored row."""
    frame = pl.DataFrame({"id": [1, None]}, schema={"id": pl.Int64})
    result = table.mirror(frame, max_delete=10, progress=False)
    assert result.counts["failed"] == 1
    assert result.counts["cancelled"] == 5
    assert "invalid key" in result.outcomes["error"][-1]
    assert len(_ids(table)) == 6


def test_rows_that_fail_are_not_deleted(table: ef.Table, sql: Sql, engine: str) -> None:
    """A row that the database refuses stays as it is stored."""
    frame = _people([1, 2, 3]).with_columns(land=pl.when(pl.col("id") == 2).then(pl.lit("bad\0")).otherwise("land"))
    result = table.mirror(frame, max_delete=3, progress=False)
    assert result.counts["failed"] == 1
    assert result.counts["deleted"] == 3
    assert _ids(table) == [1, 2, 3]


def test_soft_deletion(table: ef.Table) -> None:
    """A time is set instead; a key that comes back is undeleted; deleted rows are not deleted again."""
    first = table.mirror(_people([1, 2, 3]), soft_delete="gone", max_delete=3, progress=False)
    assert first.counts["deleted"] == 3
    gone = table.read()["gone"]
    assert gone.is_null().to_list() == [True] * 3 + [False] * 3
    again = table.mirror(_people([1, 2, 3]), soft_delete="gone", progress=False)
    assert again.counts["deleted"] == 0
    assert table.read()["gone"].equals(gone)
    back = table.mirror(_people([1, 2, 3, 5]), soft_delete="gone", progress=False)
    assert back.counts["updated"] == 1
    assert table.read()["gone"].is_null().to_list() == [True, True, True, False, True, False]


def test_soft_deletion_by_a_flag(store: ef.EntityStore) -> None:
    """A Boolean column is true for deleted rows."""
    flags = ef.create_table(store, "flags", {"id": pl.Int64, "gone": pl.Boolean}, key="id")
    flags.upsert(pl.DataFrame({"id": [1, 2], "gone": [False, False]}), progress=False)
    assert flags.mirror(pl.DataFrame({"id": [1]}), soft_delete="gone", max_delete=1).counts["deleted"] == 1
    assert flags.read()["gone"].to_list() == [False, True]
    assert flags.mirror(pl.DataFrame({"id": [1, 2]}), soft_delete="gone").counts["updated"] == 1
    assert flags.read()["gone"].to_list() == [False, False]


@pytest.mark.parametrize(
    ("column", "message"), [("nope", "no column"), ("name", "not a nullable"), ("id", "not a nulla")]
)
def test_columns_of_a_soft_deletion(table: ef.Table, column: str, message: str) -> None:
    """The column must hold a time or a flag."""
    with pytest.raises(ef.SchemaError, match=message):
        table.mirror(_people([1]).select("id"), soft_delete=column, max_delete=9)
    with pytest.raises(ef.SchemaError, match="drop it from the frame"):
        table.mirror(_people([1]).with_columns(gone=pl.lit(None, pl.Datetime("us"))), soft_delete="gone", max_delete=9)


def test_a_plan_shows_deletions(table: ef.Table) -> None:
    """Applied, it leaves alone what has been changed since; the outcome is a conflict."""
    plan = table.plan(_people([1, 2, 9]), mirror=True)
    assert plan.counts == {"create": 1, "update": 0, "unchanged": 2, "duplicate": 0, "invalid": 0, "delete": 4}
    assert "4 to delete" in plan.summary()
    deleted = plan.frame.filter(pl.col("action") == "delete")
    assert deleted.select("row", "id").rows() == [(None, 3), (None, 4), (None, 5), (None, 6)]
    assert {"field": "name", "old": "name 3", "new": None} in deleted["changes"][0].to_list()
    assert len(_ids(table)) == 6
    table.upsert(pl.DataFrame({"id": [5], "name": ["changed"]}), progress=False)
    table.delete([6], progress=False)
    result = plan.apply(progress=False)
    assert result.outcomes.filter(pl.col("row").is_null()).select("id", "status").rows() == [
        (3, "deleted"), (4, "deleted"), (5, "conflict"), (6, "conflict"),
    ]  # fmt: skip
    assert not result.ok
    assert _ids(table) == [1, 2, 5, 9]


def test_a_plan_sees_changes_of_case(store: ef.EntityStore, engine: str, sql: Any) -> None:
    """Also where the collation of a column takes both texts for equal, in updates and in deletions."""
    collation = "NOCASE"
    if engine == "postgresql":
        if not sql("SELECT 1 FROM pg_collation WHERE collprovider = 'i' AND collname = 'und-x-icu'"):
            pytest.skip("this server has no ICU")
        collation = "caseless"
        sql(f"CREATE COLLATION {collation} (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    sql(
        f"CREATE TABLE loose (id int PRIMARY KEY, name text COLLATE {collation})",
        "INSERT INTO loose VALUES (1, 'a'), (2, 'b'), (3, 'c'), (4, 'd')",
    )
    table = store.table("loose")
    plan = table.plan(pl.DataFrame({"id": [1, 2], "name": ["x", "y"]}), mirror=True)
    sql("UPDATE loose SET name = 'A' WHERE id = 1", "UPDATE loose SET name = 'C' WHERE id = 3")
    result = plan.apply(progress=False)
    assert dict(result.outcomes.select("id", pl.col("status").cast(pl.String)).rows()) == {
        1: "conflict", 2: "updated", 3: "conflict", 4: "deleted",
    }  # fmt: skip
    assert table.read().rows() == [(1, "A"), (2, "y"), (3, "C")]
    result = table.upsert(pl.DataFrame({"id": [1, 2, 3], "name": ["a", "y", "c"]}), progress=False)
    assert result.outcomes["status"].to_list() == ["updated", "unchanged", "updated"]


def test_a_stopped_mirror_deletes_nothing(table: ef.Table) -> None:
    """The rows that would be deleted are cancelled."""
    cancel = threading.Event()
    result = table.mirror(
        _people([1, 2, 3]), max_delete=3, cancel=cancel, batch_size=1, progress=lambda rows, total: cancel.set()
    )
    assert result.counts["cancelled"] >= 3
    assert result.counts["deleted"] == 0
    assert result.rows == len(_ids(table)) == 6
    with pytest.raises(ef.StatementCancelledError):
        table.mirror(_people([1, 2, 3]), max_delete=3, cancel=cancel)


def test_referenced_rows_fail_alone(store: ef.EntityStore, sql: Sql) -> None:
    """A row that another table references is not deleted, the others are."""
    sql(
        "CREATE TABLE lands (code varchar PRIMARY KEY)",
        "CREATE TABLE towns (n int PRIMARY KEY, code varchar REFERENCES lands (code))",
    )
    lands = store.table("lands")
    lands.upsert(pl.DataFrame({"code": ["a", "b", "c"]}), progress=False)
    sql("INSERT INTO towns VALUES (1, 'b')")
    result = lands.mirror(pl.DataFrame({"code": ["a"]}), max_delete=2, progress=False)
    assert result.outcomes.select("code", "status").rows() == [("a", "unchanged"), ("b", "failed"), ("c", "deleted")]
    assert lands.read()["code"].to_list() == ["a", "b"]


def test_entities(store: ef.EntityStore) -> None:
    """Entities of the types in the frame that it lacks are deleted, within a scope."""
    notes = pl.DataFrame({"id": list("abcd"), "year": [1, 2, 3, 4]})
    store.upsert(ef.entities(notes, "note", id="id"), progress=False)
    store.upsert(ef.ids("task", ["a"]), progress=False)
    frame = ef.entities(notes[:1], "note", id="id")
    with pytest.raises(ef.ValidationError, match="3 of 4 stored"):
        store.mirror(frame, progress=False)
    scoped = store.mirror(frame, scope=pl.col("year") > 3, max_delete=1, progress=False)
    assert scoped.outcomes.select("row", "id", "status").rows() == [(0, "a", "unchanged"), (None, "d", "deleted")]
    store.mirror(frame, max_delete=0.9, progress=False)
    assert store.read("note")["id"].to_list() == ["a"]
    assert store.exists(ef.ids("task", ["a"]))["exists"].all()
    with pytest.raises(ef.SchemaError, match="scope"):
        store.mirror(frame, scope=pl.col("nope") == 1)
    with pytest.raises(ef.SchemaError, match="no rows"):
        store.mirror(frame[:0])
    unknown = store.mirror(ef.ids("note", ["b", None]), max_delete=1, progress=False)
    assert unknown.counts["cancelled"] == 1
    assert store.read("note")["id"].to_list() == ["a", "b"]
    new = store.mirror(ef.ids("letter", ["x"]), progress=False)
    assert new.counts["created"] == 1
