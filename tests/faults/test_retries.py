"""PostgreSQL: how a batch reacts to an error, depending on its SQLSTATE: retry, fail, or end the run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from tests.faults.invariants import Model, rows
from tests.faults.servers import COMMIT, WAITING, Background, Proxy, Server, backends, wait_until

ALWAYS = 1_000


@pytest.fixture
def fails_with(own_server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], Callable]:
    """Make the server reject a number of writes with a SQLSTATE. Returns a function that counts the rejections."""
    monkeypatch.setattr(retry, "BACKOFF", 0.001)

    def refuse(sqlstate: str, times: int) -> Callable[[], int]:
        own_server.sql(
            # A sequence also counts what was rolled back.
            "CREATE SEQUENCE tries",
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('tries') <= {times} THEN RAISE 'refused' USING ERRCODE = '{sqlstate}'; END IF;
                RETURN NULL;
            END $$""",
            "CREATE TRIGGER refuse BEFORE INSERT ON entityframes.entities EXECUTE FUNCTION refuse()",
            database=database,
        )
        return lambda: own_server.sql("SELECT last_value FROM tries", database=database)[0][0]

    return refuse


PASSING = ["40001", "40P01", "53300", "55P03", "08006", "57P01", "57P02", "57P03", "57P05", "25P03"]


@pytest.mark.parametrize("count", [20, 3_000])
@pytest.mark.parametrize("sqlstate", PASSING)
def test_temporary_errors_are_retried(
    own_store: Callable[..., ef.EntityStore], fails_with: Callable[..., Any], sqlstate: str, count: int
) -> None:
    """Several times, as a whole batch; if the error goes away, the outcome is as if it had never occurred."""
    model, store = Model(), own_store(workers=1)
    tries = fails_with(sqlstate, 3)
    frame = rows(count)
    result = store.upsert(frame, on_error="rollback")
    assert result.counts["created"] == count, result
    assert tries() == 4
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.parametrize("sqlstate", PASSING)
def test_persistent_errors_are_retried_five_times(
    own_store: Callable[..., ef.EntityStore], fails_with: Callable[..., Any], sqlstate: str
) -> None:
    """And not row by row: the rows are not the cause. The server is up, and the next batch gets as many attempts."""
    store = own_store(workers=1)
    tries = fails_with(sqlstate, ALWAYS)
    lost = sqlstate not in ("40001", "40P01", "53300", "55P03")
    result = store.upsert(rows(40), batch_size=20)
    # Without its server the run ends.
    assert result.counts["failed"] == (20 if lost else 40)
    assert result.counts["cancelled"] == (20 if lost else 0)
    assert tries() == (5 if lost else 10)
    found = result.failed.select("error_kind", "sqlstate").unique().rows()
    assert found == [("connection" if lost else "database", sqlstate)]
    assert result.failed["error"].str.contains("rolled back: refused").fill_null(False).all()


@pytest.mark.parametrize("count", [20, 3_000])
@pytest.mark.parametrize("passes", [True, False])
def test_a_timeout_is_retried_once(
    own_store: Callable[..., ef.EntityStore], fails_with: Callable[..., Any], passes: bool, count: int
) -> None:
    """It may have been a lock; a third attempt would hardly be different."""
    store = own_store(workers=1)
    tries = fails_with("57014", 1 if passes else ALWAYS)
    result = store.upsert(rows(count))
    assert result.counts["created" if passes else "failed"] == count
    assert tries() == 2
    if not passes:
        assert result.failed.select("error_kind", "sqlstate").unique().rows() == [("timeout", "57014")]


@pytest.mark.parametrize(
    ("sqlstate", "error", "kind"),
    [
        ("53100", ef.ResourceError, "resource"),
        ("53200", ef.ResourceError, "resource"),
        ("58030", ef.ResourceError, "resource"),
        ("08P01", ef.PermanentError, "database"),
        ("25006", ef.PermanentError, "database"),
        ("XX000", ef.PermanentError, "database"),
    ],
)
def test_errors_that_end_the_run(
    own_store: Callable[..., ef.EntityStore],
    fails_with: Callable[..., Any],
    sqlstate: str,
    error: type[ef.DatabaseError],
    kind: str,
) -> None:
    """Nothing is retried, and no other batch is started."""
    store = own_store(workers=1)
    tries = fails_with(sqlstate, ALWAYS)
    with pytest.raises(error, match="refused"):
        store.upsert(rows(60), batch_size=20)
    result = store.last_result
    assert tries() == 1
    assert (result.counts["failed"], result.counts["cancelled"]) == (20, 40)
    assert result.failed.select("error_kind", "sqlstate").unique().rows() == [(kind, sqlstate)]


