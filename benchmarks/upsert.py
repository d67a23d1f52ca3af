"""Fresh insert, update of all, update of 1 %, no-op re-run: ours compared with other tools and with the limit."""

from __future__ import annotations

import tempfile
from pathlib import Path

import polars as pl

from benchmarks import data, peers_duckdb, peers_postgres
from benchmarks.measure import Measurements, chosen
from benchmarks.peers_postgres import Contestant
from benchmarks.postgres import server

DEFAULT_ROWS = (10_000, 100_000)


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Interleave the contestants: each repeat runs all of them, the slowest only once, each on a new table."""
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder:
        for size in rows or DEFAULT_ROWS:
            first = data.entities(size, seed=measurements.seed)
            phases = {"insert": first, "update all": data.entities(size, version=1, seed=measurements.seed)}
            phases["update 1 %"] = data.change(phases["update all"], 100, version=2)
            phases["no-op"] = phases["update 1 %"]
            field = [
                *(("postgresql", make()) for make in peers_postgres.contestants(url)),
                *(("duckdb", make()) for make in peers_duckdb.contestants(Path(folder))),
            ]
            field = [each for each in field if chosen(f"{each[1].name} {each[0]}", only)]
            for number in range(repeat):
                # The first contestant runs on a colder machine, so the order rotates.
                for database, contestant in field[number % len(field) :] + field[: number % len(field)]:
                    if size <= contestant.max_rows and (number == 0 or size < contestant.once_from):
                        _phases(measurements, contestant, database, phases)


def _phases(measurements: Measurements, contestant: Contestant, database: str, phases: dict[str, pl.DataFrame]) -> None:
    contestant.prepare()
    for phase, frame in phases.items():
        if phase != "insert" and contestant.name.endswith("insert only"):
            break
        with measurements.timed(contestant.name, database=database, phase=phase, rows=frame.height):
            contestant.upsert(frame)
        expected = (frame.height, frame["content"].str.len_bytes().sum())
        if contestant.stored() != expected:
            raise AssertionError(f"{contestant.name} stored {contestant.stored()}, expected {expected}")
    contestant.close()
