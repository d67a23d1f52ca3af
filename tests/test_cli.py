"""The command line: arguments, output, and exit status."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner

import entityframes as ef
from entityframes.cli import cli
from tests.command import run as run_command
from tests.conftest import execute

AIRPORTS = (
    '1,"Goroka Airport","Goroka",\\N,5282,-6.08\n'
    '2,"Madang Airport","Madang","MAG",20,-5.25\n'
    '007,"Bond\'s","London","JBX",\\N,51.5\n'
)
COLUMNS = "id,name,city,iata,altitude,lat"
OPTIONS = ["--type", "airport", "--id", "id", "--content", "name", "--columns", COLUMNS, "--null", r"\N"]


class Run:
    """Runs the command line on one store."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder

    def __call__(self, command: str, *arguments: object, stdin: bytes = b"") -> tuple[int, str, str]:
        return run_command(command, *arguments, "--store", self.url, cwd=self.folder, stdin=stdin)


@pytest.fixture
def run(url: str, tmp_path: Path) -> Run:
    (tmp_path / "airports.dat").write_text(AIRPORTS)
    return Run(url, tmp_path)


def test_import_again_and_changed(run: Run) -> None:
    """A header-less file with \\N nulls: created, then unchanged, then what was edited is updated."""
    code, out, _ = run("import", "airports.dat", *OPTIONS)
    assert (code, "3 created" in out) == (0, True)
    assert "3 unchanged" in run("import", "airports.dat", *OPTIONS)[1]
    changed = AIRPORTS.replace("5282", "5283").replace("Madang Airport", "Madang")
    (run.folder / "airports.dat").write_text(changed)
    code, out, _ = run("import", "airports.dat", *OPTIONS, "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["counts"]["updated"], report["counts"]["unchanged"]) == (0, True, 2, 1)
    with ef.connect(run.url) as store:
        airports = store.read("airport")
        assert airports.schema["altitude"] == pl.Int64
        assert airports.schema["lat"] == pl.Float64
        assert airports.select("id", "iata", "altitude").rows() == [
            ("007", "JBX", None), ("1", None, 5283), ("2", "MAG", 20),
        ]  # fmt: skip


def test_an_import_without_embedding(run: Run) -> None:
    """With --no-embed it makes no job; what a later import writes is queued as ever."""
    assert run("import", "airports.dat", *OPTIONS, "--no-embed")[0] == 0
    with ef.connect(run.url) as store:
        assert store.jobs().is_empty()
    (run.folder / "airports.dat").write_text(AIRPORTS.replace("Madang Airport", "Madang"))
    assert run("import", "airports.dat", *OPTIONS)[0] == 0
    with ef.connect(run.url) as store:
        assert store.jobs("pending")["entities"].to_list() == [1]


def test_a_column_that_a_few_values_make_text(run: Run) -> None:
    """It is reported before the type keeps that dtype, unless text was requested."""
    lines = [f"{n},{n / 2},word {n}" for n in range(30)] + ["30,abc,word"]
    (run.folder / "x.csv").write_text("k,lat,name\n" + "\n".join(lines) + "\n")
    options = ["x.csv", "--type", "t", "--id", "k", "--dry-run"]
    message = run("import", *options)[2]
    assert "column 'lat' is text, because 1 value is not a number, such as 'abc'" in message
    assert "name" not in message
    assert "column 'lat'" not in run("import", *options, "--text", "lat")[2]
    run("import", *options[:-1])
    (run.folder / "x.csv").write_text("k,lat,name\n" + "\n".join(lines[:-1]) + "\n")
    code, _, message = run("import", *options[:-1])
    assert (code, "'lat' looks like Float64 here, but remains text as in the store" in message) == (0, True)


def test_a_dry_run_writes_nothing(run: Run) -> None:
    """What would be done, for people and for scripts; exit status 1 if rows are invalid."""
    code, out, _ = run("import", "airports.dat", *OPTIONS, "--dry-run")
    assert (code, "3 to create" in out, "nothing was written" in out) == (0, True, True)
    assert run("stats")[1].splitlines() in ([], ["entity_type,entities,embedded,due,failed"])
    run("import", "airports.dat", *OPTIONS)
    (run.folder / "airports.dat").write_text(AIRPORTS.replace("5282", "5283").replace("Madang Airport", "Madang"))
    code, out, _ = run("import", "airports.dat", *OPTIONS, "--dry-run", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["counts"]["update"], report["counts"]["unchanged"]) == (0, True, 2, 1)
    assert (report["changed_contents"], report["changed_fields"]) == (1, {"altitude": 1})
    (run.folder / "bad.csv").write_text("k,v\na,1\n,2\n")
    code, out, _ = run("import", "bad.csv", "--type", "t", "--id", "k", "--dry-run")
    assert (code, "1 to create, 1 invalid" in out, "id is null" in out) == (1, True, True)


def test_key_of_several_columns_and_repeats(run: Run) -> None:
    """Routes have composite ids; a repeated pair is a duplicate, or the file is rejected."""
    (run.folder / "routes.csv").write_text("airline,source,destination\nBA,LHR,JFK\nBA,LHR,CDG\nBA,LHR,JFK\n")
    words = ["routes.csv", "--type", "route", "--id", "airline,source,destination"]
    code, out, errors = run("import", *words, "--on-duplicate", "error")
    assert (code, out) == (2, "")
    assert "BA|LHR|JFK" in errors
    code, out, _ = run("import", *words)
    assert code == 0
    assert "2 created, 1 duplicate" in out
    (run.folder / "bad.csv").write_text("airline,source,destination\nBA,,JFK\nBA,LHR,JFK\n")
    code, _, errors = run("import", "bad.csv", "--type", "route", "--id", "airline,source")
    assert (code, "an id is null if any of its parts is null: airline, source" in errors) == (1, True)
    code, out, _ = run("get", "--type", "route", "BA|LHR|CDG", "--json")
    assert json.loads(json.loads(out)["metadata"]) == {"airline": "BA", "source": "LHR", "destination": "CDG"}


@pytest.mark.duckdb
def test_an_id_with_a_part_that_is_null_among_other_failures(tmp_path: Path) -> None:
    """The note about its parts is printed also if other rows failed for other reasons."""
    rows = pl.DataFrame({"airline": ["BA"] * 3, "source": [None, "LHR", "CDG"], "text": ["one", "nul\0", "three"]})
    rows.write_parquet(tmp_path / "rows.parquet")
    words = ["import", "rows.parquet", "--type", "route", "--id", "airline,source", "--content", "text"]
    code, out, errors = run_command(*words, "--store", "new.duckdb", cwd=tmp_path)
    assert (code, "1 created, 2 failed" in out) == (1, True)
    assert "note: an id is null if any of its parts is null: airline, source" in errors


def test_ids_of_one_column_are_as_they_are(run: Run) -> None:
    """Only ids of several columns need an escape for the separator."""
    (run.folder / "rows.csv").write_text("id,n\na|b\\c,1\n")
    assert run("import", "rows.csv", "--type", "t", "--id", "id")[0] == 0
    code, out, _ = run("get", "--type", "t", "a|b\\c", "--json")
    assert (code, json.loads(out)["id"]) == (0, "a|b\\c")


@pytest.mark.parametrize("command", ["get", "exists", "delete"])
def test_a_file_of_ids_with_a_line_that_cannot_be_read(run: Run, command: str) -> None:
    """It may be one of the ids: nothing is done."""
    run("import", "airports.dat", *OPTIONS)
    (run.folder / "ids.csv").write_text("id,n\n1,1\n2,2,2\n")
    code, out, errors = run(command, "--type", "airport", "--ids", "ids.csv")
    assert (code, out) == (2, "")
    assert "ids.csv, line 3: 3 values" in errors
    assert run("exists", "--type", "airport", "1", "2")[0] == 0


def test_failed_rows_are_written_corrected_and_imported_again(run: Run) -> None:
    """The file of failed rows has the original columns and the error, and can be imported again once corrected."""
    rows = pl.DataFrame({"k": ["a", None, "c"], "n": [1, 2, 3], "day": [dt.date(2026, 1, 1)] * 3})
    rows.write_parquet(run.folder / "rows.parquet")
    code, out, errors = run("import", "rows.parquet", "--type", "t", "--id", "k", "--failed", "rejected.parquet")
    assert code == 1
    assert "2 created, 1 failed" in out
    assert "1 row failed (the first row of the input is row 0)" in errors
    assert "id is null" in errors
    rejected = pl.read_parquet(run.folder / "rejected.parquet")
    assert rejected.drop("entityframes_error").equals(rows[1:2])
    assert rejected["entityframes_error"].to_list() == ["id is null"]
    rejected.with_columns(k=pl.lit("b")).write_parquet(run.folder / "rejected.parquet")
    assert run("import", "rejected.parquet", "--type", "t", "--id", "k")[0] == 0
    with ef.connect(run.url) as store:
        stored = store.read("t").select(k="id", n="n", day="day")
        assert stored.equals(rows.with_columns(k=pl.Series(["a", "b", "c"])))


@pytest.mark.parametrize("table", [False, True])
def test_how_to_get_all_failed_rows(run: Run, table: bool) -> None:
    """The summary shows the first ones, and names --failed if it was not given."""
    pl.DataFrame({"k": [None] * 50 + ["a"], "n": range(51)}).write_parquet(run.folder / "rows.parquet")
    options = ["--table", "rows", "--create", "--key", "k"] if table else ["--type", "t", "--id", "k"]
    code, _, errors = run("import", "rows.parquet", *options)
    assert (code, "write them all with --failed FILE" in errors) == (1, True)
    code, _, errors = run("import", "rows.parquet", *options, "--failed", "rejected.parquet")
    assert (code, "write them all" in errors) == (1, False)
    assert pl.read_parquet(run.folder / "rejected.parquet").height == 50


def test_names_in_several_options(run: Run) -> None:
    """Are those of one option with commas."""
    (run.folder / "a.csv").write_text("a,b,c,d\n1,2,3,4\n")
    several = {"id": "ab", "metadata": "cd", "text": "cd"}
    options = [word for name, columns in several.items() for column in columns for word in (f"--{name}", column)]
    assert run("import", "a.csv", "--type", "t", *options)[0] == 0
    code, out, _ = run("export", "t", "--format", "ndjson")
    assert code == 0
    entity = json.loads(out)
    assert (entity["id"], entity["c"], entity["d"]) == ("1|2", "3", "4")


def test_a_second_file_whose_columns_look_different(run: Run) -> None:
    """It is read with the recorded dtypes if no value is changed by that: rows that failed, integers."""
    options = ["--type", "shop", "--id", "id", "--content", "name"]
    (run.folder / "a.csv").write_text(
        "id,name,price,zip,day,row\n1,a,2.5,A1,2024-01-01,7\n,b,,12345,,8\n3,c,4.5,B2,,9\n"
    )
    assert run("import", "a.csv", *options, "--failed", "bad.csv")[0] == 1
    bad = (run.folder / "bad.csv").read_text()
    (run.folder / "bad.csv").write_text(bad.replace("\n,b", "\n2,b"))
    assert run("import", "bad.csv", *options)[0] == 0
    (run.folder / "more.csv").write_text("id,name,price\n4,d,3\n")
    assert run("import", "more.csv", *options)[0] == 0
    with ef.connect(run.url) as store:
        shops = store.read("shop").select("id", "price", "zip", "day")
    assert shops.schema["price"] == pl.Float64
    assert shops.rows() == [
        ("1", 2.5, "A1", "2024-01-01"), ("2", None, "12345", None), ("3", 4.5, "B2", None), ("4", 3.0, None, None),
    ]  # fmt: skip
    (run.folder / "odd.csv").write_text("id,name,price\n5,e,much\n")
    code, _, message = run("import", "odd.csv", *options)
    assert (code, "'price' is Float64 there and String here" in message) == (2, True)


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("header.csv", b"id,caf\xe9\n1,2\n", "header.csv, line 1 (the header): not UTF-8"),
        ("cut.csv.gz", gzip.compress(b"id,a\n1,x\n" * 9, mtime=0)[:-9], "cut.csv.gz is truncated"),
        ("empty.csv", b"", "empty.csv is empty"),
        ("empty.ndjson", b"\n", "empty.ndjson is empty"),
        ("no.parquet", b"PAR", "no.parquet cannot be read"),
    ],
)
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    """It is named, with the line and the reason, and no store is created for it."""
    (tmp_path / name).write_bytes(content)
    ran = run_command("import", name, "--type", "t", "--id", "id", "--store", "new.duckdb", cwd=tmp_path)
    assert ran.returncode == 2
    assert message in ran.stderr
    assert not (tmp_path / "new.duckdb").exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ragged.csv", b"id,a\n1,2\n2,3,4\n", "ragged.csv, line 3: 3 values, but the first line has 2"),
        ("latin.csv", b"id,a\n0,0\n1,\xff\n", "latin.csv, line 3: not UTF-8"),
        ("latin.csv.gz", gzip.compress(b"id,a\n0,0\n1,\xff\n", mtime=0), "latin.csv.gz, line 3: not UTF-8"),
        ("a.ndjson", b'{"id": "1"}\n{2}\n', "a.ndjson, line 2: not valid JSON"),
    ],
)
@pytest.mark.parametrize("engine", ["duckdb"])
def test_a_line_that_cannot_be_read(run: Run, name: str, content: bytes, message: str) -> None:
    """It is a failed row with file, line and reason; the others are stored."""
    (run.folder / name).write_bytes(content)
    code, out, errors = run("import", name, "--type", "t", "--id", "id")
    assert (code, "1 created, 1 failed" in out) == (1, True)
    assert message in errors


