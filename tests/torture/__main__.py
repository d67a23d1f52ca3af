"""Workers upsert, delete and read shared keys under random faults; then what is stored is checked against their outcomes.

On PostgreSQL the workers are processes, and the server is started for the run. On DuckDB one process has several
threads. A worker logs each call before it starts and its outcomes afterwards; a call that was killed may have
happened or not. The exit status is 1 if a row is lost or was misreported.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
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

import duckdb

import entityframes as ef
from tests.faults.servers import Server, wait_until
from tests.torture.history import History
from tests.torture.summary import NAMES, summary
from tests.torture.targets import CREATE_TABLE, open_target

#: Processes on PostgreSQL, threads on DuckDB.
WORKERS = 4
#: The maximum number of seconds between two faults.
PAUSE = 1.0
#: Output of the drivers on standard error: libpq prints why a server ends idle connections, and DuckDB's module
#: reports leaks when a signal ends the process during its import.
_OF_DRIVERS = re.compile(
    r"^(?:FATAL|WARNING):  terminating connection [^\n]*\n(?:(?:DETAIL|HINT):  [^\n]*\n)*|^nanobind: leaked.*",
    re.MULTILINE | re.DOTALL,
)


class Workers:
    """Worker processes, restarted when they end."""

    def __init__(self, url: str, folder: Path, seed: int, threads: int, count: int, target: str) -> None:
        self._url, self._folder, self._threads, self._target = url, folder, threads, target
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
            words = [self._url, self._folder / name, str(self._seeds.random()), str(self._threads), name, self._target]
            errors = (self._folder / f"{name}.errors").open("wb")
            command = [sys.executable, "-m", "tests.torture.worker", *map(str, words)]
            self.running[name] = subprocess.Popen(command, stderr=errors)
            errors.close()

    def strike(self, rng: random.Random, number: int) -> None:
        """Send a signal to a random worker that is making calls."""

        def at_work() -> list[subprocess.Popen[bytes]]:
            self.keep_running()
            calls = {name: self._folder / f"{name}.0.calls" for name in self.running}
            return [self.running[name] for name, path in calls.items() if path.exists() and path.stat().st_size]

        rng.choice(wait_until(at_work, "a worker to be at work", 120)).send_signal(number)

    def stop(self) -> None:
        """Let the workers complete their current calls and end."""
        for worker in self.running.values():
            worker.terminate()
        for worker in self.running.values():
            worker.wait(120)

    def unexpected(self) -> list[str]:
        """The error output of workers that ended with an error other than the package's errors."""
        outputs = [_OF_DRIVERS.sub("", path.read_text()).strip() for path in self._folder.glob("*.errors")]
        return [text for text in outputs if text]


def on_postgresql(minutes: float, seed: int, target: str) -> dict[str, Any]:
    """Torture a private server."""
    rng, faults = random.Random(seed), collections.Counter[str]()
    server, folder = Server(), Path(tempfile.mkdtemp(prefix="ef-torture-"))
    try:
        server.sql("CREATE DATABASE torture")
        url = server.url("torture")
        ef.connect(url).close()
        server.sql(CREATE_TABLE, database="torture")
        workers = Workers(url, folder, seed, 1, WORKERS, target)

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
            "SIGKILL worker": (3, lambda: workers.strike(rng, signal.SIGKILL)),
            "SIGINT worker": (3, lambda: workers.strike(rng, signal.SIGINT)),
            "SIGKILL server": (2, crash),
        }
        _strike(minutes, rng, faults, kinds, workers)
        [(version,)] = server.sql("SELECT current_setting('server_version')")
        return {"version": version, **_figures(url, target, folder, workers, faults)}
    finally:
        server.stop()
        shutil.rmtree(folder)


def on_duckdb(minutes: float, seed: int, target: str) -> dict[str, Any]:
    """Torture a file, which one process at a time has open."""
    rng, faults = random.Random(seed), collections.Counter[str]()
    folder = Path(tempfile.mkdtemp(prefix="ef-torture-"))
    try:
        url = str(folder / "torture.duckdb")
        with duckdb.connect(url) as connection:
            connection.execute(CREATE_TABLE)
        workers = Workers(url, folder, seed, WORKERS, 1, target)
        kinds = {
            "SIGKILL process": (2, lambda: workers.strike(rng, signal.SIGKILL)),
            "SIGINT process": (1, lambda: workers.strike(rng, signal.SIGINT)),
            "cancel call": (4, lambda: workers.strike(rng, signal.SIGUSR1)),
        }
        _strike(minutes, rng, faults, kinds, workers)
        return _figures(url, target, folder, workers, faults)
    finally:
        shutil.rmtree(folder)


def _strike(
    minutes: float, rng: random.Random, faults: collections.Counter[str], kinds: dict, workers: Workers
) -> None:
    """Inject faults until the time is over."""
    deadline = time.monotonic() + 60 * minutes
    names, weights = list(kinds), [weight for weight, _ in kinds.values()]
    workers.keep_running()
    while time.monotonic() < deadline:
        # The random time between faults, not a wait for a condition.
        time.sleep(rng.uniform(0.05, PAUSE))
        [kind] = rng.choices(names, weights)
        kinds[kind][1]()
        faults[kind] += 1
        workers.keep_running()
    workers.stop()


def _figures(url: str, target: str, folder: Path, workers: Workers, faults: collections.Counter[str]) -> dict[str, Any]:
    """The figures of a run."""
    history = History.read(folder)
    with contextlib.closing(open_target(url, target)) as opened:
        lost, misreported = history.check(opened.stored())
        inconsistent = opened.inconsistencies()
    unexpected = workers.unexpected()
    for text in [*lost[:5], *misreported[:5], *map(str, inconsistent.head(5).to_dicts()), *unexpected[:3]]:
        print(f"  {text}", file=sys.stderr)
    return {
        "calls": history.calls,
        "batches": history.batches,
        "rows reported": history.reported,
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
    parser.add_argument("--minutes", type=float, default=2.0, help="total duration for all engines and targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["postgresql", "duckdb"], action="append")
    parser.add_argument("--target", choices=["entities", "tables"], action="append")
    given = parser.parse_args()
    runs = [
        (engine, target)
        for engine in given.engine or ["postgresql", "duckdb"]
        for target in given.target or ["entities", "tables"]
    ]
    os.environ["PYTHONWARNINGS"] = "ignore"
    failed = False
    every: dict[str, dict[str, Any]] = {}
    for engine, target in runs:
        torture = on_postgresql if engine == "postgresql" else on_duckdb
        figures = torture(given.minutes / len(runs), given.seed, target)
        every[engine if target == "entities" else f"{engine}, tables"] = figures
        print(json.dumps({"engine": engine, "target": target, "seed": given.seed, **figures}), flush=True)
        failed |= any(
            figures[name] for name in ("rows lost", "rows misreported", "inconsistencies", "unexpected errors")
        )
    print(
        summary(
            "torture",
            given.seed,
            every,
            NAMES,
            next((one["version"] for one in every.values() if "version" in one), None),
        ),
        flush=True,
    )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
