"""Embedding due content compared with the embedder alone; worker processes; search over the vectors."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

import entityframes as ef
from benchmarks import data
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server

DEFAULT_ROWS = (100_000,)
ALONE = "embedder alone"
SEARCHES = 20

#: A worker whose embedder needs a core for a while, as a local model does.
_WORKER = """
import sys, time
import entityframes as ef
class Heavy(ef.HashingEmbedder):
    def embed(self, texts):
        end = time.process_time() + 0.002 * len(texts)
        vectors = super().embed(texts)
        while time.process_time() < end:
            pass
        return vectors
with ef.connect(sys.argv[1], namespace="embed") as store:
    store.embed(Heavy(256, max_batch=100), progress=False)
"""


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """With HashingEmbedder(256); every vector is written, guarded by its content hash."""
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder:
        targets = {"postgresql": url, "duckdb": str(Path(folder) / "vectors.duckdb")}
        for size in rows or DEFAULT_ROWS:
            frame = data.entities(size, seed=measurements.seed)
            for database, target in targets.items():
                if chosen(f"{OURS} {database}", only):
                    for _ in range(repeat):
                        _overhead(measurements, database, target, frame)
                    _search(measurements, database, target, frame)
            if chosen("workers", only):
                for _ in range(repeat):
                    for workers in (1, 2):
                        _workers(measurements, url, frame[: size // 25], workers)


def _filled(target: str, frame: pl.DataFrame, batch_size: int | None = None) -> ef.EntityStore:
    store = ef.connect(target, namespace="embed")
    store._engine.drop()
    store.close()
    store = ef.connect(target, namespace="embed")
    store.upsert(frame, batch_size=batch_size, progress=False).raise_for_failures()
    return store


def _overhead(measurements: Measurements, database: str, target: str, frame: pl.DataFrame) -> None:
    embedder = ef.HashingEmbedder(256)
    texts = frame["content"].to_list()
    where = {"database": database, "phase": "embed", "rows": frame.height}
    with measurements.timed(ALONE, **where):
        for start in range(0, len(texts), embedder.max_batch):
            embedder.embed(texts[start : start + embedder.max_batch])
    with _filled(target, frame) as store:
        with measurements.timed(OURS, **where):
            result = store.embed(embedder, progress=False)
        assert result.counts["embedded"] == frame.height
        store.upsert(data.change(frame, 100, 1), progress=False)
        with measurements.timed(OURS, **where | {"phase": "embed after 1 % changed"}):
            result = store.embed(embedder, progress=False)
        assert result.rows == result.counts["embedded"] == -(-frame.height // 100)


def _search(measurements: Measurements, database: str, target: str, frame: pl.DataFrame) -> None:
    embedder = ef.HashingEmbedder(256)
    queries = frame["content"].gather_every(max(frame.height // SEARCHES, 1)).head(SEARCHES).to_list()
    with _filled(target, frame) as store:
        store.embed(embedder, progress=False)
        kinds = ["exact"]
        for kind in kinds:
            for query in queries:
                vector = embedder.embed([query])[0]
                started = time.perf_counter()
                found = store.search(vector, k=10)
                seconds = time.perf_counter() - started
                assert found.height == 10
                where = {"database": database, "phase": f"search, {kind}", "rows": frame.height}
                measurements.add(OURS, seconds=seconds, **where)
            if kind == "exact" and store.index_space():
                kinds.append("HNSW")
        # The first text search builds the index.
        store.search("polars", mode="text")
        for query in queries:
            words = " ".join(query.split()[:6])
            with measurements.timed(OURS, database=database, phase="search by words", rows=frame.height):
                store.search(words, mode="text")


def _workers(measurements: Measurements, url: str, frame: pl.DataFrame, workers: int) -> None:
    with _filled(url, frame, batch_size=200) as store:
        started = time.perf_counter()
        processes = [subprocess.Popen([sys.executable, "-c", _WORKER, url]) for _ in range(workers)]
        assert [process.wait() for process in processes] == [0] * workers
        seconds = time.perf_counter() - started
        assert store.stats()["due"].sum() == 0
    noun = "process" if workers == 1 else "processes"
    measurements.add(
        f"{workers} worker {noun}", database="postgresql", phase="heavy embedder", rows=frame.height, seconds=seconds
    )
