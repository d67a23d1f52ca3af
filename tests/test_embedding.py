"""Embedding jobs: created with the batch, processed in batches, derived from the outcomes of the store."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import polars as pl
import pytest

import entityframes as ef
from tests.conftest import execute

DIM = 16


class Recording(ef.HashingEmbedder):
    """A real embedder that records its calls, rejects texts with "poison", and runs a hook before each call."""

    def __init__(self, dim: int = DIM, max_batch: int = 100, before: Any = lambda texts: None) -> None:
        super().__init__(dim, max_batch=max_batch)
        self.calls: list[list[str]] = []
        self.before = before

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        self.calls.append(list(texts))
        self.before(texts)
        if any("poison" in text for text in texts):
            raise ValueError("cannot embed this")
        return super().embed(texts)

    @property
    def texts(self) -> list[str]:
        return [text for call in self.calls for text in call]


def notes(count: int, text: str = "text", start: int = 0) -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, start + count)}).select(
        entity_type=pl.lit("note"),
        id=pl.format("n{}", pl.col("n").cast(pl.String).str.zfill(5)),
        content=pl.format("{} {}", pl.lit(text), "n"),
    )


def embed(store: ef.EntityStore, embedder: Any = None, **options: Any) -> ef.EmbedResult:
    return store.embed(embedder or Recording(), progress=False, **options)


def vectors_are_current(store: ef.EntityStore, sql: Any, space: str = f"hashing-{DIM}") -> None:
    """Each content has exactly one vector, and it is that of the stored content."""
    stored = sql("SELECT entity_type, id, content_hash FROM entityframes.entities WHERE content <> '' ORDER BY 1, 2")
    embedded = sql(
        "SELECT p.entity_type, p.id, p.content_hash FROM entityframes.passages AS p "
        "JOIN entityframes.embeddings AS v ON v.space = p.space AND v.text_hash = p.text_hash "
        f"WHERE p.space = '{space}' AND p.text_hash = p.content_hash AND v.error IS NULL ORDER BY 1, 2"
    )
    assert [tuple(map(_plain, row)) for row in embedded] == [tuple(map(_plain, row)) for row in stored]


def _plain(value: Any) -> Any:
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else value


def test_one_job_per_batch(store: ef.EntityStore, sql: Any) -> None:
    """A thousand entities in ten batches make ten jobs, and embedding them gives one outcome each."""
    result = store.upsert(notes(1_000), batch_size=100, progress=False)
    jobs = store.jobs()
    assert jobs.height == 10
    assert jobs["entities"].to_list() == [100] * 10
    assert set(jobs["state"].cast(pl.String)) == {"pending"}
    assert set(jobs["job_id"]) == set(result.outcomes["job_id"])
    running: list[dict[str, Any]] = []
    embedder = Recording(before=lambda texts: running.append(store.jobs("running").row(0, named=True)))
    done = embed(store, embedder)
    assert done.ok
    assert {job["space"] for job in running} == set(store.jobs()["space"]) == {f"hashing-{DIM}"}
    assert all(job["updated_at"] > job["created_at"] for job in running)
    assert done.counts["embedded"] == 1_000
    assert done.calls == len(embedder.calls) == 10
    assert sorted(done.outcomes["id"]) == notes(1_000)["id"].to_list()
    assert set(store.jobs()["state"].cast(pl.String)) == {"done"}
    assert store.stats().select("embedded", "due", "failed").row(0) == (1_000, 0, 0)
    vectors_are_current(store, sql)
    assert store.verify().is_empty()


def test_only_what_changed_is_embedded_again(store: ef.EntityStore, sql: Any) -> None:
    """Content that is unchanged, or of which only metadata changed, is not sent to the model again."""
    store.upsert(notes(500), progress=False)
    embed(store)
    changed = pl.concat([notes(5, "new"), notes(495, start=5)])
    store.upsert(changed.with_columns(metadata=pl.struct(a=pl.lit(1))), progress=False)
    assert store.stats()["due"].to_list() == [5]
    embedder = Recording()
    assert embed(store, embedder).counts["embedded"] == 5
    assert sorted(embedder.texts) == [f"new {n}" for n in range(5)]
    assert embed(store, embedder).rows == 0
    vectors_are_current(store, sql)


def test_skipped_and_queued_later(store: ef.EntityStore, sql: Any) -> None:
    """embed=False creates no job; enqueue creates jobs by type, by id frame, or for all, only for what is due."""
    store.upsert(notes(30), embed=False, progress=False)
    store.upsert(notes(5).with_columns(entity_type=pl.lit("other")), embed=False, progress=False)
    assert store.jobs().height == 0
    assert embed(store).rows == 0
    assert store.enqueue("other") == 5
    assert embed(store).counts["embedded"] == 5
    assert store.enqueue(pl.concat([notes(10), notes(3, start=900)])) == 10
    assert embed(store).counts["embedded"] == 10
    assert store.enqueue() == 20
    assert embed(store).counts["embedded"] == 20
    assert store.enqueue() == 0
    vectors_are_current(store, sql)
    assert store.verify().is_empty()


def test_the_size_of_jobs_that_are_queued_later(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the last are full, for a type and for an id frame."""
    monkeypatch.setattr(f"{type(store._engine.embedding).__module__}.JOB_ROWS", 5)
    store.upsert(notes(12), embed=False, progress=False)
    for given in ("note", notes(12)):
        assert store.enqueue(given) == 12
        assert sorted(store.jobs("pending")["entities"]) == [2, 5, 5]
        assert embed(store).counts["embedded"] == 12
        store.upsert(notes(12, "new"), embed=False, progress=False)


