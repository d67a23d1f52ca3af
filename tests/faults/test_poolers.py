"""Case 46: transaction poolers, which switch the server connection of a client whenever they can."""

from __future__ import annotations

import contextlib
import json
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import adbc_driver_manager
import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest

import entityframes as ef
from entityframes.interrupt import Interrupt
from tests.conftest import execute
from tests.faults.invariants import Model, rows
from tests.faults.poolers import PGBOUNCER, PgBouncer, Pooler
from tests.faults.servers import COMMIT, Background, Proxy, Server

EMBEDDER = ef.HashingEmbedder(32)
#: The number of rounds of each client; an environment variable can raise it.
TURNS = int(os.environ.get("ENTITYFRAMES_POOLER_TURNS", "2"))

#: Statements of other clients on the server connections that wait for parameters, shaped like those of the package.
TRAPS = [
    "DELETE FROM app WHERE kind = $1::text OR id <> ALL ($2::text[])",
    "DELETE FROM app WHERE kind = $1::text",
    "DELETE FROM app WHERE kind <> ALL ($1::text[]) OR id <> ALL ($2::text[])",
    "INSERT INTO app SELECT 'trapped', $1::text",
    "INSERT INTO app SELECT 'trapped', 'none'",
]


class Foreign:
    """Another application on the same pooler: it owns a table, prepares statements, and sends some as one message."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stop = threading.Event()
        self._thread = Background(self._work)
        self.written = 0

    def _work(self) -> None:
        rng = random.Random(1)
        with adbc.connect(self._url, autocommit=True) as connection, connection.cursor() as cursor:
            while not self._stop.is_set():
                cursor.executescript(f"INSERT INTO app VALUES ('own', '{self.written}')")
                self.written += 1
                for trap in rng.sample(TRAPS, 2):
                    # The statement is prepared on some server connection; the driver may describe it on another one.
                    with contextlib.suppress(adbc_driver_manager.Error):
                        cursor.adbc_prepare(trap)
                self._stop.wait(0.001)

    def end(self) -> int:
        self._stop.set()
        self._thread.outcome()
        return self.written


class Client:
    """The calls of one store, one after another, with every answer compared with the expected one."""

    def __init__(self, url: str, name: str, folder: Path, seed: int) -> None:
        self.store = ef.connect(url, namespace=name, workers=2)
        self.name, self.model, self.calls = name, Model(), 0
        self._root = folder / name
        self._root.mkdir()
        self._random = random.Random(seed)

    def run(self, turns: int) -> None:
        for turn in range(turns):
            for call in (
                self._small,
                self._large,
                self._single,
                self._read,
                self._planned,
                self._delete,
                self._rejected,
            ):
                call(turn)
            self._embedded()
            self._folder(turn)

    def _upserted(self, frame: pl.DataFrame, result: ef.UpsertResult) -> None:
        self.calls += 1
        assert result.ok, result
        self.model.upserted(frame, result)

    def _small(self, turn: int) -> None:
        for start in range(0, 40, 10):
            frame = rows(10, f"{self.name} {turn}", start=start)
            self._upserted(frame, self.store.upsert(frame, progress=False))

    def _large(self, turn: int) -> None:
        frame = rows(2_500, f"{self.name} {turn % 2}", start=1_000 + 500 * turn)
        self._upserted(frame, self.store.upsert(frame, progress=False))

    def _single(self, turn: int) -> None:
        for number in range(10):
            id, content = f"s{number}", f"{self.name} {turn} {number}"
            self.store.upsert_entity("single", id, content)
            self.model.entities["single", id] = (content, {})
            assert self.store.get_entity("single", id)["content"] == content
            assert self.store.entity_exists("single", id)
            self.calls += 3

    def _read(self, turn: int) -> None:
        known = {id: content for (kind, id), (content, _) in self.model.entities.items() if kind == "note"}
        ids = ef.ids("note", [*self._random.sample(sorted(known), 30), "nowhere"])
        assert self.store.exists(ids)["exists"].to_list() == [True] * 30 + [False]
        found = self.store.get(ids)
        assert found["content"].to_list() == [known.get(id) for id in ids["id"]]
        read = self.store.read("note")
        assert dict(zip(read["id"], read["content"], strict=True)) == known
        some = self.store.scan("note").filter(pl.col("content").str.starts_with(self.name)).collect()
        assert set(some["id"]) == set(known)
        counted = {row["entity_type"]: row["entities"] for row in self.store.stats().iter_rows(named=True)}
        assert counted["note"] == len(known)
        self.calls += 6

    def _planned(self, turn: int) -> None:
        frame = rows(20, f"{self.name} planned {turn}")
        self._upserted(frame, self.store.plan(frame).apply())
        seen = self.store.get(frame.select("entity_type", "id"))
        frame = rows(20, f"{self.name} expected {turn}").join(
            seen.select("entity_type", "id", "content_hash"), on=["entity_type", "id"], maintain_order="left"
        )
        result = self.store.upsert(frame, expected_hash="content_hash", progress=False)
        assert result.counts["updated"] == 20
        self._upserted(frame.drop("content_hash"), result)

    def _delete(self, turn: int) -> None:
        ids = ef.ids("note", [f"e{number:06}" for number in range(5, 12)])
        result = self.store.delete(ids)
        assert result.counts["deleted"] == 7
        self.model.deleted(result)
        self.calls += 1

    def _rejected(self, turn: int) -> None:
        """Rows that the database rejects: the batch is retried on the same connection, and the reasons are reported."""
        for count in (10, 2_100):
            frame = rows(count, f"{self.name} bad {turn}", start=50_000)
            bad = pl.col("id").is_in(["e050003", "e050007"])
            frame = frame.with_columns(pl.when(bad).then(pl.lit("forbidden")).otherwise("content").alias("content"))
            result = self.store.upsert(frame, progress=False)
            assert set(result.failed["id"]) == {"e050003", "e050007"}, result
            assert result.failed["sqlstate"].to_list() == ["23514"] * 2
            self.model.upserted(frame, result)
            self.calls += 1

    def _embedded(self) -> None:
        self.store.embed(EMBEDDER, progress=False)
        self.store.enqueue(rows(5).select("entity_type", "id"))
        for mode in ("vector", "text", "hybrid"):
            found = self.store.search(f"{self.name} expected", embedder=EMBEDDER, mode=mode, k=5)
            assert found.height == 5
            assert found["content"].str.contains(self.name).all()
            where = pl.col("content").str.starts_with(self.name)
            found = self.store.search(self.name, embedder=EMBEDDER, mode=mode, k=5, where=where)
            assert found.height == 5
            assert found["content"].str.contains(self.name).all()
        assert self.store.stats()["due"].sum() == 0
        self.calls += 9

    def _folder(self, turn: int) -> None:
        for number in range(5):
            (self._root / f"f{number}.md").write_text(f"{self.name} file {turn} {number}\n")
        ef.DirectorySync(self.store, self._root, default_type="file", types=["file"]).sync()
        for number in range(5):
            stored = self.store.get_entity("file", f"f{number}")
            assert stored["content"].strip() == f"{self.name} file {turn} {number}"
            self.model.entities["file", f"f{number}"] = (stored["content"], stored["metadata"])
        self.calls += 6


def _run_all(own_server: Server, database: str, port: int, folder: Path, turns: int) -> tuple[int, int]:
    """Two stores and another application on one pooler. Returns the numbers of calls and foreign rows (must be 0)."""
    own_server.sql("CREATE TABLE app (kind text, id text)", "INSERT INTO app VALUES ('kept', 'x')", database=database)
    for name in ("apple", "pear"):
        ef.connect(own_server.url(database), namespace=name).close()
        own_server.sql(
            f"ALTER TABLE {name}.entities ADD CONSTRAINT allowed_content CHECK (content <> 'forbidden')",
            database=database,
        )
    url = own_server.url(database, port=port)
    clients = [Client(url, name, folder, seed) for seed, name in enumerate(("apple", "pear"))]
    foreign = Foreign(url)
    runs = [Background(lambda client=client: client.run(turns)) for client in clients]
    try:
        for run in runs:
            run.outcome(300)
    finally:
        written = foreign.end()
        for client in clients:
            client.store.close()
    found = execute(own_server.url(database), "SELECT kind, count(*) FROM app GROUP BY kind ORDER BY kind")
    assert found == [("kept", 1), ("own", written)], "the other application's table is not what it wrote"
    foreign_rows = 0
    for client in clients:
        others = {"apple": "pear", "pear": "apple"}[client.name]
        query = f"SELECT count(*) FROM {client.name}.entities WHERE content LIKE '%{others}%'"
        [(count,)] = own_server.sql(query, database=database)
        foreign_rows += count
        assert count == 0, f"{client.name} has {count} rows of {others}"
        with ef.connect(own_server.url(database), namespace=client.name) as direct:
            _same(client.model, direct)
    return sum(client.calls for client in clients), foreign_rows


def _same(model: Model, store: ef.EntityStore) -> None:
    stored = {
        (row["entity_type"], row["id"]): (row["content"], json.loads(row["metadata"]))
        for row in store.scan().collect().iter_rows(named=True)
    }
    assert stored == model.entities
    assert store.verify().is_empty()


@pytest.fixture(params=["swallowed", "refused", "replayed", "forwarded"])
def pooler(own_server: Server, request: pytest.FixtureRequest) -> Iterator[Pooler]:
    """One pooler for each way of handling a client's options."""
    pooler = Pooler(own_server, options=request.param)
    yield pooler
    pooler.close()


