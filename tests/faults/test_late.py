"""PostgreSQL: commits that arrive later than expected, and changes by other sessions between statements of a batch."""

from __future__ import annotations

import polars as pl
import pytest

import entityframes as ef
from tests.faults.invariants import Model, check_jobs, rows
from tests.faults.servers import COMMIT, WAITING, Background, Proxy, Server, backends, wait_until

LEDGER = "SELECT created, updated, deleted FROM entityframes.batches ORDER BY written_at"
JOBS = "SELECT job_id::text, ids FROM entityframes.embedding_jobs"


@pytest.mark.parametrize("on_error", ["isolate", "rollback"])
@pytest.mark.parametrize("count", [50, 3_000])
def test_a_commit_arrives_after_the_ledger_was_read(
    own_server: Server, database: str, own_store, proxy: Proxy, count: int, on_error: str
) -> None:
    """The retry meets what the first attempt wrote: one of them counts, and the outcomes are those of that one."""
    model, store = Model(), own_store(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    own_server.sql("TRUNCATE entityframes.embedding_jobs", database=database)
    frame = pl.concat([rows(10), rows(count - 10, "changed", start=10)])
    # A small batch and its COMMIT are one message.
    proxy.hold_before = COMMIT if count > 2_000 else b"merged AS"
    run = Background(lambda: store.upsert(frame, on_error=on_error))
    assert proxy.held.wait(60)
    proxy.lose_client()
    # A small batch has not yet written anything that the retry would have to wait for.
    wait_until(lambda: backends(own_server, database, WAITING) or not run.is_alive(), "the retry", 60)
    assert run.is_alive() == (count > 2_000)
    proxy.go.set()
    result = run.outcome()
    wait_until(lambda: not backends(own_server, database, "state = 'active'"), "the late statement", 60)
    assert result.ok, result
    assert (result.counts["unchanged"], result.counts["updated"], result.counts["created"]) == (10, 10, count - 20)
    assert own_server.sql(LEDGER, database=database) == [(20, 0, 0), (count - 20, 10, 0)]
    check_jobs(result.outcomes, own_server.sql(JOBS, database=database))
    model.upserted(frame, result)
    own_server.sql("UPDATE entityframes.batches SET due = 0 WHERE created = 20", database=database)
    model.check(store)


@pytest.mark.parametrize("on_error", ["isolate", "rollback"])
@pytest.mark.parametrize("count", [60, 3_000])
def test_another_writer_wrote_between_a_late_commit_and_the_retry(
    own_server: Server,
    database: str,
    own_store,
    proxy: Proxy,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    on_error: str,
) -> None:
    """The ledger row exists, and the first attempt's outcomes are reported; what was written since is overwritten."""
    model, store, other = Model(), own_store(port=proxy.port, workers=1), own_store()
    frame, theirs = rows(count), rows(5, "theirs")
    engine = type(store._engine)
    recorded, asked = engine.recorded, []

    def too_early(self, *given):
        asked.append(None if not asked else recorded(self, *given))
        if len(asked) == 1:
            assert other.upsert(theirs).counts["updated"] == 5
        return asked[-1]

    monkeypatch.setattr(engine, "recorded", too_early)
    proxy.drop_answer_to = COMMIT if count > 2_000 else b"merged AS"
    result = store.upsert(frame, on_error=on_error)
    assert proxy.dropped.is_set()
    assert len(asked) == 2
    assert (result.counts["created"], result.counts["updated"]) == (count - 5, 5)
    assert own_server.sql(LEDGER, database=database) == [(count, 0, 0), (0, 5, 0), (0, 5, 0)]
    updated = result.outcomes.filter(pl.col("status") == "updated")
    assert sorted(updated["id"]) == sorted(theirs["id"])
    assert updated["batch_id"].n_unique() == 1
    assert result.outcomes["batch_id"].n_unique() == 2
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.slow
@pytest.mark.parametrize("count", [60, 3_000])
def test_what_a_lost_commit_wrote_is_embedded_before_it_is_asked_for(
    own_server: Server, database: str, own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Into one of several spaces, so that there is a job for each: every row has one outcome, with its job."""
    model, store, other = Model(), own_store(port=proxy.port, workers=1), own_store()
    first = rows(1, entity_type="first")
    model.upserted(first, other.upsert(first))
    for space in ("one", "two"):
        other.embed(ef.HashingEmbedder(8), space=space)
    engine = type(store._engine)
    recorded, asked = engine.recorded, []

    def later(self, *given):
        if not asked:
            asked.append(other.embed(ef.HashingEmbedder(8), space="one"))
        return recorded(self, *given)

    monkeypatch.setattr(engine, "recorded", later)
    frame = rows(count)
    proxy.drop_answer_to = COMMIT if count > 2_000 else b"merged AS"
    result = store.upsert(frame)
    assert proxy.dropped.is_set()
    assert asked[0].counts["embedded"] == count
    assert (result.counts["created"], result.rows, result.outcomes.height) == (count, count, count)
    assert result.outcomes["job_id"].null_count() == 0
    assert store.verify().is_empty()
    model.upserted(frame, result)


@pytest.mark.parametrize("expecting", [False, True])
def test_rows_are_deleted_between_the_read_and_the_update(own_store, proxy: Proxy, expecting: bool) -> None:
    """By another session: they are created anew and reported so; with expected hashes they are conflicts."""
    model, store, other = Model(), own_store(port=proxy.port, workers=1), own_store()
    first = rows(3_000)
    model.upserted(first, store.upsert(first))
    frame, gone = rows(3_000, "changed", size=50), rows(7, start=1_000)
    if expecting:
        seen = store.get(frame).select("entity_type", "id", "content_hash")
        frame = frame.join(seen, on=["entity_type", "id"], maintain_order="left")
        # The stored rows were read, and not locked yet.
        proxy.hold_before = b"FOR UPDATE OF e"
    else:
        # The stored rows were read, and the update is on its way.
        proxy.hold_copy_after = 10_000
    run = Background(lambda: store.upsert(frame, expected_hash="content_hash" if expecting else None))
    assert proxy.held.wait(60)
    model.deleted(other.delete(gone))
    proxy.go.set()
    result = run.outcome()
    found = result.outcomes.join(gone.select("id"), on="id", how="semi")["status"].unique().to_list()
    assert found == (["conflict"] if expecting else ["created"])
    assert (result.counts["updated"], result.counts["created"]) == (2_993, 0 if expecting else 7)
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.parametrize("trigger", [False, True])
def test_an_entity_is_created_between_the_read_and_the_merge(
    own_server: Server, database: str, own_store, proxy: Proxy, trigger: bool
) -> None:
    """A conflict if no entity was expected, whichever statement writes new rows; the other session's entity stays."""
    if trigger:
        # Rows with an expected hash are not copied without a conflict check.
        own_server.sql(
            "CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "CREATE TRIGGER look BEFORE INSERT ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION look()",
            database=database,
        )
    model, store, other = Model(), own_store(port=proxy.port, workers=1), own_store()
    first = rows(10)
    model.upserted(first, store.upsert(first))
    frame = rows(3_000, "planned")
    plan = store.plan(frame)
    proxy.hold_copy_after = 10_000
    run = Background(plan.apply)
    assert proxy.held.wait(60)
    theirs = rows(3, "theirs", start=2_000)
    model.upserted(theirs, other.upsert(theirs))
    proxy.go.set()
    result = run.outcome()
    conflicts = result.outcomes.filter(pl.col("status") == "conflict")
    assert sorted(conflicts["id"]) == sorted(theirs["id"])
    assert (result.counts["created"], result.counts["updated"]) == (2_987, 10)
    model.upserted(frame, result)
    model.check(store)


def test_a_late_commit_of_a_batch_with_rejected_rows(
    own_server: Server, database: str, own_store, proxy: Proxy
) -> None:
    """The reasons of rejected rows are not in the ledger, so they are queried; other outcomes are the first ones."""
    own_server.sql(
        "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'bad%')",
        database=database,
    )
    model, store = Model(), own_store(port=proxy.port, workers=1)
    frame = pl.concat([rows(3_000), rows(3, "bad", start=3_000)])
    proxy.hold_before = COMMIT
    run = Background(lambda: store.upsert(frame))
    assert proxy.held.wait(60)
    proxy.lose_client()
    wait_until(lambda: backends(own_server, database, WAITING), "the retry", 60)
    proxy.go.set()
    result = run.outcome()
    assert (result.counts["created"], result.counts["failed"]) == (3_000, 3)
    assert result.failed["sqlstate"].to_list() == ["23514"] * 3
    model.upserted(frame, result)
    model.check(store)


def test_a_late_commit_of_a_run_with_on_error_raise(own_store, proxy: Proxy, database: str, own_server: Server) -> None:
    """No error is raised for what was stored."""
    store = own_store(port=proxy.port, workers=1)
    proxy.hold_before = COMMIT
    run = Background(lambda: store.upsert(rows(3_000), on_error="raise"))
    assert proxy.held.wait(60)
    proxy.lose_client()
    wait_until(lambda: backends(own_server, database, WAITING), "the retry", 60)
    proxy.go.set()
    result: ef.UpsertResult = run.outcome()
    assert result.counts["created"] == 3_000
