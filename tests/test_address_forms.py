"""Addresses as other programs have them: URLs and Engines of SQLAlchemy, and $DATABASE_URL."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import psycopg
import pytest
import sqlalchemy
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

import entityframes as ef
from entityframes.engines.drivers import REFUSED
from entityframes.engines.url import parse_url
from tests.conftest import execute

PASSWORD = "s3cr3t c4n4ry"
NOTES = ef.ids("note", ["a", "b"])


# URLs as text, and as objects.


@pytest.mark.parametrize(
    ("url", "parameters"),
    [
        ("postgresql+psycopg://u:p%40%2F+x@h:1/d", "user=u password=p@/+x host=h port=1 dbname=d"),
        ("postgresql+psycopg2://h", "host=h"),
        ("postgresql+psycopg_async://h/d?connect_timeout=3&sslmode=require", "host=h dbname=d connect_timeout=3 sslmode=require"),
        ("postgresql+psycopg://h/d?application_name=my+app", "host=h dbname=d application_name='my app'"),
        ("postgresql+psycopg://h/d?options=-csearch_path%3Da+-c+role%3Db", "host=h dbname=d options='-csearch_path=a -c role=b'"),
        ("postgresql+psycopg://u@/d?host=/run/postgresql", "user=u dbname=d host=/run/postgresql"),
        ("postgresql+psycopg2://u@/d?host=a:1&host=b:2", "user=u dbname=d host=a,b port=1,2"),
        ("postgresql+psycopg2://u@/d?host=a&host=b", "user=u dbname=d host=a,b"),
        ("postgresql+psycopg2://u@/d?host=a,b&port=1,2", "user=u dbname=d host=a,b port=1,2"),
        ("postgresql+psycopg2://u@/d?host=a&host=b:2", "user=u dbname=d host=a,b port=,2"),
        ("postgresql+psycopg://[::1]:5/d", "host=::1 port=5 dbname=d"),
        ("postgresql+asyncpg://h/d?ssl=verify-full", "host=h dbname=d sslmode=verify-full"),
        ("postgresql+asyncpg://h/d?ssl=true", "host=h dbname=d sslmode=require"),
        ("postgresql+asyncpg://?host=h&database=d&username=u", "host=h dbname=d user=u"),
        ("postgresql+asyncpg://h/d?timeout=2.5&direct_tls=true", "host=h dbname=d connect_timeout=3 sslnegotiation=direct"),
        ("postgresql+asyncpg://h/d?ssl=require&sslmode=require", "host=h dbname=d sslmode=require"),
        ("postgresql+asyncpg://h/d?passfile=/x&target_session_attrs=any", "host=h dbname=d passfile=/x target_session_attrs=any"),
        ("postgresql+pg8000://u:p@/d", "host=localhost user=u password=p dbname=d"),
        ("postgresql+pg8000://h/d?tcp_keepalive=false", "host=h dbname=d keepalives=0"),
        ("postgresql+pg8000://h/d?tcp_keepalive=True", "host=h dbname=d keepalives=1"),
        ("postgresql+asyncpg://h/d?direct_tls=On", "host=h dbname=d sslnegotiation=direct"),
        ("postgresql+pg8000://u@/d?unix_sock=/run/.s.PGSQL.5433", "user=u dbname=d host=/run port=5433"),
    ],
)  # fmt: skip
def test_a_url_of_sqlalchemy_means_the_same_to_libpq(url: str, parameters: str) -> None:
    """libpq reads our translation as these parameters, from the text and from SQLAlchemy's object."""
    if "sslnegotiation" in parameters and psycopg.pq.version() < 170_000:
        pytest.skip("libpq knows sslnegotiation from version 17 on")
    expected = conninfo_to_dict(parameters)
    assert conninfo_to_dict(parse_url(url).target) == expected
    assert conninfo_to_dict(parse_url(sqlalchemy.make_url(url)).target) == expected
    assert conninfo_to_dict(parse_url(url.replace("postgresql+", "postgres+")).target) == expected


def test_several_hosts_with_ports() -> None:
    """Every port is checked, in each form of an address."""
    expected = conninfo_to_dict("host=a,b port=5432,5433")
    assert conninfo_to_dict(parse_url("host=a,b port=5432,5433").target) == expected
    assert conninfo_to_dict(parse_url("postgresql:///?host=a,b&port=5432,5433").target) == expected
    for address in ("host=a,b port=5432,x", "host=a,b port=x,5432", "postgresql:///?host=a,b&port=5432,x"):
        with pytest.raises(ef.ConnectError, match="port is not a number"):
            parse_url(address)