@pytest.mark.duckdb
def test_the_summary_in_json_is_readable(tmp_path: Path) -> None:
    """Letters of all scripts are printed as they are, not as escapes."""
    (tmp_path / "café_東京.csv").write_text("id,a\n1,2\n2,3,4\n")
    words = ["import", "café_東京.csv", "--type", "t", "--id", "id", "--store", "new.duckdb", "--json"]
    assert '"error": "café_東京.csv, line 3: ' in run_command(*words, cwd=tmp_path).stdout


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a.csv", "--failed", "a.csv"], "one of the files to import"),
        (["a.csv", "--failed", "no/such/x.csv"], "the folder does not exist"),
        (["a.csv", "--failed", "bad.weird"], "cannot infer the format"),
        (["a.csv", "--store", "a.csv"], "use a separate file for a DuckDB store"),
        (["-"], "the format of standard input cannot be inferred"),
        (["-", "-", "--format", "csv"], "standard input can be given only once"),
        (["-", "a.csv", "--format", "csv"], "a.csv has different columns than standard input"),
    ],
)
def test_what_an_import_refuses_beforehand(tmp_path: Path, words: list[str], message: str) -> None:
    """Nothing is stored, nothing is overwritten."""
    (tmp_path / "a.csv").write_text("id,b\n,2\n")
    store = [] if "--store" in words else ["--store", "new.duckdb"]
    ran = run_command("import", *words, "--type", "t", "--id", "id", *store, cwd=tmp_path, stdin=b"id\n1\n")
    assert (ran.returncode, message in ran.stderr) == (2, True), ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.csv"]
    assert (tmp_path / "a.csv").read_text() == "id,b\n,2\n"


