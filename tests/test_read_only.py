"""Read-only stores: nothing is created, migrated or written; and namespaces in any case."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines.duckdb import engine as duckdb_engine
from tests.command import run as run_command
from tests.conftest import execute

FRAME = pl.DataFrame(
    {
        "entity_type": "note",
        "id": ["a", "b"],
        "content": ["a text of words", "another"],
        "metadata": [{"n": 1}, {"n": 2}],
    }
)


@pytest.fixture
def filled(connect: Callable[..., ef.EntityStore]) -> None:
    """A store with two notes and their vectors, closed."""
    store = connect()
    assert store.upsert(FRAME, progress=False).ok
    assert store.embed(ef.HashingEmbedder(16), progress=False).ok
    store.close()


@pytest.fixture
def reader(filled: None, url: str, engine: str, tmp_path: Path) -> str:
    """The address of that store for a user with read-only access."""
    if engine == "duckdb":
        os.chmod(url, 0o444)
        return url
    role = "entityframes_only_reads"
    execute(
        url,
        f"DO $$ BEGIN CREATE ROLE {role} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$",
        f"GRANT USAGE ON SCHEMA entityframes TO {role}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA entityframes TO {role}",
        f"ALTER ROLE {role} SET default_transaction_read_only = on",
    )
    return url.replace("postgres:", f"{role}:", 1).replace("postgres@", f"{role}@", 1)


def test_everything_is_read(reader: str, tmp_path: Path) -> None:
    """Case 64: by a role that may only SELECT, and from a file without write permission."""
    with ef.connect(reader, read_only=True) as store:
        assert store.get(FRAME)["found"].all()
        assert store.exists(FRAME)["exists"].all()
        assert store.read("note")["n"].to_list() == [1, 2]
        assert store.scan("note").filter(pl.col("n") == 2).collect()["id"].to_list() == ["b"]
        assert store.search("text words", mode="text")["id"].to_list() == ["a"]
        assert store.search("a text of words", mode="hybrid", embedder=ef.HashingEmbedder(16))["id"][0] == "a"
        assert store.stats()["embedded"].to_list() == [2]
        assert store.spaces().height == 1
        assert store.jobs().height == 1
        assert store.verify().is_empty()
        assert store.plan(FRAME).counts["unchanged"] == 2
        (tmp_path / "notes").mkdir()
        assert ef.DirectorySync(store, tmp_path / "notes").plan().height == 2


def test_no_call_writes(reader: str, tmp_path: Path) -> None:
    """Every call that would write is refused before it does anything; its source is not even read."""

    def source():
        raise AssertionError("the source was read")
        yield

    with ef.connect(reader, read_only=True) as store:
        (tmp_path / "notes").mkdir()
        folder = ef.DirectorySync(store, tmp_path / "notes")
        embedder = ef.HashingEmbedder(16)
        [space] = store.spaces()["space"]
        for call in (
            lambda: store.upsert(source()),
            lambda: store.upsert_entity("note", "c"),
            lambda: store.plan(FRAME.with_columns(content=pl.lit("new"))).apply(),
            lambda: store.delete(FRAME),
            lambda: store.delete_entity("note", "a"),
            lambda: store.verify(repair=True),
            lambda: store.embed(embedder),
            lambda: store.enqueue(),
            lambda: store.retry_failed(),
            lambda: store.activate(space),
            lambda: store.drop_space(space),
            lambda: store.index_space(),
            lambda: folder.import_files(),
            lambda: folder.export_files(),
            lambda: folder.sync(),
        ):
            with pytest.raises(ef.PermanentError, match="was opened read-only"):
                call()
        assert list((tmp_path / "notes").iterdir()) == []
        assert store.get(FRAME)["content"].to_list() == FRAME["content"].to_list()


def test_a_store_that_does_not_exist(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """It is reported, and not created."""
    postgresql = engine == "postgresql"
    address = request.getfixturevalue("empty_postgres_url") if postgresql else str(tmp_path / "mistyped.duckdb")
    with pytest.raises(ef.ConnectError, match="there is no store at"):
        ef.connect(address, read_only=True)
    assert not any(tmp_path.iterdir())
    if postgresql:
        assert execute(address, "SELECT count(*) FROM pg_namespace WHERE nspname = 'entityframes'") == [(0,)]
    with pytest.raises(ef.ConnectError, match="in memory"):
        ef.connect(":memory:", read_only=True)


def test_another_namespace_is_not_created(filled: None, url: str) -> None:
    """A database that has a store in another namespace."""
    with pytest.raises(ef.ConnectError, match=r"there is no store at .* in the namespace 'other'"):
        ef.connect(url, namespace="other", read_only=True)
    with ef.connect(url) as store:
        assert store.stats().height == 1


def test_an_older_format_is_not_migrated(store: ef.EntityStore, sql, url: str) -> None:
    """The message explains how to migrate it."""
    sql("DELETE FROM entityframes.format WHERE version > 2")
    store.close()
    with pytest.raises(ef.FormatError, match=r"format 2, which is older.*once for writing"):
        ef.connect(url, read_only=True)


@pytest.mark.duckdb
@pytest.mark.parametrize(
    "words",
    [
        ["exists", "--type", "note", "a"],
        ["get", "--type", "note", "a"],
        ["export", "note"],
        ["search", "text", "--mode", "text"],
        ["stats"],
        ["jobs"],
        ["spaces"],
        ["verify"],
    ],
    ids=lambda words: words[0],
)
def test_commands_that_read_create_no_store(words: list[str], tmp_path: Path) -> None:
    """A mistyped path is reported, with exit status 2."""
    (tmp_path / "rows.csv").write_text("id\na\n")
    run = run_command(*words, "--store", "mistyped.duckdb", cwd=tmp_path)
    assert (run.returncode, run.stdout) == (2, "")
    assert "there is no store at mistyped.duckdb" in run.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


@pytest.mark.duckdb
def test_dry_runs_create_no_store(tmp_path: Path) -> None:
    """They report that there is no store yet, and the effect on an empty one."""
    (tmp_path / "rows.csv").write_text("id\na\n")
    (tmp_path / "todo.md").write_text("text")
    for words in (["sync", "."], ["import", "rows.csv", "--type", "note", "--id", "id"]):
        run = run_command(*words, "--dry-run", "--store", "mistyped.duckdb", cwd=tmp_path)
        assert run.returncode == 0
        assert "create" in run.stdout
        assert "note: there is no store at mistyped.duckdb" in run.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.csv", "todo.md"]


@pytest.mark.duckdb
def test_the_log_of_a_file_is_read(tmp_path: Path) -> None:
    """As after a crash; the log stays as it is."""
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(FRAME, progress=False)
        for suffix in ("", ".wal"):
            shutil.copy(tmp_path / f"x.duckdb{suffix}", tmp_path / f"y.duckdb{suffix}")
    before = (tmp_path / "y.duckdb.wal").read_bytes()
    assert before
    with ef.connect(tmp_path / "y.duckdb", read_only=True) as store:
        assert store.exists(FRAME)["exists"].all()
    assert (tmp_path / "y.duckdb.wal").read_bytes() == before


@pytest.mark.slow
@pytest.mark.duckdb
def test_several_processes_read_a_file(tmp_path: Path) -> None:
    """And the error names a process that has it open for writing."""
    path = str(tmp_path / "x.duckdb")
    with ef.connect(path) as store:
        store.upsert(FRAME, progress=False)
    script = "import entityframes as ef, sys; print(ef.connect(sys.argv[1], read_only=True).stats()['entities'][0])"
    with ef.connect(path, read_only=True) as store:
        run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
        assert run.stdout.strip() == "2", run.stderr
        assert store.exists(FRAME)["exists"].all()
    with ef.connect(path):
        run = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, timeout=120)
        assert f"open in another process (PID {os.getpid()})" in run.stderr


@pytest.mark.duckdb
def test_a_file_that_this_process_writes_too(tmp_path: Path) -> None:
    """A reader shares it and writes nothing; a writer that joins a reader is refused with the reason."""
    path = tmp_path / "x.duckdb"
    with ef.connect(path) as writer, ef.connect(path, read_only=True) as reader:
        writer.upsert(FRAME, progress=False)
        assert reader.exists(FRAME)["exists"].all()
        with pytest.raises(ef.PermanentError, match="read-only"):
            reader.delete(FRAME)
        with pytest.raises(ef.PermanentError, match="read-only"), reader._engine.database.file.writer(None):
            pass
    with ef.connect(path, read_only=True), pytest.raises(ef.ConnectError, match="open read-only"):
        ef.connect(path)


def test_hashes_of_another_duckdb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys with different hashes are still found, although they cannot be rehashed."""
    monkeypatch.setattr(duckdb_engine, "SCANNED", 0)
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(FRAME, progress=False)
        with store._engine.database.file.cursor() as cursor:
            cursor.execute("UPDATE entityframes.hashed_by SET version = 'v0'")
            cursor.execute("UPDATE entityframes.entities SET key_hash = key_hash + 1")
    with ef.connect(tmp_path / "x.duckdb", read_only=True) as store:
        assert store.exists(FRAME)["exists"].all()
    with ef.connect(tmp_path / "x.duckdb") as store:
        assert store.exists(FRAME)["exists"].all()


