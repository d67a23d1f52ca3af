"""Embedding workers are killed at random points while contents change; then each vector is held to its text.

On PostgreSQL two workers are processes of their own, and contents are edited here meanwhile. On DuckDB one process at a
time has the file: two worker threads, and one that edits. Exit status 1 if an entity has no vector of its content, or
one of an older text, or a job was left to a dead worker for longer than its lease.
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
#: Seconds of a lease, and how much longer a job may stay with a dead worker: the others are at work, or are killed too.
LEASE = 1.0
GRACE = 60.0


class Slow(ef.HashingEmbedder):
    """Takes a while, so that a kill may strike while it embeds as well as while vectors are written; tells its start."""

    told = False

    def embed(self, texts: Sequence[str], /) -> np.ndarray[Any, Any]:
        if not Slow.told:
            Slow.told = True
            print("at work", flush=True)
        time.sleep(0.005)
        return super().embed(texts)


def edit(store: ef.EntityStore, chance: random.Random) -> None:
    """Change some contents, delete some entities, and store some again."""
    numbers = chance.sample(range(KEYS), chance.choice([1, 20, 200]))
    keys = ef.ids("note", [f"n{number:04}" for number in numbers])
    if chance.random() < 0.2:
        store.delete(keys)
    else:
        version = str(chance.random())
        store.upsert(
            keys.with_columns(content=pl.format("version {} of {}", pl.lit(version), "id")),
            batch_size=chance.choice([None, 30]),
            progress=False,
        )


def edit_until(stopping: threading.Event, store: ef.EntityStore, chance: random.Random) -> None:
    while not stopping.wait(chance.uniform(0, 0.1)):
        edit(store, chance)


def work(url: str, seed: str, once: bool) -> None:
    """A worker: until it is killed, or once until nothing is due."""
    with ef.connect(url) as store:
        stopping = threading.Event()
        if not once and not url.startswith("postgresql"):
            threading.Thread(target=edit_until, args=(stopping, store, random.Random(seed)), daemon=True).start()
        options = EmbedOptions(workers=1 if url.startswith("postgresql") else 2, lease=LEASE)
        while True:
            store._embed(Slow(DIM, max_batch=20), None, options, False, None)
            if once:
                return
            time.sleep(0.01)


class Workers:
    """Worker processes; whichever is killed is followed by another one."""

    def __init__(self, url: str, count: int, seed: int) -> None:
        self._url, self._count, self._seed = url, count, seed
        self.running: list[subprocess.Popen[str]] = []
        self.unexpected: list[str] = []

    def start(self, *more: str) -> subprocess.Popen[str]:
        self._seed += 1
        command = [sys.executable, "-m", "tests.torture.embedding", "--worker", self._url, str(self._seed), *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def kill_one(self, chance: random.Random) -> None:
        """Start what is missing, let it come to work, and kill one after a random while."""
        while len(self.running) < self._count:
            self.running.append(self.start())
            stdout = self.running[-1].stdout
            assert stdout is not None
            stdout.readline()
        # The moment is what is random.
        time.sleep(chance.uniform(0, 0.4))
        self._end(self.running.pop(chance.randrange(len(self.running))))

    def kill_all(self) -> None:
        while self.running:
            self._end(self.running.pop())

    def _end(self, worker: subprocess.Popen[str]) -> None:
        worker.send_signal(signal.SIGKILL)
        self._judge(worker, -signal.SIGKILL)

    def finish(self) -> None:
        """A last worker that nobody kills."""
        self._judge(self.start("--once"), 0)

    def _judge(self, worker: subprocess.Popen[str], expected: int) -> None:
        _, said = worker.communicate(timeout=120)
        if worker.returncode != expected:
            self.unexpected.append(said.strip()[-2_000:])


class Leases:
    """Watches how long jobs stay with a worker whose lease has ended, on PostgreSQL."""

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
    """Kill workers of a store that nobody else uses; the figures."""
    chance = random.Random(seed)
    postgres = url.startswith("postgresql")
    workers = Workers(url, 2 if postgres else 1, seed)
    with ef.connect(url) as store:
        keys = ef.ids("note", [f"n{number:04}" for number in range(KEYS)])
        store.upsert(keys.with_columns(content=pl.format("text of {}", "id")), batch_size=100, progress=False)
    if postgres:
        with ef.connect(url) as store, Leases(url) as leases:
            stopping = threading.Event()
            editor = threading.Thread(target=edit_until, args=(stopping, store, random.Random(seed)))
            editor.start()
            for _ in range(kills):
                workers.kill_one(chance)
            stopping.set()
            editor.join()
            workers.kill_all()
            given_up = retry_given_up(store)
            workers.finish()
        longest = leases.longest
    else:
        for _ in range(kills):
            workers.kill_one(chance)
        with ef.connect(url) as store:
            given_up = retry_given_up(store)
        # What a killed process held is nobody's: the next one need not wait for a lease.
        started = time.monotonic()
        workers.finish()
        longest = max(0.0, time.monotonic() - started - LEASE)
    with ef.connect(url) as store:
        more = {"given up": given_up, "longest past a lease": round(longest, 2), "unexpected": workers.unexpected}
        return judged(store, kills) | more


def retry_given_up(store: ef.EntityStore) -> int:
    """Queue the jobs again that so many workers died at that they were failed; how many these are."""
    given_up = store.jobs("failed").height
    if given_up:
        store.retry_failed()
    return given_up


def judged(store: ef.EntityStore, kills: int) -> dict[str, Any]:
    """What is wrong with the vectors and jobs of a store, if anything is."""
    contents = store.scan("note").select("id", "content").collect()
    vectors = pl.DataFrame(stored_vectors(store), schema=["id", "vector"], orient="row")
    both = contents.join(vectors, on="id", how="left")
    expected = ef.HashingEmbedder(DIM).embed(both["content"].to_list())
    of_content = [
        vector is not None and np.allclose(vector, right, atol=1e-5)
        for vector, right in zip(both["vector"].to_list(), expected, strict=True)
    ]
    return {
        "kills": kills,
        "jobs": store.jobs().height,
        "entities": contents.height,
        "vectors": vectors.height,
        "without a vector": both["vector"].null_count(),
        "of older text": of_content.count(False) - both["vector"].null_count(),
        "jobs not done": store.jobs().filter(pl.col("state") != "done").height,
        "due": int(store.stats()["due"].sum()),
        "inconsistencies": store.verify().height,
    }


def stored_vectors(store: ef.EntityStore) -> list[tuple[str, list[float]]]:
    """Every vector, as the database has it."""
    engine: Any = store._engine
    if engine.name == "postgresql":
        url, stored = engine._pool._target, "FROM entityframes.embeddings WHERE error IS NULL"
        if execute(url, "SELECT DISTINCT storage FROM entityframes.spaces") == [("pgvector",)]:
            return execute(url, f"SELECT id, pgvector::real[] {stored}")
        ids, vectors = zip(*execute(url, f"SELECT id, vector {stored}"), strict=True)
        return list(zip(ids, from_wire(pl.Series(vectors, dtype=pl.Binary), DIM).tolist(), strict=True))
    with engine._file.cursor() as cursor:
        return cursor.execute(f"SELECT id, vector_{DIM} FROM entityframes.embeddings WHERE error IS NULL").fetchall()


def sound(figures: dict[str, Any]) -> bool:
    """Whether each entity has exactly one vector, of its content, and no job stayed with a dead worker."""
    wrong = ("without a vector", "of older text", "jobs not done", "due", "inconsistencies", "unexpected")
    return (
        not any(figures[name] for name in wrong)
        and figures["vectors"] == figures["entities"] > 0
        and figures["longest past a lease"] < GRACE
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture.embedding", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="on each engine")
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