@pytest.mark.parametrize(
    "name", ["x.csv", "x.tsv", "x.ndjson", "x.parquet", "x.arrow", "x.csv.gz", "x.ndjson.gz", "x.tsv.zst"]
)
@pytest.mark.parametrize("engine", ["duckdb"])
def test_formats(run: Run, name: str) -> None:
    """Exported files can be imported, compressed or not."""
    run("import", "airports.dat", *OPTIONS)
    code, _, errors = run("export", "airport", "--out", name)
    assert code == 0, errors
    with ef.connect(run.url) as store:
        before = store.read("airport").drop("created_at", "updated_at", "content_hash")
        store.delete(ef.ids("airport", before["id"]))
    words = [name, "--type", "airport", "--id", "id", "--content", "content", "--metadata", "altitude,city,iata,lat"]
    code, _, errors = run("import", *words)
    assert code == 0, errors
    with ef.connect(run.url) as store:
        assert store.read("airport").select(sorted(before.columns)).equals(before.select(sorted(before.columns)))


def test_patterns_and_standard_input(run: Run) -> None:
    """Several files by pattern; - reads standard input, compressed or not."""
    for part in (1, 2):
        (run.folder / f"part{part}.csv").write_text(f"id,v\na{part},1\n")
    assert "2 created" in run("import", "part*.csv", "--type", "t", "--id", "id")[1]
    assert "1 created" in run("import", "-", "--format", "csv", "--type", "t", "--id", "id", stdin=b"id,v\nz,1\n")[1]
    packed = gzip.compress(b"id,v\ny,1\n")
    assert "1 created" in run("import", "-", "--format", "csv", "--type", "t", "--id", "id", stdin=packed)[1]


