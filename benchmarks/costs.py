"""What an upsert of entities costs on each side: seconds of the client and of the server, and bytes of the log.

The time of the server is that of all cores of the machine less that of this process, so that nothing else may run.
"""

from __future__ import annotations

import time

import polars as pl

import entityframes as ef
from benchmarks import data
from benchmarks.measure import OURS, Measurements, core_seconds
from benchmarks.postgres import server

DEFAULT_ROWS = (100_000,)


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Insert, update all, update 1 % and no-op, each in a new store; prints microseconds and bytes for each row."""
    import psycopg

    measured = []
    with server(postgres) as url, psycopg.connect(url, autocommit=True) as connection:

        def log_bytes() -> int:
            row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'").fetchone()
            return int(row[0]) if row else 0

        for size in rows or DEFAULT_ROWS:
            first = data.entities(size, seed=measurements.seed)
            phases = {"insert": first, "update all": data.entities(size, version=1, seed=measurements.seed)}
            phases["update 1 %"] = data.change(phases["update all"], 100, version=2)
            phases["no-op"] = phases["update 1 %"]
            for _ in range(repeat):
                connection.execute("DROP SCHEMA IF EXISTS bench CASCADE")
                with ef.connect(url, namespace="bench") as store:
                    for phase, frame in phases.items():
                        connection.execute("CHECKPOINT")
                        log, client, start, cores = (
                            log_bytes(),
                            time.process_time(),
                            time.perf_counter(),
                            core_seconds(),
                        )
                        store.upsert(frame, progress=False).raise_for_failures()
                        seconds, cores = time.perf_counter() - start, core_seconds() - cores
                        client = time.process_time() - client
                        more = {"client": client, "server": cores - client, "log_bytes": log_bytes() - log}
                        measurements.add(OURS, database="postgresql", phase=phase, rows=size, seconds=seconds, **more)
                        measured.append({"phase": phase, "rows": size, "seconds": seconds, **more})
    print(costs(pl.DataFrame(measured)))


def costs(measured: pl.DataFrame) -> str:
    """The medians for each row, as a Markdown table."""
    per_row = (pl.col("seconds", "client", "server") / pl.col("rows") * 1e6, pl.col("log_bytes") / pl.col("rows"))
    table = measured.with_columns(*per_row).group_by("phase", "rows", maintain_order=True).median()
    lines = ["| a row of | time | client | server | log |", "|-|-|-|-|-|"]
    for row in table.iter_rows(named=True):
        times = " | ".join(f"{row[name]:.1f} µs" for name in ("seconds", "client", "server"))
        lines.append(f"| {row['phase']}, {row['rows']:,} rows | {times} | {row['log_bytes']:,.0f} bytes |")
    return "\n".join(lines)
