"""Standbys: contacted by mistake, or promoted after the primary was killed; and a server that is down for a while.

Cases 51 and 65 of the fault catalogue: the server is down for some seconds in the middle of several batches; a primary
is killed, and its standby, in sync, lagging or synchronous, is promoted or merely contacted, in the middle of upserts
and deletes and at COMMIT.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from entityframes import retry
from entityframes.engines.postgres.engine import PostgresEngine
from entityframes.engines.postgres.pool import for_writing
from entityframes.engines.postgres.session import Session
from entityframes.results import OutcomeLog
from tests.faults.invariants import Model, rows
from tests.faults.servers import COMMIT, Background, Proxy, Server, Standby, wait_until

pytestmark = pytest.mark.slow

_numbers = itertools.count()


class Pair:
    """A primary behind a proxy, its standby, and a function that opens stores on them."""

    def __init__(self, primary: Server, database: str) -> None:
        self.primary, self.database = primary, database
        self.standby = Standby(primary)
        self.proxy = Proxy(primary)
        self._stores: list[ef.EntityStore] = []

    def open(self, url: str | None = None, **options: Any) -> ef.EntityStore:
        self._stores.append(ef.connect(url or self.primary.url(self.database, port=self.proxy.port), **options))
        return self._stores[-1]

    def both(self, attributes: str = "&target_session_attrs=any") -> str:
        """The URL with two hosts: the primary, through the proxy, and then the standby."""
        hosts = f"127.0.0.1:{self.proxy.port},127.0.0.1:{self.standby.port}"
        return f"postgresql://postgres@{hosts}/{self.database}?sslmode=disable&gssencmode=disable{attributes}"

    def fail_over(self) -> None:
        """Kill the primary, and let the standby take over its address."""
        self.primary.kill()
        self.proxy.cut()
        self.standby.promote()
        self.proxy.server = self.standby

    def count(self, where: str = "true") -> int:
        """The number of entities on the primary."""
        query = f"SELECT count(*)::int4 FROM entityframes.entities WHERE {where}"
        [(found,)] = self.primary.sql(query, database=self.database)
        return found

    def close(self) -> None:
        for store in self._stores:
            store.close()
        self.proxy.close()


@pytest.fixture(scope="module")
def primaries() -> Iterator[list[Server]]:
    """The servers; the last one is the primary. A server that one test promotes is the primary of the next test."""
    first = Server()
    first.sql("CREATE DATABASE template_of_pairs")
    ef.connect(first.url("template_of_pairs")).close()
    servers = [first]
    yield servers
    for server in reversed(servers):
        with contextlib.suppress(Exception):
            server.stop()
    shutil.rmtree(first.folder, ignore_errors=True)


def _database(primary: Server, kind: str = "pair") -> str:
    """A database of a primary; those of earlier pairs are dropped, because a standby would have to copy them too."""
    earlier = primary.sql("SELECT datname::text FROM pg_database WHERE starts_with(datname, 'pair_')")
    name = f"{kind}_{next(_numbers)}"
    primary.sql(
        *(f"DROP DATABASE {one} WITH (FORCE)" for (one,) in earlier),
        f"CREATE DATABASE {name} TEMPLATE template_of_pairs",
    )
    return name


@pytest.fixture
def pair(primaries: list[Server]) -> Iterator[Pair]:
    """A primary that may be killed, and a standby that may be promoted."""
    pair = Pair(primaries[-1], _database(primaries[-1]))
    yield pair
    pair.close()
    if pair.standby.sql("SELECT pg_is_in_recovery()") == [(False,)]:
        primaries.append(pair.standby)
    else:
        pair.standby.stop()
        pair.primary.start() if pair.primary.is_dead() else None


@pytest.fixture(scope="module")
def lasting(primaries: list[Server]) -> Iterator[Pair]:
    """A primary that is not killed, and a standby that receives all it writes and replays none of it."""
    pair = Pair(primaries[-1], _database(primaries[-1], "lasting"))
    pair.standby.show_nothing_new()
    yield pair
    pair.close()
    pair.standby.stop()


@pytest.fixture
def behind(lasting: Pair) -> Iterator[Pair]:
    """The same with a separate proxy and no entities."""
    if lasting.primary.is_dead():
        lasting.primary.start()
    names = ("entities", "batches", "embedding_jobs", "files", "folders", "renames")
    tables = ", ".join(f"entityframes.{name}" for name in names)
    lasting.primary.sql(f"TRUNCATE {tables}", database=lasting.database)
    lasting.proxy = Proxy(lasting.primary)
    yield lasting
    lasting.proxy.close()


@pytest.fixture
def back_when_queried(monkeypatch: pytest.MonkeyPatch) -> Callable[[Proxy], list[bool]]:
    """Reopen a proxy as soon as a standby was queried instead."""

    def watch(proxy: Proxy) -> list[bool]:
        met: list[bool] = []
        check = Session.check_primary

        def checked(session: Session) -> None:
            try:
                check(session)
            except ef.ConnectionLostError:
                if not met:
                    proxy.back()
                met.append(True)
                raise

        monkeypatch.setattr(Session, "check_primary", checked)
        return met

    return watch


@pytest.mark.parametrize("count", [50, 3_000])
def test_a_standby_is_not_queried_for_what_was_committed(behind: Pair, back_when_queried, count: int) -> None:
    """65: the answer to COMMIT is lost and a lagging standby answers: the store waits for the primary."""
    model, store = Model(), behind.open(behind.both(), workers=1)
    met = back_when_queried(behind.proxy)
    frame = rows(count)
    behind.proxy.drop_answer_to = COMMIT if count > 2_000 else b"merged AS"
    behind.proxy.away_after_drop = True
    result = store.upsert(frame)
    assert met
    assert result.counts["created"] == count, result
    model.upserted(frame, result)
    met.clear()
    behind.proxy.drop_answer_to = COMMIT
    gone = store.delete(frame[:20])
    assert met
    assert gone.counts["deleted"] == 20
    model.deleted(gone)
    model.check(store)


def test_only_a_standby_is_left(behind: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """65: only a standby can be queried: the rows are unknown, and nothing else; likewise for deletions."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    model, store = Model(), behind.open(behind.both(), workers=1)
    frame = rows(50)
    behind.proxy.drop_answer_to, behind.proxy.away_after_drop = b"merged AS", True
    result = store.upsert(frame)
    assert result.counts["unknown"] == 50, result
    model.upserted(frame, result)
    behind.proxy.back()
    model.check(store)
    assert store.upsert(frame).counts["unchanged"] == 50
    behind.proxy.drop_answer_to, behind.proxy.away_after_drop = COMMIT, True
    with pytest.raises(ef.ConnectionLostError):
        store.delete(frame)
    assert store.last_result.counts["unknown"] == 50


