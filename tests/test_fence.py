"""Fencing of jobs: once another worker has claimed a job, nothing that the previous worker still does takes effect."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

import entityframes as ef
from entityframes.embedding.worker import EmbedOptions
from tests.faults.servers import Background, wait_until
from tests.test_embedding import Recording, embed, notes, vectors_are_current

#: Longer than anything here takes; a test that waits this long has failed.
TIMEOUT = 60.0
ENDED = "UPDATE entityframes.embedding_jobs SET lease_until = now() - INTERVAL '1 minute'"
JOBS = "SELECT * FROM entityframes.embedding_jobs ORDER BY job_id"


class Second:
    """A worker that claims a job whose lease has expired, and then works on it until `finish` is called."""

    def __init__(self, store: ef.EntityStore, sql: Callable[..., Any]) -> None:
        self._store, self._sql = store, sql
        self._claimed, self._go = threading.Event(), threading.Event()
        self.run: Background | None = None
        #: The jobs right after the claim.
        self.jobs: list[tuple[Any, ...]] = []

    def claim(self) -> None:
        """Claim the job, without doing any work."""
        if self.run is not None:
            return
        self._sql(ENDED)

        def hold(texts: Sequence[str]) -> None:
            self._claimed.set()
            assert self._go.wait(TIMEOUT)

        self.run = Background(lambda: embed(self._store, Recording(before=hold)))
        assert self._claimed.wait(TIMEOUT)
        self.jobs = self._sql(JOBS)

    def finish(self) -> ef.EmbedResult:
        """Let it do its work."""
        self._go.set()
        assert self.run is not None
        result: ef.EmbedResult = self.run.outcome()
        return result

    def end(self) -> None:
        self._go.set()


@pytest.fixture
def second(connect: Callable[..., ef.EntityStore], sql: Callable[..., Any]) -> Any:
    """Another worker, with a separate store."""
    second = Second(connect(), sql)
    yield second
    second.end()


def writes(calls: list[list[str]], cancel: threading.Event) -> None:
    """All is embedded: it tries to write the vectors and finish the job."""
    cancel.set()


def fails(calls: list[list[str]], cancel: threading.Event) -> None:
    """The embedder fails: it tries to write the vectors it has, and to release the job."""
    if len(calls) == 2:
        raise ef.EmbedderError("no such model any more")


def gives_up(calls: list[list[str]], cancel: threading.Event) -> None:
    """The embedder is busy at every attempt: it tries to write the vectors it has, and to fail the job."""
    if len(calls) >= 2:
        cancel.set()
        raise ef.EmbedderBusyError("too many requests", 0.0)


def waits(calls: list[list[str]], cancel: threading.Event) -> None:
    """The embedder is busy once: it tries to renew its lease and record why it waits, then writes."""
    if len(calls) == 2:
        raise ef.EmbedderBusyError("too many requests", 0.0)
    if len(calls) == 3:
        cancel.set()


def stops(calls: list[list[str]], cancel: threading.Event) -> None:
    """It is cancelled while it waits for the embedder: it tries to release the job."""
    cancel.set()
    raise ef.EmbedderBusyError("too many requests", TIMEOUT)


@pytest.mark.parametrize("first_ends", [writes, fails, gives_up, waits, stops])
@pytest.mark.parametrize("stale", [False, True])
def test_what_the_first_worker_does_after_the_second_claimed(
    store: ef.EntityStore, sql: Callable[..., Any], second: Second, first_ends: Callable[..., None], stale: bool
) -> None:
    """It cannot write, finish, renew or release; the second worker finds the job as claimed, and completes it."""
    store.upsert(notes(20), progress=False)
    if stale:
        # Replacing vectors uses a different statement.
        embed(store)
        store.upsert(notes(20, "newer"), progress=False)
    before = sql("SELECT count(*), max(embedded_at) FROM entityframes.embeddings")
    cancel = threading.Event()

    def late(texts: Sequence[str]) -> None:
        second.claim()
        first_ends(first.calls, cancel)

    first = Recording(max_batch=20 if first_ends in (writes, stops) else 10, before=late)
    options = {"max_attempts": 1 if first_ends is gives_up else 2, "cancel": cancel}
    try:
        result = embed(store, first, **options)
    except ef.EmbedderError:
        result = store.last_result
    assert result.counts["embedded"] == 0
    assert len(first.texts) >= 20
    assert sql(JOBS) == second.jobs
    assert sql("SELECT count(*), max(embedded_at) FROM entityframes.embeddings") == before
    assert store.stats()["due"].to_list() == [20]
    assert second.finish().counts["embedded"] == 20
    assert store.jobs("done").height == store.jobs().height
    vectors_are_current(store, sql)
    assert store.verify().is_empty()


def test_an_expired_lease_that_was_not_taken_over(store: ef.EntityStore, sql: Callable[..., Any]) -> None:
    """The job still belongs to the worker, which renews the lease and continues."""
    store.upsert(notes(20), progress=False)
    running = "SELECT lease_until > now() FROM entityframes.embedding_jobs"

    def late(texts: Sequence[str]) -> None:
        if len(embedder.calls) == 1:
            sql(ENDED)
            assert sql(running) == [(False,)]
            raise ef.EmbedderBusyError("too many requests", 0.0)
        assert sql(running) == [(True,)]

    embedder = Recording(before=late)
    assert embed(store, embedder).counts["embedded"] == 20
    assert len(embedder.calls) == 2
    assert store.jobs()["state"].to_list() == ["done"]


def test_a_lease_is_renewed_while_its_worker_lives(store: ef.EntityStore, sql: Callable[..., Any]) -> None:
    """However long a call of the embedder takes."""
    store.upsert(notes(20), progress=False)
    lease = "SELECT lease_until, lease_until > now() FROM entityframes.embedding_jobs"

    def slow(texts: Sequence[str]) -> None:
        [(until, _)] = sql(lease)
        sql(ENDED)
        wait_until(lambda: [row for row in sql(lease) if row[0] > until and row[1]], "the renewal", TIMEOUT)

    result = store._embed(Recording(before=slow), None, EmbedOptions(lease=3.0), False, None)
    assert result.counts["embedded"] == 20


@pytest.mark.parametrize("died", [24, 25])
def test_a_job_that_kills_its_workers(store: ef.EntityStore, sql: Callable[..., Any], died: int) -> None:
    """After several takeovers it is failed, with the reason; its entities stay due."""
    store.upsert(notes(20), progress=False)
    embed(store, cancel=_set())
    sql(
        "UPDATE entityframes.embedding_jobs SET state = 'running', space = 'hashing-16', worker = 'elsewhere/1/', "
        f"lease_until = now() - INTERVAL '1 minute', rescues = {died}"
    )
    result = Background(lambda: embed(store)).outcome()
    assert result.counts["embedded"] == (20 if died == 24 else 0)
    job = store.jobs().row(0, named=True)
    assert (job["state"], job["error"]) == (("done", None) if died == 24 else ("failed", "25 workers died at it"))
    assert store.stats()["due"].to_list() == [0 if died == 24 else 20]
    assert store.retry_failed() == (0 if died == 24 else 20)
    if died == 25:
        # Its workers are counted anew.
        sql(
            "UPDATE entityframes.embedding_jobs SET state = 'running', worker = 'elsewhere/1/', "
            "lease_until = now() - INTERVAL '1 minute'"
        )
    assert embed(store).counts["embedded"] == (0 if died == 24 else 20)


def test_takeovers_are_counted(
    store: ef.EntityStore, connect: Callable[..., ef.EntityStore], sql: Callable[..., Any]
) -> None:
    """The last worker that may take it over dies too: it is not taken over again, and its late writes are rejected."""
    store.upsert(notes(20), progress=False)
    embed(store, cancel=_set())
    sql(
        "UPDATE entityframes.embedding_jobs SET state = 'running', space = 'hashing-16', worker = 'elsewhere/1/', "
        "lease_until = now() - INTERVAL '1 minute', rescues = 24"
    )
    other = connect()

    def die(texts: Sequence[str]) -> None:
        sql(ENDED)
        assert Background(lambda: embed(other)).outcome().rows == 0

    assert embed(store, Recording(before=die)).counts["embedded"] == 0
    job = store.jobs().row(0, named=True)
    assert (job["state"], job["error"]) == ("failed", "25 workers died at it")
    assert store.stats()["due"].to_list() == [20]


def _set() -> threading.Event:
    event = threading.Event()
    event.set()
    return event