def test_a_namespace_in_another_case_is_the_same_store(url: str) -> None:
    """For all features: batches large and small, spaces, text search, folders, checks."""
    with ef.connect(url, namespace="Notes") as store:
        assert store.upsert(FRAME, progress=False).ok
    with ef.connect(url, namespace="NOTES") as store:
        assert "namespace='Notes'" in repr(store)
        many = pl.DataFrame({"entity_type": "item", "id": map(str, range(3_000)), "content": "text"})
        assert store.upsert(many, progress=False).counts["created"] == 3_000
        assert store.upsert(FRAME, progress=False).counts["unchanged"] == 2
        assert store.embed(ef.HashingEmbedder(16), progress=False).ok
        assert store.search("another", mode="text")["id"].to_list() == ["b"]
        assert store.verify().is_empty()
    with ef.connect(url, namespace="notes", read_only=True) as store:
        assert store.stats()["entities"].to_list() == [3_000, 2]


@pytest.mark.slow
def test_schemas_that_differ_in_case_only(postgres_url: str) -> None:
    """If PostgreSQL has several, the exact match is used, and otherwise none is guessed."""
    execute(postgres_url, 'CREATE SCHEMA "App"', "CREATE SCHEMA app")
    with ef.connect(postgres_url, namespace="App") as store:
        store.upsert_entity("note", "a")
    with ef.connect(postgres_url, namespace="app") as store:
        assert not store.entity_exists("note", "a")
    for read_only in (False, True):
        with pytest.raises(ef.ConnectError, match="'App', 'app'"):
            ef.connect(postgres_url, namespace="APP", read_only=read_only)


@pytest.mark.slow
def test_two_processes_create_a_namespace_in_two_cases(empty_postgres_url: str) -> None:
    """They use the same one."""
    script = "import entityframes, sys; entityframes.connect(sys.argv[1], namespace=sys.argv[2]).stats()"
    racers = [
        subprocess.Popen([sys.executable, "-c", script, empty_postgres_url, name], stderr=subprocess.PIPE)
        for name in ("Both", "both", "BOTH", "bOTH")
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        assert racer.returncode == 0, errors.decode()
    assert execute(empty_postgres_url, "SELECT count(*) FROM pg_namespace WHERE lower(nspname) = 'both'") == [(1,)]