@pytest.mark.parametrize("count", [50, 3_000])
def test_a_write_that_meets_a_standby_is_retried(behind: Pair, back_when_queried, count: int) -> None:
    """65: the primary is down briefly and its standby answers: like a lost connection, not like missing privileges."""
    model, store = Model(), behind.open(behind.both(), workers=1)
    first = rows(count)
    model.upserted(first, store.upsert(first))
    met = back_when_queried(behind.proxy)
    for call in (lambda: store.upsert(rows(count, "changed")), lambda: store.delete(first[:7])):
        met.clear()
        behind.proxy.away()
        result = call()
        assert met
        assert result.ok, result
        if isinstance(result, ef.DeleteResult):
            model.deleted(result)
        else:
            model.upserted(rows(count, "changed"), result)
    model.check(store)


def test_a_standby_does_not_decide_that_nothing_changed(behind: Pair, back_when_queried) -> None:
    """65: a large batch is compared before it is written; the state of a standby must not decide an outcome."""
    old, store = rows(3_000, "old"), behind.open(behind.both(), workers=1)
    behind.standby.sql("SELECT pg_wal_replay_resume()")
    store.upsert(old)
    behind.standby.catch_up()
    behind.standby.show_nothing_new()
    store.upsert(rows(3_000, "new"))
    met = back_when_queried(behind.proxy)
    behind.proxy.away()
    result = store.upsert(old)
    assert met
    assert result.counts["updated"] == 3_000, result