def test_entity_files_need_no_type(run: Run) -> None:
    """A file with entity_type, id and content needs no options."""
    (run.folder / "e.csv").write_text('entity_type,id,content,metadata\nnote,1,x,"{""a"": 1}"\ntask,2,y,\n')
    code, _, errors = run("import", "e.csv")
    assert code == 0, errors
    assert json.loads(run("get", "--type", "note", "1", "--json")[1])["metadata"] == '{"a":1}'


def test_get_exists_delete(run: Run) -> None:
    """Missing ids are shown, with exit status 1; deleting missing entities is not an error."""
    run("import", "airports.dat", *OPTIONS)
    code, out, _ = run("get", "--type", "airport", "2", "x")
    assert code == 1
    assert "Madang Airport" in out
    assert run("get", "--type", "airport", "2")[0] == 0
    assert run("exists", "--type", "airport", "1", "2")[0] == 0
    code, out, _ = run("exists", "--type", "airport", "-", "--json", stdin=b"1\nx\n")
    assert code == 1
    assert [json.loads(line)["exists"] for line in out.splitlines()] == [True, False]
    (run.folder / "ids.csv").write_text("id\n1\n007\nx\n")
    code, out, _ = run("delete", "--type", "airport", "--ids", "ids.csv", "--json")
    assert (code, json.loads(out)["counts"]["deleted"], json.loads(out)["counts"]["missing"]) == (0, 2, 1)