@pytest.mark.slow
def test_nothing_foreign(own_server: Server, database: str, pooler: Pooler, tmp_path: Path) -> None:
    """Case 46: every kind of call of two stores next to another application: no client sees data of another one."""
    calls, foreign_rows = _run_all(own_server, database, pooler.port, tmp_path, TURNS)
    assert foreign_rows == 0
    assert calls > 40 * TURNS
    assert pooler.switches > calls, "the pooler must have switched connections"


needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="PgBouncer is not installed")


@pytest.fixture
def pgbouncer(own_server: Server) -> Iterator[Any]:
    """A function that starts PgBouncer in front of the server, in a given mode."""
    started: list[PgBouncer] = []

    def start(mode: str, **settings: Any) -> PgBouncer:
        started.append(PgBouncer(own_server, mode, **settings))
        return started[-1]

    yield start
    for one in started:
        one.close()


@pytest.mark.slow
@needs_pgbouncer
@pytest.mark.parametrize("more", ["", "ignore_startup_parameters = options"])
def test_nothing_foreign_behind_pgbouncer(
    own_server: Server, database: str, pgbouncer: Any, tmp_path: Path, more: str
) -> None:
    """Case 46: the same behind PgBouncer, whether it rejects or ignores the options of a client's startup message."""
    _, foreign_rows = _run_all(own_server, database, pgbouncer("transaction", more=more).port, tmp_path, 1)
    assert foreign_rows == 0


