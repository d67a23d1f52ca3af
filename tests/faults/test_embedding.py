"""Killed embedding workers: their jobs are taken over, and no vector is of older content (cases 33 to 35)."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from tests.conftest import execute
from tests.faults.servers import COMMIT, Background, Proxy, wait_until
from tests.torture.embedding import sound, torture

#: Embeds what is due, slowly enough to be killed in between.
WORKER = textwrap.dedent(
    """
    import sys, time
    import entityframes as ef
    from entityframes.embedding.worker import EmbedOptions
    class Slow(ef.HashingEmbedder):
        def embed(self, texts):
            print("at work", flush=True)
            time.sleep(0.005)
            return super().embed(texts)
    with ef.connect(sys.argv[1]) as store:
        store._embed(Slow(16, max_batch=20), None, EmbedOptions(lease=float(sys.argv[2])), False, None)
    """
)


def notes(count: int, text: str) -> pl.DataFrame:
    return pl.DataFrame({"n": range(count)}).select(
        entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("{} {}", pl.lit(text), "n")
    )


def start(url: str, lease: float) -> subprocess.Popen[str]:
    """Start a worker and wait until it is embedding."""
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, url, str(lease)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert worker.stdout.readline() == "at work\n", worker.stderr.read() if worker.stderr else ""
    return worker


def check(store: ef.EntityStore, count: int) -> None:
    """One vector for each entity, of its current content; no unfinished job; no inconsistency."""
    assert store.stats().select("entities", "embedded", "due", "failed").row(0) == (count, count, 0, 0)
    assert set(store.jobs()["state"].cast(pl.String)) == {"done"}
    assert store.verify().is_empty()
    contents = store.scan("note").select("id", "content").collect()
    for row in contents.sample(5, seed=1).iter_rows(named=True):
        best = store.search(ef.HashingEmbedder(16).embed([row["content"]])[0], k=1)
        assert best["score"][0] == pytest.approx(1, abs=1e-5)


@pytest.mark.slow
def test_workers_are_killed(url: str) -> None:
    """A short run of what `python -m tests.torture.embedding` does."""
    figures = torture(url, kills=4, seed=5)
    assert sound(figures), figures


@pytest.mark.slow
def test_a_killed_worker_holds_its_job_no_longer_than_its_lease(url: str) -> None:
    """On PostgreSQL another worker waits for the lease; on DuckDB the file's next owner takes the job over."""
    with ef.connect(url) as store:
        store.upsert(notes(2_000, "text"), progress=False)
    worker = start(url, 1.0 if url.startswith("postgresql") else 3_600.0)
    worker.kill()
    worker.communicate()
    with ef.connect(url) as store:
        Background(lambda: store.embed(ef.HashingEmbedder(16), progress=False)).outcome(300)
        check(store, 2_000)


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_the_connection_is_lost_in_mid_job(url: str) -> None:
    """Backends are terminated while workers write; the run continues with new connections."""
    with ef.connect(url) as store:
        store.upsert(notes(3_000, "text"), batch_size=200, progress=False)
        struck = 0

        class Striking(ef.HashingEmbedder):
            def embed(self, texts: Any) -> Any:
                nonlocal struck
                if struck < 3:
                    struck += 1
                    execute(
                        url,
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                    )
                return super().embed(texts)

        result = store.embed(Striking(16, max_batch=50), progress=False)
        assert struck == 3
        assert result.counts["failed"] == 0
        store.enqueue()
        store.embed(ef.HashingEmbedder(16), progress=False)
        check(store, 3_000)


@pytest.mark.slow
def test_the_answer_to_the_commit_of_vectors_is_lost(
    own_store: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are embedded, except those that another writer has changed and embedded before the retry."""
    store, other = own_store(port=proxy.port), own_store()
    store.upsert(notes(20, "text"), progress=False)

    class Losing(ef.HashingEmbedder):
        def embed(self, texts: Any) -> Any:
            proxy.drop_answer_to = COMMIT
            return super().embed(texts)

    engine = type(store._engine.embedding)
    write, tries = engine.write_vectors, []

    def late(self: Any, *given: Any) -> pl.DataFrame:
        tries.append(given)
        if len(tries) == 2:
            other.upsert(notes(3, "new"), progress=False)
            tries.append(())
            other.embed(ef.HashingEmbedder(16), progress=False)
        return write(self, *given)

    monkeypatch.setattr(engine, "write_vectors", late)
    result = store.embed(Losing(16), progress=False)
    assert proxy.dropped.is_set()
    statuses = result.outcomes.filter(pl.col("id").is_in(["n0", "n1", "n2"]))["status"]
    assert statuses.cast(pl.String).to_list() == ["skipped"] * 3
    assert result.counts["embedded"] == 17
    check(store, 20)


@pytest.mark.slow
def test_sigterm_ends_a_watching_worker(url: str) -> None:
    """`embed --watch` embeds new content as it arrives, and ends after the batch in flight."""
    duckdb = not url.startswith("postgresql")
    with ef.connect(url) as store:
        store.upsert(notes(100, "text"), progress=False)
    words = ["embed", "--embedder", "hashing", "--option", "dim=16", "--watch", "--no-progress", "--store", url]
    worker = subprocess.Popen(
        [sys.executable, "-m", "entityframes", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert worker.stdout is not None
    assert "hashing-16" in worker.stdout.readline()
    if not duckdb:
        with ef.connect(url) as store:
            store.upsert(notes(150, "later"), progress=False)
            wait_until(lambda: not store.stats()["due"].item(), "the later content")
    worker.send_signal(signal.SIGTERM)
    _, errors = worker.communicate(timeout=120)
    assert worker.returncode == 0, errors
    assert "Traceback" not in errors
    with ef.connect(url) as store:
        check(store, 100 if duckdb else 150)
