"""PostgreSQL: terminated backends, lost answers, killed servers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from tests.conftest import execute
from tests.faults.invariants import Model, check_jobs, rows
from tests.faults.servers import COMMIT, WAITING, Background, Proxy, Server, backends, wait_until


@contextlib.contextmanager
def locked(server: Server, database: str, statement: str) -> Iterator[None]:
    """Another session holds the locks of a statement for the duration of the block."""
    import adbc_driver_postgresql.dbapi as adbc

    with adbc.connect(server.url(database), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(statement)
        yield
        cursor.execute("ROLLBACK")


ONE_ROW = "SELECT FROM entityframes.entities WHERE id = 'e000007' FOR UPDATE"


def terminate(server: Server, database: str, condition: str) -> None:
    """Terminate the one backend that satisfies a condition, as soon as there is one."""
    [pid] = wait_until(lambda: backends(server, database, condition), condition)
    assert server.sql(f"SELECT pg_terminate_backend({pid}, 10000)") == [(True,)]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["staging", "merge", "enqueue", "before COMMIT", "one statement"])
def test_a_backend_is_terminated(own_server: Server, database: str, own_store, proxy: Proxy, point: str) -> None:
    """During COPY, the merge, the job, COMMIT, and a small batch: the batch is retried and written once."""
    model, store = Model(), own_store(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    frame = rows(50 if point == "one statement" else 6_000, "changed", size=200)
    if point == "staging":
        proxy.hold_copy_after = 100_000
    elif point in ("enqueue", "before COMMIT"):
        proxy.hold_before = b"embedding_jobs" if point == "enqueue" else COMMIT
    hold = locked(own_server, database, ONE_ROW) if point in ("merge", "one statement") else contextlib.nullcontext()
    with hold:
        run = Background(lambda: store.upsert(frame))
        if point in ("merge", "one statement"):
            terminate(own_server, database, WAITING)
        else:
            assert proxy.held.wait(120)
            terminate(own_server, database, "state <> 'idle'")
    proxy.go.set()
    result = run.outcome()
    assert result.ok, result
    assert (result.counts["created"], result.counts["updated"]) == (frame.height - 20, 20)
    model.upserted(frame, result)
    model.check(store)
    assert own_server.sql("SELECT count(*) FROM entityframes.batches", database=database) == [(2 + 2,)]


@pytest.mark.parametrize("count", [50, 6_000])
def test_the_answer_to_a_commit_is_lost(own_server: Server, database: str, own_store, proxy: Proxy, count: int) -> None:
    """Small and large batches: the ledger shows what was committed, and nothing is written twice."""
    model, store = Model(), own_store(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    own_server.sql("TRUNCATE entityframes.embedding_jobs", database=database)
    frame = pl.concat([rows(10), rows(count - 10, "changed", start=10)])
    proxy.drop_answer_to = COMMIT if count > 2_000 else b"merged AS"
    result = store.upsert(frame)
    assert proxy.dropped.is_set()
    assert (result.counts["unchanged"], result.counts["updated"], result.counts["created"]) == (10, 10, count - 20)
    ledger = own_server.sql(
        "SELECT batch_id::text, created, updated FROM entityframes.batches ORDER BY written_at", database=database
    )
    wrote = result.outcomes.filter(pl.col("status") != "unchanged")
    assert ledger[1:] == [(wrote["batch_id"].unique().item(), count - 20, 10)]
    check_jobs(
        result.outcomes, own_server.sql("SELECT job_id::text, ids FROM entityframes.embedding_jobs", database=database)
    )
    model.upserted(frame, result)
    own_server.sql("UPDATE entityframes.batches SET due = 0 WHERE created = 20", database=database)
    model.check(store)


def test_the_answer_is_lost_and_rows_were_rejected(own_server: Server, database: str, own_store, proxy: Proxy) -> None:
    """The reasons of rejected rows are not in the ledger and are queried again."""
    own_server.sql(
        "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'bad%')",
        database=database,
    )
    model, store = Model(), own_store(port=proxy.port, workers=1)
    frame = pl.concat([rows(100), rows(3, "bad", start=100)])
    proxy.drop_answer_to = COMMIT
    result = store.upsert(frame)
    assert proxy.dropped.is_set()
    assert (result.counts["created"], result.counts["failed"]) == (100, 3)
    assert result.failed["sqlstate"].to_list() == ["23514"] * 3
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.parametrize("count", [60, 3_000])
def test_the_answer_is_lost_and_another_writer_wrote_since(
    own_server: Server, database: str, own_store, proxy: Proxy, count: int
) -> None:
    """With expected hashes, rows that the batch wrote are distinguished from rows with a conflict."""
    model, store = Model(), own_store(port=proxy.port, workers=1)
    first = rows(50)
    model.upserted(first, store.upsert(first))
    plan = store.plan(rows(count, "planned"))
    theirs = rows(5, "theirs")
    model.upserted(theirs, store.upsert(theirs))
    proxy.drop_answer_to = COMMIT if count > 2_000 else b"updated AS"
    result = plan.apply()
    assert proxy.dropped.is_set()
    assert (result.counts["updated"], result.counts["created"], result.counts["conflict"]) == (45, count - 50, 5)
    model.upserted(rows(count, "planned"), result)
    model.check(store)


@pytest.mark.slow
def test_the_ledger_cannot_be_read(own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in this case the rows are unknown; a later run resolves them."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    model, store = Model(), own_store(port=proxy.port, workers=1)
    frame = rows(50)
    proxy.drop_answer_to, proxy.refuse_after_drop = b"merged AS", True
    result = store.upsert(frame)
    assert result.counts["unknown"] == 50
    assert not result.ok
    assert result.outcomes["error_kind"].unique().to_list() == ["connection"]
    model.upserted(frame, result)
    proxy.refuse = False
    model.check(store)
    assert store.upsert(frame).counts["unchanged"] == 50


def test_the_answer_to_a_delete_is_lost(
    own_server: Server, database: str, own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deleted and missing ids are reported from the ledger; rows are unknown if the ledger cannot be read."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    model, store = Model(), own_store(port=proxy.port, workers=1)
    frame = rows(100)
    model.upserted(frame, store.upsert(frame))
    proxy.drop_answer_to = COMMIT
    result = store.delete(frame[:40])
    assert proxy.dropped.is_set()
    assert result.counts["deleted"] == 40
    model.deleted(result)
    model.check(store)
    proxy.dropped.clear()
    proxy.drop_answer_to = COMMIT
    result = store.delete(frame[30:60])
    assert proxy.dropped.is_set()
    assert result.outcomes["status"].to_list() == ["missing"] * 10 + ["deleted"] * 20
    assert own_server.sql(
        "SELECT sum(deleted), count(*) FROM entityframes.batches WHERE deleted > 1", database=database
    ) == [(60, 2)]
    model.deleted(result)
    model.check(store)
    proxy.drop_answer_to, proxy.refuse_after_drop = COMMIT, True
    with pytest.raises(ef.ConnectionLostError):
        store.delete(frame[60:70])
    assert store.last_result.counts["unknown"] == 10
    proxy.refuse = False
    assert store.delete(frame[60:70]).counts["missing"] == 10
    for key in frame[60:70].select("entity_type", "id").iter_rows():
        del model.entities[key]
    model.check(store)


@pytest.mark.parametrize("came_again", [False, True])
def test_a_delete_is_committed_while_the_ledger_is_read(
    own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, came_again: bool
) -> None:
    """The delete is not in the ledger yet, so it is retried: the first attempt's outcomes count, whatever followed."""
    model, store, other = Model(), own_store(port=proxy.port, workers=1), own_store()
    frame = rows(30)
    model.upserted(frame, store.upsert(frame))
    engine = type(store._engine)
    asked: list[int | None] = []

    def too_early(self, batch):
        asked.append(None if not asked else deleted_by(self, batch))
        if len(asked) == 1 and came_again:
            model.upserted(frame[:3], other.upsert(frame[:3]))
        return asked[-1]

    deleted_by = engine.deleted_by
    monkeypatch.setattr(engine, "deleted_by", too_early)
    proxy.drop_answer_to = COMMIT
    result = store.delete(frame)
    assert proxy.dropped.is_set()
    assert asked == [None, 30]
    assert result.counts["deleted"] == 30
    # Rows that were created again were created after the delete.
    model.deleted(result)
    if came_again:
        model.entities |= {(kind, id): (text, {"n": int(id[1:])}) for kind, id, text, _ in frame[:3].iter_rows()}
    model.check(store)