def test_a_blank_of_another_script_after_an_address() -> None:
    """It ends the last value, and hides none."""
    assert conninfo_to_dict(parse_url("host=h port=5\u3000").target) == {"host": "h", "port": "5"}


def test_names_that_have_to_be_encoded() -> None:
    """The text of SQLAlchemy 2.0 does not encode the name of the database; its object holds it as it is."""
    parts = {"username": "u@/:", "password": "p%?#", "host": "h", "database": "d /?&=%20é"}
    url = sqlalchemy.URL.create("postgresql+psycopg", **parts)
    expected = {"user": parts["username"], "password": parts["password"], "host": "h", "dbname": parts["database"]}
    assert conninfo_to_dict(parse_url(url).target) == expected


def test_a_url_of_libpq_is_left_alone() -> None:
    """Without the name of a driver, a + is a + and the text is that of the caller; only ssl is translated."""
    url = "postgresql://u:p@h/d?application_name=my+app&keepalives=1"
    assert parse_url(url).target == url
    assert conninfo_to_dict(parse_url("postgresql://h/d?ssl=require").target)["sslmode"] == "require"


@pytest.mark.parametrize("name", REFUSED)
def test_a_parameter_without_an_equivalent_is_named(name: str) -> None:
    """The connection would be another one without it; the password is not repeated."""
    url = sqlalchemy.make_url(f"postgresql+psycopg2://u@h/d?application_name=x&{name}=1").set(password=PASSWORD)
    for address in (url, url.render_as_string(hide_password=False)):
        with pytest.raises(ef.ConnectError, match=rf"the parameter {name}, which libpq does not have: \w+") as caught:
            ef.connect(address)
        assert "c4n4ry" not in str(caught.value)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("application_name=x&c4n4ry=1", "parameter number 2 after the ?"),
        ("ssl=require&sslmode=disable", "both ssl and sslmode"),
        ("ssl=c4n4ry", "ssl must be one of disable, allow"),
        ("host=127.0.0.1,c4n4ry%20x", "host is not a valid host name"),
        ("timeout=c4n4ry", "not a number of seconds"),
        ("direct_tls=c4n4ry", "direct_tls must be true or false"),
    ],
)
def test_parameters_that_are_refused_without_their_values(query: str, message: str) -> None:
    """Unknown names are not repeated either, since a password with a & looks like one."""
    for address in (f"postgresql+asyncpg://h/d?{query}", sqlalchemy.make_url(f"postgresql+asyncpg://h/d?{query}")):
        with pytest.raises(ef.ConnectError) as caught:
            ef.connect(address)
        assert message in str(caught.value)
        assert "c4n4ry" not in str(caught.value)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg", "pg8000"])
def test_urls_of_each_driver_open_the_same_store(postgres_url: str, driver: str) -> None:
    """As text and as object, with parameters that reach the server."""
    url = sqlalchemy.make_url(postgres_url).set(drivername=f"postgresql+{driver}")
    url = url.update_query_dict({"application_name": f"from {driver}", "options": "-c work_mem=5MB"})
    for number, address in enumerate((url, url.render_as_string(hide_password=False))):
        with ef.connect(address) as store, ef.connect(postgres_url) as other:
            store.upsert_entity("note", str(number), "text")
            assert other.entity_exists("note", str(number))
            names = execute(postgres_url, "SELECT application_name FROM pg_stat_activity")
            assert (f"from {driver}",) in names
            assert store.address == other.address


@pytest.mark.parametrize("system", ["mysql+pymysql", "sqlite", "oracle", "mssql+pyodbc"])
def test_urls_of_other_databases(system: str) -> None:
    """The message names the system, and what is supported."""
    with pytest.raises(ef.ConnectError, match=f"no engine for {system.partition('+')[0]}: addresses"):
        ef.connect(sqlalchemy.URL.create(system, "u", PASSWORD, "h", database="d"))


# DuckDB.


