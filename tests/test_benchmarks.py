"""The benchmarks run; the benchmarks themselves measure durations, these tests do not."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

import entityframes as ef
from entityframes.bench.n_plus_one import BATCH, N_PLUS_ONE, n_plus_one
from entityframes.cli import cli
from tests.command import run as run_command


def test_the_scratch_namespace_is_removed(url: str, store, sql) -> None:
    """The N+1 comparison leaves the database as it was."""
    if store._engine.database.name == "duckdb":
        store.close()
    measured = n_plus_one(url, [20], repeat=1)
    assert measured["way"].to_list() == [N_PLUS_ONE, BATCH]
    assert measured["round_trips"].null_count() == (2 if store._engine.database.name == "duckdb" else 0)
    with ef.connect(url) as again:
        listed = again._engine
        namespaces = (
            "SELECT DISTINCT table_schema FROM information_schema.tables WHERE table_schema LIKE 'entityframes%'"
        )
        if listed.database.name == "duckdb":
            with listed.database.file.cursor() as cursor:
                assert cursor.sql(namespaces).fetchall() == [("entityframes",)]
        else:
            assert sql(namespaces) == [("entityframes",)]


@pytest.mark.slow
def test_a_batch_takes_few_round_trips(postgres_url: str) -> None:
    """150 entities: a fiftieth of the round trips of the loop; `benchmarks guard` measures the durations of both."""
    one, batch = n_plus_one(postgres_url, [150], repeat=1).rows(named=True)
    assert batch["round_trips"] * 50 < one["round_trips"]


def test_bench_command(url: str, tmp_path: Path) -> None:
    """A table for people or scripts, and a chart."""
    chart = tmp_path / "chart.svg"
    words = ["bench", "--store", url, "--entities", "10", "--entities", "20", "--repeat", "1", "--chart", str(chart)]
    run = CliRunner().invoke(cli, [*words, "--json"], catch_exceptions=False)
    assert run.exit_code == 0
    assert pl.read_ndjson(run.stdout.encode())["entities"].to_list() == [10, 10, 20, 20]
    assert chart.read_text("utf-8").startswith("<svg")


@pytest.mark.duckdb
def test_bench_writes_and_prints_csv(tmp_path: Path) -> None:
    """To a pipe or a file; in a file also any other format."""
    words = ["bench", "--store", "x.duckdb", "--entities", "5", "--repeat", "1"]
    assert pl.read_csv(run_command(*words, cwd=tmp_path).stdout.encode())["way"].to_list() == [N_PLUS_ONE, BATCH]
    code, out, errors = run_command(*words, "--out", "speed.parquet", cwd=tmp_path)
    assert (code, out, "wrote speed.parquet" in errors) == (0, "", True)
    assert pl.read_parquet(tmp_path / "speed.parquet")["way"].to_list() == [N_PLUS_ONE, BATCH]


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--repeat", "0"], "'--repeat': 0"),
        (["--entities", "0"], "'--entities': 0"),
        (["--latency-ms", "1"], "0 for DuckDB, which has no round trips"),
        (["--chart", "speed.doc"], "no chart of this format: use .svg, .png, .html, .json"),
        (["--chart", "no/speed.svg"], "the folder does not exist"),
        (["--out", "no/speed.csv"], "the folder does not exist"),
        (["--out", "speed.doc"], "cannot infer the format"),
    ],
)
def test_bench_checks_its_arguments_before_it_measures(tmp_path: Path, words: list[str], message: str) -> None:
    code, out, errors = run_command("bench", "--store", "x.duckdb", *words, cwd=tmp_path)
    assert (code, out, message in errors) == (2, "", True), errors
    assert not list(tmp_path.iterdir())


@pytest.mark.duckdb
def test_progress_of_the_benchmark() -> None:
    """Counted in measurements: two methods, three times, for each size."""
    seen: list[tuple[int, int | None]] = []
    n_plus_one(":memory:", [2, 3], progress=lambda done, total: seen.append((done, total)))
    assert seen == [(n, 12) for n in range(1, 13)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["upsert", "lookup", "n_plus_one", "embed", "scale", "scale_out", "directory", "guard"]
)
def test_benchmarks_run(name: str, tmp_path: Path, postgres_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own contestants and the limits, at a small size, with all that a run writes; the others need an extra."""
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


@pytest.mark.slow
def test_passages_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a folder with questions of its own: the answer at the end of a long page is found in a passage only."""
    from benchmarks import passages
    from benchmarks.__main__ import main

    filler = "\n\n".join(f"The ferry number {n} leaves the harbour in the morning." for n in range(200))
    pages = {
        "short.md": "# Moths\n\nA moth sat in the relay.\n",
        "long.md": f"# Ferries\n\n{filler}\n\n## Tea\n\nBoil water.\n",
    }
    pages |= {f"tea{n}.md": f"# Cups\n\nThe cup number {n} of hot tea.\n" for n in range(12)}
    (tmp_path / "docs").mkdir()
    for name, text in pages.items():
        (tmp_path / "docs" / name).write_text(text)
    (tmp_path / "docs.csv").write_text(
        "question,file,heading\nwhich moth is in the relay,short.md,Moths\nboil water,long.md,Tea\n"
    )
    monkeypatch.setattr(passages, "QUESTIONS", tmp_path)
    run = CliRunner().invoke(
        main, ["passages", str(tmp_path / "docs"), "--out", str(tmp_path / "out")], catch_exceptions=False
    )
    assert run.exit_code == 0, run.output
    lines = [line.strip("|").split(" | ") for line in run.output.splitlines() if line.startswith("| docs |")]
    # Way, then recall at 10 for short pages and for long ones, and the passages.
    found = {cells[1]: [cell.strip() for cell in cells[-3:]] for cells in lines}
    assert found["whole texts"] == ["1.00", "0.00", "0.00"]
    assert found["entityframes"] == ["1.00", "1.00", "1.00"]
    assert set(found) == {way.name for way in passages.WAYS}