def test_a_renaming_is_resolved(behind: Pair, back_when_queried, tmp_path: Path) -> None:
    """65: the answer to the renaming of a synced file is lost, and a standby answers."""
    store = behind.open(behind.both(), workers=1)
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.md").write_text(f"the text of {name}")
    sync = ef.DirectorySync(store, tmp_path)
    assert sync.sync().counts["created"] == 3
    (tmp_path / "a.md").rename(tmp_path / "z.md")
    met = back_when_queried(behind.proxy)
    behind.proxy.drop_answer_to, behind.proxy.away_after_drop = b"renamed AS", True
    result = sync.sync()
    assert met
    assert result.counts["renamed"] == 1, result
    assert result.ok
    # The unrecorded file is found equal, and the path that no longer exists is forgotten.
    assert sync.sync().counts["unchanged"] == 4
    assert sync.sync().counts["unchanged"] == 3
    assert store.exists(ef.ids("note", ["a", "z"]))["exists"].to_list() == [False, True]


def test_a_store_on_a_standby_can_be_read(behind: Pair) -> None:
    """A standby alone is opened and read; a write reports at once that it is read-only."""
    behind.standby.sql("SELECT pg_wal_replay_resume()")
    behind.open().upsert(rows(20))
    behind.standby.catch_up()
    store = behind.open(behind.standby.url(behind.database))
    assert store.exists(rows(20))["exists"].all()
    assert store.scan().collect().height == 20
    with pytest.raises(ef.PermanentError):
        store.upsert(rows(5, "changed"))
    behind.standby.show_nothing_new()


