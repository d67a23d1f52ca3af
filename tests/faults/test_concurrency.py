"""Concurrent writers, and rows that only the database rejects."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb.session import Session
from tests.conftest import execute
from tests.faults.invariants import Model, check_jobs, rows
from tests.faults.servers import WAITING, Background, Proxy, Server, backends, wait_until

A, B = (f"SELECT FROM entityframes.entities WHERE id = 'e00000{n}' FOR UPDATE" for n in (3, 5))


@pytest.mark.slow
@pytest.mark.parametrize("count", [20, 3_000])
def test_a_deadlock_is_retried(own_server: Server, database: str, own_store, count: int) -> None:
    """40P01, forced by a session that locks two rows in the opposite order and is not the deadlock victim."""
    # A session checks for a deadlock only once, soon after it starts to wait: by then the other one must wait too.
    own_server.sql(f"ALTER DATABASE {database} SET deadlock_timeout = '3s'")
    model, store = Model(), own_store(workers=1)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    frame = rows(count, "changed")
    deadlocks = f"SELECT deadlocks FROM pg_stat_database WHERE datname = '{database}'"
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        for statement in ("SET deadlock_timeout = '60s'", "BEGIN", B):
            other.execute(statement)
        run = Background(lambda: store.upsert(frame))
        wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait for the row")
        # It holds the first row and waits for the second; this session waits for the first until its transaction ends.
        other.execute(A)
        other.execute("COMMIT")
    result = run.outcome()
    assert result.counts["updated"] == 20, result
    wait_until(lambda: own_server.sql(deadlocks)[0][0], "the server to have counted the deadlock")
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
@pytest.mark.parametrize("count", [20, 3_000])
def test_a_serialization_failure_is_retried(
    own_server: Server, database: str, own_store, isolation: str, count: int
) -> None:
    """40001, forced by a change that is committed while the batch waits for it."""
    own_server.sql(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    model, store = Model(), own_store(workers=1)
    first = rows(20)
    model.upserted(first, store.upsert(first))
    frame = rows(count, "changed")
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        other.execute("BEGIN")
        other.execute("UPDATE entityframes.entities SET updated_at = now() WHERE id = 'e000003'")
        run = Background(lambda: store.upsert(frame))
        wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait for the row")
        other.execute("COMMIT")
    result = run.outcome()
    assert result.ok, result
    assert result.counts["updated"] == 20
    model.upserted(frame, result)
    # The other session changed a row without a ledger entry.
    model.check(store)


@pytest.mark.parametrize("count", [20, 3_000])
@pytest.mark.parametrize("change", ["create", "update", "delete"])
def test_a_concurrent_change_is_a_conflict(
    own_server: Server, database: str, own_store, count: int, change: str
) -> None:
    """Expected hashes are compared with what another session commits while the batch waits for it: a conflict."""
    store = own_store(workers=1)
    store.upsert(rows(10))
    seen = store.get(rows(count)).select("entity_type", "id", "content_hash")
    frame = rows(count, "changed").join(seen, on=["entity_type", "id"], maintain_order="left")
    theirs = {
        "create": f"""INSERT INTO entityframes.entities
            (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id)
            SELECT entity_type, 'e{count - 1:06}', 'theirs', metadata, '\\x00', metadata_hash, batch_id
            FROM entityframes.entities WHERE id = 'e000003'""",
        "update": "UPDATE entityframes.entities SET content = 'theirs', content_hash = '\\x00' WHERE id = 'e000003'",
        "delete": "DELETE FROM entityframes.entities WHERE id = 'e000003'",
    }
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        other.execute("BEGIN")
        other.execute(theirs[change])
        run = Background(lambda: store.upsert(frame, expected_hash="content_hash"))
        wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait for the other")
        other.execute("COMMIT")
    result = run.outcome()
    lost = result.outcomes.filter(pl.col("status") == "conflict")
    assert lost["id"].to_list() == [f"e{count - 1:06}" if change == "create" else "e000003"], result
    assert (result.counts["updated"], result.counts["created"]) == {
        "create": (10, count - 11), "update": (9, count - 10), "delete": (9, count - 10)
    }[change]  # fmt: skip
    found = store.get(lost)
    assert found["content"].to_list() == [None if change == "delete" else "theirs"]


@pytest.mark.parametrize("triggered", [False, True])
def test_a_concurrent_change_is_not_deleted(
    own_server: Server, database: str, own_store, tmp_path: Path, triggered: bool
) -> None:
    """A sync deletes an entity only as it was when it was compared, even if another session has it locked.

    This is a conflict, not a refusal by a trigger, also where there is one.
    """
    if triggered:
        own_server.sql(
            "CREATE FUNCTION ours() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN OLD; END $$",
            "CREATE TRIGGER ours BEFORE DELETE ON entityframes.entities FOR EACH ROW EXECUTE FUNCTION ours()",
            database=database,
        )
    store = own_store()
    sync = ef.DirectorySync(store, tmp_path)
    store.upsert(rows(3))
    sync.sync()
    (tmp_path / "note/e000001.md").unlink()
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        other.execute("BEGIN")
        other.execute(
            "UPDATE entityframes.entities SET content = 'theirs', content_hash = '\\x00' WHERE id = 'e000001'"
        )
        run = Background(lambda: sync.sync(delete=True))
        wait_until(lambda: backends(own_server, database, WAITING), "the deletion to wait for the other")
        other.execute("COMMIT")
    result = run.outcome()
    assert (result.counts["conflict"], result.counts["deleted"]) == (1, 0), result
    assert store.get_entity("note", "e000001")["content"] == "theirs"


@pytest.mark.parametrize("call", ["upsert", "upsert as expected", "delete"])
def test_entities_are_locked_in_key_order(own_server: Server, database: str, own_store, call: str) -> None:
    """Also if they are stored and read in another order: a call that waits for a key has locked those before it only."""
    # As for many rows: the planner reads the table in its own order.
    for name in ("enable_nestloop", "enable_mergejoin", "enable_indexscan", "enable_bitmapscan"):
        own_server.sql(f"ALTER DATABASE {database} SET {name} = off")
    store = own_store()
    store.upsert(rows(300, entity_type="other"))
    for start in (10, 5, 0):
        store.upsert(rows(5, start=start))
    own_server.sql("ANALYZE entityframes.entities", database=database)
    frame = rows(15, "changed").join(store.scan("note").collect().select("id", "content_hash"), on="id")
    calls = {
        "upsert": lambda: store.upsert(frame),
        "upsert as expected": lambda: store.upsert(frame, expected_hash="content_hash"),
        "delete": lambda: store.delete(frame),
    }
    note = "entityframes.entities WHERE entity_type = 'note' AND id"
    free = f"SELECT count(*) FROM (SELECT FROM {note} {{}} FOR UPDATE SKIP LOCKED) AS e"
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        other.execute("BEGIN")
        other.execute(f"SELECT FROM {note} = 'e000007' FOR UPDATE")
        run = Background(calls[call])
        wait_until(lambda: backends(own_server, database, WAITING), "the call to wait for the row")
        for keys, count in (("< 'e000007'", 0), ("> 'e000007'", 7)):
            assert own_server.sql(free.format(keys), database=database) == [(count,)]
        other.execute("COMMIT")
    assert run.outcome().ok


def test_a_concurrent_write_of_the_same(own_server: Server, database: str, own_store) -> None:
    """A batch with a rejected row waits for another session, which writes the same: unchanged."""
    own_server.sql(
        "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'bad%')",
        database=database,
    )
    model, store = Model(), own_store(workers=1)
    first, frame = rows(5), pl.concat([rows(4, "changed", start=1), rows(1, "bad")])
    model.upserted(first, store.upsert(first))
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as other:
        other.execute("BEGIN")
        other.execute(
            "UPDATE entityframes.entities SET content = 'changed 3 ', content_hash = sha256('changed 3 ') "
            "WHERE id = 'e000003'"
        )
        run = Background(lambda: store.upsert(frame))
        wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait for the row")
        other.execute("COMMIT")
    result = run.outcome()
    assert (result.counts["updated"], result.counts["unchanged"], result.counts["failed"]) == (3, 1, 1), result
    model.upserted(frame, result)
    assert store.verify().is_empty()


def write_at_once(url: str, writers: int, batches: int) -> int:
    """Concurrent writers with overlapping batches, each in its own order: no error, each key is created exactly once.

    Returns the number of deadlocks that the server resolved, which never reach the caller.
    """
    postgresql = url.startswith("postgresql")
    one = ef.connect(url, workers=2)
    # A DuckDB file is shared by the threads of one process, through one store or several.
    stores = [ef.connect(url, workers=1) if postgresql or number % 2 else one for number in range(writers)]
    deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    before = execute(url, deadlocks)[0][0] if postgresql else 0
    created, updated = [0] * writers, [0] * writers
    turns = -(-batches // (3 * writers))

    def write(number: int) -> None:
        for turn in range(turns):
            frame = rows(300, f"writer {number}", start=turn * 150).sample(fraction=1, shuffle=True, seed=number)
            result = stores[number].upsert(frame, batch_size=100, progress=False)
            assert result.ok, result
            assert result.batches == 3
            created[number] += result.counts["created"]
            updated[number] += result.counts["updated"]

    for thread in [Background(lambda number=number: write(number)) for number in range(writers)]:
        thread.outcome(600)
    keys = 150 * (turns - 1) + 300
    contents = one.scan().select("id", "content").collect()
    assert contents["id"].sort().to_list() == [f"e{n:06}" for n in range(keys)]
    # Each entity has the complete value of one of the writers.
    assert contents["content"].str.contains(r"^writer \d \d+ $").all()
    assert one.stats()["due"].to_list() == [keys]
    assert sum(created) == keys
    assert sum(updated) > 0
    assert one.verify().is_empty()
    for store in {one, *stores}:
        store.close()
    return int(execute(url, deadlocks)[0][0] - before) if postgresql else 0


@pytest.mark.slow
def test_writers_in_any_order(url: str) -> None:
    """Six writers with overlapping batches in different orders."""
    write_at_once(url, 6, 108)


def test_a_store_that_is_closed_in_use(connect) -> None:
    """A call in progress ends with an error of this package or completes; none hangs, and nothing is half-written."""
    store = connect()
    results: list[object] = []
    begun = threading.Event()

    def work() -> None:
        for turn in range(1_000):
            try:
                result = store.upsert(rows(60, f"turn {turn}"), batch_size=20, progress=False)
                results.append(result)
                begun.set()
                if not result.ok:
                    return
            except ef.EntityFramesError as error:
                results.append(error)
                return

    threads = [Background(work) for _ in range(3)]
    assert begun.wait(120)
    store.close()
    for thread in threads:
        thread.outcome()
    with pytest.raises(ef.ClosedError):
        store.stats()
    assert any(isinstance(result, ef.UpsertResult) and result.ok for result in results)
    assert connect().verify().is_empty()


@pytest.mark.parametrize("count", [1_000, 5_000])
def test_a_domain_rejects_rows(own_server: Server, database: str, own_store, count: int) -> None:
    """A domain on a column is a database rule like any other; the job lists what was written."""
    own_server.sql(
        "CREATE DOMAIN allowed_content AS text CHECK (VALUE NOT LIKE 'bad%')",
        "ALTER TABLE entityframes.entities ALTER COLUMN content TYPE allowed_content",
        database=database,
    )
    model, store = Model(), own_store()
    frame = pl.concat([rows(count), rows(3, "bad", start=count)])
    result = store.upsert(frame)
    assert (result.counts["created"], result.counts["failed"]) == (count, 3)
    assert result.failed["sqlstate"].unique().to_list() == ["23514"]
    check_jobs(
        result.outcomes, own_server.sql("SELECT job_id::text, ids FROM entityframes.embedding_jobs", database=database)
    )
    model.upserted(frame, result)
    model.check(store)


@pytest.mark.slow
def test_the_cost_of_bad_rows(own_server: Server, database: str, own_store, proxy: Proxy) -> None:
    """1, 10 or 100 bad rows of 10,000: at most three times the statements of a clean batch, whatever their number."""
    own_server.sql(
        "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content NOT LIKE 'bad%')",
        database=database,
    )
    store = own_store(port=proxy.port, workers=1)

    def statements(bad: int) -> int:
        before = proxy.statements
        result = store.upsert(_with_bad(bad))
        assert (result.batches, result.counts["failed"]) == (1, bad)
        return proxy.statements - before

    counts = {bad: statements(bad) for bad in (0, 1, 10, 100)}
    assert counts[1] == counts[10] == counts[100] <= 3 * counts[0], counts


def test_the_cost_of_bad_rows_on_duckdb(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same on DuckDB, where the CHECK expression is queried for the bad rows."""
    counts: dict[int, int] = {}
    for bad in (0, 1, 10, 100):
        with ef.connect(tmp_path / f"{bad}.duckdb") as store:
            with store._engine.database.file.cursor() as cursor:
                [(ddl,)] = cursor.execute(
                    "SELECT sql FROM duckdb_tables() WHERE schema_name = 'entityframes' AND table_name = 'entities'"
                ).fetchall()
                cursor.execute("DROP TABLE entityframes.entities")
                cursor.execute(ddl.replace(");", ", CHECK (content NOT LIKE 'bad%'));"))
            asked: list[str] = []

            def counting(session: Session, name: str, places: Any, of=Session._statement, to=asked) -> str:
                to.append(name)
                return of(session, name, places)

            with monkeypatch.context() as patch:
                patch.setattr(Session, "_statement", counting)
                assert store.upsert(_with_bad(bad)).counts["failed"] == bad
            counts[bad] = len(asked)
    assert counts[1] == counts[10] == counts[100] <= 3 * counts[0], counts


def _with_bad(bad: int) -> pl.DataFrame:
    """10,000 entities of a separate type; a CHECK rejects some of them."""
    of_type = {"size": 300, "entity_type": f"t{bad}"}
    return pl.concat([rows(10_000 - bad, **of_type), rows(bad, "bad", start=10_000, **of_type)])


if __name__ == "__main__":
    # python -m tests.faults.test_concurrency URL WRITERS BATCHES
    address, *numbers = sys.argv[1:]
    print("no error; retried deadlocks:", write_at_once(address, *map(int, numbers)))