def test_empty_content_is_not_embedded(store: ef.EntityStore) -> None:
    """There is nothing to embed; an entity whose content became empty is no longer found by its old vector."""
    store.upsert(notes(3), progress=False)
    embed(store)
    store.upsert(notes(3).with_columns(content=pl.lit("")), progress=False)
    assert store.stats().select("embedded", "due").row(0) == (0, 0)
    assert store.search("text 1", embedder=Recording()).is_empty()


def test_a_poisoned_text(store: ef.EntityStore, sql: Any) -> None:
    """It is found by bisection, recorded with its error, and retried on demand; the others are embedded."""
    rows = notes(1_024)
    rows = rows.with_columns(
        content=pl.when(pl.col("id") == "n00700").then(pl.lit("poison")).otherwise(pl.col("content"))
    )
    store.upsert(rows, progress=False)
    embedder = Recording(max_batch=1_024)
    result = embed(store, embedder)
    assert result.failed.select("id", "error_kind", "error").rows() == [
        ("n00700", "embedder", "ValueError: cannot embed this")
    ]
    assert result.counts["embedded"] == 1_023
    assert result.succeeded.select("error_kind", "error").null_count().row(0) == (1_023, 1_023)
    assert len(embedder.calls) <= 1 + 2 * math.log2(1_024) + 1
    assert store.stats().select("embedded", "due", "failed").row(0) == (1_023, 0, 1)
    assert embed(store).rows == 0
    assert store.retry_failed() == 1
    store.upsert(rows.filter(pl.col("id") == "n00700").with_columns(content=pl.lit("well again")), progress=False)
    assert embed(store).counts["embedded"] == 1
    assert store.stats()["failed"].to_list() == [0]
    vectors_are_current(store, sql)


