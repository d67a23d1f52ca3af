"""Tables on PostgreSQL: terminated backends, lost answers, killed servers, timeouts and concurrent writers."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from entityframes.engines.postgres import pool
from tests.faults.poolers import PGBOUNCER, PgBouncer, Pooler
from tests.faults.servers import COMMIT, WAITING, Background, Proxy, Server, backends, wait_until
from tests.faults.test_connections import locked, terminate

Open = Callable[..., ef.Table]


@pytest.fixture
def items(own_server: Server, database: str) -> Iterator[Open]:
    """A function that opens a table with a CHECK, optionally through a proxy or as another user; closed at the end."""
    own_server.sql(
        "CREATE TABLE items (k integer PRIMARY KEY, v text CHECK (v <> 'bad'), n integer DEFAULT 0)",
        "CREATE TABLE written (k integer)",
        "CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN INSERT INTO public.written VALUES (NEW.k); RETURN NEW; END $$",
        "CREATE TRIGGER count_writes AFTER INSERT OR UPDATE ON items FOR EACH ROW EXECUTE FUNCTION count_writes()",
        database=database,
    )
    tables: list[ef.Table] = []

    def open_table(*, port: int | None = None, name: str = "items", **options: Any) -> ef.Table:
        user = options.pop("user", "postgres")
        tables.append(ef.table(own_server.url(database, port=port, user=user), name, **options))
        return tables[-1]

    yield open_table
    for table in tables:
        table.close()


def rows(count: int, text: str = "a", *, start: int = 0, bad: tuple[int, ...] = ()) -> pl.DataFrame:
    """Rows in shuffled order."""
    numbers = pl.Series("k", range(start, start + count)).shuffle(seed=count)
    value = pl.when(pl.col("k").is_in(bad)).then(pl.lit("bad")).otherwise(pl.format("{} {}", pl.lit(text), "k"))
    return pl.DataFrame({"k": numbers}).with_columns(v=value)


class Model:
    """What the table must hold, by the reported outcomes."""

    def __init__(self) -> None:
        self.rows: dict[int, str] = {}
        self.unknown: dict[int, str] = {}

    def upserted(self, frame: pl.DataFrame, result: ef.UpsertResult) -> None:
        outcomes = result.outcomes
        assert outcomes["row"].to_list() == list(range(frame.height)), "an input row has no outcome, or several"
        for row in frame.with_columns(outcomes["status"].cast(pl.String), outcomes["error"]).iter_rows(named=True):
            if row["status"] in ("created", "updated", "unchanged"):
                self.rows[row["k"]] = row["v"]
                self.unknown.pop(row["k"], None)
            elif row["status"] == "unknown":
                self.unknown[row["k"]] = row["v"]
            elif row["status"] == "failed":
                assert row["error"], "a failure without a reason"

    def deleted(self, result: ef.DeleteResult) -> None:
        for key in result.succeeded["k"]:
            self.rows.pop(key, None)

    def check(self, table: ef.Table) -> None:
        """The table equals the model, and can be used."""
        stored = dict(table.read(["k", "v"]).iter_rows())
        for key in stored.keys() | self.rows.keys() | self.unknown.keys():
            possible = [self.rows.get(key)] + ([self.unknown[key]] if key in self.unknown else [])
            assert stored.get(key) in possible, f"{key} is {stored.get(key)}, not one of {possible}"
        self.rows, self.unknown = stored, {}
        probe = pl.DataFrame({"k": [-1], "v": ["of use?"]})
        assert table.upsert(probe).counts["created"] == 1
        assert table.delete([-1]).counts["deleted"] == 1


def writes(server: Server, database: str) -> int:
    """How often a row was written."""
    [(count,)] = server.sql("SELECT count(*) FROM written WHERE k >= 0", database=database)
    return count


ONE_ROW = "SELECT FROM items WHERE k = 7 FOR UPDATE"


@pytest.mark.parametrize("bad", [(), (3, 11)])
@pytest.mark.parametrize("point", ["staging", "merge", "before COMMIT"])
def test_a_backend_is_terminated(
    own_server: Server, database: str, items: Open, proxy: Proxy, point: str, bad: tuple[int, ...]
) -> None:
    """The batch is written again, once; rows that the database rejects fail nevertheless."""
    model, table = Model(), items(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, table.upsert(first))
    frame = rows(6_000, "changed", bad=bad)
    if point == "staging":
        proxy.hold_copy_after = 50_000
    elif point == "before COMMIT":
        proxy.hold_before = COMMIT
    hold = locked(own_server, database, ONE_ROW) if point == "merge" else contextlib.nullcontext()
    with hold:
        run = Background(lambda: table.upsert(frame))
        if point == "merge":
            terminate(own_server, database, WAITING)
        else:
            assert proxy.held.wait(120)
            terminate(own_server, database, "state <> 'idle'")
    proxy.go.set()
    result = run.outcome()
    assert result.failed["k"].sort().to_list() == list(bad), result
    assert (result.counts["created"], result.counts["updated"]) == (6_000 - 20, 20 - len(bad))
    model.upserted(frame, result)
    model.check(table)
    assert writes(own_server, database) == 20 + 6_000 - len(bad)


@pytest.mark.parametrize("bad", [(), (30, 31)])
def test_the_answer_to_a_commit_is_lost(
    own_server: Server, database: str, items: Open, proxy: Proxy, bad: tuple[int, ...]
) -> None:
    """The server knows what became of the transaction, without a ledger; nothing is written twice."""
    model, table = Model(), items(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, table.upsert(first))
    frame = pl.concat([rows(10), rows(2_990, "changed", start=10, bad=bad)])
    proxy.drop_answer_to = COMMIT
    result = table.upsert(frame)
    assert proxy.dropped.is_set()
    assert (result.counts["unchanged"], result.counts["updated"]) == (10, 10)
    assert result.counts["created"] == 3_000 - 20 - len(bad)
    assert result.failed["rule"].to_list() == ["check:items_v_check"] * len(bad)
    model.upserted(frame, result)
    model.check(table)
    assert writes(own_server, database) == 20 + 2_990 - len(bad)


def test_the_answer_is_lost_while_an_empty_table_is_filled(items: Open, proxy: Proxy) -> None:
    """Rows that were copied straight in."""
    model, table = Model(), items(port=proxy.port, workers=2)
    frame = rows(4_000)
    proxy.drop_answer_to = COMMIT
    result = table.upsert(frame, batch_size=1_000)
    assert proxy.dropped.is_set()
    assert result.counts["created"] == 4_000, result
    model.upserted(frame, result)
    model.check(table)


def test_another_writer_wrote_since(items: Open, proxy: Proxy) -> None:
    """The outcomes are those of the committed transaction, also if another writer has changed the rows since."""
    model, table, other = Model(), items(port=proxy.port, workers=1), items()
    frame, theirs = rows(50), rows(5, "theirs")
    proxy.drop_answer_to = COMMIT
    status = table._engine._status

    def changed_before(transaction: Any) -> Any:
        other.upsert(theirs)
        return status(transaction)

    table._engine._status = changed_before  # type: ignore[method-assign]
    result = table.upsert(frame)
    assert result.counts["created"] == 50
    model.upserted(frame, result)
    model.rows |= dict(theirs.iter_rows())
    model.check(other)


def test_a_commit_arrives_late(own_server: Server, database: str, items: Open, proxy: Proxy) -> None:
    """The server gets it after the retry has begun: one of the two writes, and the outcomes are those of that one."""
    model, table = Model(), items(port=proxy.port, workers=1)
    first = rows(20)
    model.upserted(first, table.upsert(first))
    frame = rows(3_000, "changed")
    proxy.hold_before = COMMIT
    run = Background(lambda: table.upsert(frame))
    assert proxy.held.wait(60)
    proxy.lose_client()
    wait_until(lambda: backends(own_server, database, WAITING) or not run.is_alive(), "the retry", 60)
    proxy.go.set()
    result = run.outcome()
    assert (result.counts["created"], result.counts["updated"]) == (2_980, 20), result
    model.upserted(frame, result)
    model.check(table)
    assert writes(own_server, database) == 3_020


def test_the_server_cannot_be_asked(items: Open, proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only in this case the rows are unknown; a later run resolves them. Likewise for deletions."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    model, table = Model(), items(port=proxy.port, workers=1)
    frame = rows(50)
    proxy.drop_answer_to, proxy.refuse_after_drop = COMMIT, True
    result = table.upsert(frame)
    assert result.counts["unknown"] == 50
    assert result.outcomes["error_kind"].unique().to_list() == ["connection"]
    model.upserted(frame, result)
    proxy.refuse = False
    model.check(table)
    assert table.upsert(frame).counts["unchanged"] == 50
    proxy.drop_answer_to, proxy.refuse_after_drop = COMMIT, True
    with pytest.raises(ef.ConnectionLostError):
        table.delete(frame["k"])
    assert table.last_result.counts["unknown"] == 50
    proxy.refuse = False
    assert table.delete(frame["k"]).counts["missing"] == 50


def test_the_answer_to_a_delete_is_lost(items: Open, proxy: Proxy) -> None:
    """Deleted and missing keys have different outcomes."""
    model, table = Model(), items(port=proxy.port, workers=1)
    frame = rows(100)
    model.upserted(frame, table.upsert(frame))
    for part, expected in ((range(40), 40), (range(30, 60), 20)):
        proxy.dropped.clear()
        proxy.drop_answer_to = COMMIT
        result = table.delete(list(part))
        assert proxy.dropped.is_set()
        assert (result.counts["deleted"], result.counts["missing"]) == (expected, len(part) - expected)
        model.deleted(result)
    model.check(table)


@pytest.mark.slow
def test_the_server_is_killed_in_a_run(own_server: Server, database: str, items: Open) -> None:
    """SIGKILL and restart in the middle of several batches: nothing is half-written, and a second run completes it."""
    model, table = Model(), items(workers=2)
    first = rows(20)
    model.upserted(first, table.upsert(first))
    frame = rows(6_000, "changed")
    with contextlib.suppress(Exception), locked(own_server, database, ONE_ROW):
        run = Background(lambda: table.upsert(frame, batch_size=1_000))
        wait_until(lambda: not run.is_alive() or backends(own_server, database, WAITING), "the merge")
        own_server.kill()
        own_server.start()
    result = run.outcome()
    model.upserted(frame, result)
    model.check(table)
    again = table.upsert(frame)
    assert again.ok
    model.upserted(frame, again)
    model.check(table)
    assert len(model.rows) == 6_000


@pytest.mark.slow
@pytest.mark.parametrize("reused", [False, True])
def test_the_server_is_killed_at_a_commit(
    own_server: Server, database: str, items: Open, proxy: Proxy, reused: bool
) -> None:
    """Recovery gives the id of a transaction that left no trace to another one: what that did is not taken for it."""
    # Nothing of the transaction reaches the disk before its COMMIT.
    own_server.sql("ALTER SYSTEM SET wal_writer_delay = '10s'", "SELECT pg_reload_conf()")
    try:
        model, table = Model(), items(port=proxy.port, workers=1)
        first = rows(20)
        model.upserted(first, table.upsert(first))
        own_server.sql("CHECKPOINT")
        frame = rows(30, "changed")
        proxy.hold_before = COMMIT
        run = Background(lambda: table.upsert(frame))
        assert proxy.held.wait(60)
        writes = "SELECT backend_xid::text::int8 FROM pg_stat_activity WHERE backend_xid IS NOT NULL"
        [(transaction,)] = own_server.sql(writes)
        # It is looked up once the id is taken.
        proxy.refuse = True
        own_server.kill()
        own_server.start()
        others = [-1]
        while reused and others[-1] < transaction:
            others += own_server.sql("SELECT pg_current_xact_id()::text::int8")[0]
        assert not reused or transaction in others
        proxy.refuse = False
        proxy.go.set()
        result = run.outcome()
        assert not result.counts["unknown"]
        model.upserted(frame, result)
        model.check(table)
        assert table.upsert(frame).ok
    finally:
        own_server.sql("ALTER SYSTEM RESET wal_writer_delay", "SELECT pg_reload_conf()")


def test_idle_connections_that_died(own_server: Server, database: str, items: Open) -> None:
    """The next call opens new ones: writes, reads, plans and deletions."""
    model, table = Model(), items()
    frame = rows(100)
    calls: list[Callable[[], Any]] = [
        lambda: model.upserted(frame, table.upsert(frame, batch_size=20)),
        lambda: table.read(), lambda: table.scan().collect(), lambda: table.exists([1]), lambda: table.get([1]),
        lambda: table.plan(frame), lambda: model.deleted(table.delete([1])),
    ]  # fmt: skip
    for call in calls:
        call()
        for pid in backends(own_server, database, "state = 'idle'"):
            own_server.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
    model.check(table)


@pytest.mark.slow
def test_timeouts_and_locks(own_server: Server, database: str, items: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each row fails with the server's reason; without the lock it is written."""
    monkeypatch.setattr(retry, "BACKOFF", 0.01)
    model, table = Model(), items()
    first = rows(20)
    model.upserted(first, table.upsert(first))
    frame = rows(20, "changed")
    for setting, sqlstate, kind in [("lock_timeout", "55P03", "database"), ("statement_timeout", "57014", "timeout")]:
        own_server.sql(f"ALTER DATABASE {database} SET {setting} = '300ms'")
        with locked(own_server, database, ONE_ROW), items() as limited:
            result = limited.upsert(frame)
            assert result.failed.select("error_kind", "sqlstate").unique().rows() == [(kind, sqlstate)]
            assert result.counts["failed"] == 20
            model.upserted(frame, result)
            with pytest.raises(ef.DatabaseError):
                limited.delete([7])
            assert limited.exists([7])["exists"].item()
        own_server.sql(f"ALTER DATABASE {database} RESET ALL")
        model.check(table)
    model.upserted(frame, table.upsert(frame))
    model.check(table)


