"""The benchmarks run, and batches stay far ahead of loops: ratios of one run, with room for noise."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import polars as pl
import pytest
from click.testing import CliRunner

import entityframes as ef
from benchmarks import data, peers_duckdb, peers_postgres
from entityframes.bench import BATCH, N_PLUS_ONE, n_plus_one
from entityframes.cli import cli


def test_the_scratch_namespace_is_removed(url: str, store, sql) -> None:
    """N+1 against batch leaves the database as it was."""
    if store._engine.name == "duckdb":
        store.close()
    measured = n_plus_one(url, [20], repeat=1)
    assert measured["way"].to_list() == [N_PLUS_ONE, BATCH]
    assert measured["round_trips"].null_count() == (2 if store._engine.name == "duckdb" else 0)
    with ef.connect(url) as again:
        listed = again._engine
        namespaces = (
            "SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_schema LIKE 'entityframes%'"
        )
        if listed.name == "duckdb":
            with listed._cursor() as cursor:
                assert cursor.sql(namespaces).fetchall() == [("entityframes",)]
        else:
            assert sql(namespaces) == [("entityframes",)]


@pytest.mark.alone
def test_guard_against_slower_batches(url: str) -> None:
    """150 entities: at least ten times faster than the loop, with a fiftieth of its round trips."""
    measured = n_plus_one(url, [150], repeat=1)
    one, batch = measured.rows(named=True)
    assert batch["speedup"] > 10
    if url.startswith("postgresql:"):
        assert batch["round_trips"] * 50 < one["round_trips"]


@pytest.mark.alone
def test_guard_against_the_way_by_hand(url: str, tmp_path: Path) -> None:
    """30,000 rows beside COPY or INSERT with ON CONFLICT by hand, in turns; the floors leave a third for noise."""
    if url.startswith("postgresql:"):
        ways = [peers_postgres.EntityFrames(url), peers_postgres.ByHand(url)]
        floors = {"insert": 0.8, "no-op": 2.0, "update": 0.8}
    else:
        ways = [peers_duckdb.EntityFrames(tmp_path), peers_duckdb.OnConflict(tmp_path)]
        floors = {"insert": 0.4, "no-op": 0.3, "update": 0.4}
    frame = data.entities(30_000)
    given = {"insert": frame, "no-op": frame, "update": data.entities(30_000, version=1)}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(3):
        for way in ways[:: 1 if turn % 2 else -1]:
            way.prepare()
            for phase in floors:
                start = time.perf_counter()
                way.upsert(given[phase])
                seconds.setdefault((way.name, phase), []).append(time.perf_counter() - start)
                assert way.stored()[0] == frame.height
            way.close()
    for phase, floor in floors.items():
        ours, by_hand = (median(seconds[way.name, phase]) for way in ways)
        assert by_hand / ours > floor, f"{phase}: {ours:.3f} s against {by_hand:.3f} s by hand"


def test_bench_command(url: str, tmp_path: Path) -> None:
    """A table for people or scripts, and a chart."""
    chart = tmp_path / "chart.svg"
    words = ["bench", "--store", url, "--entities", "10", "--entities", "20", "--repeat", "1", "--chart", str(chart)]
    run = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert run.exit_code == 0
    assert pl.read_ndjson(run.output.encode())["entities"].to_list() == [10, 10, 20, 20]
    assert chart.read_text("utf-8").startswith("<svg")


@pytest.mark.parametrize("name", ["upsert", "lookup", "n_plus_one", "embed", "scale", "directory"])
def test_benchmarks_run(name: str, tmp_path: Path, postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own contestants and the limits, at a small size, with all that a run writes; peers come with an extra."""
    from benchmarks.__main__ import main

    words = [name, "--rows", "50", "--repeat", "1", "--postgres", postgres_server, "--out", str(tmp_path)]
    words += ["--only", "entityframes,limit"]
    if name == "n_plus_one":
        words += ["--latency-ms", "0", "--latency-ms", "1"]
    run = CliRunner().invoke(main, words, catch_exceptions=False)
    assert run.exit_code == 0, run.output
    measured = pl.read_parquet(tmp_path / f"{name}.parquet")
    assert {"contestant", "database", "phase", "rows", "seconds", "machine", "versions", "seed"} <= set(
        measured.columns
    )
    assert (tmp_path / f"{name}.svg").exists()
    assert "| entityframes" in (tmp_path / f"{name}.md").read_text("utf-8")