@pytest.mark.duckdb
def test_slashes_of_duckdb_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As text, three slashes begin an absolute path; the object of SQLAlchemy knows whether its path is relative."""
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    with ef.connect(sqlalchemy.make_url("duckdb:///x.duckdb")) as store:
        assert store.address == "x.duckdb"
        store.upsert(NOTES, progress=False)
    same = [
        f"duckdb://{tmp_path}/sub/x.duckdb", f"duckdb:///{tmp_path}/sub/x.duckdb", "duckdb:x.duckdb",
        sqlalchemy.make_url(f"duckdb:///{tmp_path}/sub/x.duckdb"),
    ]  # fmt: skip
    for url in same:
        with ef.connect(url) as store:
            assert store.stats()["entities"].to_list() == [2], url
    for memory in ("duckdb:///:memory:", "duckdb:///%3Amemory%3A", sqlalchemy.make_url("duckdb:///:memory:")):
        with ef.connect(memory) as store:
            assert store.address == ":memory:"
    assert sorted(os.listdir()) == ["x.duckdb"]


@pytest.mark.duckdb
@pytest.mark.parametrize("name", ["x.duckdb", "ef-data/new.duckdb"])
def test_a_relative_path_after_three_slashes_is_not_taken_for_another_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLAlchemy would open the file in this folder; neither that nor a new one in the root is opened silently."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.duckdb").touch()
    (tmp_path / "ef-data").mkdir()
    with pytest.raises(ef.ConnectError, match=f"write {name} for that, or duckdb:////{name}"):
        ef.connect(f"duckdb:///{name}")


@pytest.mark.duckdb
@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("duckdb:///x.duckdb?access_mode=read_only", "access_mode after a [?]"),
        ("duckdb:///x.duckdb?c4n4ry=1", "settings after a [?]"),
        ("duckdb:///md:c4n4ry", "no engine for md: addresses"),
    ],
)
def test_duckdb_urls_that_are_refused(url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings and extensions are neither dropped nor part of the name of a new file."""
    monkeypatch.chdir(tmp_path)
    for address in (url, sqlalchemy.make_url(url)):
        with pytest.raises(ef.ConnectError, match=message) as caught:
            ef.connect(address)
        assert "c4n4ry" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


# Engines.


@pytest.fixture
def sqlalchemy_url(postgres_url: str) -> sqlalchemy.URL:
    return sqlalchemy.make_url(postgres_url).set(drivername="postgresql+psycopg")


def test_an_engine(sqlalchemy_url: sqlalchemy.URL, postgres_url: str) -> None:
    """The store is in the database that the Engine, or an asynchronous one, connects to."""
    engine, later = sqlalchemy.create_engine(sqlalchemy_url), create_async_engine(sqlalchemy_url)
    with ef.connect(engine) as store, ef.connect(later) as other:
        store.upsert(NOTES, progress=False)
        assert other.stats()["entities"].to_list() == [2]
        with engine.connect() as connection:
            assert connection.scalar(sqlalchemy.text("SELECT count(*) FROM entityframes.entities")) == 2
    engine.dispose()
    asyncio.run(later.dispose())


def test_an_engine_that_connects_otherwise_is_refused(sqlalchemy_url: sqlalchemy.URL) -> None:
    """Its URL does not say where it connects to, or with what; the message names what that depends on."""
    token = sqlalchemy.create_engine(sqlalchemy_url)
    event.listen(token, "do_connect", lambda dialect, record, arguments, parameters: None)
    arguments = {"password": PASSWORD, "sslmode": "disable"}
    for engine, message in (
        (sqlalchemy.create_engine(sqlalchemy_url, creator=lambda: None), "function of its own (creator)"),
        (create_async_engine(sqlalchemy_url, async_creator=lambda: None), "function of its own (creator)"),
        (sqlalchemy.create_engine(sqlalchemy_url, connect_args=arguments), "connect_args that its URL does not have (password, sslmode)"),
        (create_async_engine(sqlalchemy_url, connect_args=arguments), "connect_args that its URL does not have (password, sslmode)"),
        (token, "listener for the event do_connect"),
    ):  # fmt: skip
        with pytest.raises(ef.ConnectError) as caught:
            ef.connect(engine)
        assert message in str(caught.value)
        assert "pass a URL" in str(caught.value)
        assert "c4n4ry" not in str(caught.value)
    # Arguments that the URL has as well are no difference.
    same = sqlalchemy.create_engine(
        sqlalchemy_url.update_query_dict({"sslmode": "disable"}), connect_args={"sslmode": "disable"}
    )
    ef.connect(same).close()


def test_other_objects(sqlalchemy_url: sqlalchemy.URL) -> None:
    """What is no address is refused with what is one."""
    engine = sqlalchemy.create_engine(sqlalchemy_url)
    with engine.connect() as connection, pytest.raises(ef.ConnectError, match="pass the Engine"):
        ef.connect(connection)
    engine.dispose()
    for thing in (5, duckdb, Session()):
        with pytest.raises(TypeError, match=rf"expected a path, .* got {type(thing).__name__}"):
            ef.connect(thing)