@pytest.mark.parametrize(
    ("sqlstate", "rule"),
    [
        ("23514", "check"),
        ("22012", "invalid_value"),
        ("P0001", "trigger"),
        ("0A000", "sqlstate:0A000"),
        ("21000", "sqlstate:21000"),
        ("54000", "sqlstate:54000"),
        ("TEST1", "sqlstate:TEST1"),
    ],
)
def test_errors_of_a_row(
    own_server: Server, database: str, own_store: Callable[..., ef.EntityStore], sqlstate: str, rule: str
) -> None:
    """Only the affected rows fail, or their batch with on_error="rollback"; their rule may be that of the class."""
    own_server.sql(
        f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            IF NEW.id IN ('e000003', 'e000007') THEN RAISE 'refused' USING ERRCODE = '{sqlstate}'; END IF;
            RETURN NEW;
        END $$""",
        "CREATE TRIGGER refuse BEFORE INSERT ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION refuse()",
        database=database,
    )
    model, store = Model(), own_store(workers=1)
    frame = rows(20)
    rolled_back = store.upsert(frame, on_error="rollback")
    assert rolled_back.counts["failed"] == 20
    assert rolled_back.outcomes["batch_id"].null_count() == 0
    result = store.upsert(frame)
    assert sorted(result.failed["id"]) == ["e000003", "e000007"]
    assert result.failed.select("error_kind", "error", "sqlstate", "rule").unique().rows() == [
        ("database", "refused", sqlstate, rule)
    ]
    assert result.counts["created"] == 18
    # A failed row names its batch too.
    assert result.outcomes["batch_id"].null_count() == 0
    assert result.outcomes["batch_id"].n_unique() == 1
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_a_dead_server_ends_the_run(
    own_store: Callable[..., ef.EntityStore], proxy: Proxy, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Rows in flight fail or are unknown, one batch per writer; the others are cancelled without an attempt each."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.2)
    monkeypatch.setattr(retry, "BACKOFF", 0.001)
    model, store = Model(), own_store(port=proxy.port, workers=workers)
    frame = rows(600)

    def die(done: int, total: int | None) -> None:
        if not proxy.refuse:
            proxy.refuse = True
            proxy.cut()

    result = store.upsert(frame, batch_size=20, progress=die)
    counts = result.counts
    assert counts["created"] + counts["failed"] + counts["unknown"] + counts["cancelled"] == 600
    assert counts["cancelled"] > 0
    bad = result.outcomes.filter(pl.col("status").is_in(["failed", "unknown"]))
    # Whether the server still has what was committed before cannot be known.
    met = bad.filter(~pl.col("error").str.contains("the change was committed"))
    assert 0 < met.height <= 20 * workers
    assert met["error_kind"].unique().to_list() == ["connection"]
    proxy.refuse = False
    model.upserted(frame, result)
    model.check(store)
    again = store.upsert(frame)
    assert again.ok
    model.upserted(frame, again)
    model.check(store)


@pytest.mark.parametrize("deleting", [False, True])
def test_the_ledger_is_read_when_the_server_is_back(
    own_store: Callable[..., ef.EntityStore], proxy: Proxy, deleting: bool
) -> None:
    """The server rejects connections for a while after the COMMIT: the commit is still confirmed."""
    model, store = Model(), own_store(port=proxy.port, workers=1)
    frame = rows(3_000)
    if deleting:
        model.upserted(frame, store.upsert(frame))
    proxy.drop_answer_to, proxy.refuse_after_drop = COMMIT, True
    run = Background(lambda: store.delete(frame) if deleting else store.upsert(frame))
    wait_until(lambda: proxy.refused >= 3, "the third attempt", 60)
    proxy.refuse = False
    result = run.outcome()
    assert result.counts["deleted" if deleting else "created"] == 3_000
    if deleting:
        model.deleted(result)
    else:
        model.upserted(frame, result)
    model.check(store)


def test_two_clients_create_the_store_at_once(own_server: Server, proxy: Proxy) -> None:
    """The second one waits until the first one has created it, and then uses it."""
    own_server.sql("CREATE DATABASE twice")
    try:
        proxy.hold_before = b"CREATE TABLE"
        first = Background(lambda: ef.connect(own_server.url("twice", port=proxy.port)))
        assert proxy.held.wait(60)
        second = Background(lambda: ef.connect(own_server.url("twice")))
        wait_until(lambda: backends(own_server, "twice", WAITING) or not second.is_alive(), "the second to wait", 60)
        assert second.is_alive()
        proxy.go.set()
        with first.outcome() as store, second.outcome() as other:
            assert store.upsert(rows(10)).counts["created"] == 10
            assert other.upsert(rows(10)).counts["unchanged"] == 10
        versions = own_server.sql("SELECT version FROM entityframes.format ORDER BY since, version", database="twice")
        assert len(versions) == len(set(versions))
    finally:
        proxy.go.set()
        own_server.sql("DROP DATABASE twice WITH (FORCE)")
