"""The command line on tables of the user."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import psycopg
import pytest

import entityframes as ef
from tests.command import run as run_command
from tests.conftest import execute

CUSTOMERS = "code,name,visits,balance,active,since\n007,Ada,12,1.10,yes,2024-02-29\n042,Alan,3,,no,2024-03-01\n"

TABLE = """
    CREATE TABLE sales.customers (
        code varchar(5) PRIMARY KEY, name text NOT NULL, visits smallint CHECK (visits >= 0), balance numeric(8, 2),
        active boolean, since date, note text DEFAULT 'new'
    )
"""


@pytest.fixture
def database(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of a database without a store on each engine in turn, with a table and its schema."""
    url = str(tmp_path / "shop.duckdb") if engine == "duckdb" else request.getfixturevalue("empty_postgres_url")
    run_sql(url, "CREATE SCHEMA sales", TABLE)
    return url


def run_sql(url: str, *statements: str) -> list[tuple[Any, ...]]:
    """Run SQL on a database that nothing has open."""
    if url.startswith("postgresql"):
        return execute(url, *statements)
    with duckdb.connect(url) as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


@pytest.fixture
def run(database: str, tmp_path: Path) -> Callable[..., tuple[int, str, str]]:
    (tmp_path / "customers.csv").write_text(CUSTOMERS)

    def command(*words: object, stdin: bytes = b"") -> tuple[int, str, str]:
        return run_command(*words, "--store", database, cwd=tmp_path, stdin=stdin)

    return command


Run = Callable[..., tuple[int, str, str]]


