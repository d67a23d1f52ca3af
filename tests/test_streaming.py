"""A source of any length in bounded memory, and outcomes that are spilled to disk."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

import entityframes as ef
from entityframes.frames.batching import BATCH_BYTES, BATCH_ROWS, chunks, shares
from entityframes.frames.schema import in_key_order
from entityframes.results import OutcomeLog, outcome_schema, outcomes


def entities(rows: int, start: int = 0, text: str = "x") -> pl.DataFrame:
    return pl.DataFrame({"n": range(start, start + rows)}).select(
        entity_type=pl.lit("t"), id=pl.format("e{}", "n"), content=pl.lit(text)
    )


def peak_kib(script: str, *arguments: object, env: dict[str, str] | None = None) -> int:
    """The peak memory of a script; `getrusage` would include that of its parent process."""
    report = 'print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))'
    words = [sys.executable, "-c", f"{script}\n{report}", *map(str, arguments)]
    return int(subprocess.run(words, capture_output=True, text=True, check=True, env=env).stdout)


def test_batches_by_rows() -> None:
    """Rows keep their position; frames are joined and split to size."""
    cut = list(chunks(iter([entities(5), entities(1, 5), entities(9, 6)]), 4))
    assert [chunk.height for chunk in cut] == [4, 4, 4, 3]
    assert pl.concat(cut)["row"].to_list() == list(range(15))
    assert pl.concat(cut)["id"].to_list() == [f"e{n}" for n in range(15)]


def test_batches_by_bytes() -> None:
    """About 8 MiB of text, but never less than one row, and at most 50,000 rows."""
    assert [chunk.height for chunk in chunks(iter([entities(120_000)]), None)] == [BATCH_ROWS, BATCH_ROWS, 20_000]
    large = entities(40, text="x" * (1 << 20))
    sizes = [chunk.height for chunk in chunks(iter([large]), None)]
    assert sum(sizes) == 40
    assert max(sizes) <= BATCH_BYTES >> 20
    huge = entities(3, text="x" * (BATCH_BYTES + 1))
    assert [chunk.height for chunk in chunks(iter([huge]), None)] == [1, 1, 1]


def test_batches_of_neighboring_keys() -> None:
    """Sorted by key, each batch has its own key range, and rows keep their position; a single batch is not sorted."""
    frame = entities(40_000, text="x" * 400).sample(fraction=1, shuffle=True, seed=1)
    sizes = {"max_bytes": 5 << 20, "max_rows": 50_000, "writers": 2}
    cut = pl.concat(shares(frame, **sizes, in_key_order=in_key_order))
    assert cut["id"].is_sorted()
    assert frame[cut["row"]].equals(cut.drop("row"))
    (alone,) = shares(frame[:100], **sizes, in_key_order=in_key_order)
    assert alone.drop("row").equals(frame[:100])


def test_writers_have_equal_shares_of_a_frame_in_memory() -> None:
    """As many batches each, in order; except for a frame so small that another connection takes longer."""
    frame = entities(40_000, text="x" * 400)
    cut = list(shares(frame, max_bytes=5 << 20, max_rows=50_000, writers=2))
    assert len(cut) == 4
    assert max(chunk.height for chunk in cut) - min(chunk.height for chunk in cut) < 100
    assert pl.concat(cut)["row"].to_list() == list(range(40_000))
    assert pl.concat(cut).drop("row").equals(frame)
    for rows, writers, sizes in ((5_000, 2, [5_000]), (40_000, 1, [15_000, 15_000, 10_000]), (0, 2, [])):
        cut = list(shares(frame[:rows], max_bytes=20 << 20, max_rows=15_000, writers=writers))
        assert [chunk.height for chunk in cut] == sizes


def test_a_change_of_schema_ends_a_batch() -> None:
    """Frames with different metadata are not combined."""
    one = entities(2).with_columns(metadata=pl.struct(a=1))
    two = entities(2, 2).with_columns(metadata=pl.struct(b=1))
    assert [chunk.height for chunk in chunks(iter([one, two]), 10)] == [2, 2]


def test_outcomes_that_are_spilled_to_disk() -> None:
    """Beyond the limit they are written to a file, and returned in input order."""
    log = OutcomeLog(keep=10)
    for start in (20, 0, 10, 30):
        rows = entities(10, start).with_columns(row=pl.int_range(start, start + 10, dtype=pl.UInt32))
        log.append(outcomes(rows, outcome_schema(), status="created" if start else "failed", error="x"))
    assert log.counts["created"] == 30
    assert log.counts["failed"] == 10
    collected = log.collect()
    assert collected["row"].to_list() == list(range(40))
    assert collected["id"].to_list() == [f"e{n}" for n in range(40)]


def test_lazy_frame_of_many_batches(store: ef.EntityStore, tmp_path: Path) -> None:
    """A scan of a file is streamed, in order, and a second run finds it unchanged."""
    entities(30_000, text="some text").write_parquet(tmp_path / "x.parquet", row_group_size=1_000)
    lazy = pl.scan_parquet(tmp_path / "x.parquet")
    result = store.upsert(lazy, batch_size=7_000)
    assert result.batches == 5
    assert result.outcomes["id"].to_list() == [f"e{n}" for n in range(30_000)]
    assert result.counts["created"] == 30_000
    assert store.upsert(lazy).counts["unchanged"] == 30_000


def test_a_stream_whose_progress_fails(store: ef.EntityStore) -> None:
    """Each batch that was taken from the stream has its outcomes, including the one that waited for a thread."""
    taken = 0

    def stream() -> Iterator[pl.DataFrame]:
        nonlocal taken
        for number in range(20):
            taken += 1
            yield entities(100, start=100 * number)

    def fail(done: int, total: int | None) -> None:
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        store.upsert(stream(), batch_size=100, progress=fail)
    outcomes = store.last_result.outcomes
    # The last frame was not split into batches yet.
    assert outcomes.height == 100 * (taken - 1)
    assert outcomes["row"].to_list() == list(range(outcomes.height))
    stored = store.exists(outcomes)["exists"]
    assert (stored == (outcomes["status"] == "created")).all()


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["postgresql"])
def test_memory_does_not_grow_with_the_stream(url: str, tmp_path: Path) -> None:
    """Four times the rows need about the same peak memory."""
    script = textwrap.dedent(
        """
        import sys
        import polars as pl, entityframes as ef
        def source(frames):
            for number in range(frames):
                yield pl.DataFrame({"n": range(number * 10_000, (number + 1) * 10_000)}).select(
                    entity_type=pl.lit("t"), id=pl.format("{}", "n"), content=pl.format("text {} ", "n").repeat_by(40).list.join("")
                )
        with ef.connect(sys.argv[1], namespace=f"n{sys.argv[2]}") as store:
            assert store.upsert(source(int(sys.argv[2])), progress=False).ok
        """
    )
    # Fewer rows do not fill the batches in flight.
    peaks = [peak_kib(script, url, frames) for frames in (20, 80)]
    assert peaks[1] < peaks[0] * 1.3, peaks


@pytest.mark.slow
def test_duckdb_takes_the_memory_that_a_large_update_needs(tmp_path: Path) -> None:
    """The small memory limit that a file starts with does not limit the size of updates."""
    rows = 120_000
    frame = pl.select(entity_type=pl.lit("note"), id=pl.int_range(rows).cast(pl.String)).with_columns(
        content=pl.format("{} {}", "id", pl.lit("lorem ipsum " * 45))
    )
    with ef.connect(tmp_path / "store.duckdb") as store:
        store.upsert(frame, progress=False)
        result = store.upsert(frame.with_columns(content=pl.col("content") + "!"), progress=False)
        assert result.counts["updated"] == rows
        assert store.get(frame.select("entity_type", "id").tail(1))["content"][0].endswith("!")


@pytest.mark.slow
def test_a_scan_reads_little_ahead(tmp_path: Path) -> None:
    """A Parquet file far larger than the batches in flight is not loaded completely; the environment is restored."""
    path = tmp_path / "x.parquet"
    text = pl.format("{} {}", "id", pl.lit("lorem ipsum " * 40))
    pieces = (entities(50_000, start).with_columns(content=text) for start in range(0, 600_000, 50_000))
    with pq.ParquetWriter(path, entities(0).to_arrow(compat_level=pl.CompatLevel.oldest()).schema) as writer:
        for piece in pieces:
            writer.write_table(piece.to_arrow(compat_level=pl.CompatLevel.oldest()))
    script = textwrap.dedent(
        """
        import os, sys
        import polars as pl
        from entityframes.frames import sources
        environment = dict(os.environ)
        assert sum(frame.height for frame in sources.iterate(pl.scan_parquet(sys.argv[1]))) == 600_000
        assert dict(os.environ) == environment
        """
    )
    ours = {name: value for name, value in os.environ.items() if not name.startswith("POLARS_")}
    little, much = (
        peak_kib(script, path, env=ours | given) for given in ({}, {"POLARS_ROW_GROUP_PREFETCH_SIZE": "16"})
    )
    assert little < much - 50_000, (little, much)
