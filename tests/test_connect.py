"""Opening a store: addresses, namespaces, formats, and the errors when it cannot be opened."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import threading
import tomllib
import uuid
from pathlib import Path

import duckdb
import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.base import FORMAT
from entityframes.engines.url import parse_url
from tests.conftest import execute

CANARY = "s3cr3t-c4n4ry"


@pytest.mark.parametrize(
    ("url", "engine", "address"),
    [
        ("x.duckdb", "duckdb", "x.duckdb"),
        (Path("a/b.duckdb"), "duckdb", "a/b.duckdb"),
        ("duckdb:///tmp/x.duckdb", "duckdb", "/tmp/x.duckdb"),
        ("duckdb:////tmp/x.duckdb", "duckdb", "//tmp/x.duckdb"),
        ("duckdb:///:memory:", "duckdb", ":memory:"),
        ("duckdb:///C:/x.duckdb", "duckdb", "C:/x.duckdb"),
        (r"duckdb:///c:\data\x.duckdb", "duckdb", r"c:\data\x.duckdb"),
        ("duckdb:///C:x.duckdb", "duckdb", "/C:x.duckdb"),
        (":memory:", "duckdb", ":memory:"),
        ("postgresql://u:p@h:1/d", "postgresql", "postgresql://u@h:1/d"),
        ("postgres://h/d?password=x&dbname=y", "postgresql", "postgresql://h/d?dbname=y"),
        ("POSTGRESQL://u:p@h/d", "postgresql", "postgresql://u@h/d"),
        (" postgresql+psycopg://u:p@h,i:2/d\n", "postgresql", "postgresql://u@h,i:2/d"),
        ("postgresql://u:p@[::1]:5/d", "postgresql", "postgresql://u@[::1]:5/d"),
        ("postgresql://me%40server:p@h/d", "postgresql", "postgresql://me%40server@h/d"),
        ("postgresql://u%3Ap@h/d", "postgresql", "postgresql://***@h/d"),
        ("postgresql://u:p?a#b:c@h/d", "postgresql", "postgresql://u@h/d"),
        ("host=h port=1 user=u password=p dbname=d", "postgresql", "postgresql://u@h:1/d"),
        ("password = 'a b\\'c' host = /tmp dbname='d e'", "postgresql", "postgresql:///d e?host=/tmp"),
        ("service=prod", "postgresql", "postgresql:///?service=prod"),
        ("notes=1.duckdb", "duckdb", "notes=1.duckdb"),
        ("C:\\notes\\x.duckdb", "duckdb", "C:\\notes\\x.duckdb"),
        ("me@home.duckdb", "duckdb", "me@home.duckdb"),
        ("./a:b@c.duckdb", "duckdb", "./a:b@c.duckdb"),
        (Path("password=1.duckdb"), "duckdb", "password=1.duckdb"),
        ("postgresql://u@h/d?password=a@b", "postgresql", "postgresql://***"),
    ],
)
def test_addresses(url: str, engine: str, address: str) -> None:
    """The engine that a URL or path selects, and how it is displayed."""
    location = parse_url(url)
    assert (location.engine, location.address) == (engine, address)


@pytest.mark.duckdb
def test_default_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """$ENTITYFRAMES_URL, else ./entities.duckdb."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTITYFRAMES_URL", raising=False)
    with ef.connect() as store:
        assert store.address == "entities.duckdb"
    assert (tmp_path / "entities.duckdb").exists()
    monkeypatch.setenv("ENTITYFRAMES_URL", str(tmp_path / "other.duckdb"))
    with ef.connect() as store:
        assert store.address.endswith("other.duckdb")


@pytest.mark.duckdb
@pytest.mark.parametrize("namespace", ["", 'a"b', "a.b", "a b", "a\0", "a" * 64, "1a", "x; DROP TABLE y", "ä"])
def test_namespaces_that_are_refused(namespace: str) -> None:
    """Only a plain identifier ever reaches a statement."""
    with pytest.raises(ef.ConnectError, match="namespace"):
        ef.connect(":memory:", namespace=namespace)