def test_a_transaction_that_idles_too_long(own_server: Server, database: str, items: Open, proxy: Proxy) -> None:
    """The server ends the session before COMMIT arrives: not committed, so the next attempt writes it."""
    own_server.sql(f"ALTER DATABASE {database} SET idle_in_transaction_session_timeout = '300ms'")
    model, table = Model(), items(port=proxy.port, workers=1)
    proxy.hold_before = COMMIT
    frame = rows(3_000)
    run = Background(lambda: table.upsert(frame))
    assert proxy.held.wait(120)
    wait_until(lambda: not backends(own_server, database, "state = 'idle in transaction'"), "the end of the session")
    proxy.go.set()
    result = run.outcome()
    assert result.counts["created"] == 3_000, result
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")
    model.upserted(frame, result)
    model.check(table)


def test_a_read_only_server(own_server: Server, database: str, items: Open) -> None:
    """Writes are refused as a whole with the server's reason, reads work."""
    model, table = Model(), items()
    frame = rows(100)
    model.upserted(frame, table.upsert(frame))
    own_server.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    reader = items()
    for call in (lambda: reader.upsert(rows(100, "changed"), batch_size=30), lambda: reader.delete([1]),
                 lambda: reader.add_columns({"x": pl.Int64})):  # fmt: skip
        with pytest.raises(ef.PermanentError, match="read-only"):
            call()
    assert reader.exists(frame)["exists"].all()
    assert reader.read().height == 100
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")
    model.check(items())


