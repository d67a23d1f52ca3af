"""The invariants that must hold after every fault."""

from __future__ import annotations

import json
from typing import Any

import polars as pl

import entityframes as ef

Key = tuple[str, str]

STORED = ("created", "updated", "unchanged")


def rows(count: int, text: str = "text", *, start: int = 0, size: int = 0, entity_type: str = "note") -> pl.DataFrame:
    """An entity frame with ids in shuffled order and contents that identify the run that wrote them."""
    numbers = pl.Series(range(start, start + count)).shuffle(seed=count)
    return pl.DataFrame({"n": numbers}).select(
        entity_type=pl.lit(entity_type),
        id=pl.format("e{}", pl.col("n").cast(pl.String).str.zfill(6)),
        content=pl.format("{} {} {}", pl.lit(text), "n", pl.lit("x" * size)),
        metadata=pl.concat_str(pl.lit('{"n":'), "n", pl.lit("}")),
    )


class Model:
    """The expected contents of a store, derived from the reported outcomes."""

    def __init__(self) -> None:
        self.entities: dict[Key, tuple[str, Any]] = {}
        #: Rows with the status "unknown": they have either their old value or the new one.
        self.unknown: dict[Key, tuple[str, Any]] = {}

    def upserted(self, frame: pl.DataFrame, result: ef.UpsertResult) -> None:
        """Apply the outcome of each row, after checking that each row has exactly one."""
        outcomes = result.outcomes
        assert outcomes["row"].to_list() == list(range(frame.height)), "an input row has no outcome, or several"
        assert outcomes["id"].to_list() == frame["id"].to_list()
        counted = dict(outcomes["status"].cast(pl.String).value_counts().iter_rows())
        assert {status: count for status, count in result.counts.items() if count} == counted
        apart = [result.succeeded.height, result.failed.height]
        others = [counted.get(name, 0) for name in ("duplicate", "conflict", "cancelled", "unknown")]
        assert sum(apart) + sum(others) == frame.height
        reported = frame.with_columns(outcomes["status"].cast(pl.String), outcomes["error"])
        for row in reported.iter_rows(named=True):
            key, value = (row["entity_type"], row["id"]), (row["content"], json.loads(row.get("metadata") or "{}"))
            if row["status"] in STORED:
                self.entities[key] = value
                self.unknown.pop(key, None)
            elif row["status"] == "unknown":
                self.unknown[key] = value
            elif row["status"] == "failed":
                assert row["error"], "a failure without a reason"

    def deleted(self, result: ef.DeleteResult) -> None:
        """Apply the outcome of each id."""
        for kind, id in result.succeeded.select("entity_type", "id").iter_rows():
            self.entities.pop((kind, id), None)

    def check(self, store: ef.EntityStore) -> None:
        """The store equals the model, its ledger and embedding jobs are consistent with it, and it still works."""
        stored = {
            (row["entity_type"], row["id"]): (row["content"], json.loads(row["metadata"]))
            for row in store.scan().collect().iter_rows(named=True)
        }
        for key in stored.keys() | self.entities.keys() | self.unknown.keys():
            possible = [self.entities.get(key)] + ([self.unknown[key]] if key in self.unknown else [])
            assert stored.get(key) in possible, f"{key} is {stored.get(key)}, not one of {possible}"
        self.entities = dict(stored)
        self.unknown.clear()

        found = store.verify()
        assert found.is_empty(), found.to_dicts()
        due = sum(1 for content, _ in stored.values() if content)
        assert store.stats()["due"].sum() == due

        probe = ("probe", "of use?")
        assert store.upsert_entity(*probe, "x")["status"] == "created"
        assert store.get_entity(*probe)["content"] == "x"
        assert store.delete_entity(*probe)


def check_jobs(outcomes: pl.DataFrame, jobs: list[tuple[str, list[str]]]) -> None:
    """Every job that an outcome names exists and lists the row, and no job lists any other row."""
    reported: dict[str, set[str]] = {}
    for job, id in outcomes.filter(pl.col("job_id").is_not_null()).select("job_id", "id").iter_rows():
        reported.setdefault(job, set()).add(id)
    assert {str(job): set(ids) for job, ids in jobs} == reported
