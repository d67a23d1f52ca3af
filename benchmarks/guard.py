"""Ratios with a limit, each within one run: batches against the loop and the way by hand, bad rows, cut frames, bombs.

Run by hand before a release, on a machine with nothing else to do; exit status 1 if one is beyond its limit. The limits
leave a third for noise.
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

#: How many times ours the way by hand takes, at least.
BY_HAND = {
    "postgresql": {"insert": 0.8, "no-op": 2.0, "update": 0.8},
    "duckdb": {"insert": 0.4, "no-op": 0.3, "update": 0.4},
}
#: How many times the batch the loop takes, at least; a clean batch one with bad rows, and a frame its pieces, at most.
LOOP, BAD_ROWS, PIECES = 10.0, 4.0, 10.0
#: How many times front matter takes that is four times as long, at most; the largest that is read.
GROWTH, FRONT_MATTER = 8.0, (1 << 20) - 100
#: So many of 10,000 rows are bad.
BAD = (1, 10, 100)

#: What is guarded, what was measured, and its limit: at least it, or at most if it is negative.
Ratio = tuple[str, float, float]


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """Measure, print each ratio beside its limit, and leave with 1 if one is beyond.

    Args:
        rows: of the frame that is upserted beside the way by hand; limits are those of the default.
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
    beyond = [what for what, ratio, limit in _ratios(measurements.frame(), loops) if not _holds(what, ratio, limit)]
    if beyond and not rows:
        raise SystemExit(1)


def _ratios(measured: pl.DataFrame, loops: dict[str, float]) -> Iterator[Ratio]:
    """What was measured, as ratios: medians beside the way by hand, else the best of each."""

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
    # A thousand pieces have half a second for what each of them costs whatever it holds.
    yield "pieces of a frame", max(best("none", "in pieces") - 0.5, 0.0) / best("none", "whole"), -PIECES
    # What takes half a second is quick enough.
    whole, quarter = (
        dict(measured.filter(phase=phase).group_by("contestant").agg(pl.col("seconds").min()).iter_rows())
        for phase in ("front matter", "a quarter of it")
    )
    grown = {name: max(seconds - 0.5, 0.0) / quarter[name] for name, seconds in whole.items()}
    worst = max(grown, key=grown.__getitem__)
    yield f"growth of front matter ({worst})", grown[worst], -GROWTH


def _holds(what: str, ratio: float, limit: float) -> bool:
    """Print a ratio and its limit; whether it is kept."""
    kept = ratio >= limit if limit > 0 else ratio <= -limit
    word = "at least" if limit > 0 else "at most"
    print(f"{what:40} {ratio:8.2f}  {word} {abs(limit):g}{'' if kept else '  beyond it'}")
    return kept


def _by_hand(measurements: Measurements, database: str, url: str, folder: Path, size: int, repeat: int) -> None:
    """COPY, or INSERT of a frame, with ON CONFLICT, beside ours in turns."""
    ways: list[peers_postgres.Contestant] = (
        [peers_postgres.EntityFrames(url), peers_postgres.ByHand(url)]
        if database == "postgresql"
        else [peers_duckdb.EntityFrames(folder), peers_duckdb.OnConflict(folder)]
    )
    frame = data.entities(size, seed=measurements.seed)
    given = {"insert": frame, "no-op": frame, "update": data.entities(size, version=1, seed=measurements.seed)}
    for turn in range(repeat):
        for way in ways[:: 1 if turn % 2 else -1]:
            way.prepare()
            for phase, rows in given.items():
                with measurements.timed(way.name, database=database, phase=phase, rows=size):
                    way.upsert(rows)
            if way.stored()[0] != size:
                raise AssertionError(f"{way.name} stored {way.stored()[0]} of {size} rows")
            way.close()


def _bad_rows(measurements: Measurements, database: str, address: str, repeat: int) -> None:
    """1, 10 and 100 of 10,000 rows that the database refuses, against a clean batch."""
    frame = data.entities(10_000, seed=measurements.seed)
    for turn in range(repeat):
        for bad in (0, *BAD):
            with ef.connect(address, namespace=f"guard_{turn}_{bad}") as store:
                _refusing(store)
                texts = pl.when(pl.int_range(pl.len()) < bad).then(pl.lit("bad")).otherwise(pl.lit("x" * 300))
                with measurements.timed("entityframes", database=database, phase=f"{bad} bad rows", rows=frame.height):
                    result = store.upsert(frame.with_columns(content=texts), progress=False)
                if result.counts["failed"] != bad:
                    raise AssertionError(f"{result.counts['failed']} rows failed where {bad} should have")
                store._engine.drop()


def _refusing(store: ef.EntityStore) -> None:
    """Have the database of an empty store refuse contents that begin with bad."""
    engine, rule = store._engine, "CHECK (content NOT LIKE 'bad%')"
    name = f'"{engine.namespace}".entities'
    if engine.name == "postgresql":
        with engine.session() as session:  # type: ignore[attr-defined]
            session.connection.script(f"ALTER TABLE {name} ADD CONSTRAINT allowed_content {rule}")
        return
    with engine._file.cursor() as cursor:  # type: ignore[attr-defined]
        [(ddl,)] = cursor.execute(
            "SELECT sql FROM duckdb_tables() WHERE schema_name = $1 AND table_name = 'entities'", [engine.namespace]
        ).fetchall()
        cursor.execute(f"DROP TABLE {name}")
        cursor.execute(ddl.replace(");", f", {rule});"))


def _pieces(measurements: Measurements, repeat: int) -> None:
    """The texts of a frame, and of the thousand pieces it is cut into: each looks at its own rows only."""
    frame = data.entities(20_000, content_bytes=2_000, seed=measurements.seed).drop("metadata")
    for phase, pieces in (("whole", [frame]), ("in pieces", list(frame.iter_slices(20)))):
        for _ in range(repeat):
            with measurements.timed("entityframes", database="none", phase=phase, rows=frame.height):
                for piece in pieces:
                    readable(piece)


def _front_matter(measurements: Measurements, size: int, repeat: int) -> None:
    """Front matter that is made to be slow, and a quarter of it."""
    for phase, length in (("front matter", size), ("a quarter of it", size // 4)):
        for name, bomb in bombs(length).items():
            text = f"---\n{bomb}\n---\n".encode()
            for _ in range(repeat):
                timed = measurements.timed(name, database="none", phase=phase, rows=length)
                with timed, contextlib.suppress(MarkdownError):
                    parse(text)