@pytest.mark.duckdb
@pytest.mark.parametrize("name", ["entityframes.duckdb", 'a "b" c.duckdb', "select.db"])
def test_a_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    """Even the name of the schema in it, and the file may be renamed."""
    frame = pl.DataFrame({"entity_type": ["t"], "id": ["1"], "content": ["x"], "metadata": [{"a": 1}]})
    with ef.connect(tmp_path / name) as store:
        assert store.upsert(frame, progress=False).ok
    (tmp_path / name).rename(tmp_path / "renamed.duckdb")
    with ef.connect(tmp_path / "renamed.duckdb") as store:
        wider = frame.with_columns(metadata=pl.struct(a=pl.lit(1, pl.Int64), b=pl.lit("new")))
        assert store.upsert(wider, progress=False).counts["updated"] == 1
        assert store.read("t").columns[:4] == ["id", "content", "a", "b"]


@pytest.mark.duckdb
def test_an_address_with_a_drive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the path after the third slash, here a relative one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "C:").mkdir()
    with ef.connect("duckdb:///C:/x.duckdb") as store:
        store.upsert_entity("note", "a", "text")
    with ef.connect("C:/x.duckdb") as store:
        assert store.entity_exists("note", "a")
    assert (tmp_path / "C:" / "x.duckdb").exists()


@pytest.mark.slow
def test_without_the_time_zones_of_the_system(url: str) -> None:
    """The time zones of the tzdata dependency are used: times are read and shown as on any other machine."""
    script = """
import sys
import entityframes as ef
with ef.connect(sys.argv[1]) as store:
    store.upsert_entity("note", "a", "text")
    store.embed(ef.HashingEmbedder(8), progress=False)
    print(store.get_entity("note", "a")["created_at"].tzname(), store.get(ef.ids("note", ["a"])).to_dicts()[0]["found"])
"""
    nowhere = {**os.environ, "PYTHONTZPATH": ""}
    run = subprocess.run([sys.executable, "-c", script, url], env=nowhere, capture_output=True, text=True, timeout=120)
    assert run.stdout == "UTC True\n", run.stderr
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8"))["project"]
    assert any(dependency.startswith("tzdata") for dependency in project["dependencies"])


def test_namespaces_are_separate(connect) -> None:
    """Two namespaces in one database are independent of each other."""
    one = connect(namespace="one")
    one.upsert_entity("note", "a", "x")
    if "duckdb" in one.address:
        one.close()
    assert connect(namespace="two").stats().height == 0


def test_namespaces_on_duckdb_ignore_case(tmp_path: Path) -> None:
    """`Notes` and `notes` are one schema on DuckDB, so one store."""
    path = tmp_path / "store.duckdb"
    with ef.connect(path, namespace="Notes") as store:
        store.upsert_entity("note", "a", "text")
    with ef.connect(path, namespace="notes") as store:
        assert store.entity_exists("note", "a")


def test_namespaces_that_differ_in_case(postgres_url: str) -> None:
    """PostgreSQL has both; a name in another case could mean either, and the message lists them in order."""
    execute(postgres_url, 'CREATE SCHEMA "Notes"', 'CREATE SCHEMA "NOTES"')
    with pytest.raises(ef.ConnectError, match="any of the namespaces 'NOTES', 'Notes'"):
        ef.connect(postgres_url, namespace="notes")


@pytest.mark.duckdb
def test_paths_that_are_refused(tmp_path: Path) -> None:
    """The message names the path, and there is no traceback of the driver."""
    with pytest.raises(ef.ConnectError, match="NUL"):
        ef.connect("a\0b")
    with pytest.raises(ef.ConnectError, match="nowhere"):
        ef.connect(tmp_path / "nowhere" / "x.duckdb")
    other = tmp_path / "text.duckdb"
    other.write_text("this is no database" * 100)
    with pytest.raises(ef.ConnectError, match="text.duckdb"):
        ef.connect(other)
    with pytest.raises(ef.ConnectError, match="mysql"):
        ef.connect("mysql://h/d")
    with pytest.raises(ef.ConnectError, match="not an address"):
        ef.connect("{url of the database}")


