"""Ratios with a limit: batches against the loop and hand-written SQL, bad rows, frames in pieces, malicious files.

Each ratio is measured within one run. Run this before a release, on an otherwise idle machine; the exit status is 1
if a ratio exceeds its limit. The limits leave a third for noise.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import polars as pl

import entityframes as ef
from benchmarks import data, peers_duckdb, peers_postgres
from benchmarks.measure import Measurements, chosen
from benchmarks.postgres import server
from entityframes.bench.n_plus_one import n_plus_one
from entityframes.directory.markdown import MarkdownError, parse
from entityframes.frames.utf8 import readable
from tests.directory.bombs import bombs

#: Minimum ratio of the time of hand-written SQL to our time.
BY_HAND = {
    "postgresql": {"insert": 0.8, "no-op": 2.0, "update": 0.8},
    "duckdb": {"insert": 0.4, "no-op": 0.3, "update": 0.4},
}
#: LOOP: minimum ratio of the loop to the batch. BAD_ROWS: maximum ratio of a batch with bad rows to a clean one.
#: PIECES: maximum ratio of a frame in pieces to the whole frame.
LOOP, BAD_ROWS, PIECES = 10.0, 4.0, 10.0
#: Maximum growth of the time when front matter is four times as long; and the largest front matter that is read.
GROWTH, FRONT_MATTER = 8.0, (1 << 20) - 100
#: Numbers of bad rows out of 10,000.
BAD = (1, 10, 100)

#: The name of the ratio, its measured value, and its limit: a minimum, or a maximum if it is negative.
Ratio = tuple[str, float, float]


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Measure, print each ratio with its limit, and exit with status 1 if one exceeds its limit.

    Args:
        rows: the size of the frame that is upserted; the limits are checked with the default only.
    """
    size = rows[0] if rows else 30_000
    loops: dict[str, float] = {}
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder:
        for database, address in (("postgresql", url), ("duckdb", str(Path(folder) / "guard.duckdb"))):
            loops[database] = n_plus_one(address, [150], repeat=repeat)["speedup"][-1]
            _bad_rows(measurements, database, address, repeat)
            if chosen("by hand", only):
                _by_hand(measurements, database, url, Path(folder), size, repeat)
    _pieces(measurements, repeat)
    _front_matter(measurements, 64 * size if rows else FRONT_MATTER, repeat)
    exceeded = [name for name, ratio, limit in _ratios(measurements.frame(), loops) if not _within(name, ratio, limit)]
    if exceeded and not rows:
        raise SystemExit(1)


def _ratios(measured: pl.DataFrame, loops: dict[str, float]) -> Iterator[Ratio]:
    """Yield the measured ratios: of medians for hand-written SQL, else of the fastest repetitions."""

    def best(database: str, phase: str) -> float:
        return float(measured.filter(database=database, phase=phase)["seconds"].min())  # type: ignore[arg-type]

    for database, speedup in loops.items():
        yield f"{database}: loop", speedup, LOOP
        worst = max(best(database, f"{bad} bad rows") for bad in BAD)
        yield f"{database}: bad rows", worst / best(database, "0 bad rows"), -BAD_ROWS
        for phase, limit in BY_HAND[database].items():
            both = measured.filter(database=database, phase=phase)
            ours = both.filter(contestant="entityframes")["seconds"].median()
            by_hand = both.filter(pl.col("contestant") != "entityframes")["seconds"].median()
            if by_hand is not None:
                yield f"{database}: by hand, {phase}", by_hand / ours, limit  # type: ignore[operator]
    # A thousand pieces are allowed half a second for the fixed cost of each.
    yield "pieces of a frame", max(best("none", "in pieces") - 0.5, 0.0) / best("none", "whole"), -PIECES
    # Half a second is fast enough.
    whole, quarter = (
        dict(measured.filter(phase=phase).group_by("contestant").agg(pl.col("seconds").min()).iter_rows())
        for phase in ("front matter", "a quarter of it")
    )
    grown = {name: max(seconds - 0.5, 0.0) / quarter[name] for name, seconds in whole.items()}
    worst = max(grown, key=grown.__getitem__)
    yield f"growth of front matter ({worst})", grown[worst], -GROWTH