@pytest.mark.duckdb
@pytest.mark.parametrize("where", [":memory:", "x.duckdb"])
def test_an_engine_of_duckdb(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection of its own is used, since another to the file needs the same settings, and in memory there is none."""
    monkeypatch.chdir(tmp_path)
    engine = sqlalchemy.create_engine(f"duckdb:///{where}")
    with ef.connect(engine) as store:
        store.upsert(NOTES, progress=False)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM entityframes.entities").scalar() == 2
    gc.collect()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM entityframes.entities").scalar() == 2
    with ef.connect(engine) as store:
        assert store.stats()["entities"].to_list() == [2]
    engine.dispose()


# $DATABASE_URL.


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An empty folder without the variables."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ENTITYFRAMES_URL", raising=False)
    monkeypatch.delenv("DATABASE_URL", raising=False)
    return monkeypatch


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "entityframes", *words], capture_output=True, text=True, timeout=120)


@pytest.mark.slow
def test_database_url(empty_postgres_url: str, elsewhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Without a URL of our own it is used, and the repr, the log and the command line say so."""
    elsewhere.setenv("DATABASE_URL", empty_postgres_url.replace("postgresql://", "postgres://"))
    elsewhere.setenv("PYTHONPATH", str(Path(ef.__file__).parent.parent))
    with caplog.at_level(logging.INFO, "entityframes"), ef.connect() as store:
        store.upsert(NOTES, progress=False)
        assert repr(store) == f"EntityStore({store.address!r} (from $DATABASE_URL), namespace='entityframes')"
        with ef.table(None, "entityframes.spaces") as table:
            assert repr(table).startswith(f"Table({store.address!r} (from $DATABASE_URL), 'entityframes.spaces'")
    assert [record.getMessage() for record in caplog.records] == [f"{store.address} is used (from $DATABASE_URL)"] * 2
    run = command("stats", "--json")
    assert json.loads(run.stdout)["entities"] == 2
    assert run.stderr == f"store: {store.address} (from $DATABASE_URL)\n"
    # Also by a search, which opens the store once more to complete its index.
    with ef.connect() as store:
        store.upsert_entity("note", "c", "some words")
    run = command("search", "words", "--mode", "text")
    assert (run.returncode, run.stderr.count("store: ")) == (0, 1)
    assert os.listdir() == []
    # The URL of our own, and one that is given, come first.
    elsewhere.setenv("ENTITYFRAMES_URL", "own.duckdb")
    with ef.connect() as store:
        assert repr(store) == "EntityStore('own.duckdb', namespace='entityframes')"
    assert command("stats").stderr == ""
    assert command("stats", "--store", ":memory:").stderr.startswith("entityframes: a store in memory")


def test_database_url_next_to_the_default_file(
    postgres_url: str, elsewhere: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that used the file before the variable was set is warned."""
    ef.connect().close()
    assert os.listdir() == ["entities.duckdb"]
    elsewhere.setenv("DATABASE_URL", postgres_url)
    ef.connect().close()
    [warning] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "is used (from $DATABASE_URL), not the file entities.duckdb in this folder" in warning


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://u:{PASSWORD}@h/d", f"mysql2://u:{PASSWORD}@h/d", "sqlite:///c4n4ry.db", "c4n4ry.sqlite3",
        f"postgresql+asyncpg://u:{PASSWORD}@h/d?statement_cache_size=0", f"postgresql://u:{PASSWORD}@127.0.0.1:1/d",
    ],
)  # fmt: skip
def test_a_database_url_that_cannot_be_used(url: str, elsewhere: pytest.MonkeyPatch) -> None:
    """The message names the variable and how to use another database, and repeats nothing of the address."""
    elsewhere.setenv("DATABASE_URL", url.replace(" ", "%20"))
    with pytest.raises(ef.ConnectError) as caught:
        ef.connect()
    assert "$DATABASE_URL" in str(caught.value)
    assert "set $ENTITYFRAMES_URL or pass an address, such as entities.duckdb" in str(caught.value)
    assert "c4n4ry" not in str(caught.value)
    assert os.listdir() == []


def test_variables_that_are_empty(elsewhere: pytest.MonkeyPatch) -> None:
    """They are as good as not set."""
    elsewhere.setenv("DATABASE_URL", "")
    elsewhere.setenv("ENTITYFRAMES_URL", "")
    with ef.connect() as store:
        assert repr(store) == "EntityStore('entities.duckdb', namespace='entityframes')"


def test_a_location_is_taken_as_it_is(tmp_path: Path) -> None:
    """So that code that has parsed an address can pass it on."""
    location: Any = parse_url(tmp_path / "x.duckdb")
    assert parse_url(location) is location
    with ef.connect(location) as store:
        assert store.address == str(tmp_path / "x.duckdb")