def test_a_delete_that_fails_accounts_for_its_ids(own_server: Server, database: str, own_store) -> None:
    """The ids are in last_result with the reason, and are still stored."""
    model, store = Model(), own_store()
    frame = rows(10)
    model.upserted(frame, store.upsert(frame))
    own_server.sql("ALTER TABLE entityframes.passages RENAME TO hidden", database=database)
    with pytest.raises(ef.PermanentError):
        store.delete(frame)
    assert store.last_result.counts["failed"] == 10
    own_server.sql("ALTER TABLE entityframes.hidden RENAME TO passages", database=database)
    model.check(store)


@pytest.mark.slow
def test_the_server_is_killed_in_a_merge(own_server: Server, database: str, own_store) -> None:
    """SIGKILL and restart: nothing is half-written, the store reconnects, and a second run completes the import."""
    model, store = Model(), own_store(workers=2)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    frame = rows(6_000, "changed", size=100)
    with contextlib.suppress(Exception), locked(own_server, database, ONE_ROW):
        run = Background(lambda: store.upsert(frame, batch_size=3_000))
        wait_until(lambda: not run.is_alive() or backends(own_server, database, WAITING), "the merge")
        own_server.kill()
        own_server.start()
    result = run.outcome()
    assert result.counts["unknown"] == 0, result
    model.upserted(frame, result)
    model.check(store)
    again = store.upsert(frame)
    assert again.ok
    assert again.counts["unchanged"] == result.succeeded.height
    model.upserted(frame, again)
    model.check(store)