def _pinned(store: ef.EntityStore) -> bool:
    with store._engine.database._pool.borrow() as connection:
        return connection.pinned


@needs_pgbouncer
@pytest.mark.parametrize("word", ["", "&pool_mode=transaction", "&pool_mode=session"])
def test_statement_pooling_is_refused(own_server: Server, database: str, pgbouncer: Any, word: str) -> None:
    """Case 46: it cannot keep a batch together, so the store does not open, whatever the URL says."""
    url = own_server.url(database, port=pgbouncer("statement").port)
    with pytest.raises(ef.ConnectError, match="statement pooling cannot be used"):
        ef.connect(url + word)


@needs_pgbouncer
def test_how_a_pooler_is_recognized(own_server: Server, database: str, pgbouncer: Any) -> None:
    """Case 46: a connection is direct only if its server process was started for it, unless the URL has a mode."""
    port = pgbouncer("session").port
    for url, pinned in (
        (own_server.url(database), False),
        (own_server.url(database) + "&pool_mode=transaction", True),
        (own_server.url(database, port=port), True),
        (own_server.url(database, port=port) + "&pool_mode=session", False),
    ):
        with ef.connect(url) as store:
            assert _pinned(store) is pinned, url
            store.upsert_entity("note", "a", url)
            assert store.get_entity("note", "a")["content"] == url


