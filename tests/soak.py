"""Long runs that check whether memory, open descriptors, threads and server connections stay flat.

    python -m tests.soak --connects 2000
    python -m tests.soak --watch-minutes 60

--connects: connect, upsert a few rows, read them, close; repeatedly, on each engine.
--watch-minutes: embed while new texts arrive, a few each second. On PostgreSQL `entityframes embed --watch` runs as a
separate process, which is measured, and this process writes the texts. A DuckDB file can be open in one process only,
so there this process does both: the watch runs in a thread next to the upserts, and this process is measured.

Each run ends by itself and prints a table and a verdict. The exit status is 1 if something grew. The PostgreSQL server
is started for the run, on the loopback interface.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil

import entityframes as ef
from tests.faults.servers import Server, wait_until

#: The allowed growth from the first half to the second: memory as a share or in MB, whichever is more; and the number
#: of descriptors, threads and connections.
SHARE, MEGABYTES, COUNTED = 0.05, 8.0, 2
#: The share of a run that is not measured: pools fill, modules are loaded, the allocator keeps memory.
WARM_UP = 0.1
COUNTS = ("descriptors", "threads", "connections")


class Samples:
    """Samples of the resources of a process over time."""

    def __init__(self, process: psutil.Process, server: Server | None) -> None:
        self._process, self._server = process, server
        self.rows: list[dict[str, float]] = []

    def take(self, at: float) -> None:
        """Take and print a sample."""
        row = {
            "at": round(at, 2),
            "rss_mb": round(self._process.memory_info().rss / 2**20, 1),
            "descriptors": self._process.num_fds(),
            "threads": self._process.num_threads(),
            "connections": self._connections(),
        }
        if not self.rows:
            print("  ".join(f"{name:>11}" for name in row), flush=True)
        self.rows.append(row)
        print("  ".join(f"{value:>11}" for value in row.values()), flush=True)

    def _connections(self) -> int:
        if self._server is None:
            return 0
        [(count,)] = self._server.sql("SELECT count(*) FROM pg_stat_activity WHERE datname = 'soak'")
        return int(count)

    def verdict(self) -> dict[str, Any]:
        """The growth from the first half to the second, after the warm-up, and whether everything is flat."""
        return verdict(self.rows)


def verdict(rows: list[dict[str, float]]) -> dict[str, Any]:
    """The growth of the medians from the first half to the second, the allowed growth of memory, and `flat`."""
    measured = rows[min(int(len(rows) * WARM_UP) + 1, max(len(rows) - 2, 0)) :]
    middle = len(measured) // 2
    first, later = pl.DataFrame(measured[:middle] or measured), pl.DataFrame(measured[middle:])
    growth = {name: round(later[name].median() - first[name].median(), 2) for name in ("rss_mb", *COUNTS)}
    allowed = max(SHARE * first["rss_mb"].median(), MEGABYTES)
    flat = growth["rss_mb"] <= allowed and all(growth[name] <= COUNTED for name in COUNTS)
    return {"growth": growth, "allowed_mb": round(allowed, 1), "flat": flat}


def connects(url: str, count: int, samples: Samples) -> None:
    """Connect, upsert, read and close, `count` times; takes about twenty samples."""
    every = max(count // 20, 1)
    for turn in range(count):
        with ef.connect(url) as store:
            rows = pl.DataFrame({"entity_type": "soak", "id": [f"{n}" for n in range(5)], "content": f"turn {turn}"})
            result = store.upsert(rows, embed=False, progress=False)
            assert result.ok, result
            assert store.get(rows.select("entity_type", "id"))["content"].to_list() == [f"turn {turn}"] * 5
        if turn % every == 0 or turn == count - 1:
            samples.take(turn + 1)


def watch(
    url: str, minutes: float, pause: float, samples: Callable[[psutil.Process], Samples], folder: Path
) -> Samples:
    """Embed while texts arrive, and take a sample each minute, or twenty samples in a shorter run."""
    postgres = url.startswith("postgresql")
    stopping = threading.Event()
    with ef.connect(url) as store:
        feed(store, 0)
        if postgres:
            command = [
                sys.executable,
                "-m",
                "entityframes",
                "embed",
                "--embedder",
                "hashing",
                "--option",
                "dim=64",
                "--watch",
                "--store",
                url,
            ]
            with (folder / "watch.log").open("wb") as log:
                worker = subprocess.Popen(command, stdout=log, stderr=log)
            process = psutil.Process(worker.pid)
        else:
            thread = threading.Thread(target=embed_until, args=(stopping, store))
            thread.start()
            process = psutil.Process()
        taken = samples(process)
        try:
            wait_until(lambda: due(store) == 0, "the first texts to be embedded", 120)
            began, every, turn = time.monotonic(), min(60.0, 60 * minutes / 20), 0
            while (elapsed := time.monotonic() - began) < 60 * minutes:
                if elapsed >= len(taken.rows) * every:
                    taken.take(elapsed / 60)
                turn += 1
                feed(store, turn)
                time.sleep(pause)
            taken.take(minutes)
            wait_until(lambda: due(store) == 0, "the last texts to be embedded", 120)
        finally:
            stopping.set()
            if postgres:
                worker.send_signal(signal.SIGINT)
                worker.wait(60)
            else:
                thread.join()
    return taken


def feed(store: ef.EntityStore, turn: int) -> None:
    """Change ten texts; the store does not grow."""
    ids = [f"{(turn * 10 + n) % 1_000}" for n in range(10)]
    rows = pl.DataFrame({"entity_type": "soak", "id": ids, "content": [f"text {turn} of {name}" for name in ids]})
    assert store.upsert(rows, progress=False).ok


def due(store: ef.EntityStore) -> int:
    """The number of texts that have no current vector."""
    stats = store.stats()
    return int(stats["entities"].sum() - stats["embedded"].sum())


def embed_until(stopping: threading.Event, store: ef.EntityStore) -> None:
    """Like `embed --watch`, in a thread."""
    while not stopping.wait(0.5):
        store.embed(ef.HashingEmbedder(64), progress=False)


def main(arguments: list[str] | None = None) -> int:
    """Run what the arguments select. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connects", type=int, help="number of connects, on each engine")
    parser.add_argument("--watch-minutes", type=float, help="duration of the watch, on each engine")
    parser.add_argument("--pause", type=float, default=1.0, help="seconds between two upserts of the watch")
    parser.add_argument("--engine", choices=["postgresql", "duckdb"], action="append")
    given = parser.parse_args(arguments)
    if given.connects is None and given.watch_minutes is None:
        parser.error("--connects or --watch-minutes is required")
    flat = True
    for engine in given.engine or ["postgresql", "duckdb"]:
        folder = Path(tempfile.mkdtemp(prefix="ef-soak-"))
        server = Server() if engine == "postgresql" else None
        try:
            if server is not None:
                server.sql("CREATE DATABASE soak")
            url = str(folder / "soak.duckdb") if server is None else server.url("soak")
            if given.connects is not None:
                print(f"{engine}: {given.connects} connects", flush=True)
                samples = Samples(psutil.Process(), server)
                connects(url, given.connects, samples)
                flat &= _report({"soak": "connects", "engine": engine, "connects": given.connects}, samples)
            if given.watch_minutes is not None:
                print(f"{engine}: embed --watch for {given.watch_minutes} minutes", flush=True)
                samples = watch(
                    url, given.watch_minutes, given.pause, lambda process, of=server: Samples(process, of), folder
                )
                flat &= _report({"soak": "watch", "engine": engine, "minutes": given.watch_minutes}, samples)
        finally:
            if server is not None:
                server.stop()
            shutil.rmtree(folder)
    return int(not flat)


def _report(run: dict[str, Any], samples: Samples) -> bool:
    found = samples.verdict()
    print(json.dumps({**run, **found}), flush=True)
    return bool(found["flat"])


if __name__ == "__main__":
    sys.exit(main())
