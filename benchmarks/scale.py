"""Time and peak memory of a streamed import, by number of rows, by connections, and by row size."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import polars as pl

from benchmarks import data
from benchmarks.measure import OURS, Measurements
from benchmarks.peers_postgres import RawIngest
from benchmarks.postgres import server

DEFAULT_ROWS = (10_000, 100_000, 1_000_000)
CONTENT_BYTES = (50, 1_000, 100_000)

#: One import in a separate process, so that its peak memory is measured separately.
_CHILD = """
import sys
import polars as pl
import entityframes as ef
from benchmarks.measure import peak_mb
url, path, workers = sys.argv[1:]
with ef.connect(url, namespace="rows", workers=int(workers) or None) as store:
    result = store.upsert(pl.scan_parquet(path), progress=False)
    assert result.ok
    print(result.rows, result.counts["created"], result.elapsed, peak_mb())
    store._engine.drop()
"""

#: The same for the limit: no lookup, outcomes or jobs; each row group is sorted by key and copied into the keyed table.
_LIMIT = """
import sys
import time
import polars as pl
import pyarrow.parquet as pq
from benchmarks.measure import peak_mb
from benchmarks.peers_postgres import KEY, RawIngest
url, path, _ = sys.argv[1:]
limit = RawIngest(url)
limit.prepare()
rows, started = 0, time.perf_counter()
for batch in pq.ParquetFile(path).iter_batches(50_000):
    limit.upsert(pl.from_arrow(batch).sort(KEY))
    rows += batch.num_rows
print(rows, limit.stored()[0], time.perf_counter() - started, peak_mb())
limit.prepare()
"""


def run(measurements: Measurements, *, rows: list[int], repeat: int, postgres: str | None, only: str | None) -> None:
    """From Parquet files with row groups of 50,000."""
    sizes = rows or list(DEFAULT_ROWS)
    with server(postgres) as url, tempfile.TemporaryDirectory() as folder:
        targets = {"postgresql": url, "duckdb": str(Path(folder) / "scale.duckdb")}
        path = Path(folder) / "rows.parquet"
        for size in sizes:
            _write(path, size, 480, measurements.seed)
            for _ in range(repeat):
                for database, target in targets.items():
                    _import(measurements, target, path, database, "by length", size)
                if only in (None, "length"):
                    _import(measurements, url, path, "postgresql", "by length", size, limit=True)
        if only == "length":
            return
        middle = min(100_000, max(sizes))
        _write(path, middle, 480, measurements.seed)
        for workers in (1, 2, 3, 4):
            for _ in range(repeat):
                _import(measurements, url, path, "postgresql", f"{workers} connections", middle, workers)
        for content in CONTENT_BYTES:
            size = max(min(middle, 50_000_000 // content), 10)
            _write(path, size, content, measurements.seed)
            for database, target in targets.items():
                _import(measurements, target, path, database, f"{content:,} B content", size)


def _write(path: Path, rows: int, content_bytes: int, seed: int) -> None:
    """Write in pieces, so that this process does not hold what the measured one streams."""
    step = 500_000 if content_bytes < 10_000 else 1_000
    pieces = [path.with_suffix(f".{number}") for number in range(-(-rows // step))]
    for number, piece in enumerate(pieces):
        height = min(step, rows - number * step)
        frame = data.entities(height, content_bytes=content_bytes, seed=seed)
        frame.with_columns(pl.format("{}-{}", "id", pl.lit(number))).write_parquet(piece)
    pl.scan_parquet(pieces).sink_parquet(path, row_group_size=50_000)
    for piece in pieces:
        piece.unlink()


def _import(
    measurements: Measurements, url: str, path: Path, database: str, phase: str, rows: int, workers: int = 0,
    *, limit: bool = False,
) -> None:  # fmt: skip
    words = [sys.executable, "-c", _LIMIT if limit else _CHILD, url, str(path), str(workers)]
    run = subprocess.run(words, capture_output=True, text=True, check=True)
    handled, created, seconds, peak = run.stdout.split()
    if not int(handled) == int(created) == rows:
        raise AssertionError(f"{created} of {rows} rows were created")
    name = RawIngest.name if limit else OURS
    measurements.add(name, database=database, phase=phase, rows=rows, seconds=float(seconds), peak_mb=float(peak))
