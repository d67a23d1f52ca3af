"""Tables that reference each other: rows that violate a key are named with their value, and all others are written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import entityframes as ef

Sql = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def flights(store: ef.EntityStore, sql: Sql, engine: str) -> tuple[ef.Table, ef.Table]:
    """Airports with a unique code and a list, and routes between them."""
    sql(
        f"CREATE TABLE airports (id int PRIMARY KEY, code varchar(3) UNIQUE, name text, "
        f"runways {'int[]' if engine == 'postgresql' else 'integer[]'})",
        "CREATE TABLE routes (origin int REFERENCES airports (id), target int REFERENCES airports (id), stops int, "
        "PRIMARY KEY (origin, target))",
    )
    airports, routes = store.table("airports"), store.table("routes")
    rows = {
        "id": [1, 2, 3],
        "code": ["HAM", "KEF", "GKA"],
        "name": ["Hamburg", "Keflavik", "Goroka"],
        "runways": [[1], [2], []],
    }
    assert airports.upsert(pl.DataFrame(rows)).ok
    assert routes.upsert(pl.DataFrame({"origin": [1], "target": [2], "stops": [0]})).ok
    return airports, routes


def test_a_row_that_references_nothing(flights: tuple[ef.Table, ef.Table]) -> None:
    """The column and the value are in the error, the constraint in the rule."""
    routes = flights[1]
    result = routes.upsert(pl.DataFrame({"origin": [2, 7, 2], "target": [1, 1, 8], "stops": [0, 0, 0]}))
    assert result.counts["created"] == 1
    failed = result.failed.select("row", "rule", "error").rows()
    assert [(row, rule.partition(":")[0]) for row, rule, _ in failed] == [(1, "foreign_key"), (2, "foreign_key")]
    assert "origin" in failed[0][2]
    assert "7" in failed[0][2]
    assert "target" in failed[1][2]
    assert "8" in failed[1][2]


def test_a_value_that_another_row_has(flights: tuple[ef.Table, ef.Table]) -> None:
    result = flights[0].upsert(pl.DataFrame({"id": [3, 4], "code": ["LAE", "HAM"]}))
    assert result.outcomes["status"].to_list() == ["updated", "failed"]
    [(rule, error)] = result.failed.select("rule", "error").rows()
    assert rule.startswith("unique:")
    assert "code" in error
    assert "HAM" in error


def test_a_referenced_row_is_updated(flights: tuple[ef.Table, ef.Table], engine: str) -> None:
    """DuckDB cannot change an indexed column or a list of such a row, and only rows where one changes fail there."""
    airports = flights[0]
    rows = {"id": [1, 2, 3], "code": ["HAM", "KEV", "GKB"], "name": ["Hamburg-Fuhlsbüttel", "Keflavik", "Goroka"]}
    result = airports.upsert(pl.DataFrame(rows).with_columns(runways=pl.Series([[1], [2], [5]])))
    changed = ["updated", "failed" if engine == "duckdb" else "updated", "updated"]
    assert result.outcomes["status"].to_list() == changed
    assert airports.read("name")["name"].to_list() == ["Hamburg-Fuhlsbüttel", "Keflavik", "Goroka"]
    if engine == "duckdb":
        [(rule, error)] = result.failed.select("rule", "error").rows()
        assert rule == "foreign_key"
        assert "a foreign key of another table references this row" in error


def test_a_referenced_row_is_not_deleted(flights: tuple[ef.Table, ef.Table]) -> None:
    airports, routes = flights
    result = airports.delete([1, 3])
    assert result.outcomes["status"].to_list() == ["failed", "deleted"]
    assert result.failed["rule"].item().partition(":")[0] == "foreign_key"
    assert routes.delete(pl.DataFrame({"origin": [1], "target": [2]})).counts["deleted"] == 1
    assert airports.delete([1]).counts["deleted"] == 1


def test_rows_that_reference_each_other(store: ef.EntityStore, sql: Sql) -> None:
    """In any order; a row below one that fails fails too, and is named; a stored row may move below a new one."""
    sql("CREATE TABLE staff (id int PRIMARY KEY, boss int REFERENCES staff (id), name text)")
    staff = store.table("staff")
    size = 40
    chain = pl.DataFrame({"id": range(size), "boss": [*range(1, size), None]})
    below = pl.DataFrame({"id": [100, 101, 102], "boss": [99, 100, 101]})
    result = staff.upsert(pl.concat([below, chain.cast(below.schema)]))
    assert result.outcomes["status"].to_list() == ["failed"] * 3 + ["created"] * size
    failed = result.failed.select("rule", "error").rows()
    assert {rule.partition(":")[0] for rule, _ in failed} == {"foreign_key"}
    assert all(str(missing) in error for missing, (_, error) in zip([99, 100, 101], failed, strict=True))
    moved = staff.upsert(pl.DataFrame({"id": [0, 200, 201], "boss": [201, None, 200]}))
    assert moved.outcomes["status"].to_list() == ["updated", "created", "created"]
    assert staff.get([0])["boss"].to_list() == [201]