def test_import_again_and_changed(run: Run, database: str, tmp_path: Path) -> None:
    """Values of a CSV become values of the columns; a code keeps its zeros; nothing but the rows is added."""
    code, out, _ = run("import", "customers.csv", "--table", "sales.customers")
    assert (code, "2 created" in out, "sales.customers in" in out) == (0, True, True)
    assert "2 unchanged" in run("import", "customers.csv", "--table", "sales.customers")[1]
    (tmp_path / "customers.csv").write_text(CUSTOMERS.replace("Ada,12", "Ada,13"))
    code, out, _ = run("import", "customers.csv", "--table", "sales.customers", "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["counts"]["updated"], report["counts"]["unchanged"]) == (0, True, 1, 1)
    rows = run_sql(
        database, "SELECT code, visits, balance::text, active, since::text, note FROM sales.customers ORDER BY 1"
    )
    assert rows == [("007", 13, "1.10", True, "2024-02-29", "new"), ("042", 3, None, False, "2024-03-01", "new")]
    assert run("tables")[1].splitlines()[1:] == ["sales.customers,code,2,true"]
    schemas = run_sql(database, "SELECT count(*) FROM information_schema.schemata WHERE schema_name = 'entityframes'")
    assert schemas == [(0,)]


def test_rows_that_fail_are_written_corrected_and_imported_again(run: Run, database: str, tmp_path: Path) -> None:
    """Each with its line, its reason in the terms of the table, and its values as they are in the file."""
    (tmp_path / "bad.csv").write_text(
        "code,name,visits,since\n001,Ada,x,2024-02-29\n002,Bob,-1,2024-01-01\n003,Cy,1,2023-02-29\n004,Di,1,1,1\n"
        "123456,Eve,1,\n,Flo,1,\n008,Gil,1,2024-05-06\n"
    )
    code, out, errors = run("import", "bad.csv", "--table", "sales.customers", "--failed", "rejected.csv")
    # DuckDB ignores the length of varchar.
    counts = "2 created, 5 failed" if database.endswith(".duckdb") else "1 created, 6 failed"
    assert (code, counts in out) == (1, True)
    assert "bad.csv, line 2: visits: 'x' is not a valid " in errors
    assert "bad.csv, line 3: " in errors
    assert "bad.csv, line 5: 5 values" in errors
    assert "bad.csv, line 7: code is null" in errors
    rejected = (tmp_path / "rejected.csv").read_text()
    assert "\n001,Ada,x,2024-02-29," in rejected
    rejected = rejected.replace(",x,", ",1,").replace(",-1,", ",1,").replace("2023-02-29", "2023-02-28")
    (tmp_path / "rejected.csv").write_text(
        "\n".join(line for line in rejected.splitlines() if not line.startswith((",", "004", "123456")))
    )
    code, out, _ = run("import", "rejected.csv", "--table", "sales.customers")
    assert (code, "3 created" in out) == (0, True)


def test_a_dry_run_writes_nothing(run: Run, database: str) -> None:
    """What would be done, for people and for scripts."""
    words = ["import", "customers.csv", "--table", "sales.customers", "--dry-run"]
    code, out, _ = run(*words)
    assert (code, "2 to create" in out, "nothing was written" in out) == (0, True, True)
    run_sql(database, "INSERT INTO sales.customers (code, name, visits) VALUES ('007', 'Ada', 1), ('x', 'X', 1)")
    report = json.loads(run(*words, "--json")[1])
    assert report["counts"] == {"create": 1, "update": 1, "unchanged": 0, "duplicate": 0, "invalid": 0}
    assert report["changed_fields"] == {"active": 1, "balance": 1, "since": 1, "visits": 1}
    assert run_sql(database, "SELECT count(*) FROM sales.customers") == [(2,)]


def test_a_dry_run_names_the_lines_of_bad_rows(run: Run, tmp_path: Path) -> None:
    """Its rows are counted as those of the import are, with the unreadable ones."""
    (tmp_path / "bad.csv").write_text("code,name,visits\n001,Ada,1\n002,Bob,1,1\n003,Cy,many\n,Di,1\n")
    words = ["import", "bad.csv", "--table", "sales.customers"]
    code, out, _ = run(*words, "--dry-run")
    assert (code, "row 2 (003): bad.csv, line 4: visits: 'many' is not" in out) == (1, True)
    assert "row 3: bad.csv, line 5: code is null" in out
    report = json.loads(run(*words, "--dry-run", "--json")[1])
    assert [(row["row"], row["code"]) for row in report["invalid"]] == [(2, "003"), (3, None)]
    assert [row["row"] for row in report["unreadable_rows"]] == [1]
    imported = json.loads(run(*words, "--json")[1])
    assert [row["row"] for row in imported["failed"]] == [1, 2, 3]


def test_policies(run: Run, database: str, tmp_path: Path) -> None:
    """What is stored is left alone, nulls keep values, some columns are no difference, and some are left out."""
    run("import", "customers.csv", "--table", "sales.customers")
    (tmp_path / "more.csv").write_text("code,name,balance,colour\n007,Eve,,red\n100,Bob,2,blue\n")
    table = ["import", "more.csv", "--table", "sales.customers"]
    code, out, errors = run(*table)
    assert (code, out) == (2, "")
    assert "more.csv: the table sales.customers has no column 'colour'" in errors
    assert "leave them out with --only" in errors
    named = [*table, "--only", "code,name,balance"]
    assert "1 created, 1 unchanged" in run(*named, "--insert-only")[1]
    assert "2 unchanged" in run(*named, "--ignore", "name", "--nulls", "keep")[1]
    assert "1 updated, 1 unchanged" in run(*named, "--nulls", "keep")[1]
    rows = run_sql(database, "SELECT name, balance::text FROM sales.customers WHERE code = '007'")
    assert rows == [("Eve", "1.10")]


@pytest.mark.slow
def test_a_table_is_created_if_it_does_not_exist(run: Run, database: str, engine: str) -> None:
    """With the dtypes of the file and a primary key, once; the dry run creates nothing."""
    words = ["import", "customers.csv", "--table", "visitors"]
    assert "create it with --create" in run(*words)[2]
    assert "name its columns with --key" in run(*words, "--create")[2]
    code, out, errors = run(*words, "--create", "--key", "code", "--dry-run")
    assert (code, "2 to create" in out, "visitors would be created with code " in errors) == (0, True, True)
    assert "visitors" not in run("tables")[1]
    code, out, errors = run(*words, "--create", "--key", "code")
    assert (code, "2 created" in out, "note: created " in errors) == (0, True, True)
    code, out, errors = run(*words, "--create", "--key", "code")
    assert (code, "2 unchanged" in out, "created" in errors) == (0, True, False)
    assert run_sql(database, "SELECT code, visits + 1, name FROM visitors ORDER BY 1") == [
        ("007", 13, "Ada"),
        ("042", 4, "Alan"),
    ]


def test_a_file_that_does_not_exist_is_created_only_on_request(tmp_path: Path) -> None:
    """A mistyped name of a DuckDB file leaves nothing behind."""
    (tmp_path / "t.csv").write_text("id\n1\n")
    for words in (
        ["tables"],
        ["import", "t.csv", "--table", "t"],
        ["get", "--table", "t", "1"],
        ["export", "--table", "t"],
    ):
        ran = run_command(*words, "--store", "mistyped.duckdb", cwd=tmp_path)
        assert (ran.returncode, "there is no database at mistyped.duckdb" in ran.stderr) == (2, True)
    creating = ["import", "t.csv", "--table", "t", "--create", "--key", "id", "--store", "mistyped.duckdb"]
    assert run_command(*creating, "--dry-run", cwd=tmp_path).returncode == 0
    assert not (tmp_path / "mistyped.duckdb").exists()
    assert run_command(*creating, cwd=tmp_path).returncode == 0
    assert (tmp_path / "mistyped.duckdb").exists()


def test_values_of_json_and_parquet(run: Run, database: str, engine: str, tmp_path: Path) -> None:
    """Digits, nested values and text are those of the file; what is exported is unchanged when it is imported."""
    document, texts = ("jsonb", "text[]") if engine == "postgresql" else ("json", "varchar[]")
    run_sql(database, f"CREATE TABLE docs (id text PRIMARY KEY, price numeric(30, 10), doc {document}, tags {texts})")
    lines = (
        '{"id": "01", "price": 12345678901234567890.123, "doc": {"a": [1, {"b": null}]}, "tags": ["x", "y,z", null]}',
        '{"id": 2, "price": "1.50", "doc": {"other": 1.10}, "tags": []}',
        '{"id": "3", "price": 1, "doc": "{broken", "tags": null}',
    )
    (tmp_path / "docs.ndjson").write_text("\n".join(lines))
    code, _, errors = run("import", "docs.ndjson", "--table", "docs")
    assert code == 1
    assert "docs.ndjson, line 3: " in errors
    stored = run_sql(database, "SELECT id, price::text, doc::text, tags FROM docs ORDER BY id")
    assert [(*row[:2], json.loads(row[2]), row[3]) for row in stored] == [
        ("01", "12345678901234567890.1230000000", {"a": [1, {"b": None}]}, ["x", "y,z", None]),
        ("2", "1.5000000000", {"other": 1.1}, []),
    ]
    for name in ("back.ndjson", "back.parquet"):
        assert run("export", "--table", "docs", "--out", name)[0] == 0
        assert "2 unchanged" in run("import", name, "--table", "docs")[1]
    code, _, errors = run("export", "--table", "docs")
    assert (code, "csv cannot represent the columns 'tags'" in errors) == (2, True)


def test_decimal_commas(run: Run, database: str, tmp_path: Path) -> None:
    """In columns of numbers only; the file of failed rows has them as they were."""
    (tmp_path / "comma.csv").write_text("code;name;balance;visits\n1;a,5;1,25;2\n2;b;1,255;3\n")
    words = ["import", "comma.csv", "--table", "sales.customers", "--separator", ";"]
    assert "balance: '1,25' is not a valid " in run(*words)[2]
    code, _, errors = run(*words, "--decimal-comma", "--failed", "rejected.csv")
    assert (code, "without loss" in errors) == (1, True)
    assert run_sql(database, "SELECT name, balance::text FROM sales.customers") == [("a,5", "1.25")]
    assert '"1,255"' in (tmp_path / "rejected.csv").read_text()


@pytest.mark.parametrize("engine", ["duckdb"])
def test_decimal_commas_and_an_unknown_column(run: Run, tmp_path: Path) -> None:
    """A column that the table does not have is reported as without the option."""
    (tmp_path / "comma.csv").write_text("code;name;balance;remark\n1;a;1,25;new\n")
    words = ["import", "comma.csv", "--table", "sales.customers", "--separator", ";"]
    code, out, errors = run(*words, "--decimal-comma")
    assert (code, out) == (2, "")
    assert errors.startswith("entityframes: comma.csv: the table sales.customers has no column 'remark'; ")
    assert errors == run(*words)[2]


def test_keys_of_several_columns(run: Run, database: str, tmp_path: Path) -> None:
    """Looked up as values separated by commas, or from a file; found, missing, deleted."""
    run_sql(database, "CREATE TABLE lines (item text, number int, qty int, PRIMARY KEY (item, number))")
    run_sql(database, "INSERT INTO lines VALUES ('a,b', 1, 10), ('x', 2, 20)")
    code, out, _ = run("get", "--table", "lines", '"a,b",1', "x,2", "x,9", "x,none")
    assert (code, out.splitlines()) == (
        1, ["item,number,found,qty", '"a,b",1,true,10', "x,2,true,20", "x,9,false,", "x,none,false,"]
    )  # fmt: skip
    code, out, errors = run("get", "--table", "lines", "x")
    assert (code, out, "'x': the key of" in errors) == (2, "", True)
    (tmp_path / "keys.csv").write_text("number,item,more\n2,x,?\n3,x,?\n")
    code, out, _ = run("exists", "--table", "lines", "--ids", "keys.csv", "--json")
    assert [json.loads(line)["exists"] for line in out.splitlines()] == [True, False]
    code, out, _ = run("delete", "--table", "lines", "-", stdin=b"x,2\nx,3\n")
    assert (code, "1 deleted, 1 missing" in out) == (0, True)
    assert run("export", "--table", "lines")[1] == 'item,number,qty\n"a,b",1,10\n'


def test_a_table_without_a_primary_key(run: Run, database: str, engine: str, tmp_path: Path) -> None:
    """The key is named; where an upsert needs a unique key, the message says so. An export needs none."""
    run_sql(database, "CREATE TABLE loose (a int, b text)", "INSERT INTO loose VALUES (1, 'x')")
    (tmp_path / "loose.csv").write_text("a,b\n1,y\n")
    assert "name the columns of a key with --key" in run("import", "loose.csv", "--table", "loose")[2]
    code, out, errors = run("import", "loose.csv", "--table", "loose", "--key", "a")
    if engine == "duckdb":
        assert (code, "1 updated" in out) == (0, True)
    else:
        assert (code, "no unique constraint or index on (a)" in errors) == (2, True)
        run_sql(database, "CREATE UNIQUE INDEX ON loose (a)")
        assert "1 updated" in run("import", "loose.csv", "--table", "loose", "--key", "a")[1]
    assert run("export", "--table", "loose")[1] == "a,b\n1,y\n"
    assert run("get", "--table", "loose", "--key", "a", "1")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["import", "customers.csv", "--table", "t", "--type", "x"], "--type: not with --table"),
        (["import", "customers.csv", "--table", "t", "--absent", "clear"], "--absent: not with --table"),
        (["import", "customers.csv", "--type", "x", "--id", "code", "--key", "code"], "--key: only with --table"),
        (["import", "customers.csv", "--table", "t", "--only", "codes"], "no column 'codes'; the file has 'code'"),
        (["get", "1"], "no type\n  give that of the ids with --type, or a table with --table"),
        (["get", "--table", "t", "--type", "x", "1"], "--type: not with --table"),
        (["get", "--table", "sales.customers"], "no keys\n  give them as arguments, or in a file with --ids"),
        (["delete", "--type", "x", "--key", "code", "1"], "--key: only with --table"),
        (["export"], "no type\n  give that of the entities, or a table with --table"),
        (["export", "--table", "t", "person"], "TYPE: not with --table"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("engine", ["duckdb"])
def test_options_that_do_not_go_together(run: Run, words: list[str], message: str) -> None:
    code, out, errors = run(*words)
    assert (code, out, message in errors) == (2, "", True), errors


@pytest.mark.slow
def test_an_interrupted_import(database: str, engine: str, tmp_path: Path) -> None:
    """Ctrl-C: the report of what was done, and the same command resumes."""
    run_sql(database, "CREATE TABLE numbers (n int PRIMARY KEY, text text)")
    rows = pl.DataFrame({"n": range(100_000)}).with_columns(
        text=pl.lit("some text of a row").repeat_by(20).list.join(" ")
    )
    rows.write_csv(tmp_path / "numbers.csv")
    words = ["import", "numbers.csv", "--table", "numbers", "--batch-size", "1000", "--store", database]
    process = subprocess.Popen(
        [sys.executable, "-m", "entityframes", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not some_is_stored(database) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert "run the same command again to resume" in errors
    assert " cancelled" in out
    stored = run_sql(database, "SELECT count(*) FROM numbers")[0][0]
    assert 0 < stored < 100_000
    assert f"{100_000 - stored:,} created, {stored:,} unchanged" in run_command(*words, cwd=tmp_path).stdout


def some_is_stored(url: str) -> bool:
    """Whether another process has stored rows; DuckDB locks its file, but the file grows."""
    if url.startswith("postgresql"):
        return execute(url, "SELECT EXISTS (SELECT FROM numbers)") == [(True,)]
    file = Path(url)
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*")) > 4 << 20


def test_a_store_is_beside_the_tables(run: Run, database: str) -> None:
    """The tables of a store are not listed among those of the user."""
    with ef.connect(database) as store:
        store.upsert(ef.ids("note", ["a"]))
    listed = run("tables", "--json")[1].splitlines()
    assert [json.loads(line)["table"] for line in listed] == ["sales.customers"]
    assert json.loads(listed[0])["key"] == ["code"]


def test_tables_are_listed_in_order(run: Run, database: str) -> None:
    """Of schema and name, by bytes."""
    names = [f"{schema}.{name}" for schema in ("sales", "Zoo", "able") for name in ("z", "a", "B", "_")]
    quoted = ['"' + name.replace(".", '"."') + '"' for name in names]
    run_sql(database, 'CREATE SCHEMA "Zoo"', "CREATE SCHEMA able")
    run_sql(database, *(f"CREATE TABLE {name} (k integer PRIMARY KEY)" for name in quoted))
    listed = [json.loads(line)["table"] for line in run("tables", "--json")[1].splitlines()]
    assert listed == sorted([*names, "sales.customers"], key=lambda name: name.split("."))


def test_the_number_of_rows_is_honest(run: Run, database: str, engine: str) -> None:
    """Small tables are counted, also before the database has statistics, and after rows were deleted."""
    run("import", "customers.csv", "--table", "sales.customers")
    run_sql(database, "DELETE FROM sales.customers WHERE code = '007'", "CREATE TABLE empty (k integer PRIMARY KEY)")

    def listed() -> list[tuple[str, int | None, bool]]:
        rows = map(json.loads, run("tables", "--json")[1].splitlines())
        return [(row["table"].split(".")[1], row["rows"], row["exact"]) for row in rows]

    assert listed() == [("empty", 0, True), ("customers", 1, True)]
    if engine == "duckdb":
        return
    run_sql(database, "ANALYZE sales.customers", "INSERT INTO sales.customers SELECT n, n FROM generate_series(1, 9) n")
    with psycopg.connect(database) as other:
        other.execute("LOCK TABLE empty, sales.customers IN ACCESS EXCLUSIVE MODE")
        assert listed() == [("empty", None, False), ("customers", 1, False)]
    assert listed() == [("empty", 0, True), ("customers", 10, True)]


def test_a_mirror(run: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    """Rows that the file lacks are deleted, within a limit, and not if a row of the file cannot be read."""
    file = tmp_path / "people.csv"

    def mirror(text: str, *options: object, words: tuple[object, ...] = ("--mirror",)) -> tuple[int, str]:
        file.write_text(text, "utf-8")
        status, out, err = run("import", "people.csv", "--table", "mirrored", *words, *options)
        return status, out + err

    assert mirror("id,name\n1,Ada\n2,Bob\n3,Cid\n4,Dan\n", words=("--create", "--key", "id"))[0] == 0
    newer = "id,name\n1,Ada\n2,Bo\n9,New\n"
    status, shown = mirror(newer)
    assert status == 2
    assert "2 of 4 stored rows" in shown
    assert "2 to delete" in mirror(newer, "--dry-run")[1]
    status, shown = mirror(newer, "--scope", "t.name = 'Dan'", "--max-delete", "1")
    assert status == 0
    assert "1 deleted" in shown
    status, shown = mirror('id,name\n1,Ada\n2,"Bo\n', "--max-delete", "9")
    assert status == 2
    assert "nothing was imported" in shown
    assert "2 deleted" in mirror("id,name\n1,Ada\n2,Bo\n", "--max-delete", "2")[1]
    assert mirror(newer, "--max-delete", "3", words=())[0] == 2
    assert mirror(newer, "--insert-only")[0] == 2