def test_a_url_of_several_hosts_asks_for_the_primary(behind: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the URL specifies the target itself; a single host is used as it is."""
    monkeypatch.delenv("PGTARGETSESSIONATTRS", raising=False)
    url = "postgresql://u@a:1,b:2/x"
    assert for_writing(url) == f"{url}?target_session_attrs=read-write"
    assert for_writing("postgresql://?host=a%2Cb&dbname=x").endswith("dbname=x&target_session_attrs=read-write")
    for kept in ("postgresql://u:p,w@a/x", f"{url}?target_session_attrs=any", "postgresql:///x"):
        assert for_writing(kept) == kept
    monkeypatch.setenv("PGHOST", "a,b")
    assert for_writing("postgresql:///x").endswith("?target_session_attrs=read-write")
    hosts = f"127.0.0.1:{behind.standby.port},127.0.0.1:{behind.proxy.port}"
    store = behind.open(f"postgresql://postgres@{hosts}/{behind.database}?sslmode=disable&gssencmode=disable")
    assert store.upsert(rows(10)).counts["created"] == 10


def steps(pair: Pair, frame: pl.DataFrame, at: int) -> Iterator[pl.DataFrame]:
    """A stream of ten batches: two reach both servers, the others up to `at` only the primary, which is then killed."""
    for number, piece in enumerate(frame.iter_slices(100)):
        # A full batch is started when the next frame arrives.
        if number == 3:
            wait_until(lambda: pair.count() == 200, "two batches")
            pair.standby.catch_up()
            pair.standby.receive_nothing()
        elif number == at + 1:
            wait_until(lambda: pair.count() == 100 * at, "the loss")
            pair.fail_over()
        yield piece


@pytest.mark.parametrize("spilled", [False, True])
def test_a_standby_that_was_behind_takes_over(pair: Pair, monkeypatch: pytest.MonkeyPatch, spilled: bool) -> None:
    """65: committed batches that the new primary does not have are failed, wherever they are logged."""
    if spilled:
        init = OutcomeLog.__init__
        monkeypatch.setattr(OutcomeLog, "__init__", lambda log, *a, **k: init(log, *a, **k | {"keep": 150}))
    model, store = Model(), pair.open(workers=1)
    frame = rows(1_000)
    result = store.upsert(steps(pair, frame, 7), batch_size=100)
    lost = result.failed
    assert lost["row"].to_list() == list(range(200, 700)), result
    assert lost["error_kind"].unique().to_list() == ["connection"]
    assert lost["error"].str.contains("repeat the call").fill_null(False).all()
    assert lost["job_id"].null_count() == 500
    assert (result.counts["created"], result.counts["failed"], result.ok) == (500, 500, False)
    model.upserted(frame, result)
    model.check(store)
    again = store.upsert(frame)
    assert (again.counts["created"], again.counts["unchanged"]) == (500, 500)
    model.upserted(frame, again)
    model.check(store)


def test_a_standby_in_sync_takes_over(pair: Pair) -> None:
    """65: nothing is lost, and nothing is reported as lost; also with typed metadata of an in-memory frame."""
    model, store = Model(), pair.open(workers=2)
    frame = rows(1_000)

    def progress(done: int, total: int | None) -> None:
        if done == 300:
            pair.standby.catch_up()
            pair.fail_over()

    result = store.upsert(iter([frame]), batch_size=100, progress=progress)
    assert result.counts["unknown"] == 0
    assert result.counts["created"] >= 300
    model.upserted(frame, result)
    model.check(store)


def test_typed_metadata_is_recorded_again(pair: Pair) -> None:
    """65: the recorded fields of a new type are lost with the server, and recorded again at the end of the run."""
    store = pair.open(workers=1)
    pair.standby.receive_nothing()
    frame = ef.entities(pl.DataFrame({"id": [f"p{n}" for n in range(40)], "born": range(40)}), "person", id="id")

    def progress(done: int, total: int | None) -> None:
        if done == 20:
            pair.fail_over()

    result = store.upsert(frame, batch_size=10, progress=progress)
    assert result.counts["failed"] == 20, result
    assert store.verify().is_empty()
    assert store.read("person").schema["born"] == pl.Int64
    assert store.upsert(frame).ok
    assert store.verify().is_empty()


def test_deletions_that_were_lost(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """65: entities that exist again after a failover were not deleted."""

    monkeypatch.setattr("entityframes.writing.delete.DELETE_ROWS", 100)
    model, store = Model(), pair.open(workers=1)
    frame = rows(400)
    model.upserted(frame, store.upsert(frame))
    pair.standby.catch_up()
    delete, done = PostgresEngine.delete, []

    def deleting(engine: PostgresEngine, keys: pl.DataFrame, batch: Any) -> pl.DataFrame:
        if len(done) == 1:
            pair.standby.catch_up()
            pair.standby.receive_nothing()
        elif len(done) == 3 and pair.proxy.server is pair.primary:
            pair.fail_over()
        done.append(delete(engine, keys, batch))
        return done[-1]

    monkeypatch.setattr(PostgresEngine, "delete", deleting)
    result = store.delete(frame)
    assert result.counts["deleted"] == 200, result
    assert result.failed["row"].to_list() == list(range(100, 300))
    assert result.failed["error"].str.contains("repeat the call").fill_null(False).all()
    model.deleted(result)
    model.check(store)


def test_a_sync_does_not_record_what_was_lost(pair: Pair, tmp_path: Path) -> None:
    """65: files whose entities were lost with the old server are imported by the next sync, and no file is deleted."""
    store = pair.open(workers=1)
    texts = {f"n{number:03}.md": f"text {number}" for number in range(30)}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    sync = ef.DirectorySync(store, tmp_path)
    pair.standby.receive_nothing()

    def progress(done: int, total: int | None) -> None:
        if done >= 30 and pair.proxy.server is pair.primary:
            pair.fail_over()

    result = sync.sync(batch_size=10, progress=progress, delete=True)
    assert result.counts["created"] == 0, result
    assert result.counts["failed"] == 30
    assert not result.ok
    again = sync.sync(delete=True, max_delete=100)
    assert again.counts["created"] >= 30, again
    for name, text in texts.items():
        assert (tmp_path / name).read_text() == text
    assert sync.sync().ok
    assert store.verify().is_empty()


@pytest.mark.parametrize("call", ["upsert_entity", "plan"])
def test_single_calls_and_plans(pair: Pair, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """65: the connection breaks right after a plan's batches, before the call returns."""
    store = pair.open(workers=1)
    pair.standby.receive_nothing()
    write, done = PostgresEngine.write, []

    def writing(engine: PostgresEngine, batch_rows: pl.DataFrame, batch: Any) -> pl.DataFrame:
        written = write(engine, batch_rows, batch)
        if not done:
            done.append(True)
            pair.fail_over()
            with pytest.raises(ef.ConnectionLostError):
                engine.delete(batch_rows.select("entity_type", "id"), batch)
        return written

    monkeypatch.setattr(PostgresEngine, "write", writing)
    if call == "upsert_entity":
        with pytest.raises(ef.ConnectionLostError, match="may have been lost"):
            store.upsert_entity("note", "a", "text")
        assert store.last_result.counts["failed"] == 1
    else:
        result = store.plan(rows(10)).apply()
        assert result.counts["failed"] == 10, result
    assert store.stats().is_empty()


def test_no_server_is_left_to_confirm(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """65: the primary is killed after some batches, and nothing takes over: what was written is unknown."""
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 0.5)
    store = pair.open(workers=1)

    def source() -> Iterator[pl.DataFrame]:
        yield rows(100)
        yield rows(100, start=100)
        wait_until(lambda: pair.count() == 100, "a batch")
        pair.primary.kill()
        pair.proxy.cut()

    result = store.upsert(source(), batch_size=100)
    assert result.outcomes["status"].to_list()[:100] == ["unknown"] * 100
    # The server may have been killed during the COMMIT of the batch in flight.
    assert set(result.outcomes["status"][100:]) <= {"failed", "unknown", "cancelled"}
    assert result.outcomes["error"][0].startswith("the change was committed")


def test_vectors_that_were_lost_are_due(pair: Pair) -> None:
    """65: embedded content whose vectors are not on the new primary is due, and is embedded again."""
    store = pair.open(workers=1)
    store.upsert(rows(200))
    pair.standby.catch_up()
    pair.standby.receive_nothing()
    store.embed(ef.HashingEmbedder())
    pair.fail_over()
    assert store.stats()["due"].sum() == 200
    assert store.embed(ef.HashingEmbedder()).counts["embedded"] == 200
    assert store.stats()["due"].sum() == 0
    assert store.verify().is_empty()


@pytest.fixture
def alone(lasting: Pair) -> Iterator[Pair]:
    """A primary whose COMMIT waits for a standby that does not exist."""
    if lasting.primary.is_dead():
        lasting.primary.start()
    change = ["ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"]
    lasting.primary.sql("TRUNCATE entityframes.entities, entityframes.batches", database=lasting.database)
    lasting.primary.sql(*change)
    wait_until(
        lambda: lasting.primary.sql("SELECT current_setting('synchronous_standby_names')") == [("nobody",)],
        "the setting",
    )
    yield lasting
    lasting.primary.sql(change[0].replace("SET", "RESET").partition(" =")[0], change[1])


def _waiting(pair: Pair) -> set[tuple[int, str]]:
    """Backends whose COMMIT waits for a standby, and since when; excluding queries for whether one exists."""
    return set(
        pair.primary.sql(
            "SELECT pid, query_start::text FROM pg_stat_activity"
            " WHERE wait_event = 'SyncRep' AND query NOT LIKE '%pg_logical_emit_message%'"
        )
    )


def _each_wait(pair: Pair, run: Background, end: Callable[[int], Any]) -> Any:
    """What a run comes to whose waits for a standby are ended, one after the other."""
    ended: set[tuple[int, str]] = set()
    while run.is_alive():
        for one in _waiting(pair) - ended:
            end(one[0])
            ended.add(one)
        time.sleep(0.01)
    return run.outcome()


@pytest.mark.parametrize("count", [50, 3_000])
@pytest.mark.parametrize("who", ["cancel_backend", "terminate_backend", "cancel"])
def test_a_commit_that_was_not_replicated(alone: Pair, count: int, who: str) -> None:
    """65: the wait for a synchronous standby is cancelled: the rows are stored, and a warning reports the risk."""
    store, cancel, frame = alone.open(alone.primary.url(alone.database), workers=1), threading.Event(), rows(count)
    run = Background(lambda: store.upsert(frame, cancel=cancel))
    ended = 0

    def end(pid: int) -> None:
        nonlocal ended
        # The fields of the metadata are committed too, before the batch.
        if who == "cancel" and ended:
            cancel.set()
        else:
            alone.primary.sql(f"SELECT pg_{who if who != 'cancel' else 'cancel_backend'}({pid})")
        ended += 1

    result = _each_wait(alone, run, end)
    assert result.counts["created"] == count, result
    assert result.outcomes["error"].str.contains("no synchronous standby has confirmed it").fill_null(False).all()
    assert result.ok
    assert alone.count() == count


def test_a_deletion_that_was_not_replicated(alone: Pair) -> None:
    """65: the same of ids: they are deleted, and a warning reports the risk."""
    store, frame = alone.open(alone.primary.url(alone.database), workers=1), rows(50)

    def end(pid: int) -> None:
        alone.primary.sql(f"SELECT pg_cancel_backend({pid})")

    _each_wait(alone, Background(lambda: store.upsert(frame)), end)
    result = _each_wait(alone, Background(lambda: store.delete(frame.select("entity_type", "id"))), end)
    assert result.counts["deleted"] == 50, result
    assert result.outcomes["error"].str.contains("no synchronous standby has confirmed it").fill_null(False).all()
    assert alone.count() == 0


def test_ctrl_c_while_a_commit_waits_for_a_standby(alone: Pair) -> None:
    """65: the wait ends soon after the key was pressed; the rows are stored, and accounted for."""
    store, frame, over = alone.open(alone.primary.url(alone.database), workers=1), rows(3_000), threading.Event()

    def end(pid: int) -> None:
        alone.primary.sql(f"SELECT pg_cancel_backend({pid})")

    # The fields of the metadata are committed before the first batch.
    before = _each_wait(alone, Background(lambda: store.upsert(rows(1, start=3_000))), end)
    assert before.counts["created"] == 1, before

    def press() -> bool:
        ((pid, _),) = wait_until(lambda: _waiting(alone), "the COMMIT of the batch")
        os.kill(os.getpid(), signal.SIGINT)
        if not over.wait(60):
            end(pid)
        return over.is_set()

    presser = Background(press)
    with pytest.raises(KeyboardInterrupt):
        store.upsert(frame)
    over.set()
    assert presser.outcome(), "it waited until the database ended it"
    result = store.last_result
    assert result.counts["created"] == 3_000, result
    assert result.outcomes["error"].str.contains("no synchronous standby has confirmed it").fill_null(False).all()
    assert alone.count() == 3_001


def test_a_commit_that_was_replicated(pair: Pair) -> None:
    """65: with a synchronous standby that responds there is no warning; none of the batch is lost with the primary."""
    store = pair.open(workers=1)
    pair.primary.sql(f"ALTER SYSTEM SET synchronous_standby_names = '{pair.standby.name}'", "SELECT pg_reload_conf()")
    wait_until(
        lambda: pair.primary.sql("SELECT pid FROM pg_stat_replication WHERE sync_state = 'sync'"), "a standby in step"
    )
    model, frame = Model(), rows(500)

    def progress(done: int, total: int | None) -> None:
        if done == 300:
            pair.fail_over()
            pair.standby.sql("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")

    result = store.upsert(frame, batch_size=100, progress=progress)
    assert result.counts["created"] == 500, result
    assert result.outcomes["error"].null_count() == 500
    model.upserted(frame, result)
    model.check(store)


def test_a_failing_batch_leaves_another_its_time(
    own_server: Server, own_store, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """51: the server is down: when one batch gives up, another batch still has time to learn what its COMMIT did."""
    # Otherwise it would give up at once, long before the server is back.
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS_WHEN_STOPPED", 0.0)
    monkeypatch.setattr(retry, "LOOK_UP_SECONDS", 300.0)
    model, store = Model(), own_store(port=proxy.port, workers=2)
    frame = rows(150)

    def source() -> Iterator[pl.DataFrame]:
        yield frame[:50]
        # A full batch is started when the next frame arrives.
        yield frame[50:100]
        assert proxy.dropped.wait(120)
        yield frame[100:]

    def progress(done: int, total: int | None) -> None:
        if proxy.refuse:
            # The second batch has failed.
            time.sleep(0.5)
            proxy.refuse = False

    proxy.drop_answer_to, proxy.refuse_after_drop = frame["id"][7].encode(), True
    run = Background(lambda: store.upsert(source(), batch_size=50, progress=progress))
    result = run.outcome()
    assert result.counts["unknown"] == 0, result
    assert result.counts["created"] >= 50
    assert result.outcomes["status"].to_list()[:50] == ["created"] * 50
    assert result.failed["error_kind"].unique().to_list() == ["connection"]
    assert result.counts["failed"] <= 100, "more batches than there are writers"
    model.upserted(frame[: result.rows], result)
    model.check(store)
