"""A loop with queries for every single entity compared with one batch; round trips are counted on the wire."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import polars as pl

import entityframes as ef
from benchmarks.measure import OURS, Measurements, chosen
from benchmarks.postgres import server
from entityframes.bench.n_plus_one import sample, sync_in_batches, sync_one_by_one
from entityframes.bench.wire import WireProxy

DEFAULT_ROWS = (100, 1_000)
DEFAULT_LATENCIES = (0.0, 1.0, 10.0)

#: Connects, and yields the sync to be timed.
Contestant = Callable[[str, pl.DataFrame], AbstractContextManager[Callable[[], None]]]

#: A loop is not run if its added latency alone would exceed this number of seconds.
MAX_WAIT = 120.0


def run(
    measurements: Measurements,
    *,
    rows: list[int],
    repeat: int,
    postgres: str | None,
    only: str | None,
    latencies: list[float],
) -> None:
    """A sync of entities; half of them are stored, and half of the stored ones have changed."""
    for size in rows or DEFAULT_ROWS:
        for _ in range(repeat):
            _on_duckdb(measurements, size, only)
    contestants: dict[str, Contestant] = {
        OURS: _ours,
        "entityframes, batch_size=100": lambda url, frame: _ours(url, frame, batch_size=100),
        "entityframes, single-entity calls": _single_calls,
        "loop with psycopg": _psycopg_loop,
    }
    with server(postgres) as url:
        for latency in latencies or DEFAULT_LATENCIES:
            with WireProxy(url, latency_ms=latency) as proxy:
                for size in rows or DEFAULT_ROWS:
                    for _ in range(repeat):
                        for name, contestant in contestants.items():
                            if chosen(name, only) and (name == "entityframes" or size * latency / 500 < MAX_WAIT):
                                _measure(measurements, name, contestant, url, proxy, size)


def _measure(
    measurements: Measurements, name: str, contestant: Contestant, url: str,
    proxy: WireProxy, size: int,
) -> None:  # fmt: skip
    frame = sample(size, version=1)
    stored = pl.concat([frame[: size // 4], sample(size // 2, version=0)[size // 4 :]])
    _reset(url, stored)
    with contestant(proxy.url, frame) as sync:
        # Connecting is not counted: neither side connects for each sync.
        proxy.reset()
        start = time.perf_counter()
        sync()
        seconds = time.perf_counter() - start
        round_trips = proxy.round_trips
    measurements.add(
        name, database="postgresql", phase="sync", rows=size, seconds=seconds, latency_ms=proxy.latency_ms,
        round_trips=round_trips,
    )  # fmt: skip
    _check(url, name, frame)


def _on_duckdb(measurements: Measurements, size: int, only: str | None) -> None:
    """The same without a server: one call, single calls, and a loop with DuckDB alone, each on a new file."""
    import duckdb

    frame = sample(size, version=1)
    stored = pl.concat([frame[: size // 4], sample(size // 2, version=0)[size // 4 :]])
    calls = {OURS: sync_in_batches, "entityframes, single-entity calls": sync_one_by_one}
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, sync) in enumerate(calls.items()):
            with ef.connect(f"{folder}/{number}.duckdb") as store:
                store.upsert(stored, progress=False).raise_for_failures()
                if chosen(name, only):
                    with measurements.timed(name, database="duckdb", phase="sync", rows=size):
                        sync(store, frame)
        with duckdb.connect(f"{folder}/loop.duckdb") as connection:
            connection.execute(
                "CREATE TABLE entities (entity_type TEXT, id TEXT, content TEXT, metadata JSON, "
                "PRIMARY KEY (entity_type, id))"
            )
            given = stored.with_columns(pl.col("metadata").struct.json_encode())
            connection.execute("INSERT INTO entities SELECT * FROM given")
            del given
            if chosen("loop with duckdb", only):
                with measurements.timed("loop with duckdb", database="duckdb", phase="sync", rows=size):
                    _duckdb_loop(connection, frame)


def _duckdb_loop(connection: Any, frame: pl.DataFrame) -> None:
    for kind, key, content, metadata in frame.iter_rows():
        found = connection.execute(
            "SELECT content FROM entities WHERE entity_type = ? AND id = ?", (kind, key)
        ).fetchone()
        if found is None:
            connection.execute("INSERT INTO entities VALUES (?, ?, ?, ?)", (kind, key, content, json.dumps(metadata)))
        else:
            connection.execute(
                "UPDATE entities SET content = ?, metadata = ? WHERE entity_type = ? AND id = ?",
                (content, json.dumps(metadata), kind, key),
            )


@contextmanager
def _ours(url: str, frame: pl.DataFrame, batch_size: int | None = None) -> Iterator[Callable[[], None]]:
    with ef.connect(url, namespace="bench") as store:
        if batch_size is None:
            yield lambda: sync_in_batches(store, frame)
        else:
            yield lambda: store.upsert(frame, batch_size=batch_size, progress=False).raise_for_failures()


@contextmanager
def _single_calls(url: str, frame: pl.DataFrame) -> Iterator[Callable[[], None]]:
    with ef.connect(url, namespace="bench") as store:
        yield lambda: sync_one_by_one(store, frame)


@contextmanager
def _psycopg_loop(url: str, frame: pl.DataFrame) -> Iterator[Callable[[], None]]:
    import psycopg

    def sync() -> None:
        for kind, key, content, metadata in frame.iter_rows():
            found = connection.execute(
                "SELECT content FROM peer.entities WHERE entity_type = %s AND id = %s", (kind, key)
            ).fetchone()
            if found is None:
                connection.execute(
                    "INSERT INTO peer.entities VALUES (%s, %s, %s, %s)", (kind, key, content, json.dumps(metadata))
                )
            else:
                connection.execute(
                    "UPDATE peer.entities SET content = %s, metadata = %s WHERE entity_type = %s AND id = %s",
                    (content, json.dumps(metadata), kind, key),
                )

    with psycopg.connect(url, autocommit=True) as connection:
        yield sync


def _reset(url: str, stored: pl.DataFrame) -> None:
    import psycopg

    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
        connection.execute("DROP SCHEMA IF EXISTS peer CASCADE")
        connection.execute("CREATE SCHEMA peer")
        connection.execute(
            "CREATE TABLE peer.entities (entity_type text, id text, content text, metadata jsonb, "
            "PRIMARY KEY (entity_type, id))"
        )
        with connection.cursor().copy("COPY peer.entities FROM STDIN") as copy:
            for row in stored.with_columns(pl.col("metadata").struct.json_encode()).iter_rows():
                copy.write_row(row)
    with ef.connect(url, namespace="bench") as store:
        store.upsert(stored, progress=False).raise_for_failures()


def _check(url: str, name: str, frame: pl.DataFrame) -> None:
    import psycopg

    schema = "bench" if name.startswith(OURS) else "peer"
    with psycopg.connect(url) as connection:
        found = connection.execute(f"SELECT count(*), sum(octet_length(content)) FROM {schema}.entities").fetchone()
    expected = (frame.height, frame["content"].str.len_bytes().sum())
    if found != expected:
        raise AssertionError(f"{name} stored {found}, expected {expected}")