def test_two_jobs_of_the_same_entities(store: ef.EntityStore, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Content that one job is still writing is not embedded again for the next one."""
    for text in ("text", "new", "newest"):
        store.upsert(notes(100, text), progress=False)
    embedding, asked = store._engine.embedding, threading.Semaphore(0)
    write, members = embedding.write_vectors, embedding.members

    def slowly(*given: Any) -> pl.DataFrame:
        # Wait until the worker has read what is due for this job and for the next one.
        for _ in range(2):
            asked.acquire(timeout=120)
        return write(*given)

    def members_read(*given: Any) -> pl.DataFrame:
        rows = members(*given)
        asked.release()
        return rows

    monkeypatch.setattr(embedding, "write_vectors", slowly)
    monkeypatch.setattr(embedding, "members", members_read)
    embedder = Recording()
    result = embed(store, embedder)
    assert result.counts["embedded"] == result.rows == len(embedder.texts) == 100
    assert set(store.jobs()["state"].cast(pl.String)) == {"done"}
    vectors_are_current(store, sql)


def test_a_busy_embedder(store: ef.EntityStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is retried after the requested delay; after too many attempts the job fails and its entities stay due."""
    store.upsert(notes(10), progress=False)
    waits: list[float] = []
    wait = threading.Event.wait

    def hours_pass(event: threading.Event, seconds: float | None = None) -> bool:
        if seconds is None or seconds < 60:
            return wait(event, seconds)
        waits.append(seconds)
        return event.is_set()

    monkeypatch.setattr(threading.Event, "wait", hours_pass)
    delays = [1_800.0, 900.0]

    def busy_twice(texts: Sequence[str]) -> None:
        if delays:
            raise ef.EmbedderBusyError("too many requests", delays.pop(0))

    result = embed(store, Recording(before=busy_twice))
    assert result.counts["embedded"] == 10
    assert waits == [1_800.0, 900.0]
    monkeypatch.undo()

    store.upsert(notes(10, "more"), progress=False)

    def busy(texts: Sequence[str]) -> None:
        raise ef.EmbedderBusyError("too many requests", 0.01)

    result = embed(store, Recording(before=busy), max_attempts=2)
    assert result.counts["failed"] == 10
    assert result.failed["error"].str.contains("too many requests").fill_null(False).all()
    assert not result.failed["error"].str.contains("EmbedderBusyError").any()
    assert store.stats()["due"].to_list() == [10]
    assert store.jobs("failed")["attempts"].to_list() == [2]
    assert store.retry_failed() == 10
    assert embed(store).counts["embedded"] == 10


def test_an_embedder_that_cannot_work(store: ef.EntityStore) -> None:
    """Its error ends the run, and the job waits for a working embedder."""
    store.upsert(notes(10), progress=False)

    def refuse(texts: Sequence[str]) -> None:
        raise ef.EmbedderError("no such model")

    with pytest.raises(ef.EmbedderError, match="no such model"):
        embed(store, Recording(before=refuse))
    assert store.jobs()["state"].cast(pl.String).to_list() == ["pending"]
    assert embed(store).counts["embedded"] == 10


def test_an_embedder_that_stops_working(store: ef.EntityStore) -> None:
    """Vectors that it returned before the error are kept, because they may have been paid for."""
    store.upsert(notes(50), progress=False)

    def refuse(texts: Sequence[str]) -> None:
        if len(embedder.calls) == 4:
            raise ef.EmbedderError("the account is empty")

    embedder = Recording(max_batch=10, before=refuse)
    with pytest.raises(ef.EmbedderError, match="empty"):
        embed(store, embedder)
    assert store.last_result.counts["embedded"] == 30
    assert store.last_result.counts["cancelled"] == 20
    assert embed(store, fresh := Recording()).counts["embedded"] == 20
    assert len(fresh.texts) == 20


def test_an_embedder_that_breaks_in_the_middle_of_a_batch(store: ef.EntityStore) -> None:
    """Texts that it would have embedded are not taken for bad ones because others of their batch went well."""
    store.upsert(pl.concat([notes(63), notes(1, "poison", start=63)]), progress=False)

    def breaks(texts: Sequence[str]) -> None:
        # All of them with the bad one, then those before it, then none any more.
        if len(embedder.calls) > 2:
            raise RuntimeError("the device is gone")

    embedder = Recording(before=breaks)
    with pytest.raises(ef.EmbedderError, match="the device is gone"):
        embed(store, embedder)
    assert store.stats().select("failed").item() == 0
    result = embed(store)
    assert (result.counts["embedded"], result.counts["failed"]) == (63, 1)


def test_a_job_that_is_written_in_parts(store: ef.EntityStore, sql: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is done when the last of them is written, and not before."""
    monkeypatch.setattr(store._engine.embedding, "write_bytes", 1)
    store.upsert(notes(50), progress=False)
    result = embed(store, Recording(max_batch=10))
    assert (result.counts["embedded"], result.rows, result.batches) == (50, 50, 5)
    assert store.jobs()["state"].cast(pl.String).to_list() == ["done"]
    vectors_are_current(store, sql)


def test_content_that_changes_while_it_is_embedded(connect: Any, sql: Any) -> None:
    """The vector of the older text is not written; the newer text is due and gets its own vector."""
    store, other = connect(), connect()
    store.upsert(notes(20), progress=False)
    edited = threading.Event()

    def edit(texts: Sequence[str]) -> None:
        if not edited.is_set():
            edited.set()
            other.upsert(notes(5, "newer"), progress=False)
            other.delete(notes(1, start=19))

    result = embed(store, Recording(before=edit))
    assert result.counts["skipped"] == 6
    assert result.counts["embedded"] == 14 + 5
    vectors_are_current(store, sql)
    assert store.verify().is_empty()


def test_the_vector_of_a_deleted_entity(store: ef.EntityStore, sql: Any) -> None:
    """It is not found, but kept for the case that the text is stored again, until the store is vacuumed or repaired."""
    store.upsert(notes(10), progress=False)
    embed(store)
    store.delete(notes(4))
    count = "SELECT count(*) FROM entityframes."
    assert (sql(f"{count}passages"), sql(f"{count}embeddings")) == ([(6,)], [(10,)])
    assert store.verify().is_empty()
    assert store.search("text 1", embedder=Recording(), k=10).height == 6
    store.upsert(notes(1), progress=False)
    embedder = Recording()
    assert (embed(store, embedder).counts["embedded"], embedder.texts) == (1, [])
    assert store.vacuum() == 3
    assert (store.vacuum(), sql(f"{count}embeddings")) == (0, [(7,)])
    store.delete(notes(1))
    assert store.verify(repair=True).is_empty()
    assert sql(f"{count}embeddings") == [(6,)]
    store.delete(notes(10))
    # A space is listed without entities, too.
    assert store.spaces().select("embedded", "due", "failed").rows() == [(0, 0, 0)]


def test_a_batch_that_is_rolled_back_leaves_no_job(store: ef.EntityStore) -> None:
    bad = pl.concat([notes(5), notes(1, start=5).with_columns(id=pl.lit(None, pl.String))])
    result = store.upsert(bad, on_error="rollback", progress=False)
    assert result.counts["failed"] == 6
    assert store.jobs().is_empty()
    assert store.stats().is_empty()


@pytest.mark.slow
def test_several_workers(store: ef.EntityStore, sql: Any) -> None:
    """Each job is processed by one of them; nothing is embedded twice."""
    store.upsert(notes(2_000), batch_size=50, progress=False)
    embedder = Recording(max_batch=25)
    result = embed(store, embedder, workers=4)
    assert result.counts["embedded"] == 2_000
    assert sorted(embedder.texts) == sorted(notes(2_000)["content"])
    vectors_are_current(store, sql)


def test_cancel(store: ef.EntityStore, sql: Any) -> None:
    """The batch in flight is still written; the rest returns to the queue."""
    store.upsert(notes(400), batch_size=100, progress=False)

    class CountingEvent(threading.Event):
        """Counts the threads that see that it is set."""

        seen = threading.Semaphore(0)

        def is_set(self) -> bool:
            if super().is_set():
                self.seen.release()
                return True
            return False

    cancel = CountingEvent()

    def press(texts: Sequence[str]) -> None:
        cancel.set()
        # A thread that checks a second time has completed its work after the first check.
        for _ in range(2):
            assert cancel.seen.acquire(timeout=120)

    embedder = Recording(max_batch=20, before=press)
    result = embed(store, embedder, cancel=cancel)
    assert 20 <= result.counts["embedded"] < 400
    assert store.stats()["embedded"].sum() == result.counts["embedded"]
    assert store.jobs("running").is_empty()
    assert embed(store).counts["embedded"] == 400 - result.counts["embedded"]
    vectors_are_current(store, sql)


def test_ctrl_c(store: ef.EntityStore, sql: Any) -> None:
    """KeyboardInterrupt without waiting for a hanging embedder; the job is queued again, and the store works."""
    store.upsert(notes(100), progress=False)
    hanging, returned = threading.Event(), threading.Event()

    def hang(texts: Sequence[str]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        hanging.wait(300)
        returned.set()

    with pytest.raises(KeyboardInterrupt):
        embed(store, Recording(before=hang))
    assert not returned.is_set()
    assert store.jobs()["state"].cast(pl.String).to_list() == ["pending"]
    assert isinstance(store.last_result, ef.EmbedResult)
    assert embed(store).counts["embedded"] == 100
    hanging.set()
    vectors_are_current(store, sql)


def test_spaces(store: ef.EntityStore, sql: Any) -> None:
    """A second model has separate vectors, is filled while searches use the first, and replaces it at once."""
    store.upsert(notes(60), progress=False)
    embed(store)
    assert embed(store, Recording(32), space="wide").counts["embedded"] == 60
    spaces = store.spaces()
    assert spaces.select("space", "model", "dim", "active", "embedded", "due").rows() == [
        (f"hashing-{DIM}", f"hashing-{DIM}", DIM, True, 60, 0),
        ("wide", "hashing-32", 32, False, 60, 0),
    ]
    store.upsert(notes(10, "new"), progress=False)
    assert store.spaces()["due"].to_list() == [10, 10]
    assert embed(store, Recording(32), space="wide").counts["embedded"] == 10
    assert store.spaces()["due"].to_list() == [10, 0]
    # An embedder selects the space of its model.
    assert store.search("new 3", k=1, embedder=Recording(32))["content"].to_list() == ["new 3"]
    store.activate(f"hashing-{DIM}")
    assert store.spaces()["space"].to_list() == [f"hashing-{DIM}", "wide"]
    store.activate("wide")
    assert store.spaces()["space"].to_list() == [f"hashing-{DIM}", "wide"]
    assert store.stats()["due"].to_list() == [0]
    found = store.search("new 3", k=1, embedder=Recording(32))
    assert found["content"].to_list() == ["new 3"]
    with pytest.raises(ef.SpaceError, match="32"):
        embed(store, Recording(), space="wide")
    with pytest.raises(ef.SpaceError, match="activate another"):
        store.drop_space("wide")
    with pytest.raises(ef.SpaceError, match="no space named 'narrow'"):
        store.activate("narrow")
    store.drop_space(f"hashing-{DIM}")
    assert store.spaces()["space"].to_list() == ["wide"]
    vectors_are_current(store, sql, "wide")
    assert store.verify().is_empty()


def test_the_last_space_is_dropped(store: ef.EntityStore, sql: Any) -> None:
    """Queued entities stay queued for the next space; others do not become queued."""
    store.upsert(notes(20), progress=False)
    store.upsert(notes(5, start=20), embed=False, progress=False)
    embed(store)
    store.drop_space(f"hashing-{DIM}")
    assert store.spaces().is_empty()
    assert store.jobs("pending").height == 1
    assert store.verify().is_empty()
    store.delete(notes(5, start=20))
    assert embed(store, Recording(32)).counts["embedded"] == 20
    vectors_are_current(store, sql, "hashing-32")
    assert store.verify().is_empty()


def test_an_entity_in_two_jobs_at_once(connect: Any, sql: Any) -> None:
    """The second job finds a vector that did not exist before; both complete, with one vector."""
    store, other = connect(), connect()
    store.upsert(notes(50), progress=False)
    enough = threading.Event()

    def overtake(texts: Sequence[str]) -> None:
        if not enough.is_set():
            assert other.enqueue() == 50
            # Cancelled after its batch: otherwise it would wait for the job that is held here.
            quick = Recording(before=lambda texts: enough.set())
            assert embed(other, quick, cancel=enough).counts["embedded"] == 50

    result = embed(store, Recording(before=overtake))
    assert result.counts["embedded"] == 50
    assert set(store.jobs()["state"].cast(pl.String)) == {"done"}
    vectors_are_current(store, sql)
    assert store.verify().is_empty()


def test_an_embedder_that_lies_about_its_dimension(store: ef.EntityStore) -> None:
    store.upsert(notes(3), progress=False)
    with pytest.raises(ef.EmbedderError, match=r"expected \(\d+, 16\)"):
        embed(store, type("Liar", (Recording,), {"embed": lambda self, texts: np.ones((len(texts), 7))})())
    assert store.jobs("pending").height == 1


def test_nan_is_not_a_vector(store: ef.EntityStore) -> None:
    """An embedder may return unusable values for a text; that text fails, with the reason."""
    store.upsert(notes(4), progress=False)

    class Broken(Recording):
        def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
            vectors = super().embed(texts)
            vectors[[text == "text 2" for text in texts]] = np.nan
            return vectors

    result = embed(store, Broken())
    assert result.failed.select("id", "error").rows() == [("n00002", "the vector contains NaN or infinity")]
    assert result.counts["embedded"] == 3


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_an_expired_lease(connect: Any, url: str, sql: Any) -> None:
    """A job of a worker that stopped renewing its lease is taken over, and its old worker can no longer write."""
    store, other = connect(), connect()
    store.upsert(notes(50), progress=False)
    taken = threading.Event()

    def lose(texts: Sequence[str]) -> None:
        if not taken.is_set():
            taken.set()
            execute(url, "UPDATE entityframes.embedding_jobs SET lease_until = now() - interval '1 minute'")
            assert embed(other).counts["embedded"] == 50

    result = embed(store, Recording(before=lose))
    assert result.counts["embedded"] == 0
    assert result.counts["skipped"] == 50
    assert store.jobs()["state"].cast(pl.String).to_list() == ["done"]
    vectors_are_current(store, sql)


def test_all_threads_of_a_process_have_the_same_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even threads that ask for it first, at the same time; on DuckDB they could otherwise steal each other's jobs."""
    from entityframes.embedding import worker

    start = threading.Barrier(4)

    def ask() -> str:
        start.wait(timeout=120)
        return worker.process_name()

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as threads:
            for _ in range(100):
                monkeypatch.setattr(worker, "_names", {})
                answers = [threads.submit(ask) for _ in range(4)]
                assert len({answer.result() for answer in answers}) == 1
    finally:
        sys.setswitchinterval(interval)