def _within(name: str, ratio: float, limit: float) -> bool:
    """Print a ratio and its limit. Returns whether the ratio is within the limit."""
    within = ratio >= limit if limit > 0 else ratio <= -limit
    word = "at least" if limit > 0 else "at most"
    print(f"{name:40} {ratio:8.2f}  {word} {abs(limit):g}{'' if within else '  exceeded'}")
    return within


def _by_hand(measurements: Measurements, database: str, url: str, folder: Path, size: int, repeat: int) -> None:
    """COPY, or INSERT of a frame, with ON CONFLICT, alternating with ours."""
    contestants: list[peers_postgres.Contestant] = (
        [peers_postgres.EntityFrames(url), peers_postgres.ByHand(url)]
        if database == "postgresql"
        else [peers_duckdb.EntityFrames(folder), peers_duckdb.OnConflict(folder)]
    )
    frame = data.entities(size, seed=measurements.seed)
    given = {"insert": frame, "no-op": frame, "update": data.entities(size, version=1, seed=measurements.seed)}
    for turn in range(repeat):
        for contestant in contestants[:: 1 if turn % 2 else -1]:
            contestant.prepare()
            for phase, rows in given.items():
                with measurements.timed(contestant.name, database=database, phase=phase, rows=size):
                    contestant.upsert(rows)
            if contestant.stored()[0] != size:
                raise AssertionError(f"{contestant.name} stored {contestant.stored()[0]} of {size} rows")
            contestant.close()


def _bad_rows(measurements: Measurements, database: str, address: str, repeat: int) -> None:
    """1, 10 and 100 of 10,000 rows that the database rejects, against a clean batch."""
    frame = data.entities(10_000, seed=measurements.seed)
    for turn in range(repeat):
        for bad in (0, *BAD):
            with ef.connect(address, namespace=f"guard_{turn}_{bad}") as store:
                _add_check(store)
                texts = pl.when(pl.int_range(pl.len()) < bad).then(pl.lit("bad")).otherwise(pl.lit("x" * 300))
                with measurements.timed("entityframes", database=database, phase=f"{bad} bad rows", rows=frame.height):
                    result = store.upsert(frame.with_columns(content=texts), progress=False)
                if result.counts["failed"] != bad:
                    raise AssertionError(f"{result.counts['failed']} rows failed, expected {bad}")
                store._engine.drop()


def _add_check(store: ef.EntityStore) -> None:
    """Make the database of an empty store reject contents that begin with "bad"."""
    engine, rule = store._engine, "CHECK (content NOT LIKE 'bad%')"
    name = f'"{engine.database.namespace}".entities'
    if engine.database.name == "postgresql":
        with engine.database.session() as session:  # type: ignore[attr-defined]
            session.connection.script(f"ALTER TABLE {name} ADD CONSTRAINT allowed_content {rule}")
        return
    with engine.database.file.cursor() as cursor:  # type: ignore[attr-defined]
        [(ddl,)] = cursor.execute(
            "SELECT sql FROM duckdb_tables() WHERE schema_name = $1 AND table_name = 'entities'",
            [engine.database.namespace],
        ).fetchall()
        cursor.execute(f"DROP TABLE {name}")
        cursor.execute(ddl.replace(");", f", {rule});"))


def _pieces(measurements: Measurements, repeat: int) -> None:
    """The contents of a frame, and of the thousand pieces it is cut into: each piece checks its own rows only."""
    frame = data.entities(20_000, content_bytes=2_000, seed=measurements.seed).drop("metadata")
    for phase, pieces in (("whole", [frame]), ("in pieces", list(frame.iter_slices(20)))):
        for _ in range(repeat):
            with measurements.timed("entityframes", database="none", phase=phase, rows=frame.height):
                for piece in pieces:
                    readable(piece)


def _front_matter(measurements: Measurements, size: int, repeat: int) -> None:
    """Front matter that is designed to be slow to parse, and a quarter of it."""
    for phase, length in (("front matter", size), ("a quarter of it", size // 4)):
        for name, bomb in bombs(length).items():
            text = f"---\n{bomb}\n---\n".encode()
            for _ in range(repeat):
                timed = measurements.timed(name, database="none", phase=phase, rows=length)
                with timed, contextlib.suppress(MarkdownError):
                    parse(text)
