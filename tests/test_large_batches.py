"""Batches that are too large for one statement: compared, copied and merged, with the same outcomes."""

from __future__ import annotations

import threading

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.postgres.session import Session
from tests.conftest import engine_and_keys

engine = engine_and_keys

ROWS = 2_500


def notes(numbers: range, text: str = "text") -> pl.DataFrame:
    return pl.DataFrame({"n": numbers}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("{} {}", pl.lit(text), "n")
    )


def test_new_changed_and_equal_rows_in_one_batch(store: ef.EntityStore, sql) -> None:
    """One transaction, one ledger row with the counts, one job with the keys whose content is new."""
    first = store.upsert(notes(range(ROWS)), progress=False)
    assert first.counts["created"] == ROWS
    assert first.batches == 1
    mixed = pl.concat([notes(range(1_000)), notes(range(1_000, ROWS), "changed"), notes(range(ROWS, 2 * ROWS))])
    result = store.upsert(mixed, progress=False)
    assert result.counts | {"created": ROWS, "updated": ROWS - 1_000, "unchanged": 1_000} == result.counts
    assert result.outcomes["status"].cast(pl.String).to_list() == (
        ["unchanged"] * 1_000 + ["updated"] * (ROWS - 1_000) + ["created"] * ROWS
    )
    counts = sql("SELECT created, updated FROM entityframes.batches ORDER BY written_at")
    assert counts == [(ROWS, 0), (ROWS, ROWS - 1_000)]
    assert store.jobs()["entities"].to_list() == [ROWS, 2 * ROWS - 1_000]
    assert store.read("note").sort("id")["content"].to_list() == mixed.sort("id")["content"].to_list()
    stamps = store.get(mixed.select("entity_type", "id"))
    assert (stamps["created_at"] < stamps["updated_at"]).sum() == ROWS - 1_000


def test_metadata_alone_and_no_embedding(store: ef.EntityStore, sql) -> None:
    """Only content creates a job, and only if requested."""
    frame = notes(range(ROWS))
    store.upsert(frame, progress=False, embed=False)
    result = store.upsert(frame.with_columns(metadata=pl.struct(a=pl.lit(1))), progress=False)
    assert result.counts["updated"] == ROWS
    assert result.outcomes["job_id"].null_count() == ROWS
    assert sql("SELECT count(*) FROM entityframes.embedding_jobs") == [(0,)]


def test_two_first_imports_at_once(connect) -> None:
    """Each expects its rows to be new; every row is created by one of them and unchanged for the other."""
    stores = [connect(), connect()]
    frame = notes(range(4 * ROWS))
    results: list[ef.UpsertResult] = []
    start = threading.Barrier(2)

    def work(store: ef.EntityStore) -> None:
        start.wait()
        results.append(store.upsert(frame, batch_size=ROWS, progress=False))

    threads = [threading.Thread(target=work, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(result.ok for result in results)
    statuses = [result.outcomes["status"].cast(pl.String) for result in results]
    both = set(zip(*(one.to_list() for one in statuses), strict=True))
    assert both <= {("created", "unchanged"), ("unchanged", "created")}
    assert stores[0].stats()["entities"].to_list() == [4 * ROWS]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_neighboring_keys_are_scanned_and_scattered_keys_looked_up(store: ef.EntityStore, monkeypatch) -> None:
    """How a batch is compared with the stored rows depends on the distance between its keys; the result does not."""
    stored = pl.concat([notes(range(40_000)), notes(range(40_000)).with_columns(entity_type=pl.lit("task"))])
    store.upsert(stored.sort("id"), progress=False)
    asked: list[str] = []
    ask = Session.query

    def listen(self, name, *parameters, **options):
        asked.append(name)
        return ask(self, name, *parameters, **options)

    monkeypatch.setattr(Session, "query", listen)

    def check(frame: pl.DataFrame, *, dense: int, by_key: int) -> None:
        changed = pl.int_range(pl.len()) % 7 == 3
        frame = frame.with_columns(content=pl.when(changed).then(pl.lit("changed")).otherwise("content"))
        known = frame.join(stored, on=["entity_type", "id"], how="left", maintain_order="left")["content_right"]
        status = pl.when(known.is_null()).then(pl.lit("created")).when(changed).then(pl.lit("updated"))
        asked.clear()
        result = store.upsert(frame, progress=False)
        reported = result.outcomes["status"].cast(pl.String).to_list()
        assert reported == frame.select(status.otherwise(pl.lit("unchanged"))).to_series().to_list()
        assert (asked.count("between"), asked.count("probe")) == (dense, by_key)
        store.upsert(stored.join(frame, on=["entity_type", "id"], how="semi"), progress=False)
        store.delete(frame.join(stored, on=["entity_type", "id"], how="anti"))

    in_order = stored.filter(entity_type="note").sort("id")
    new = notes(range(90_000, 93_000))
    check(in_order[5_000:9_000], dense=1, by_key=0)
    check(pl.concat([in_order[37_000:], new]).sample(fraction=1, shuffle=True, seed=1), dense=1, by_key=0)
    check(new, dense=1, by_key=0)
    check(in_order.gather_every(13), dense=1, by_key=1)
    # At first there are neighbors.
    check(pl.concat([in_order[:500], in_order.gather_every(13, 500)]), dense=1, by_key=1)
    both = pl.concat([in_order.gather_every(13), in_order[:3_000].with_columns(entity_type=pl.lit("task"))])
    check(both, dense=2, by_key=1)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_rows_that_were_created_concurrently(connect, monkeypatch) -> None:
    """A row that another writer creates after the comparison is detected by the primary key and merged."""
    store, other = connect(), connect()
    frame = notes(range(ROWS))
    engine = type(store._engine)
    probe = engine._probe

    def probe_and_be_late(self, session, rows, *scattered):
        changed = probe(self, session, rows, *scattered)
        other.upsert(notes(range(10, 20), "other"), progress=False)
        return changed

    monkeypatch.setattr(engine, "_probe", probe_and_be_late)
    # The table is not empty, so the batch is compared.
    store.upsert(notes(range(5)), progress=False)
    result = store.upsert(frame, progress=False)
    assert result.counts | {"created": ROWS - 15, "updated": 10, "unchanged": 5} == result.counts
    assert store.get(frame.select("entity_type", "id"))["content"].to_list() == frame["content"].to_list()


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_unique_index_of_the_user(store: ef.EntityStore, sql) -> None:
    """It is not confused with a concurrently created key: the row that violates it fails, the others are stored."""
    sql("CREATE UNIQUE INDEX ON entityframes.entities (content)")
    frame = notes(range(ROWS)).with_columns(
        content=pl.when(pl.col("id") == "n77").then(pl.lit("text 76")).otherwise(pl.col("content"))
    )
    result = store.upsert(frame, progress=False)
    assert result.counts | {"created": ROWS - 1, "failed": 1} == result.counts
    assert result.failed["sqlstate"].to_list() == ["23505"]


def test_many_types_in_one_batch(store: ef.EntityStore) -> None:
    """More than are looked up type by type: new, equal and changed rows."""
    n = pl.int_range(3_000)
    frame = pl.select(entity_type=pl.format("type {}", n % 20), id=pl.format("{}", n), content=pl.format("text {}", n))
    assert store.upsert(frame, progress=False).counts["created"] == 3_000
    changed = frame.with_columns(content=pl.when(n % 3 == 0).then(pl.lit("changed")).otherwise("content"))
    counts = store.upsert(changed, progress=False).counts
    assert (counts["updated"], counts["unchanged"]) == (1_000, 2_000)