def test_idle_connections_that_died(own_server: Server, database: str, own_store) -> None:
    """Idle connections that were terminated: the next call opens new ones."""
    model, store = Model(), own_store()
    for turn in range(3):
        frame = rows(100, f"turn {turn}")
        model.upserted(frame, store.upsert(frame, batch_size=20))
        for pid in backends(own_server, database, "state = 'idle'"):
            own_server.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
    model.check(store)


def test_every_loss_is_counted(own_store, proxy: Proxy) -> None:
    """A lost connection, and one that cannot be opened: after either, another server may respond."""
    store = own_store(port=proxy.port)
    database = store._engine.database
    proxy.refuse = True
    proxy.cut()
    seen = [database.losses]
    for _ in range(2):
        with pytest.raises(ef.ConnectionLostError), database.session() as session:
            session.query("is_empty", "note")
        seen.append(database.losses)
    assert seen[0] < seen[1] < seen[2]


def test_what_a_pooler_does_between_transactions(own_store) -> None:
    """DISCARD ALL drops settings, temporary tables and prepared statements without any effect on the store."""
    model, store = Model(), own_store(workers=1)
    for turn, count in enumerate((50, 3_000, 50, 3_000)):
        frame = rows(count, f"turn {turn}")
        result = store.upsert(frame)
        assert result.ok
        model.upserted(frame, result)
        for connection in store._engine.database._pool._idle:
            connection.script("DISCARD ALL")
    model.check(store)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["default_transaction_read_only = on", "lock_timeout = '1s'"])
def test_a_read_only_server(own_server: Server, database: str, own_store, setting: str) -> None:
    """Every row fails with the server's reason, and reads still work; writes work again when the server allows them."""
    model, store = Model(), own_store()
    frame = rows(100)
    model.upserted(frame, store.upsert(frame))
    own_server.sql(f"ALTER DATABASE {database} SET {setting}")
    reader = own_store()
    changed = rows(100, "changed")
    if "read_only" in setting:
        with pytest.raises(ef.PermanentError, match="read-only"):
            reader.upsert(changed, batch_size=30)
        result = reader.last_result
        assert result.counts["failed"] >= 30
        assert result.failed["sqlstate"].unique().to_list() == ["25006"]
    else:
        with locked(own_server, database, ONE_ROW):
            result = reader.upsert(changed)
        assert result.failed["sqlstate"].unique().to_list() == ["55P03"]
    assert reader.exists(frame)["exists"].all()
    model.upserted(changed, result)
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")
    model.check(own_store())


