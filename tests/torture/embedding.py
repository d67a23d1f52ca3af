"""Embedding workers are killed at random moments while contents change; then each vector is checked against its text.

Contents have several passages, some of which are equal in many entities.

On PostgreSQL two workers are separate processes, and this process edits contents meanwhile. On DuckDB one process at a
time has the file: two worker threads, and one thread that edits. The exit status is 1 if a passage of an entity has no
vector, or one of another text, if an entity has passages of an older content, or if a job stayed with a dead worker for
longer than its lease.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

import entityframes as ef
from entityframes.embedding.worker import EmbedOptions
from entityframes.engines.embedding import from_wire
from tests.conftest import execute
from tests.faults.servers import Server
from tests.torture.summary import EMBEDDING_NAMES, summary

DIM = 16
KEYS = 600
PASSAGES = ef.Passages(size=100)
PLACE = "id, position, start_char, end_char"
STORED = (
    "FROM entityframes.passages AS p JOIN entityframes.embeddings AS v ON v.space = p.space "
    "AND v.text_hash = p.text_hash WHERE v.error IS NULL"
)
#: The lease in seconds, and the grace period of a job with a dead worker: the others are busy, or are killed too.
LEASE = 1.0
GRACE = 60.0


class Slow(ef.HashingEmbedder):
    """Slow, so that a kill may hit the embedding as well as the writing of vectors; prints a line when it starts."""

    announced = False

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        if not Slow.announced:
            Slow.announced = True
            print("at work", flush=True)
        time.sleep(0.005)
        return super().embed(texts)


def edit(store: ef.EntityStore, rng: random.Random) -> None:
    """Change some contents, delete some entities or unused vectors, and store some again."""
    numbers = rng.sample(range(KEYS), rng.choice([1, 20, 200]))
    keys = ef.ids("note", [f"n{number:04}" for number in numbers])
    if rng.random() < 0.2:
        store.delete(keys)
    elif rng.random() < 0.1:
        store.vacuum()
    else:
        version = str(rng.random())
        store.upsert(
            keys.with_columns(content=content(version)),
            batch_size=rng.choice([None, 30]),
            progress=False,
        )


def content(version: str) -> pl.Expr:
    """A content of five passages: one of the entity, one of a few versions, and three that are common."""
    common = [f"This is the common paragraph {number} of all of them, however many." for number in range(3)]
    own = pl.format("The version {} of the entity {}, which has some words.", pl.lit(version), "id")
    last = f"The last paragraph is of the kind {version[-1]}, of which there are ten at most."
    return pl.concat_str(pl.lit(common[0]), own, *map(pl.lit, [*common[1:], last]), separator="\n\n")


def edit_until(stopping: threading.Event, store: ef.EntityStore, rng: random.Random) -> None:
    while not stopping.wait(rng.uniform(0, 0.1)):
        edit(store, rng)


def work(url: str, seed: str, once: bool) -> None:
    """A worker that runs until it is killed, or with `once` until nothing is due."""
    with ef.connect(url) as store:
        stopping = threading.Event()
        if not once and not url.startswith("postgresql"):
            threading.Thread(target=edit_until, args=(stopping, store, random.Random(seed)), daemon=True).start()
        options = EmbedOptions(workers=1 if url.startswith("postgresql") else 2, lease=LEASE)
        while True:
            store._embed(Slow(DIM, max_batch=20), None, options, False, None, PASSAGES)
            if once:
                return
            time.sleep(0.01)


class Workers:
    """Worker processes; each killed one is replaced."""

    def __init__(self, url: str, count: int, seed: int) -> None:
        self._url, self._count, self._seed = url, count, seed
        self.running: list[subprocess.Popen[str]] = []
        self.unexpected: list[str] = []

    def start(self, *more: str) -> subprocess.Popen[str]:
        self._seed += 1
        command = [sys.executable, "-m", "tests.torture.embedding", "--worker", self._url, str(self._seed), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_one(self, rng: random.Random) -> None:
        """Start missing workers, wait until they work, and kill one after a random time."""
        while len(self.running) < self._count:
            self.running.append(self.start())
            stdout = self.running[-1].stdout
            assert stdout is not None
            stdout.readline()
        # Sleep for a random time.
        time.sleep(rng.uniform(0, 0.4))
        self._end(self.running.pop(rng.randrange(len(self.running))))

    def kill_all(self) -> None:
        while self.running:
            self._end(self.running.pop())

    def _end(self, worker: subprocess.Popen[str]) -> None:
        worker.send_signal(signal.SIGKILL)
        self._check(worker, -signal.SIGKILL)

    def finish(self) -> None:
        """Run a last worker, which is not killed."""
        self._check(self.start("--once"), 0)

    def _check(self, worker: subprocess.Popen[str], expected: int) -> None:
        _, errors = worker.communicate(timeout=120)
        if worker.returncode != expected:
            self.unexpected.append(errors.strip()[-2_000:])


class Leases:
    """Measures how long jobs stay with a worker whose lease has expired, on PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.longest = 0.0

    def __enter__(self) -> Leases:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        overdue = (
            "SELECT coalesce(max(extract(epoch FROM now() - lease_until)), 0)::float8 "
            "FROM entityframes.embedding_jobs WHERE state = 'running'"
        )
        while not self._stopping.wait(0.1):
            [(seconds,)] = execute(self._url, overdue)
            self.longest = max(self.longest, seconds)


