"""Rows that only the database rejects: found, reported, and skipped without affecting the other rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.postgres.engine import PostgresEngine
from tests.conftest import IDS_OF_JOB, engine_and_keys

engine = engine_and_keys

Sql = Callable[..., list]


def rows(count: int, bad: set[int] = frozenset(), text: str = "fine") -> pl.DataFrame:
    """An entity frame in which some contents start with "forbidden"."""
    contents = [f"forbidden {n}" if n in bad else f"{text} {n}" for n in range(count)]
    return pl.DataFrame(
        {"entity_type": ["note"] * count, "id": [f"e{n:06}" for n in range(count)], "content": contents}
    )


@pytest.fixture
def checked(sql: Sql, engine: str) -> None:
    """A CHECK constraint on the entities table that the package does not know."""
    if engine == "postgresql":
        sql("ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'forbidden%')")
        return
    # DuckDB cannot add a CHECK to an existing table.
    [(ddl,)] = sql("SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'")
    ddl = ddl.replace(");", ", CHECK (content NOT LIKE 'forbidden%'));")
    sql("DROP TABLE entityframes.entities", ddl)


@pytest.mark.parametrize("bad", [1, 10, 100])
def test_exactly_the_bad_rows_fail(store: ef.EntityStore, checked: None, bad: int) -> None:
    """Of 10,000 rows those that violate the constraint fail, with its name or text; all others are stored."""
    wrong = set(range(0, 10_000, 10_000 // bad))
    result = store.upsert(rows(10_000, wrong))
    assert result.counts["failed"] == bad
    assert result.counts["created"] == 10_000 - bad
    failed = result.failed
    assert set(failed["row"]) == wrong
    assert failed["error_kind"].unique().to_list() == ["database"]
    assert failed["sqlstate"].unique().to_list() == ["23514"]
    assert failed["error"].str.contains("allowed_content|forbidden").fill_null(False).all()
    assert (store.exists(result.outcomes)["exists"] == (result.outcomes["status"] == "created")).all()


def test_a_rejected_update_leaves_the_old_row(store: ef.EntityStore, checked: None) -> None:
    """A row whose update is rejected keeps its old value; the valid update next to it is stored."""
    store.upsert(rows(3))
    frame = rows(3, {1}, "changed").with_columns(metadata=pl.lit('{"n":1}'))
    result = store.upsert(frame)
    assert result.outcomes["status"].to_list() == ["updated", "failed", "updated"]
    assert store.get(rows(3)).select("content", "metadata").rows() == [
        ("changed 0", '{"n":1}'), ("fine 1", "{}"), ("changed 2", '{"n":1}')
    ]  # fmt: skip
    assert store.verify().is_empty()


def test_a_rejected_row_creates_no_job(store: ef.EntityStore, checked: None, sql: Sql, engine: str) -> None:
    """The job lists exactly what was written; the counts in the ledger are equal."""
    result = store.upsert(rows(4, {0, 3}))
    assert result.outcomes["job_id"].is_null().to_list() == [True, False, False, True]
    assert sql(f"SELECT {IDS_OF_JOB[engine]} FROM entityframes.embedding_jobs") == [(["e000001", "e000002"],)]
    assert sql("SELECT created, updated FROM entityframes.batches") == [(2, 0)]


def test_rollback_fails_the_whole_batch(store: ef.EntityStore, checked: None, sql: Sql) -> None:
    """on_error="rollback": nothing of the batch is stored; the other batches are."""
    result = store.upsert(rows(30, {15}), batch_size=10, on_error="rollback")
    assert result.outcomes["status"].to_list() == ["created"] * 10 + ["failed"] * 10 + ["created"] * 10
    assert store.exists(rows(30))["exists"].sum() == 20
    assert sql("SELECT count(*) FROM entityframes.batches") == [(2,)]
    # The rolled-back batch leaves no job either.
    assert sql("SELECT count(*) FROM entityframes.embedding_jobs") == [(2,)]
    assert result.outcomes["job_id"].is_null().to_list() == [False] * 10 + [True] * 10 + [False] * 10


@pytest.mark.slow
def test_raise_ends_the_run(store: ef.EntityStore, checked: None) -> None:
    """on_error="raise": the error is raised, and last_result has the outcome of every row."""
    with pytest.raises(ef.RowError):
        store.upsert(rows(1000, {500}), batch_size=10, on_error="raise")
    outcomes = store.last_result.outcomes
    assert outcomes.height == 1000
    assert (store.exists(outcomes)["exists"] == (outcomes["status"] == "created")).all()
    assert set(outcomes["status"][500:510]) == {"failed"}


def test_a_rerun_after_failures_is_unchanged(store: ef.EntityStore, checked: None) -> None:
    """The good rows are unchanged; the bad ones fail again with the same reason."""
    frame = rows(100, {7})
    store.upsert(frame)
    again = store.upsert(frame)
    assert again.counts["unchanged"] == 99
    assert again.counts["failed"] == 1


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("bad", [1, 10, 100])
def test_a_trigger_that_raises(store: ef.EntityStore, sql: Sql, bad: int) -> None:
    """RAISE EXCEPTION in a user's trigger rejects that row, with its message, also among 10,000 rows."""
    sql(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.content LIKE 'forbidden%' THEN RAISE EXCEPTION 'not in this house'; END IF;
        RETURN NEW; END $$""",
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    wrong = sorted({9_999 - n * 97 for n in range(bad)})
    result = store.upsert(rows(10_000, set(wrong)))
    assert result.failed["row"].to_list() == wrong
    assert result.failed["error"].to_list() == ["not in this house"] * bad
    assert result.failed["sqlstate"].to_list() == ["P0001"] * bad
    assert (store.exists(result.outcomes)["exists"] == (result.outcomes["status"] == "created")).all()
    assert store.verify().is_empty()


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("count", [10, 5_000])
def test_a_trigger_that_drops_rows(store: ef.EntityStore, sql: Sql, count: int) -> None:
    """A trigger that returns NULL silently drops its row: that is a failure, not a success."""
    sql(
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.content LIKE 'forbidden%' THEN RETURN NULL; END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    wrong = [3, count - 1]
    result = store.upsert(rows(count, set(wrong)))
    assert result.counts["created"] == count - 2
    assert result.failed["row"].to_list() == wrong
    assert result.failed["error"].str.contains("trigger").fill_null(False).all()
    again = store.upsert(rows(count, {*wrong, 5}, "changed"))
    assert again.counts["updated"] == count - 3
    assert again.failed["row"].to_list() == [3, 5, count - 1]
    assert store.get(rows(count))["content"][5] == "fine 5"
    seen = store.get(rows(count)).select("entity_type", "id", "content_hash")
    frame = rows(count, {*wrong, 5}, "expected").join(seen, on=["entity_type", "id"], maintain_order="left")
    expecting = store.upsert(frame, expected_hash="content_hash")
    assert expecting.counts["updated"] == count - 3
    assert expecting.failed["row"].to_list() == [3, 5, count - 1]
    assert expecting.failed["error"].str.contains("trigger").fill_null(False).all()
    assert store.verify().is_empty()


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("expecting", [False, True])
def test_the_query_after_a_commit_is_lost(
    store: ef.EntityStore, sql: Sql, monkeypatch: pytest.MonkeyPatch, expecting: bool
) -> None:
    """A small batch is already committed when the dropped rows are queried: the ledger shows what it wrote."""
    sql(
        """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.content LIKE 'forbidden%' THEN RETURN NULL; END IF; RETURN NEW; END $$""",
        "CREATE TRIGGER swallow BEFORE INSERT OR UPDATE ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION swallow()",
    )
    probe, tries = PostgresEngine._probe, []

    def interrupted(engine: PostgresEngine, connection: Any, rows: pl.DataFrame) -> pl.DataFrame:
        tries.append(rows.height)
        if len(tries) == 1:
            sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
                " AND datname = current_database()")  # fmt: skip
        return probe(engine, connection, rows)

    monkeypatch.setattr(PostgresEngine, "_probe", interrupted)
    frame = rows(10, {3})
    if expecting:
        result = store.upsert(frame.with_columns(seen=pl.lit(None, pl.String)), expected_hash="seen")
    else:
        result = store.upsert(frame)
    assert len(tries) > 1
    assert result.counts["created"] == 9
    assert result.failed["row"].to_list() == [3]
    assert store.verify().is_empty()


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_deferred_constraint(store: ef.EntityStore, sql: Sql) -> None:
    """A violation that would fail at COMMIT is found at its row."""
    sql(
        """CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN IF NEW.content LIKE 'forbidden%' THEN RAISE integrity_constraint_violation USING MESSAGE = 'late';
        END IF; RETURN NULL; END $$""",
        """CREATE CONSTRAINT TRIGGER late AFTER INSERT ON entityframes.entities DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()""",
    )
    result = store.upsert(rows(10, {3}))
    assert result.counts["created"] == 9
    assert result.failed["error"].to_list() == ["late"]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_no_permission_raises(store: ef.EntityStore, sql: Sql) -> None:
    """An error that neither skipping rows nor retrying can avoid ends the run with the server's message."""
    sql("ALTER TABLE entityframes.entities RENAME TO hidden")
    with pytest.raises(ef.PermanentError, match="entities"):
        store.upsert(rows(3))
    assert store.last_result.counts["failed"] == 3


@pytest.mark.parametrize("on_error", ["isolate", "rollback"])
def test_a_failed_row_names_its_batch(store: ef.EntityStore, checked: None, sql: Sql, on_error: str) -> None:
    """Rejected rows have the number of their batch, like the other rows in it; the ledger has it too."""
    result = store.upsert(rows(40, {5, 25, 26}), batch_size=10, on_error=on_error)
    batches = result.outcomes["batch_id"].to_list()
    assert None not in batches
    assert [len(set(batches[start : start + 10])) for start in range(0, 40, 10)] == [1] * 4
    assert len(set(batches)) == 4
    failed = set(result.failed["batch_id"])
    assert failed == {batches[0], batches[20]}
    ledger = {batch for (batch,) in sql("SELECT batch_id::text FROM entityframes.batches")}
    assert ledger == (set(batches) if on_error == "isolate" else set(batches) - failed)


@pytest.mark.parametrize("count", [8, 3_000])
@pytest.mark.parametrize("on_error", ["isolate", "rollback"])
def test_a_row_that_conflicts_and_is_rejected(store: ef.EntityStore, checked: None, count: int, on_error: str) -> None:
    """It is a conflict, because nothing of it is written; only rows to be written can be rejected."""
    store.upsert(rows(6))
    seen = store.get(rows(count)).select("entity_type", "id", "content_hash")
    # The hashes of e1, e2 and a new row do not match; e2, e3 and the last row violate the constraint.
    bad = {2, 3, count - 1}
    other = pl.col("id").is_in(["e000001", "e000002", "e000006"])
    expected = pl.when(other).then(pl.lit("0" * 64)).otherwise("content_hash").alias("seen")
    frame = rows(count, bad, "changed").with_columns(seen.select(expected).to_series())
    result = store.upsert(frame, expected_hash="seen", on_error=on_error)
    status = dict(result.outcomes.select("id", pl.col("status").cast(pl.String)).rows())
    conflicts = {id for id, outcome in status.items() if outcome == "conflict"}
    if on_error == "rollback":
        assert set(status.values()) == {"failed"}
        assert store.read("note")["content"].to_list() == rows(6)["content"].to_list()
        return
    assert conflicts == {"e000001", "e000002", "e000006"}
    assert {id for id, outcome in status.items() if outcome == "failed"} == {"e000003", f"e{count - 1:06}"}
    assert result.failed["sqlstate"].unique().to_list() == ["23514"]
    assert (result.counts["updated"], result.counts["created"]) == (3, count - 8)
    stored = dict(store.read("note").select("id", "content").rows())
    assert [stored.get(f"e{n:06}") for n in range(7)] == [
        "changed 0", "fine 1", "fine 2", "fine 3", "changed 4", "changed 5", None
    ]  # fmt: skip
    assert result.outcomes["job_id"].is_not_null().sum() == count - 5
