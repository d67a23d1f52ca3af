"""PostgreSQL: which operations wait for each other when vectors are written and jobs are claimed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import polars as pl
import pytest

import entityframes as ef
from tests.faults.servers import COMMIT, WAITING, Background, Proxy, Server, backends, wait_until


class Embedder(ef.HashingEmbedder):
    """Runs a hook of the test before each call."""

    def __init__(self, before: Callable[[], Any] = lambda: None, max_batch: int = 100) -> None:
        super().__init__(16, max_batch=max_batch)
        self.before = before
        self.texts: list[str] = []

    def embed(self, texts: Sequence[str], /) -> Any:
        self.texts += texts
        self.before()
        return super().embed(texts)


def notes(count: int, text: str = "text") -> pl.DataFrame:
    return pl.DataFrame({"n": range(count)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("{} {}", pl.lit(text), "n")
    )


def vectors(server: Server, database: str) -> list[tuple[str, bool]]:
    """The id of each vector, and whether it belongs to the stored content."""
    return server.sql(
        "SELECT v.id, e.content_hash IS NOT DISTINCT FROM v.content_hash FROM entityframes.passages AS v "
        "LEFT JOIN entityframes.entities AS e USING (entity_type, id) ORDER BY 1",
        database=database,
    )


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("change", ["edit", "edit of many", "delete"])
def test_a_change_waits_for_the_vector_that_is_being_written(
    own_server: Server, database: str, own_store, proxy: Proxy, change: str, stale: bool
) -> None:
    """No entity is edited or deleted between the check of its hash and the COMMIT; then it is due or gone."""
    store, other = own_store(port=proxy.port, workers=1), own_store(workers=1)
    if stale:
        store.upsert(notes(3, "older"), progress=False)
        store.embed(Embedder(), progress=False)
    store.upsert(notes(3), progress=False)

    def hold() -> None:
        proxy.hold_before = COMMIT

    writing = Background(lambda: store.embed(Embedder(hold), progress=False))
    assert proxy.held.wait(60)
    changing = Background(
        lambda: (
            other.delete(notes(1))
            if change == "delete"
            else other.upsert(notes(1 if change == "edit" else 3_000, "newer"), embed=False, progress=False)
        )
    )
    wait_until(lambda: backends(own_server, database, WAITING) or not changing.is_alive(), "the change to wait", 60)
    assert changing.is_alive(), "it does not wait"
    proxy.go.set()
    assert writing.outcome().counts["embedded"] == 3
    assert changing.outcome().ok
    if change == "delete":
        assert vectors(own_server, database) == [("n1", True), ("n2", True)]
    else:
        assert vectors(own_server, database)[0] == ("n0", False)
        assert store.stats()["due"].to_list() == [1 if change == "edit" else 3_000]
    assert store.verify().is_empty()


@pytest.mark.parametrize("ends", ["COMMIT", "ROLLBACK"])
def test_a_vector_waits_for_a_change_that_is_being_made(
    own_server: Server, database: str, own_store, ends: str
) -> None:
    """Whether the vector is current is decided after the change is committed or rolled back; no entity is skipped."""
    store = own_store(workers=1)
    store.upsert(notes(3), progress=False)
    edit = "UPDATE entityframes.entities SET content = 'newer', content_hash = sha256('newer') WHERE id = 'n1'"
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as cursor:

        def begin() -> None:
            cursor.execute("BEGIN")
            cursor.execute(edit)

        writing = Background(lambda: store.embed(Embedder(begin), progress=False))
        wait_until(lambda: backends(own_server, database, WAITING) or not writing.is_alive(), "the vector to wait", 60)
        assert writing.is_alive(), "it does not wait"
        cursor.execute(ends)
    result = writing.outcome()
    assert result.counts["embedded"] == (3 if ends == "ROLLBACK" else 2)
    assert result.counts["skipped"] == (0 if ends == "ROLLBACK" else 1)
    written = [("n0", True), ("n1", True), ("n2", True)]
    assert vectors(own_server, database) == (written if ends == "ROLLBACK" else [written[0], written[2]])


def test_a_job_that_another_worker_is_claiming_is_skipped(own_server: Server, database: str, own_store) -> None:
    """The worker takes the next job; the first one is left to the worker that is claiming it."""
    store = own_store()
    store.upsert(notes(40), batch_size=20, progress=False)
    done = "SELECT count(*) FROM entityframes.embedding_jobs WHERE state = 'done'"
    with adbc.connect(own_server.url(database), autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("SELECT job_id FROM entityframes.embedding_jobs ORDER BY created_at, job_id LIMIT 1 FOR UPDATE")
        working = Background(lambda: store.embed(Embedder(), progress=False))
        wait_until(
            lambda: own_server.sql(done, database=database) == [(1,)] or backends(own_server, database, WAITING),
            "the second job", 60,
        )  # fmt: skip
        assert own_server.sql(done, database=database) == [(1,)]
        assert working.is_alive()
        cursor.execute("ROLLBACK")
    assert working.outcome().counts["embedded"] == 40


def test_two_claims_at_once(own_server: Server, database: str, own_store, proxy: Proxy) -> None:
    """While one worker is claiming a job, another worker gets another job, and each job is processed once."""
    first, second = own_store(port=proxy.port, workers=1), own_store(workers=1)
    first.upsert(notes(40), batch_size=20, progress=False)
    embedders = [Embedder(), Embedder()]
    first.embed(embedders[0], cancel=_set(), progress=False)
    proxy.hold_before = b"SKIP LOCKED"
    holding = Background(lambda: first.embed(embedders[0], progress=False))
    assert proxy.held.wait(60)
    assert second.embed(embedders[1], progress=False).counts["embedded"] == 40
    proxy.go.set()
    assert holding.outcome().rows == 0
    assert (embedders[0].texts, len(embedders[1].texts)) == ([], 40)


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event


@contextmanager
def transaction(server: Server, database: str, *statements: str) -> Iterator[Any]:
    """A cursor on another connection, in a transaction that has executed these statements."""
    with adbc.connect(server.url(database), autocommit=True) as connection, connection.cursor() as cursor:
        for statement in ("BEGIN", *statements):
            cursor.execute(statement)
        yield cursor
        cursor.execute("COMMIT")


def embedded(own_store: Callable[..., ef.EntityStore]) -> ef.EntityStore:
    """A store with a space."""
    store = own_store()
    store.upsert(notes(3), progress=False)
    store.embed(Embedder(), progress=False)
    return store


def test_a_new_space_does_not_wait_for_searches(own_server: Server, database: str, own_store) -> None:
    """Neither for one that is running, nor do later ones wait for the new space."""
    store = embedded(own_store)
    with transaction(own_server, database, "SELECT 1 FROM entityframes.passages, entityframes.embeddings LIMIT 1"):
        Background(lambda: store.embed(Embedder(), space="second", progress=False)).outcome()
    assert store.spaces()["embedded"].to_list() == [3, 3]
    assert store.verify().is_empty()


def test_a_dropped_space_that_meets_a_deadlock(own_server: Server, database: str, own_store) -> None:
    """It is dropped again, when the query that read the tables in another order is over."""
    # The server ends the transaction whose lock timed out first.
    own_server.sql(f"ALTER DATABASE {database} SET deadlock_timeout = '3s'")
    store = embedded(own_store)
    patient = "SET LOCAL deadlock_timeout = '60s'"
    with transaction(own_server, database, patient, "SELECT 1 FROM entityframes.passages LIMIT 1") as cursor:
        dropping = Background(lambda: store.drop_space("hashing-16"))
        wait_until(lambda: backends(own_server, database, WAITING) or not dropping.is_alive(), "the space to wait", 60)
        assert dropping.is_alive(), "it does not wait"
        cursor.execute("LOCK TABLE entityframes.embeddings, entityframes.spaces IN ACCESS SHARE MODE")
    dropping.outcome()
    own_server.sql(f"ALTER DATABASE {database} RESET deadlock_timeout")
    assert store.spaces().is_empty()
    deadlocks = f"SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = '{database}'"
    wait_until(lambda: own_server.sql(deadlocks) == [(True,)], "the deadlock to be counted", 20)


@pytest.mark.parametrize("call", ["enqueue", "retry_failed"])
def test_queueing_again_that_meets_a_deadlock(own_server: Server, database: str, own_store, call: str) -> None:
    """It is tried again when the transaction that locked two failed texts in the opposite order is over."""
    own_server.sql(f"ALTER DATABASE {database} SET deadlock_timeout = '3s'")
    store = embedded(own_store)
    store.upsert(notes(2, "refused"), progress=False)

    def refuse() -> None:
        if any("refused" in text for text in embedder.texts[-1:]):
            raise ValueError("refused")

    embedder = Embedder(refuse, max_batch=1)
    assert store.embed(embedder, progress=False).counts["failed"] == 2
    errors = "SELECT ctid FROM entityframes.embeddings WHERE error IS NOT NULL ORDER BY ctid"
    (first,), (second,) = own_server.sql(errors, database=database)
    lock = "SELECT FROM entityframes.embeddings WHERE ctid = '{}' AND error IS NOT NULL FOR UPDATE"
    patient = "SET LOCAL deadlock_timeout = '60s'"
    with transaction(own_server, database, patient, lock.format(second)) as cursor:
        queueing = Background(getattr(store, call))
        wait_until(lambda: backends(own_server, database, WAITING) or not queueing.is_alive(), "the call to wait", 60)
        assert queueing.is_alive(), "it does not wait"
        cursor.execute(lock.format(first))
    assert queueing.outcome() == 2
    deadlocks = f"SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = '{database}'"
    wait_until(lambda: own_server.sql(deadlocks) == [(True,)], "the deadlock to be counted", 20)
    assert store.embed(Embedder(), progress=False).counts["embedded"] == 2
    assert store.verify().is_empty()