def test_stats_and_export_to_standard_output(run: Run) -> None:
    """CSV if standard output is not a terminal, NDJSON with --json."""
    run("import", "airports.dat", *OPTIONS)
    assert run("stats")[1].splitlines() == ["entity_type,entities,embedded,due,failed", "airport,3,0,3,0"]
    assert json.loads(run("stats", "--json")[1])["due"] == 3
    assert run("export", "airport")[1].splitlines()[0].startswith("id,content,city,iata,altitude,lat,content_hash")
    assert len(run("export", "airport", "--json")[1].splitlines()) == 3


@pytest.mark.parametrize("engine", ["duckdb"])
def test_parquet_to_standard_output(run: Run) -> None:
    """Standard output is the file if it is no terminal."""
    run("import", "airports.dat", *OPTIONS)
    words = ["export", "airport", "--format", "parquet", "--store", run.url]
    with (run.folder / "out").open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", "entityframes", *words], stdout=out, stderr=subprocess.PIPE, timeout=120
        )
    assert (done.returncode, done.stderr) == (0, b"")
    assert pl.read_parquet(run.folder / "out")["id"].to_list() == ["007", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "nothing.csv", "--type", "t", "--id", "id"], "no such file: nothing.csv"),
        (["import", "airports.dat", "--type", "t", "--id", "id"], "no column 'id'"),
        (["import", "airports.dat", "--type", "t"], "--type needs --id"),
        (["import", "airports.dat", "--type", "t", "--id", "a", "--columns", "a,b"], "6 columns, but 2 names"),
        (["import", "airports.unknown", "--type", "t", "--id", "id"], "no such file"),
        (["get", "--type", "t"], "no ids"),
        (["nonsense"], "No such command"),
    ],
)
@pytest.mark.parametrize("engine", ["duckdb"])
def test_what_cannot_run(run: Run, words: list[str], message: str) -> None:
    """Exit status 2 and one clear message on standard error."""
    code, out, errors = run(*words)
    assert (code, out) == (2, "")
    assert message in errors


@pytest.mark.postgresql
def test_a_store_that_cannot_be_opened(tmp_path: Path) -> None:
    """Two lines, exit status 2, no password."""
    code, out, errors = Run("postgresql://u:s3cr3t@127.0.0.1:1/d", tmp_path)("stats")
    assert (code, out) == (2, "")
    assert errors.count("\n") == 2
    assert "s3cr3t" not in errors