@pytest.mark.slow
def test_statement_timeout(own_server: Server, database: str, own_store) -> None:
    """The server's own limit: retried once, then failed with that reason; without the lock the write succeeds."""
    model, store = Model(), own_store()
    first = rows(20)
    model.upserted(first, store.upsert(first))
    own_server.sql(f"ALTER DATABASE {database} SET statement_timeout = '1s'")
    store = own_store()
    frame = rows(20, "changed")
    with locked(own_server, database, ONE_ROW):
        result = store.upsert(frame)
    assert result.counts["failed"] == 20
    assert result.failed.select("error_kind", "sqlstate").unique().rows() == [("timeout", "57014")]
    model.upserted(frame, result)
    assert store.upsert(frame).counts["updated"] == 20
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")
    model.upserted(frame, store.upsert(frame))
    model.check(own_store())


def test_a_transaction_that_idles_too_long(own_server: Server, database: str, own_store, proxy: Proxy) -> None:
    """The server ends the session before COMMIT arrives: not committed, so the next attempt writes it."""
    own_server.sql(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '1s'")
    model, store = Model(), own_store(port=proxy.port, workers=1)
    proxy.hold_before = COMMIT
    frame = rows(3_000)
    run = Background(lambda: store.upsert(frame))
    assert proxy.held.wait(120)
    wait_until(lambda: not backends(own_server, database, "state = 'idle in transaction'"), "the end of the session")
    proxy.go.set()
    result = run.outcome()
    assert result.counts["created"] == 3_000, result
    model.upserted(frame, result)
    model.check(store)


def test_too_many_clients(own_server: Server, database: str, own_store) -> None:
    """A role that may have one connection: the second worker waits for its turn."""
    own_server.sql(
        f"CREATE ROLE single_{database} LOGIN SUPERUSER CONNECTION LIMIT 1",
        f"ALTER ROLE single_{database} NOSUPERUSER",
        f"GRANT USAGE ON SCHEMA entityframes TO single_{database}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA entityframes TO single_{database}",
        database=database,
    )
    store = own_store(user=f"single_{database}", workers=2)
    model = Model()
    frame = rows(400)
    result = store.upsert(frame, batch_size=100)
    assert result.counts["created"] + result.counts["failed"] + result.counts["cancelled"] == 400
    assert set(result.failed["sqlstate"]) <= {"53300"}
    assert result.counts["created"] >= 100
    model.upserted(frame, result)
    store.close()
    model.check(own_store())
    with pytest.raises(ef.ConnectError, match="too many connections"), own_store(user=f"single_{database}"):
        own_store(user=f"single_{database}")
    own_server.sql(f"DROP OWNED BY single_{database}", f"DROP ROLE single_{database}", database=database)


def test_a_second_application_holds_the_ledger(own_server: Server, database: str, own_store) -> None:
    """A lock that is released in time only delays the call."""
    store = own_store(workers=1)
    with locked(own_server, database, "LOCK TABLE entityframes.batches IN EXCLUSIVE MODE"):
        run = Background(lambda: store.upsert(rows(10)))
        wait_until(lambda: not run.is_alive() or backends(own_server, database, WAITING), "the lock")
    assert run.outcome().counts["created"] == 10
    assert execute(own_server.url(database), "SELECT count(*) FROM entityframes.batches") == [(1,)]


@pytest.mark.slow
def test_a_server_that_stays_away_ends_the_reading_of_a_stream(
    own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The result says where, so that nobody takes its outcomes for those of the whole stream."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    store = own_store(port=proxy.port, workers=1)

    def progress(done: int, total: int | None) -> None:
        if done == 300:
            proxy.away()

    result = store.upsert(rows(2_000).iter_slices(100), batch_size=100, progress=progress)
    [note] = result.notes
    assert note.startswith(f"Reading stopped after {result.rows:,} rows: later rows")
    assert 300 < result.rows < 2_000
    assert not result.ok
    assert note in repr(result)