def torture(url: str, kills: int, seed: int) -> dict[str, Any]:
    """Kill workers of a private store. Returns the figures."""
    rng = random.Random(seed)
    postgres = url.startswith("postgresql")
    workers = Workers(url, 2 if postgres else 1, seed)
    with ef.connect(url) as store:
        keys = ef.ids("note", [f"n{number:04}" for number in range(KEYS)])
        store.upsert(keys.with_columns(content=content("0")), batch_size=100, progress=False)
    if postgres:
        with ef.connect(url) as store, Leases(url) as leases:
            stopping = threading.Event()
            editor = threading.Thread(target=edit_until, args=(stopping, store, random.Random(seed)))
            editor.start()
            for _ in range(kills):
                workers.kill_one(rng)
            stopping.set()
            editor.join()
            workers.kill_all()
            given_up = retry_given_up(store)
            workers.finish()
        longest = leases.longest
    else:
        for _ in range(kills):
            workers.kill_one(rng)
        with ef.connect(url) as store:
            given_up = retry_given_up(store)
        # A job of a killed process is abandoned: the next process does not wait for its lease.
        started = time.monotonic()
        workers.finish()
        longest = max(0.0, time.monotonic() - started - LEASE)
    with ef.connect(url) as store:
        more = {"given up": given_up, "longest past a lease": round(longest, 2), "unexpected": workers.unexpected}
        return figures_of(store, kills) | more


def retry_given_up(store: ef.EntityStore) -> int:
    """Queue the jobs again that failed because too many workers died. Returns their number."""
    given_up = store.jobs("failed").height
    if given_up:
        store.retry_failed()
    return given_up


def figures_of(store: ef.EntityStore, kills: int) -> dict[str, Any]:
    """The counts of wrong vectors, unfinished jobs and inconsistencies of a store."""
    contents = store.scan("note").select("id", "content").collect()
    places = [
        (id, number, one.start, one.end, one.text)
        for id, text in contents.rows()
        for number, one in enumerate(PASSAGES.cut(text))
    ]
    wanted = pl.DataFrame(places, ["id", "position", "start", "end", "text"], orient="row")
    columns = ["id", "position", "start", "end", "vector"]
    vectors = pl.DataFrame(stored_vectors(store), columns, orient="row")
    both = wanted.join(vectors, on=columns[:-1], how="left")
    expected = ef.HashingEmbedder(DIM).embed(both["text"].to_list())
    of_content = [
        vector is not None and np.allclose(vector, right, atol=1e-5)
        for vector, right in zip(both["vector"].to_list(), expected, strict=True)
    ]
    return {
        "kills": kills,
        "jobs": store.jobs().height,
        "entities": contents.height,
        "passages": wanted.height,
        "vectors": vectors.height,
        "without a vector": both["vector"].null_count(),
        "of older text": of_content.count(False) - both["vector"].null_count(),
        "jobs not done": store.jobs().filter(pl.col("state") != "done").height,
        "due": int(store.stats()["due"].sum()),
        "inconsistencies": store.verify().height,
    }


def stored_vectors(store: ef.EntityStore) -> list[tuple[Any, ...]]:
    """The place of every passage, and its vector, as stored in the database."""
    engine: Any = store._engine
    if engine.database.name == "postgresql":
        url = engine.database._pool._target
        if execute(url, "SELECT DISTINCT storage FROM entityframes.spaces") == [("pgvector",)]:
            return execute(url, f"SELECT {PLACE}, pgvector::real[] {STORED}")
        *places, vectors = zip(*execute(url, f"SELECT {PLACE}, vector {STORED}"), strict=True)
        return list(zip(*places, from_wire(pl.Series(vectors, dtype=pl.Binary), DIM).tolist(), strict=True))
    with engine.database.file.cursor() as cursor:
        return cursor.execute(f"SELECT {PLACE}, vector_{DIM} {STORED}").fetchall()


def sound(figures: dict[str, Any]) -> bool:
    """Whether each passage has exactly one vector, of its text, and no job stayed with a dead worker."""
    wrong = ("without a vector", "of older text", "jobs not done", "due", "inconsistencies", "unexpected")
    return (
        not any(figures[name] for name in wrong)
        and figures["vectors"] == figures["passages"] > figures["entities"] > 0
        and figures["longest past a lease"] < GRACE
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="number of kills on each engine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["postgresql", "duckdb"], action="append")
    given = parser.parse_args()
    failed, postgresql = False, None
    every: dict[str, dict[str, Any]] = {}
    for engine in given.engine or ["postgresql", "duckdb"]:
        folder = Path(tempfile.mkdtemp(prefix="ef-torture-"))
        server = Server() if engine == "postgresql" else None
        try:
            if server is not None:
                server.sql("CREATE DATABASE torture")
                [(postgresql,)] = server.sql("SELECT current_setting('server_version')")
            url = str(folder / "torture.duckdb") if server is None else server.url("torture")
            figures = every[engine] = torture(url, given.kills, given.seed)
        finally:
            if server is not None:
                server.stop()
            shutil.rmtree(folder)
        print(json.dumps({"engine": engine, "seed": given.seed, **figures}), flush=True)
        failed |= not sound(figures)
    print(summary("torture.embedding", given.seed, every, EMBEDDING_NAMES, postgresql), flush=True)
    return int(failed)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        work(sys.argv[2], sys.argv[3], once="--once" in sys.argv)
    else:
        sys.exit(main())