def test_pool_mode_in_the_url(own_server: Server, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``pool_mode`` in a URL is validated; options of the URL and of the environment are kept next to our own."""
    url = own_server.url(database)
    with pytest.raises(ef.ConnectError, match="pool_mode=statement"):
        ef.connect(url + "&pool_mode=statement")
    with pytest.raises(ef.ConnectError, match="transaction or session"):
        ef.connect(url + "&pool_mode=sessions")
    setting = "SELECT current_setting('work_mem') AS value"
    with (
        ef.connect(url + "&options=-c%20work_mem%3D4321kB") as store,
        store._engine.database._pool.borrow() as connection,
    ):
        assert connection.query_at_once(setting).item() == "4321kB"
        assert not connection.pinned
    words = f"host=127.0.0.1 port='{own_server.port}' user=postgres dbname='{database}' sslmode=disable"
    with (
        ef.connect(f"{words} options='-c work_mem=4321kB'") as store,
        store._engine.database._pool.borrow() as connection,
    ):
        assert connection.query_at_once(setting).item() == "4321kB"
        assert not connection.pinned
    with pytest.raises(ef.ConnectError):
        ef.connect(f"{words} options='-c work_mem=4321kB")
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=5432kB")
    with ef.connect(url) as store, store._engine.database._pool.borrow() as connection:
        assert connection.query_at_once(setting).item() == "5432kB"
        assert not connection.pinned


@pytest.mark.parametrize("count", [50, 3_000])
def test_the_answer_to_a_commit_is_lost_behind_a_pooler(
    own_server: Server, database: str, proxy: Proxy, count: int
) -> None:
    """The ledger shows what was committed, as on a direct connection."""
    model = Model()
    with ef.connect(own_server.url(database, port=proxy.port) + "&pool_mode=transaction", workers=1) as store:
        first = rows(20)
        model.upserted(first, store.upsert(first))
        frame = rows(count, "changed")
        proxy.drop_answer_to = COMMIT
        result = store.upsert(frame)
        assert proxy.dropped.is_set()
        assert (result.counts["updated"], result.counts["created"]) == (20, count - 20)
        model.upserted(frame, result)
        proxy.dropped.clear()
        proxy.drop_answer_to = COMMIT
        gone = store.delete(frame[:10])
        assert proxy.dropped.is_set()
        assert gone.counts["deleted"] == 10
        model.deleted(gone)
        model.check(store)


@pytest.mark.parametrize("word", ["", "&pool_mode=transaction"])
def test_what_fails_at_commit(own_server: Server, database: str, word: str) -> None:
    """A deferred constraint fails its rows and no others; a COMMIT after a swallowed error is seen as a rollback."""
    own_server.sql(
        "CREATE TABLE allowed (id text PRIMARY KEY)",
        "INSERT INTO allowed SELECT 'e' || to_char(n, 'FM000000') FROM generate_series(0, 98) AS n",
        "ALTER TABLE entityframes.entities ADD FOREIGN KEY (id) REFERENCES allowed DEFERRABLE INITIALLY DEFERRED",
        database=database,
    )
    model = Model()
    with ef.connect(own_server.url(database) + word) as store:
        frame = rows(100)
        result = store.upsert(frame)
        assert result.failed["id"].to_list() == ["e000099"]
        assert result.failed["sqlstate"].to_list() == ["23503"]
        model.upserted(frame, result)
        with pytest.raises(ef.PermanentError, match="nothing of it was written"):  # noqa: SIM117
            with store._engine.database._pool.borrow() as connection, connection.transaction(Interrupt()):
                with contextlib.suppress(ef.DatabaseError), connection.statement() as cursor:
                    cursor.execute("SELECT 1 / 0")
        _same(model, store)