@pytest.mark.duckdb
def test_odd_file_names(tmp_path: Path) -> None:
    """Quotes and SQL in a file name have no special meaning."""
    path = tmp_path / 'it\'s "x"; DROP TABLE entities.duckdb'
    with ef.connect(path) as store:
        store.upsert_entity("note", "a", "x")
    with ef.connect(path) as store:
        assert store.entity_exists("note", "a")


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://user:{CANARY}@127.0.0.1:1/db",
        f"postgresql://user:{CANARY}%@127.0.0.1:1/db",
        f"postgresql://127.0.0.1:1/db?user=u&password={CANARY}",
        f"postgresql://user:{CANARY}@[::1/db",
        f"postgresql://user:{CANARY}@127.0.0.1:99999/db",
        f"other://user:{CANARY}@127.0.0.1/db",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    """Not in the message, not in the chain of causes, not in a repr."""
    with pytest.raises(ef.ConnectError) as caught:
        ef.connect(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert CANARY not in str(error)
        assert CANARY not in repr(error)
        error = error.__cause__
    assert caught.value.__cause__ is None or caught.value.__cause__.__suppress_context__


def test_closed_store(store: ef.EntityStore) -> None:
    """A closed store raises an error; closing twice is allowed."""
    store.close()
    store.close()
    for call in (lambda: store.stats(), lambda: store.upsert_entity("a", "b"), lambda: store.get(ef.ids("a", ["b"]))):
        with pytest.raises(ef.ClosedError, match="closed"):
            call()


def test_a_newer_format_is_refused(store: ef.EntityStore, sql, connect) -> None:
    """A store of a later version is not touched."""
    sql("INSERT INTO entityframes.format (version) VALUES (99)")
    store.close()
    with pytest.raises(ef.FormatError, match="format 99"):
        connect()


def test_an_older_store_is_migrated(store: ef.EntityStore, sql, connect, engine: str, tmp_path: Path) -> None:
    """The contents of a store of format 1 are kept, and the features of newer formats work."""
    statements = store._engine.database.statements
    store._engine.drop()
    hash_of = "unhex(sha256({}))" if engine == "duckdb" else "sha256({}::bytea)"
    # PostgreSQL assigns the position of a field itself.
    place = ("position, ", "1, ") if engine == "duckdb" else ("", "")
    field = f"(entity_type, field, {place[0]}dtype, declared) VALUES ('note', 'n', {place[1]}'\"Int64\"', false)"
    content, metadata, batch = "'text'", "'{\"n\":1}'", f"'{uuid.UUID(int=1)}'"
    hashes = f"{hash_of.format(content)}, {hash_of.format(metadata)}"
    sql(
        *statements["create_schema"].split(";"),
        *statements["migrate_1"].split(";"),
        "INSERT INTO entityframes.batches (batch_id, run_id, written_at, created, updated, deleted, due) "
        f"VALUES ({batch}, {batch}, now(), 1, 0, 0, 1)",
        "INSERT INTO entityframes.entities (entity_type, id, content, metadata, content_hash, metadata_hash, batch_id, "
        f"created_at, updated_at) VALUES ('note', 'a', 'text', {metadata}, {hashes}, {batch}, now(), now())",
        f"INSERT INTO entityframes.metadata_fields {field}",
        "INSERT INTO entityframes.embedding_jobs (job_id, batch_id, entity_types, ids, created_at, updated_at) "
        f"VALUES ({batch}, {batch}, ARRAY['note'], ARRAY['a'], now(), now())",
    )
    store.close()
    newer = connect()
    if engine == "duckdb":
        # As after a crash: the migration is replayed from the log.
        for suffix in ("", ".wal"):
            shutil.copy(tmp_path / f"store.duckdb{suffix}", tmp_path / f"crashed.duckdb{suffix}")
        with ef.connect(tmp_path / "crashed.duckdb") as crashed:
            assert crashed.get_entity("note", "a")["metadata"] == {"n": 1}
            assert crashed.verify().rows() == []
    assert newer.verify().rows() == []
    assert newer.get_entity("note", "a")["metadata"] == {"n": 1}
    assert newer.embed(ef.HashingEmbedder(16), progress=False).counts["embedded"] == 1
    assert ef.DirectorySync(newer, tmp_path).export_files().counts["exported"] == 1
    assert newer.upsert_entity("note", "a", "text", {"n": 1})["status"] == "unchanged"
    newer.close()
    assert connect().verify().rows() == []


def test_a_file_of_an_older_duckdb(tmp_path: Path) -> None:
    """A store can be created in an existing file, whose version may lack newer compression."""
    path = tmp_path / "old.duckdb"
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{path}' AS old (STORAGE_VERSION 'v1.0.0')")
        connection.execute("CREATE TABLE old.mine AS SELECT 1 AS a")
    with ef.connect(path) as store:
        assert store.upsert_entity("note", "a", "text")["status"] == "created"
    with ef.connect(path) as store:
        assert store.get_entity("note", "a")["content"] == "text"
        assert store.verify().is_empty()


def test_long_contents_are_compressed_with_lz4(postgres_url: str) -> None:
    """With lz4, if PostgreSQL was built with it."""
    [(offered,)] = execute(
        postgres_url, "SELECT array_to_string(enumvals, ' ') FROM pg_settings WHERE name = 'default_toast_compression'"
    )
    with ef.connect(postgres_url) as store:
        store.upsert_entity("note", "a", "a long text " * 1000)
    [(used,)] = execute(postgres_url, "SELECT pg_column_compression(content) FROM entityframes.entities")
    assert used == ("lz4" if "lz4" in offered else "pglz")


def test_a_failed_migration_leaves_nothing(empty_postgres_url: str) -> None:
    """Creation is one transaction: without the required privileges, nothing is left behind."""
    execute(
        empty_postgres_url,
        "DO $$ BEGIN CREATE ROLE entityframes_reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
    )
    reader = empty_postgres_url.replace("postgres:", "entityframes_reader:", 1).replace(
        "postgres@", "entityframes_reader@", 1
    )
    with pytest.raises(ef.ConnectError, match="permission denied"):
        ef.connect(reader)
    assert execute(empty_postgres_url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'entityframes'") == [(0,)]


@pytest.mark.slow
def test_two_processes_create_the_store_at_once(empty_postgres_url: str) -> None:
    """Both open it, and it is created once."""
    script = "import entityframes, sys; entityframes.connect(sys.argv[1]).stats()"
    racers = [
        subprocess.Popen([sys.executable, "-c", script, empty_postgres_url], stderr=subprocess.PIPE) for _ in range(4)
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        assert racer.returncode == 0, errors.decode()
    versions = execute(empty_postgres_url, "SELECT version FROM entityframes.format ORDER BY version")
    assert versions == [(number,) for number in range(1, FORMAT + 1)]


def test_a_second_process_on_a_duckdb_file(tmp_path: Path) -> None:
    """The error names the process that has the file open."""
    path = tmp_path / "x.duckdb"
    script = (
        "import entityframes, sys\n"
        "try: entityframes.connect(sys.argv[1])\n"
        "except entityframes.ConnectError as error: print(error)"
    )
    with ef.connect(path):
        output = subprocess.run(
            [sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120
        ).stdout
    assert "is open in another process (PID" in output


@pytest.mark.slow
def test_use_after_fork_is_refused(url: str) -> None:
    """The error asks a child that inherits a store to open its own; the parent's store still works."""
    script = textwrap.dedent(
        f"""
        import os, warnings
        import entityframes as ef
        warnings.simplefilter("ignore")
        store = ef.connect({url!r})
        child = os.fork()
        if child == 0:
            try:
                store.stats()
            except ef.ClosedError as error:
                os._exit(7 if "fork" in str(error) else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        print(store.upsert_entity("note", "a", "x")["status"])
        """
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert run.stdout.strip() == "created", run.stderr


def test_many_threads_share_a_store(store: ef.EntityStore) -> None:
    """Upserts and reads from eight threads: each key is created exactly once, and every answer is correct."""
    created: list[int] = []
    wrong: list[object] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                rows = pl.DataFrame(
                    {"entity_type": "t", "id": [f"{turn}-{n}" for n in range(50)], "content": f"by {number}"}
                )
                result = store.upsert(rows.sample(fraction=1, shuffle=True, seed=number), progress=False)
                created.append(result.counts["created"])
                if not result.ok or not store.exists(rows)["exists"].all():
                    wrong.append(result)
        except Exception as error:
            wrong.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert sum(created) == 250
    assert store.stats()["entities"].to_list() == [250]