@pytest.mark.slow
def test_interrupt(run: Run) -> None:
    """Ctrl-C: the import stops with exit status 130, and reports exactly the rows that are stored."""
    with (run.folder / "many.csv").open("w") as file:
        file.write("id,text\n")
        file.writelines(f"{n},{'word ' * 20}{n}\n" for n in range(300_000))
    words = ["import", "many.csv", "--type", "t", "--id", "id", "--content", "text", "--batch-size", "500", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-m", "entityframes", *words, "--store", run.url],
        cwd=run.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    _wait_until_some_is_stored(run.url)
    os.kill(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    assert "run the same command again to resume" in errors
    assert "Traceback" not in errors
    counts = json.loads(out)["counts"]
    assert counts["cancelled"] > 0
    with ef.connect(run.url) as store:
        assert store.stats()["entities"].sum() == counts["created"]


def _wait_until_some_is_stored(url: str) -> None:
    """Wait for the first batches of another process; DuckDB locks its file, but the file grows."""
    file = Path(url)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if url.startswith("postgresql:"):
            if execute(url, "SELECT count(*) FROM entityframes.entities")[0][0]:
                return
        elif sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*")) > 4 << 20:
            return
        time.sleep(0.05)
    raise TimeoutError("nothing was stored within a minute")


def test_every_command_has_help() -> None:
    """Each command and each option has a help text."""
    for name, command in cli.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["import"], "Missing argument 'FILE...'.\n  see entityframes import --help"),
        (["import", "x.csv", "--batch-size", "0"], "'--batch-size': 0"),
        (["import", "x.csv", "--id", "k"], "--id needs --type"),
        (["import", "x.csv", "--type", "t", "--id", "z"], "no column 'z'; the file has 'k', 'v'"),
        (["import", "x.csv", "y.csv", "--type", "t", "--id", "k"], "y.csv has different columns than x.csv"),
        (["import", "none*.csv", "--type", "t", "--id", "k"], "no such file: none*.csv"),
        (["get", "--type", "t"], "no ids\n  give them as arguments"),
    ],
)
def test_an_error_is_two_lines(tmp_path: Path, words: list[str], message: str) -> None:
    """What happened, and what to do next; exit status 2, without the usage of the whole command."""
    (tmp_path / "x.csv").write_text("k,v\na,1\n")
    (tmp_path / "y.csv").write_text("k,w\nb,1\n")
    run = run_command(*words, cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert message in run.stderr
    happened, following = run.stderr.splitlines()
    assert happened.startswith("entityframes: ")
    assert following.startswith("  ")
    assert not (tmp_path / "entities.duckdb").exists()


_NO_HEADER = "  name the columns with --columns if that is no header line"
_HELP = "  see entityframes import --help"


@pytest.mark.parametrize(
    ("name", "content", "words", "message"),
    [
        ("x.csv", "k,v\n1,2\n", [], "the file has 'k', 'v' in its first line\n" + _NO_HEADER),
        ("x.csv", "1,2\n", ["--columns", "k,v"], "the file has 'k', 'v'\n" + _HELP),
        ("x.csv", "k;v\n1;2\n", [], "the file has 'k;v'; its separator seems to be ';'\n  use --separator ';'"),
        ("x.csv", "k;v,w\n1;2,3\n", [], "the file has 'k;v', 'w' in its first line\n" + _NO_HEADER),
        ("x.tsv", "k|v\n1|2\n", [], "its separator seems to be '|'\n  use --separator '|'"),
        ("x.ndjson", '{"k;v": 1}\n', [], "the file has 'k;v'\n" + _HELP),
        ("x.csv", ",".join(f"c{n}" for n in range(50)) + "\n", [], "'c48', 'c49' in its first line\n" + _NO_HEADER),
        ("x.csv", ",".join(f"c{n}" for n in range(51)) + "\n", [], "'c49', ... in its first line\n" + _NO_HEADER),
    ],
)
def test_a_column_that_is_not_there(tmp_path: Path, name: str, content: str, words: list[str], message: str) -> None:
    """The message lists the columns that there are, and names the probable cause."""
    (tmp_path / name).write_text(content)
    ran = run_command("import", name, "--type", "t", "--id", "id", *words, cwd=tmp_path)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert "no column 'id'; " in ran.stderr
    assert ran.stderr.rstrip().endswith(message)


def test_interrupted_while_the_files_are_read(tmp_path: Path) -> None:
    """Ctrl-C before the first batch reports that nothing was imported, and creates no store."""
    pipe = tmp_path / "rows.csv"
    os.mkfifo(pipe)
    words = [sys.executable, "-m", "entityframes", "import", str(pipe), "--type", "t", "--id", "id"]
    run = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Opening it waits for the reader.
    with pipe.open("w") as file:
        file.write("id,v\n1,2\n")
        file.flush()
        run.send_signal(signal.SIGINT)
        _, errors = run.communicate(timeout=120)
    assert run.returncode == 130, errors
    assert "note: nothing was imported" in errors
    assert not (tmp_path / "entities.duckdb").exists()


def test_a_narrower_file_leaves_the_rest(run: Run) -> None:
    """Case 56: without --content, with chosen --metadata or other columns, what the file lacks is unchanged."""
    run("import", "airports.dat", *OPTIONS)
    (run.folder / "heights.csv").write_text("id,altitude,city\n1,1,Elsewhere\n2,,Elsewhere\n")
    some = ["heights.csv", "--type", "airport", "--id", "id", "--metadata", "altitude"]
    code, out, _ = run("import", *some, "--nulls", "keep", "--dry-run")
    assert (code, "1 to update, 1 unchanged" in out, "altitude of 1" in out) == (0, True, True)
    assert "1 updated" in run("import", *some, "--nulls", "keep")[1]
    columns = ["id", "content", "city", "iata", "altitude", "lat"]

    def airports() -> list[tuple]:
        with ef.connect(run.url) as store:
            return store.read("airport").sort("id").select(columns).rows()[1:]

    goroka, madang = ("1", "Goroka Airport", "Goroka", None), ("2", "Madang Airport", "Madang", "MAG")
    assert airports() == [(*goroka, 1, -6.08), (*madang, 20, -5.25)]
    assert "1 updated" in run("import", *some)[1]
    assert airports() == [(*goroka, 1, -6.08), (*madang, None, -5.25)]
    code, out, _ = run("import", *some, "--absent", "clear")
    assert (code, "2 updated" in out) == (0, True)
    assert airports() == [("1", "", None, None, 1, None), ("2", "", None, None, None, None)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.ndjson"])
def test_a_file_without_content_and_without_a_type(run: Run, name: str) -> None:
    """Case 56: keys and metadata are enough; content, if there is any, is always text."""
    frame = pl.DataFrame(
        {"entity_type": ["n", "n"], "id": ["1", "2"], "content": ["007", "8"], "metadata": ['{"a":1}', "{}"]}
    )
    write = {"rows.csv": pl.DataFrame.write_csv, "rows.ndjson": pl.DataFrame.write_ndjson}[name]
    write(frame, run.folder / name)
    assert "2 created" in run("import", name)[1]
    write(frame.drop("content").with_columns(metadata=pl.lit('{"b":2}')), run.folder / name)
    code, out, errors = run("import", name)
    assert (code, "2 updated" in out) == (0, True), errors
    with ef.connect(run.url) as store:
        assert store.read("n").select("id", "content", "a", "b").rows() == [("1", "007", 1, 2), ("2", "8", None, 2)]
    write(frame.select("entity_type", "id"), run.folder / name)
    assert "2 unchanged" in run("import", name)[1]


@pytest.mark.duckdb
def test_a_data_file_is_no_store(tmp_path: Path) -> None:
    """Neither to write to nor to read from."""
    (tmp_path / "a.csv").write_text("id,n\n1,2\n")
    for words in (["stats"], ["tables"], ["import", "a.csv", "--type", "t", "--id", "id"]):
        code, out, errors = run_command(*words, "--store", "a.csv", cwd=tmp_path)
        assert (code, out) == (2, "")
        assert errors == "entityframes: a.csv is a data file\n  use a separate file for a DuckDB store\n"


@pytest.mark.duckdb
def test_progress_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On standard error, where there is no terminal; standard output is as without."""
    monkeypatch.setattr("entityframes.progress.DELAY", 0.0)
    monkeypatch.chdir(tmp_path)
    Path("rows.csv").write_text("id,text\n1,one\n2,two\n")
    words = ["import", "rows.csv", "--type", "t", "--id", "id", "--store", "s.duckdb"]

    def stderr(*arguments: str) -> str:
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, done.output
        return done.stderr

    assert "upsert: done, 2 rows, " in stderr(*words, "--progress", "log")
    for quiet in (["--no-progress"], ["--progress", "none"], []):
        assert "upsert:" not in stderr(*words, *quiet)
    assert "read: done, 2 rows, " in stderr("export", "t", "--store", "s.duckdb", "--progress", "log")
