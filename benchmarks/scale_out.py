"""Files into PostgreSQL: by one process with two connections, and as tasks of Ray on a warm cluster of this machine.

Both use all cores, of which the server takes its share. The model: a row takes a fixed time of a core of the client and
of one of the server, so that rows per second are the cores divided by the sum, however the clients are started. The
last table compares that with what was measured: what is missing waited.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from benchmarks import data
from benchmarks.measure import OURS, Measurements, core_seconds
from benchmarks.postgres import server

DEFAULT_ROWS = (4_000_000,)
FILES = 40
RAY = "entityframes.ray"

#: A process that stays for all repetitions: it reads the namespace of each run, and prints its figures.
_LOCAL = """
import json, sys, time
import polars as pl
import entityframes as ef
from benchmarks.measure import peak_mb
url, folder = sys.argv[1:]
print("ready", flush=True)
for namespace in map(str.strip, sys.stdin):
    start, client = time.perf_counter(), time.process_time()
    with ef.connect(url, namespace=namespace, workers=2) as store:
        result = store.upsert(pl.scan_parquet(folder + "/*.parquet"), progress=False)
        seconds = time.perf_counter() - start
    assert result.ok
    found = {"seconds": seconds, "counts": result.counts, "client": time.process_time() - client, "peak_mb": peak_mb()}
    print(json.dumps(found), flush=True)
"""
_RAY = """
import json, os, sys, tempfile, time
os.environ["RAY_AUTH_MODE"] = "disabled"
import polars as pl
import psutil
import ray
import entityframes.ray
from entityframes.distributed import Entities
from benchmarks import data
from benchmarks.measure import peak_mb
url, folder = sys.argv[1:]

def client():
    here = psutil.Process()
    return sum(sum(each.cpu_times()[:2]) for each in [here, *here.children(recursive=True)])

with tempfile.TemporaryDirectory(prefix="ef-ray-", ignore_cleanup_errors=True) as scratch:
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False, _temp_dir=scratch)
    few = [data.entities(1_000, seed=seed) for seed in range(4)]
    for _ in range(2):
        entityframes.ray.upsert(few, lambda: url, target=Entities(namespace="warm"), connections=2, progress=False)
    print("ready", flush=True)
    for namespace in map(str.strip, sys.stdin):
        start, before = time.perf_counter(), client()
        result = entityframes.ray.upsert(
            folder + "/*.parquet", lambda: url, target=Entities(namespace=namespace), connections=2, progress=False
        )
        seconds = time.perf_counter() - start
        assert result.ok, result
        found = {"seconds": seconds, "counts": result.counts, "client": client() - before, "peak_mb": peak_mb()}
        found["in tasks"] = result.partitions["seconds"].sum()
        print(json.dumps(found), flush=True)
    ray.shutdown()
"""


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Insert, and a re-run that changes nothing, of 40 files; the contestants take turns."""
    import psycopg

    contestants = {OURS: _LOCAL, RAY: _RAY}
    if only is not None and "ray" not in only:
        del contestants[RAY]
    with server(postgres) as url, tempfile.TemporaryDirectory(prefix="ef-files-") as folder:
        for size in rows or DEFAULT_ROWS:
            _write(Path(folder), size, measurements.seed)
            with _started(contestants, url, folder) as processes:
                for number in range(repeat):
                    for name in list(processes)[:: 1 if number % 2 else -1]:
                        with psycopg.connect(url, autocommit=True) as connection:
                            connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
                            connection.execute("CHECKPOINT")
                        _measure(measurements, name, processes[name], size)
                with psycopg.connect(url, autocommit=True) as connection:
                    connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
                    connection.execute("DROP SCHEMA IF EXISTS warm CASCADE")
    print(model(measurements.frame()))


def _write(folder: Path, rows: int, seed: int) -> None:
    for old in folder.iterdir():
        old.unlink()
    each = -(-rows // FILES)
    for number in range(FILES):
        height = max(0, min(each, rows - number * each))
        frame = data.entities(height, seed=seed)
        frame.with_columns(pl.format("{}-{}", "id", pl.lit(number))).write_parquet(folder / f"{number:02}.parquet")


@contextmanager
def _started(contestants: dict[str, str], url: str, folder: str) -> Iterator[dict[str, subprocess.Popen[str]]]:
    processes = {
        name: subprocess.Popen(
            [sys.executable, "-c", script, url, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, script in contestants.items()
    }
    try:
        for name, process in processes.items():
            if _line(process) != "ready":
                raise RuntimeError(f"{name} did not start")
        yield processes
    finally:
        for process in processes.values():
            process.communicate(timeout=120)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def _measure(measurements: Measurements, name: str, process: subprocess.Popen[str], rows: int) -> None:
    """Insert, and run again."""
    assert process.stdin is not None
    for phase, status in (("insert", "created"), ("no-op", "unchanged")):
        cores = core_seconds()
        process.stdin.write("bench\n")
        process.stdin.flush()
        found = json.loads(_line(process))
        cores = core_seconds() - cores
        if found["counts"][status] != rows:
            raise AssertionError(f"{found['counts']}: not all of {rows} rows are {status}")
        more = {
            "peak_mb": found["peak_mb"],
            "core_seconds": cores,
            "client": found["client"],
            "in_tasks": found.get("in tasks"),
        }
        measurements.add(name, database="postgresql", phase=phase, rows=rows, seconds=found["seconds"], **more)
        time.sleep(0.5)


def model(measured: pl.DataFrame) -> str:
    """What the cores allow, if each row takes as much of them as it did, against what was measured."""
    cores = os.cpu_count() or 1
    table = measured.group_by("phase", "rows", "contestant", maintain_order=True).agg(
        pl.col("seconds", "core_seconds", "client").median()
    )
    lines = [
        "| phase | contestant | cores for a row | of them of the client | rows/s by the model | rows/s measured |",
        "|-|-|-|-|-|-|",
    ]
    for row in table.iter_rows(named=True):
        each = row["core_seconds"] / row["rows"]
        allowed, found = (cores / each if each else 0), row["rows"] / row["seconds"]
        lines.append(
            f"| {row['phase']}, {row['rows']:,} rows | {row['contestant']} | {each * 1e6:.1f} µs "
            f"| {row['client'] / row['rows'] * 1e6:.1f} µs | {allowed:,.0f} | {found:,.0f} |"
        )
    return "\n".join(lines)
