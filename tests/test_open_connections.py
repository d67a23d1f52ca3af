"""Stores in the database of an open DuckDB connection, which is neither closed nor changed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

import entityframes as ef
from entityframes.interrupt import Interrupt

pytestmark = pytest.mark.duckdb

NOTES = pl.DataFrame({"entity_type": "note", "id": ["a", "A", "b"], "content": ["x", "y", "z"]})


@pytest.fixture(params=["memory", "file"])
def connection(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection to a database in memory, and to a file."""
    with duckdb.connect(":memory:" if request.param == "memory" else tmp_path / "x.duckdb") as connection:
        yield connection


def stored(connection: Any) -> int:
    """The number of entities that a connection sees."""
    [(count,)] = connection.sql("SELECT count(*) FROM entityframes.entities").fetchall()
    return count


def settings(connection: Any) -> dict[str, Any]:
    return dict(connection.sql("SELECT name, value FROM duckdb_settings()").fetchall())


def test_a_store_beside_tables(connection: duckdb.DuckDBPyConnection) -> None:
    """The store takes rows from a table of the connection, which sees the entities, also after the store is closed."""
    connection.execute("CREATE TABLE people AS SELECT 'p' || range AS id, 'text' AS content FROM range(3)")
    with ef.connect(connection) as store:
        frame = ef.entities(connection.sql("FROM people"), "person", id="id", content="content")
        assert store.upsert(frame, progress=False).counts["created"] == 3
        assert stored(connection) == 3
        assert store.embed(ef.HashingEmbedder(8), progress=False).ok
        assert store.verify().is_empty()
        path = connection.sql("SELECT path FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
        assert store.address == (path or ":memory:")
    assert stored(connection) == 3
    with ef.connect(connection, read_only=True) as store:
        assert store.search("text", mode="text").height == 3


def test_tables_of_the_connection(connection: duckdb.DuckDBPyConnection) -> None:
    """They are found like in its own queries, which see what is written to them."""
    connection.execute("CREATE SCHEMA air; USE air; CREATE TABLE airports (iata TEXT PRIMARY KEY, name TEXT)")
    frame = pl.DataFrame({"iata": ["LIS", "OPO"], "name": ["Lisbon", None]})
    before = settings(connection)
    with ef.table(connection, "airports") as airports:
        assert airports.upsert(frame, progress=False).counts["created"] == 2
        assert airports.upsert(frame.fill_null("Porto"), progress=False).counts["updated"] == 1
    assert connection.sql("SELECT name FROM airports ORDER BY iata").fetchall() == [("Lisbon",), ("Porto",)]
    with ef.connect(connection) as store, ef.table(connection, "air.airports") as airports:
        assert store.upsert(NOTES, progress=False).counts["created"] == 3
        assert airports.get(["LIS"])["name"].item() == "Lisbon"
        assert store.table("air.airports").read().height == 2
    assert settings(connection) == before


def test_tables_that_cursors_do_not_see(connection: duckdb.DuckDBPyConnection) -> None:
    """The error says why a table that the connection has is not found."""
    connection.execute("CREATE TEMP TABLE passing (n INT PRIMARY KEY); BEGIN; CREATE TABLE coming (n INT PRIMARY KEY)")
    for name in ("passing", "coming"):
        with pytest.raises(ef.SchemaError, match="temporary and uncommitted tables, .* your connection itself"):
            ef.table(connection, name)
    connection.commit()
    with ef.table(connection, "coming") as coming:
        assert coming.upsert(pl.DataFrame({"n": [1]}), progress=False).ok


def test_settings_stay_as_they_are(connection: duckdb.DuckDBPyConnection) -> None:
    """Those of the connection and of its database: memory, files, checkpoints, the time zone."""
    connection.execute("SET TimeZone = 'Europe/Berlin'; SET threads = 2; SET memory_limit = '1GB'")
    before = settings(connection)
    with ef.connect(connection) as store:
        store.upsert(NOTES, progress=False)
        store.read("note")
        assert settings(connection) == before
    assert settings(connection) == before


def test_settings_that_change_results(connection: duckdb.DuckDBPyConnection) -> None:
    """What the caller has set for its own queries has no effect on the store: keys are compared by bytes."""
    connection.execute(
        "SET default_collation = 'NOCASE'; SET default_order = 'desc'; SET default_null_order = 'nulls_first'; "
        "SET GLOBAL integer_division = true; SET preserve_insertion_order = false; SET errors_as_json = true; "
        "SET arrow_lossless_conversion = true; SET arrow_output_list_view = true"
    )
    before = settings(connection)
    with ef.connect(connection) as store:
        assert store.upsert(NOTES, progress=False).counts["created"] == 3
        assert store.upsert(NOTES, progress=False).counts["unchanged"] == 3
        assert store.exists(ef.ids("note", ["a", "A", "B"]))["exists"].to_list() == [True, True, False]
        assert store.embed(ef.HashingEmbedder(8), progress=False).counts["embedded"] == 3
        assert store.search("x", k=1)["id"].to_list() == ["a"]
        assert store.verify().is_empty()
    assert settings(connection) == before


def test_the_current_database_and_schema(connection: duckdb.DuckDBPyConnection) -> None:
    """The store is in the database of USE, at the time of connect; that is its address, too."""
    connection.execute("""ATTACH ':memory:' AS "o'th.er"; CREATE SCHEMA "o'th.er".s; USE "o'th.er".s""")
    with ef.connect(connection) as other:
        connection.execute("USE " + connection.sql("SELECT database_name FROM duckdb_databases()").fetchall()[1][0])
        with ef.connect(connection) as store:
            other.upsert(NOTES, progress=False)
            store.upsert(NOTES[:1], progress=False)
            assert (other.stats()["entities"].item(), store.stats()["entities"].item()) == (3, 1)
            assert other.address == ":memory:"
    places = connection.sql("SELECT database_name FROM duckdb_tables() WHERE table_name = 'entities' ORDER BY ALL")
    assert ("o'th.er",) in places.fetchall()


def test_a_file_that_is_attached(tmp_path: Path) -> None:
    """It is a store for the connection that has attached it; as a path it is refused with what to pass instead."""
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(NOTES, progress=False)
    with duckdb.connect() as connection:
        connection.execute(f"ATTACH '{tmp_path / 'x.duckdb'}' AS x; USE x")
        with ef.connect(connection) as store:
            assert store.stats()["entities"].item() == 3
            assert store.address == str(tmp_path / "x.duckdb")
        with pytest.raises(ef.ConnectError, match="attached to another DuckDB connection of this process: pass that"):
            ef.connect(tmp_path / "x.duckdb")


@pytest.mark.parametrize("how", ["connect", "attach"])
def test_a_connection_that_can_only_read(how: str, tmp_path: Path) -> None:
    """The store can be read; writing to it is refused with the reason, as is a store that is not there."""
    with ef.connect(tmp_path / "x.duckdb") as store:
        store.upsert(NOTES, progress=False)
    with duckdb.connect(tmp_path / "x.duckdb", read_only=True) if how == "connect" else duckdb.connect() as connection:
        if how == "attach":
            connection.execute(f"ATTACH '{tmp_path / 'x.duckdb'}' AS x (READ_ONLY); USE x")
        with ef.connect(connection) as store:
            assert store.stats()["entities"].item() == 3
            with pytest.raises(ef.PermanentError, match="not with a DuckDB connection that can only read"):
                store.upsert(NOTES, progress=False)
        with pytest.raises(ef.ConnectError, match="no store .* in the namespace 'other'"):
            ef.connect(connection, namespace="other")
        with ef.table(connection, "entityframes.spaces", key="space") as table:
            assert table.read().is_empty()
            with pytest.raises(ef.PermanentError, match="can only read"):
                table.upsert(pl.DataFrame({"space": ["s"]}), progress=False)


@pytest.mark.slow
def test_rows_of_an_open_transaction(connection: duckdb.DuckDBPyConnection) -> None:
    """They are not seen; rows that it has deleted cannot be written until it ends, which the outcome says."""
    with ef.connect(connection) as store:
        store.upsert(NOTES, progress=False)
        connection.execute("BEGIN; DELETE FROM entityframes.entities WHERE id = 'a'")
        assert store.entity_exists("note", "a")
        changed = NOTES.with_columns(content=pl.lit("new"))
        result = store.upsert(changed, progress=False)
        assert result.counts["failed"] == 3
        [error] = result.outcomes["error"].unique()
        assert "another connection of this process has changed the same rows" in error
        assert "commit or roll back its transaction" in error
        connection.rollback()
        assert store.upsert(changed, progress=False).counts["updated"] == 3


def test_temporary_tables_are_not_shared(connection: duckdb.DuckDBPyConnection) -> None:
    """DuckDB's cursors do not share them, so one that is called like a table of the store is no obstacle."""
    connection.execute("CREATE TEMP TABLE entities AS SELECT 1 AS n; CREATE TEMP TABLE given AS SELECT 2 AS n")
    with ef.connect(connection) as store:
        assert store.upsert(NOTES, progress=False).counts["created"] == 3
    assert connection.sql("FROM entities").fetchall() == [(1,)]


def test_a_connection_that_cannot_be_used_now(connection: duckdb.DuckDBPyConnection) -> None:
    """The reason and what to do; the result that is still to be fetched is not lost."""
    connection.execute("FROM range(5000)")
    with pytest.raises(ef.ConnectError, match="fetch the rest of it, or call complete"):
        ef.connect(connection)
    assert len(connection.fetchall()) == 5000
    connection.begin()
    with pytest.raises(duckdb.Error):
        connection.execute("CREATE TABLE t (n INT); CREATE TABLE t (n INT)")
    with pytest.raises(ef.ConnectError, match="has failed: call its rollback"):
        ef.connect(connection)
    connection.rollback()
    connection.execute("SET lock_configuration = true")
    with pytest.raises(ef.ConnectError, match="lock_configuration"):
        ef.connect(connection)


def test_a_connection_that_is_closed(connection: duckdb.DuckDBPyConnection) -> None:
    """The store is closed with it."""
    with ef.connect(connection) as store:
        connection.close()
        with pytest.raises(ef.ClosedError, match="closed"):
            store.stats()
    with pytest.raises(ef.ConnectError, match="closed"):
        ef.connect(connection)


def test_a_connection_without_another_reference() -> None:
    """The store keeps it."""
    with ef.connect(duckdb.connect()) as store:
        gc.collect()
        assert store.upsert(NOTES, progress=False).counts["created"] == 3


def test_the_default_connection() -> None:
    """That of the module, which a notebook may use without knowing it."""
    with ef.connect(duckdb.default_connection()) as store:
        store.upsert(NOTES, progress=False)
        assert stored(duckdb) == 3
        store._engine.drop()


@pytest.mark.slow
def test_writers_take_turns(connection: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Stores on the same database, however they were opened, create each key once; another database is independent."""
    database = connection.sql("SELECT path FROM duckdb_databases() WHERE NOT internal").fetchall()[0][0]
    more = [connection.cursor(), connection] if database is None else [connection.cursor(), database]
    stores = [ef.connect(connection), *map(ef.connect, more)]
    # When the first one is closed, the others still take turns.
    stores.append(ef.connect(connection.cursor().cursor()))
    stores.pop(0).close()
    frame = ef.ids("note", [f"n{number}" for number in range(2_000)])

    def upsert(store: ef.EntityStore) -> int:
        pieces = (frame[start : start + 100] for start in range(0, frame.height, 100))
        return sum(store.upsert(piece, progress=False).counts["created"] for piece in pieces)

    with ThreadPoolExecutor() as threads:
        assert sum(threads.map(upsert, stores)) == frame.height
    assert stores[0].verify().is_empty()
    with ef.connect(duckdb.connect()) as other, stores[0]._engine.database.file.writer(Interrupt()):
        assert stores[1]._engine.database.file.shared.writing.locked()
        assert not other._engine.database.file.shared.writing.locked()
    for store in stores:
        store.close()


def test_a_path_whose_file_the_caller_has_open(tmp_path: Path) -> None:
    """The store shares the database, and leaves its settings alone."""
    with duckdb.connect(tmp_path / "x.duckdb") as connection:
        before = settings(connection)
        with ef.connect(tmp_path / "x.duckdb") as store:
            store.upsert(NOTES, progress=False)
        assert stored(connection) == 3
        assert settings(connection) == before
    with ef.connect(tmp_path / "y.duckdb"), duckdb.connect(tmp_path / "y.duckdb") as connection:
        # Here the store came first, and what its settings are is up to it; those of the connection still do no harm.
        connection.execute("SET default_collation = 'NOCASE'")
        with ef.connect(connection) as store:
            assert store.upsert(NOTES, progress=False).counts["created"] == 3
    with duckdb.connect(tmp_path / "x.duckdb", config={"threads": 1}) as connection:
        with pytest.raises(ef.ConnectError, match="pass the open DuckDB connection"):
            ef.connect(tmp_path / "x.duckdb")
        with ef.connect(connection) as store:
            assert store.stats()["entities"].item() == 3


@pytest.mark.slow
def test_after_a_fork(tmp_path: Path) -> None:
    """A child cannot use the store, and its exit does no harm to the connection of its parent."""
    script = textwrap.dedent(
        """
        import os, sys, warnings
        import duckdb
        import entityframes as ef
        warnings.simplefilter("ignore")
        connection = duckdb.connect(sys.argv[1])
        store = ef.connect(connection)
        store.upsert_entity("note", "a", "x")
        if (child := os.fork()) == 0:
            try:
                store.stats()
            except ef.ClosedError:
                store.close()
                sys.exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        store.upsert_entity("note", "b", "x")
        print(connection.sql("SELECT count(*) FROM entityframes.entities").fetchall())
        """
    )
    command = [sys.executable, "-c", script, str(tmp_path / "x.duckdb")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ)
    assert run.stdout == "[(2,)]\n", run.stderr
    with ef.connect(tmp_path / "x.duckdb") as store:
        assert store.stats()["entities"].item() == 2


def test_a_commit_that_runs_out_of_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the caller, whose connection stays open; the error says what to do with it."""
    with duckdb.connect(tmp_path / "x.duckdb") as connection:
        store = ef.connect(connection)
        file = store._engine.database.file
        with (
            pytest.raises(ef.ClosedError, match="PRAGMA disable_checkpoint_on_shutdown on your connection"),
            file.committing(),
        ):
            raise duckdb.OutOfMemoryException("could not allocate")
        with pytest.raises(ef.ClosedError, match="closed"):
            store.stats()
        assert stored(connection) == 0
        assert settings(connection)["memory_limit"] == settings(duckdb.connect())["memory_limit"]