def test_too_many_clients(own_server: Server, database: str, items: Open) -> None:
    """A role that may have one connection: the second worker waits for its turn."""
    role = f"single_{database}"
    own_server.sql(
        f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1", f"GRANT ALL ON items, written TO {role}", database=database
    )
    table = items(user=role, workers=2)
    frame = rows(400)
    result = table.upsert(frame, batch_size=100)
    assert result.counts["created"] + result.counts["failed"] + result.counts["cancelled"] == 400
    assert set(result.failed["sqlstate"]) <= {"53300"}
    assert result.counts["created"] >= 100
    table.close()
    model = Model()
    model.upserted(frame, result)
    model.check(items())
    own_server.sql(f"DROP OWNED BY {role}", f"DROP ROLE {role}", database=database)


def test_a_connection_that_is_still_closing(
    own_server: Server, database: str, items: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The driver connects twice, and the server may still count the first one: the second is tried again."""
    monkeypatch.setattr(pool, "_FIRST_PAUSES", (0.05,) * 1_000)
    caplog.set_level("INFO", "entityframes")
    role = f"closing_{database}"
    own_server.sql(
        f"CREATE ROLE {role} LOGIN CONNECTION LIMIT 1", f"GRANT SELECT ON items TO {role}", database=database
    )
    with adbc.connect(own_server.url(database, user=role)):
        opening = Background(lambda: items(user=role))
        wait_until(lambda: "retrying connecting" in caplog.text or not opening.is_alive(), "another attempt")
    opening.outcome().close()
    own_server.sql(f"DROP OWNED BY {role}", f"DROP ROLE {role}", database=database)


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ("TRUNCATE items", False),
        ("ALTER TABLE items ADD extra integer", False),
        ("ALTER TABLE items ALTER v TYPE varchar(3) USING left(v, 3)", False),
        ("ALTER TABLE items RENAME v TO w", True),
        ("DROP TABLE items", True),
    ],
)
def test_the_table_changes_in_a_run(own_server: Server, database: str, items: Open, change: str, fails: bool) -> None:
    """Each row has one outcome, which is what the table has, whatever is changed between two batches."""
    table, other = items(workers=1), items()
    frame = rows(40, "abc")

    def frames() -> Iterator[pl.DataFrame]:
        yield frame[:25]
        wait_until(lambda: other.exists(frame[:20])["exists"].all(), "the first batch")
        own_server.sql(change, database=database)
        yield frame[25:]

    if fails:
        with pytest.raises(ef.PermanentError, match="does not exist"):
            table.upsert(frames(), batch_size=20)
    else:
        table.upsert(frames(), batch_size=20)
    result = table.last_result
    assert result.outcomes["row"].to_list() == list(range(40))
    late = result.outcomes["status"].to_list()[20:]
    assert late == ["failed" if fails or "varchar" in change else "created"] * 20
    if "DROP" not in change:
        count = 20 * ("TRUNCATE" not in change) + late.count("created")
        assert own_server.sql("SELECT count(*)::int4 FROM items", database=database) == [(count,)]


# Concurrent writers.


@pytest.mark.parametrize("bad", [(), (3,)])
def test_many_inserters_of_one_key(own_server: Server, database: str, items: Open, bad: tuple[int, ...]) -> None:
    """Each key is created exactly once, whoever writes it, also by those with a row that the database rejects."""
    barrier = threading.Barrier(6)

    def write(number: int) -> ef.UpsertResult:
        table = items(workers=1)
        barrier.wait(60)
        return table.upsert(rows(200, f"writer {number}", bad=bad))

    runs = [Background(lambda number=number: write(number)) for number in range(6)]
    results = [run.outcome() for run in runs]
    for result in results:
        assert result.failed["k"].to_list() == list(bad), result.failed
    created = pl.concat(result.outcomes.filter(pl.col("status").cast(pl.String) == "created") for result in results)
    assert created["k"].sort().to_list() == [n for n in range(200) if n not in bad]
    [(versions,)] = own_server.sql("SELECT count(DISTINCT split_part(v, ' ', 2)) FROM items", database=database)
    assert versions == 1, "the rows of two runs are mixed, although each batch is one transaction"


def test_opposite_orders(own_server: Server, database: str, items: Open) -> None:
    """Updates of the same rows by several runs, and deletions among them: no deadlock reaches a caller."""
    frame = rows(400)
    items().upsert(frame.sort("k", descending=True))
    # The order in which rows are stored is not the order of their keys.
    barrier = threading.Barrier(4)

    def write(number: int) -> list[Any]:
        table, found = items(workers=1), []
        barrier.wait(60)
        for turn in range(8):
            changed = rows(400, f"{number} {turn}").sample(fraction=1, shuffle=True, seed=turn * 10 + number)
            found.append(table.upsert(changed))
            if number == 0:
                found.append(table.delete(changed["k"][:100]))
        return found

    runs = [Background(lambda number=number: write(number)) for number in range(4)]
    found = list(itertools.chain.from_iterable(run.outcome(300) for run in runs))
    for result in found:
        assert result.failed.is_empty(), result.failed
        assert result.counts.get("unknown", 0) == 0


@pytest.mark.parametrize("may_skip", [False, True])
def test_a_row_is_inserted_meanwhile(own_server: Server, database: str, items: Open, may_skip: bool) -> None:
    """Whatever a match means, the row of the other transaction is seen once it is committed."""
    import psycopg

    if may_skip:
        own_server.sql(
            "CREATE TRIGGER first BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION count_writes()",
            database=database,
        )
    for number, (options, bad, status) in enumerate([
        ({}, (), "updated"), ({}, (1,), "updated"), ({"on_match": "skip"}, (), "unchanged"),
        ({"on_match": "skip"}, (1,), "unchanged"), ({"on_match": "fail"}, (), "failed"), ({"on_match": "fail"}, (1,), "failed"),
    ]):  # fmt: skip
        start = number * 100
        table = items(workers=1)
        table.upsert(rows(1, start=start + 50))
        with psycopg.connect(own_server.url(database)) as other:
            other.execute(f"INSERT INTO items VALUES ({start + 5}, 'theirs')")
            # A bad row comes before the one that waits, so that this is met row by row.
            frame = rows(20, "ours", start=start, bad=tuple(start + n for n in bad)).sort("k")
            run = Background(lambda table=table, frame=frame, options=options: table.upsert(frame, **options))
            waits = lambda run=run: not run.is_alive() or backends(own_server, database, WAITING)  # noqa: E731
            wait_until(waits, "the insert")
            other.commit()
        result = run.outcome()
        of_key = dict(result.outcomes.select("k", pl.col("status").cast(pl.String)).iter_rows())
        assert of_key.pop(start + 5) == status, (options, result)
        assert of_key.pop(start + 1) == ("failed" if bad else "created")
        assert set(of_key.values()) == {"created"}
        stored = table.get([start + 5])["v"].item()
        assert stored == (f"ours {start + 5}" if status == "updated" else "theirs")
        if status == "failed":
            assert result.failed.filter(pl.col("k") == start + 5)["rule"].to_list() == ["key_exists"]


def test_a_plan_meets_other_writers(own_server: Server, database: str, items: Open) -> None:
    """What was changed, created or deleted since the plan was made is a conflict, and left alone."""
    table, other = items(), items()
    table.upsert(rows(10))
    plan = table.plan(rows(12, "planned"))
    other.upsert(pl.DataFrame({"k": [1, 10, 2], "v": ["theirs", "theirs", "planned 2"]}))
    other.delete([3])
    # A column that the plan does not touch does not matter.
    own_server.sql("UPDATE items SET n = 5 WHERE k = 4", database=database)
    result = plan.apply(batch_size=4)
    of_key = dict(result.outcomes.select("k", pl.col("status").cast(pl.String)).iter_rows())
    assert [key for key, status in of_key.items() if status == "conflict"] == [
        key for key in of_key if key in (1, 3, 10)
    ], result
    assert of_key[2] == "unchanged"
    assert of_key[11] == "created"
    assert table.get([1, 10, 3, 4])["v"].to_list() == ["theirs", "theirs", None, "planned 4"]
    assert plan.apply().counts["conflict"] == 3


@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
def test_a_stricter_isolation(own_server: Server, database: str, items: Open, isolation: str) -> None:
    """Sessions set it for themselves: a change that is committed meanwhile is no failure."""
    import psycopg

    own_server.sql(f"ALTER DATABASE {database} SET default_transaction_isolation = '{isolation}'")
    table = items(workers=1)
    table.upsert(rows(20))
    with psycopg.connect(own_server.url(database)) as other:
        other.execute("UPDATE items SET n = 1 WHERE k = 3")
        run = Background(lambda: table.upsert(rows(20, "changed")))
        wait_until(lambda: backends(own_server, database, WAITING), "the upsert to wait for the row")
        other.commit()
    assert run.outcome().counts["updated"] == 20
    own_server.sql(f"ALTER DATABASE {database} RESET ALL")


# Poolers.


@pytest.mark.parametrize("options", ["swallowed", "refused", "replayed", "forwarded"])
def test_a_transaction_pooler(own_server: Server, database: str, items: Open, options: str) -> None:
    """Clients are given each other's server connections: no statement meets another's, and the outcome of each COMMIT is known."""
    items().upsert(rows(10))
    pooler = Pooler(own_server, options=options)
    try:

        def write(number: int) -> Model:
            model, table = Model(), items(port=pooler.port, workers=1)
            start = 1_000 * (number + 1)
            for turn in range(3):
                frame = rows(60, f"turn {turn}", start=start, bad=(start + 7,) if turn == 1 else ())
                result = table.upsert(frame, batch_size=25)
                assert result.counts["failed"] == (turn == 1), (turn, result.failed.rows())
                model.upserted(frame, result)
                assert table.exists(frame)["exists"].all()
                assert table.plan(frame).counts["update"] == (turn == 1)
            model.deleted(table.delete(list(range(start, start + 5))))
            table.close()
            return model

        runs = [Background(lambda number=number: write(number)) for number in range(3)]
        models = [run.outcome() for run in runs]
    finally:
        pooler.close()
    stored = dict(items().read(["k", "v"]).iter_rows())
    for model in models:
        assert {key: value for key, value in stored.items() if key in model.rows} == model.rows
    assert len(stored) == 10 + 3 * 55
    assert pooler.switches > 10


@pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")
def test_pgbouncer(own_server: Server, database: str, items: Open) -> None:
    """In transaction mode, with a terminated server connection in between."""
    bouncer = PgBouncer(own_server, "transaction")
    try:
        model, table = Model(), items(port=bouncer.port, workers=2)
        for turn in range(3):
            frame = rows(300, f"turn {turn}")
            result = table.upsert(frame, batch_size=50)
            assert result.ok, result
            model.upserted(frame, result)
            for pid in backends(own_server, database, "state = 'idle'")[:1]:
                own_server.sql(f"SELECT pg_terminate_backend({pid}, 10000)")
        model.check(table)
        table.close()
    finally:
        bouncer.close()
