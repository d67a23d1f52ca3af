"""Workers upsert, delete and read shared keys while faults strike at random; then the store is held to what it told.

On PostgreSQL the workers are processes, and the server is one of the run's own. On DuckDB one process has several
threads. A worker writes down each call before it makes it and what the store told after it; a call that was killed
may have happened or not. Exit status 1 if a row is lost or was misreported.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import entityframes as ef
from tests.faults.servers import Server, wait_until
from tests.torture.history import History
from tests.torture.summary import NAMES, summary

#: Processes on PostgreSQL, threads on DuckDB.
WORKERS = 4
#: Seconds between two faults, at most.
PAUSE = 1.0
#: What drivers write to standard error by themselves: libpq passes on why a server ends the connections that nobody
#: reads from, and DuckDB's module says that it leaks when a signal ends the process while it is imported.
_OF_DRIVERS = re.compile(
    r"^(?:FATAL|WARNING):  terminating connection [^\n]*\n(?:(?:DETAIL|HINT):  [^\n]*\n)*|^nanobind: leaked.*",
    re.MULTILINE | re.DOTALL,
)


class Workers:
    """Worker processes, started again when they end."""

    def __init__(self, url: str, folder: Path, seed: int, threads: int, count: int) -> None:
        self._url, self._folder, self._threads = url, folder, threads
        self._seeds = random.Random(seed)
        self._started = 0
        self._count = count
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def keep_running(self) -> None:
        """Start as many workers as are missing."""
        self.running = {name: worker for name, worker in self.running.items() if worker.poll() is None}
        while len(self.running) < self._count:
            name = f"{self._started:05}"
            self._started += 1
            words = [self._url, self._folder / name, str(self._seeds.random()), str(self._threads), name]
            errors = (self._folder / f"{name}.errors").open("wb")
            command = [sys.executable, "-m", "tests.torture.worker", *map(str, words)]
            self.running[name] = subprocess.Popen(command, stderr=errors)
            errors.close()

    def strike(self, chance: random.Random, number: int) -> None:
        """Send a signal to one of them that is at work."""

        def at_work() -> list[subprocess.Popen[bytes]]:
            self.keep_running()
            calls = {name: self._folder / f"{name}.0.calls" for name in self.running}
            return [self.running[name] for name, path in calls.items() if path.exists() and path.stat().st_size]

        chance.choice(wait_until(at_work, "a worker to be at work", 120)).send_signal(number)

    def stop(self) -> None:
        """Let them finish what they are at."""
        for worker in self.running.values():
            worker.terminate()
        for worker in self.running.values():
            worker.wait(120)

    def unexpected(self) -> list[str]:
        """What workers said when they ended in an error that is not of the package's tree."""
        said = [_OF_DRIVERS.sub("", path.read_text()).strip() for path in self._folder.glob("*.errors")]
        return [text for text in said if text]


def on_postgresql(minutes: float, seed: int) -> dict[str, Any]:
    """Torture a server of our own."""
    chance, faults = random.Random(seed), collections.Counter[str]()
    server, folder = Server(), Path(tempfile.mkdtemp(prefix="ef-torture-"))
    try:
        server.sql("CREATE DATABASE torture")
        url = server.url("torture")
        ef.connect(url).close()
        workers = Workers(url, folder, seed, 1, WORKERS)

        def on_a_backend(function: str) -> None:
            server.sql(
                f"SELECT {function}(pid) FROM pg_stat_activity WHERE datname = 'torture' AND state <> 'idle' "
                "ORDER BY random() LIMIT 1"
            )

        def crash() -> None:
            server.kill()
            server.start()

        kinds = {
            "terminate backend": (6, lambda: on_a_backend("pg_terminate_backend")),
            "cancel statement": (6, lambda: on_a_backend("pg_cancel_backend")),
            "SIGKILL worker": (3, lambda: workers.strike(chance, signal.SIGKILL)),
            "SIGINT worker": (3, lambda: workers.strike(chance, signal.SIGINT)),
            "SIGKILL server": (2, crash),
        }
        _strike(minutes, chance, faults, kinds, workers)
        with ef.connect(url) as store:
            [(version,)] = server.sql("SELECT current_setting('server_version')")
            return {"version": version, **_judged(store, folder, workers, faults)}
    finally:
        server.stop()
        shutil.rmtree(folder)


def on_duckdb(minutes: float, seed: int) -> dict[str, Any]:
    """Torture a file: one process at a time has it."""
    chance, faults = random.Random(seed), collections.Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="ef-torture-"))
    try:
        url = str(folder / "torture.duckdb")
        workers = Workers(url, folder, seed, WORKERS, 1)
        kinds = {
            "SIGKILL process": (2, lambda: workers.strike(chance, signal.SIGKILL)),
            "SIGINT process": (1, lambda: workers.strike(chance, signal.SIGINT)),
            "cancel call": (4, lambda: workers.strike(chance, signal.SIGUSR1)),
        }
        _strike(minutes, chance, faults, kinds, workers)
        with ef.connect(url) as store:
            return _judged(store, folder, workers, faults)
    finally:
        shutil.rmtree(folder)


def _strike(
    minutes: float, chance: random.Random, faults: collections.Counter[str], kinds: dict, workers: Workers
) -> None:
    """Let faults strike until the time is over."""
    deadline = time.monotonic() + 60 * minutes
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    workers.keep_running()
    while time.monotonic() < deadline:
        # Between faults, not for a condition: the moment is what is random.
        time.sleep(chance.uniform(0.05, PAUSE))
        [kind] = chance.choices(names, weights)
        kinds[kind][1]()
        faults[kind] += 1
        workers.keep_running()
    workers.stop()


def _judged(store: ef.EntityStore, folder: Path, workers: Workers, faults: collections.Counter[str]) -> dict[str, Any]:
    """The figures of a run."""
    history = History.read(folder)
    lost, misreported = history.judge(store)
    inconsistent = store.verify()
    unexpected = workers.unexpected()
    for text in [*lost[:5], *misreported[:5], *map(str, inconsistent.head(5).to_dicts()), *unexpected[:3]]:
        print(f"  {text}", file=sys.stderr)
    return {
        "calls": history.calls,
        "batches": history.batches,
        "rows told": history.told,
        "calls cut off": history.cut_off,
        "statuses": dict(history.statuses),
        "faults": dict(faults),
        "kills": sum(count for kind, count in faults.items() if "SIGKILL" in kind),
        "rows lost": len(lost),
        "rows misreported": len(misreported),
        "inconsistencies": inconsistent.height,
        "unexpected errors": len(unexpected),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="for all engines together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["postgresql", "duckdb"], action="append")
    given = parser.parse_args()
    engines = given.engine or ["postgresql", "duckdb"]
    os.environ["PYTHONWARNINGS"] = "ignore"
    failed = False
    every: dict[str, dict[str, Any]] = {}
    for engine in engines:
        torture = on_postgresql if engine == "postgresql" else on_duckdb
        figures = every[engine] = torture(given.minutes / len(engines), given.seed)
        print(json.dumps({"engine": engine, "seed": given.seed, **figures}), flush=True)
        failed |= any(
            figures[name] for name in ("rows lost", "rows misreported", "inconsistencies", "unexpected errors")
        )
    print(summary("torture", given.seed, every, NAMES, every.get("postgresql", {}).get("version")), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
