"""Case 47: settings of servers, databases, roles and the environment do not change what is stored, found or reported.

A run draws random settings and where they are made; $ENTITYFRAMES_SESSION_EXAMPLES sets their number.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import hypothesis.strategies as st
import polars as pl
import psutil
import pytest
from hypothesis import HealthCheck, Phase, given, settings

import entityframes as ef
from entityframes.engines import predicates
from tests.conftest import execute, with_database

EXAMPLES = int(os.environ.get("ENTITYFRAMES_SESSION_EXAMPLES", "6"))
#: The number of connects in the search for leaks.
TURNS = int(os.environ.get("ENTITYFRAMES_CONNECTS", "60"))
EMBEDDER = ef.HashingEmbedder(32)
_numbers = itertools.count()

#: Settings of a server, database or role that affect how text, numbers, times and names are read and written.
VALUES = {
    "client_encoding": ["LATIN1", "SQL_ASCII", "WIN1252", "EUC_JP", "UTF8"],
    "standard_conforming_strings": ["off"],
    "backslash_quote": ["on", "off"],
    "escape_string_warning": ["off"],
    "array_nulls": ["off"],
    "transform_null_equals": ["on"],
    "quote_all_identifiers": ["on"],
    "bytea_output": ["escape"],
    "extra_float_digits": ["-15", "0", "3"],
    "datestyle": ["German, DMY", "SQL, DMY", "Postgres, MDY"],
    "intervalstyle": ["sql_standard", "iso_8601", "postgres_verbose"],
    "timezone": ["Asia/Kathmandu", "America/St_Johns", "Pacific/Apia"],
    "xmlbinary": ["hex"],
    "xmloption": ["document"],
    "default_transaction_isolation": ["serializable", "repeatable read"],
    "gin_fuzzy_search_limit": ["1"],
    "default_text_search_config": ["pg_catalog.german"],
    "search_path": [
        "shadow, pg_catalog, public",
        "shadow",
        "''",
        "public, shadow, pg_temp, pg_catalog",
        '"$user", shadow',
    ],
    "lc_messages": ["C.utf8"],
    "lc_numeric": ["C.utf8"],
    "plan_cache_mode": ["force_generic_plan"],
    "enable_indexscan": ["off"],
    "default_statistics_target": ["1"],
    "jit": ["on"],
}
#: Environment variables that libpq reads.
ENVIRONMENT = {"client_encoding": "PGCLIENTENCODING", "datestyle": "PGDATESTYLE", "timezone": "PGTZ"}

DRAWN = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda name: st.tuples(
            st.just(name), st.sampled_from(VALUES[name]), st.sampled_from(["role", "database", "url", "environment"])
        )
    ),
    min_size=3,
    max_size=12,
    unique_by=lambda drawn: drawn[0],
)

#: Objects that shadow others if they come first in the search path: a function, an operator's function, a table.
SHADOW = (
    "CREATE SCHEMA shadow",
    "CREATE FUNCTION shadow.now() RETURNS timestamptz LANGUAGE sql AS $$ SELECT timestamptz '1999-01-01 00:00Z' $$",
    "CREATE FUNCTION shadow.sha256(bytea) RETURNS bytea LANGUAGE sql AS $$ SELECT '\\x00'::bytea $$",
    "CREATE FUNCTION shadow.encode(bytea, text) RETURNS text LANGUAGE sql AS $$ SELECT 'shadow' $$",
    "CREATE FUNCTION shadow.hashtextextended(text, int8) RETURNS int8 LANGUAGE sql AS $$ SELECT 0::int8 $$",
    "CREATE TABLE shadow.entityframes_staging (position int4)",
    "CREATE TABLE shadow.pg_tables (schemaname text, tablename text)",
    "CREATE TEXT SEARCH CONFIGURATION shadow.english (COPY = pg_catalog.simple)",
    "GRANT USAGE ON SCHEMA shadow TO PUBLIC",
    "GRANT SELECT ON ALL TABLES IN SCHEMA shadow TO PUBLIC",
)

NOW = dt.datetime(2026, 3, 1, 12, 30, 15, 123456, tzinfo=dt.UTC)
WORDS = [
    "plain",
    "O'Brien",
    "back\\slash",
    "\\'; DROP TABLE x; --",
    "Grüße, Ελλάδα",
    "日本語 🙂",
    "\\x41",
    "NULL",
    "a\\\\b'c",
]


def frame(version: int, count: int) -> pl.DataFrame:
    """Entities whose ids, contents and metadata are sensitive to settings."""
    numbers = range(count)
    words = [WORDS[number % len(WORDS)] for number in numbers]
    metadata = pl.DataFrame(
        {
            "word": words,
            "back\\'field": words[::-1],
            "ratio": [0.1 + 0.2 + number / 7 for number in numbers],
            "day": [dt.date(2026, 1, 2) + dt.timedelta(days=number % 400) for number in numbers],
            "moment": [NOW + dt.timedelta(microseconds=number * 1_000_003) for number in numbers],
            "lasts": [dt.timedelta(microseconds=number * 1_000_003 + 1) for number in numbers],
            "count": [number * 10**12 for number in numbers],
        }
    )
    return pl.DataFrame(
        {
            "entity_type": ["note\\'s" if number % 3 else "note" for number in numbers],
            "id": [f"{word} {number}" for number, word in zip(numbers, words, strict=True)],
            "content": [f"{word} wrote {version} of the running gardens {number}" for number, word in enumerate(words)],
            "metadata": metadata.to_struct("metadata"),
        }
    )


def exercise(store: ef.EntityStore) -> dict[str, Any]:
    """A store's answers to all kinds of calls, without timestamps."""
    answers: dict[str, Any] = {}

    def keep(name: str, answer: pl.DataFrame) -> None:
        there = [
            column for column in answer.columns if column not in ("created_at", "updated_at", "batch_id", "job_id")
        ]
        answers[name] = answer.select(there).to_dicts()

    small, large = frame(1, 30), frame(2, 2_200)
    keep("small", store.upsert(small, progress=False).outcomes)
    keep("large", store.upsert(large, progress=False).outcomes)
    keep("changed", store.upsert(frame(3, 40), progress=False).outcomes)
    seen = store.get(small.select("entity_type", "id"))
    keep("got", seen)
    expecting = frame(4, 30).join(seen.select("entity_type", "id", "content_hash"), on=["entity_type", "id"])
    keep("expected", store.upsert(expecting, expected_hash="content_hash", progress=False).outcomes)
    refused = frame(5, 12).with_columns(
        pl.when(pl.col("id").str.ends_with(" 7")).then(pl.lit("forbidden")).otherwise("content").alias("content")
    )
    keep("refused", store.upsert(refused, progress=False).outcomes.with_columns(pl.col("error").is_not_null()))
    keep("planned", store.plan(frame(6, 8)).apply().outcomes)
    for name in ("note", "note\\'s"):
        keep(f"read {name}", store.read(name).sort("id"))
    for number, where in enumerate(FILTERS):
        keep(f"where {number}", store.scan("note\\'s").filter(where).sort("id").collect())
    recent = pl.col("updated_at") > dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    keep("recent", store.scan().filter(recent).sort("entity_type", "id").select("id").collect())
    store.embed(EMBEDDER, progress=False)
    for mode, (number, where) in itertools.product(("vector", "text", "hybrid"), enumerate([None, *FILTERS[:3]])):
        found = store.search("running garden \\ O'Brien", entity_type="note\\'s", mode=mode, where=where, k=7)
        keep(f"search {mode} {number}", found.with_columns(pl.col("score").round(4)))
    keep("deleted", store.delete(ef.ids("note\\'s", ["back\\slash 2", "O'Brien 1", "none"])).outcomes)
    keep("stats", store.stats())
    keep("verify", store.verify())
    return answers


FILTERS = [
    pl.col("word") == "back\\slash",
    pl.col("word").is_in(["\\'; DROP TABLE x; --", "a\\\\b'c", "日本語 🙂"]),
    pl.col("id").str.starts_with("O'Brien") | (pl.col("content") == "\\x41 wrote 2 of the running gardens 1995"),
    pl.col("back\\'field") == "O'Brien",
    (pl.col("ratio") > 0.1 + 0.2 + 3 / 7) & (pl.col("ratio") <= 100.5),
    pl.col("day") >= dt.date(2026, 12, 3),
    pl.col("moment") < NOW + dt.timedelta(seconds=900),
    pl.col("lasts") == dt.timedelta(microseconds=31 * 1_000_003 + 1),
    pl.col("count") > 10**15,
    pl.col("content_hash") > "8" * 64,
]


Made = tuple[str, str, str]


class Databases:
    """Databases with a store, a role and different settings."""

    def __init__(self, server: str, template: str) -> None:
        self._server, self._template = server, template

    def exercise(self, made: list[Made], *, pgvector: bool) -> dict[str, Any]:
        """The answers of a store with these settings, given by name, value and where they are made."""
        name = f"session_{os.getpid()}_{next(_numbers)}"
        admin = with_database(self._server, name)
        execute(
            self._server, f"CREATE DATABASE {name} TEMPLATE {self._template}", f"CREATE ROLE {name} LOGIN SUPERUSER"
        )
        try:
            execute(
                admin, "ALTER TABLE entityframes.entities ADD CONSTRAINT allowed_content CHECK (content <> 'forbidden')"
            )
            execute(admin, *SHADOW, *(["CREATE EXTENSION vector"] if pgvector else []))
            with (
                pytest.MonkeyPatch.context() as environment,
                ef.connect(self._prepared(admin, name, made, environment)) as store,
            ):
                answers = exercise(store)
            execute(admin, f"ALTER DATABASE {name} RESET ALL")
            # A reader without such settings sees the same.
            answers["stored"] = execute(admin, STORED)
            with ef.connect(admin) as store:
                answers["verify by others"] = store.verify().to_dicts()
            return answers
        finally:
            execute(self._server, f"DROP DATABASE {name} WITH (FORCE)", f"DROP ROLE {name}")

    def _prepared(self, admin: str, name: str, made: list[Made], environment: pytest.MonkeyPatch) -> str:
        """Make the settings. Returns the URL to connect with."""
        options, texts = [], []
        for setting, value, where in made:
            text = value if setting == "search_path" else f"'{value}'"
            if where == "role":
                execute(admin, f"ALTER ROLE {name} SET {setting} = {text}")
            elif where == "database":
                execute(admin, f"ALTER DATABASE {name} SET {setting} = {text}")
            elif where == "environment" and setting in ENVIRONMENT:
                environment.setenv(ENVIRONMENT[setting], value)
            elif where == "environment":
                options.append(_option(setting, value))
            elif setting == "client_encoding":
                texts.append(f"client_encoding={value}")
            else:
                texts.append("options=" + quote(_option(setting, value), safe=""))
        if options and not any(text.startswith("options") for text in texts):
            environment.setenv("PGOPTIONS", " ".join(options))
        parts = urlsplit(admin)
        query = "&".join(filter(None, [parts.query, *texts]))
        host = parts.netloc.rpartition("@")[2]
        return urlunsplit(parts._replace(netloc=f"{name}@{host}", query=query))


STORED = """
    SELECT entity_type, id, content, metadata::text, encode(sha256(convert_to(content, 'UTF8')), 'hex'),
        encode(content_hash, 'hex')
    FROM entityframes.entities ORDER BY entity_type, id
"""


def _option(setting: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace(" ", "\\ ")
    return f"-c {setting}={escaped}"


@pytest.fixture(scope="session")
def databases(postgres_server: str, postgres_template: str) -> Databases:
    return Databases(postgres_server, postgres_template)


class _Answers(dict[str, Any]):
    """Answers by the name of the call, with a short repr, because failures would show all of them."""

    def __repr__(self) -> str:
        return f"{len(self)} answers"


@pytest.fixture(scope="module")
def reference(databases: Databases) -> dict[str, Any]:
    """The answers of a store without settings."""
    return _Answers(databases.exercise([], pgvector=True))


def _check(databases: Databases, reference: dict[str, Any], made: list[Made], *, pgvector: bool) -> None:
    answers = databases.exercise(made, pgvector=pgvector)
    for name, answer in reference.items():
        assert answers[name] == answer, f"{name} under {made}"


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < 50,
    suppress_health_check=list(HealthCheck),
    database=None,
    # The drawn settings are short, and each example takes a second.
    phases=[Phase.generate],
)
@given(made=DRAWN, pgvector=st.booleans())
@pytest.mark.slow
def test_settings_change_nothing(
    databases: Databases, reference: dict[str, Any], made: list[Made], pgvector: bool
) -> None:
    """Equal outcomes, equal reads, equal rows in the table, whatever the settings and where they were made."""
    _check(databases, reference, made, pgvector=pgvector)


@pytest.mark.slow
@pytest.mark.parametrize(
    "made",
    [
        [("client_encoding", "LATIN1", "environment")],
        [("client_encoding", "WIN1252", "database")],
        [("client_encoding", "WIN1252", "url"), ("standard_conforming_strings", "off", "role")],
        [("search_path", "shadow, pg_catalog, public", "role"), ("quote_all_identifiers", "on", "database")],
    ],
    ids=["environment", "database", "url and role", "search path"],
)
def test_settings_that_once_failed(databases: Databases, reference: dict[str, Any], made: list[Made]) -> None:
    """Settings under which text was once stored garbled, or a value was executed as SQL."""
    _check(databases, reference, made, pgvector=True)


@pytest.mark.slow
def test_the_reference_is_right(reference: dict[str, Any]) -> None:
    """The texts are those that were written, and the filters match some rows and not all."""
    frames = {row["id"]: row for row in frame(2, 2_200).drop("metadata").iter_rows(named=True)}
    for row in reference["read note\\'s"]:
        assert row["content"].partition(" wrote")[0] == frames[row["id"]]["content"].partition(" wrote")[0]
    for number in range(len(FILTERS)):
        assert 0 < len(reference[f"where {number}"]) < len(reference["read note\\'s"]), number
    assert reference["verify"] == reference["verify by others"] == []


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
def test_a_database_of_another_encoding(postgres_server: str, encoding: str) -> None:
    """The error names the encoding and explains what to do; nothing is created in the database."""
    name = f"encoded_{os.getpid()}_{next(_numbers)}"
    execute(
        postgres_server,
        f"CREATE DATABASE {name} ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0",
    )
    url = with_database(postgres_server, name)
    try:
        with pytest.raises(ef.ConnectError, match=f"the encoding of the database is {encoding}.*ENCODING 'UTF8'"):
            ef.connect(url)
        assert execute(url, "SELECT count(*) FROM pg_namespace WHERE nspname = 'entityframes'") == [(0,)]
    finally:
        execute(postgres_server, f"DROP DATABASE {name} WITH (FORCE)")


def test_names_in_quotes_behind_a_pooler(postgres_url: str) -> None:
    """If the driver cannot be given options, the error names the one setting that is incompatible."""
    name = urlsplit(postgres_url).path[1:]
    execute(postgres_url, f"ALTER DATABASE {name} SET quote_all_identifiers = on")
    with ef.connect(postgres_url) as store:
        store.upsert_entity("note", "a", "x")
    with pytest.raises(ef.ConnectError, match="quote_all_identifiers"):
        ef.connect(postgres_url + "&pool_mode=transaction")


@pytest.mark.parametrize("conforming", ["on", "off"])
def test_literals(postgres_url: str, conforming: str) -> None:
    """A string in a rendered predicate is exactly that string, whatever a backslash means in the session."""
    column = predicates.MetadataField("back\\'field", pl.String())
    for word in WORDS:
        condition = predicates.render(predicates.Compare(column, "=", word), predicates.POSTGRESQL)
        found = execute(
            postgres_url,
            f"SET standard_conforming_strings = {conforming}",
            "CREATE TEMPORARY TABLE x (metadata json)",
            f"INSERT INTO x VALUES ({predicates.POSTGRESQL.quoted(json.dumps({column.name: word}))})",
            f"SELECT count(*) FROM x WHERE {condition}",
        )
        assert found == [(1,)], word


def test_repair_does_not_change_garbled_text(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client with another encoding reads, checks and repairs a store without changing the text of others."""
    with ef.connect(postgres_url) as store:
        store.upsert(frame(1, 30), progress=False)
    before = execute(postgres_url, STORED)
    with monkeypatch.context() as environment:
        environment.setenv("PGCLIENTENCODING", "LATIN1")
        with ef.connect(postgres_url) as store:
            assert store.verify(repair=True).is_empty()
            assert store.upsert(frame(1, 30), progress=False).counts["unchanged"] == 30
    assert execute(postgres_url, STORED) == before


def test_other_settings_of_the_user_are_kept(postgres_url: str) -> None:
    """A user's search path is kept, so that triggers find their tables."""
    name = urlsplit(postgres_url).path[1:]
    execute(postgres_url, "CREATE SCHEMA theirs", f"ALTER DATABASE {name} SET search_path = theirs, public")
    with ef.connect(postgres_url) as store, store._engine.database._pool.borrow() as connection:
        assert connection.query_at_once("SELECT current_setting('search_path') AS path").item() == "theirs, public"


@pytest.mark.slow
def test_connections_do_not_leak(url: str, engine: str, tmp_path: Path) -> None:
    """Case 52: opened and closed stores, also with streams in progress, leak neither memory nor descriptors."""
    process = psutil.Process()

    def turn() -> None:
        with ef.connect(url) as store:
            store.upsert_entity("note", "a", "x")
            rows = iter(store._engine.select(["id"], None, None, None))
            next(rows)
        # The store is closed while rows stream out.
        rows.close()

    for _ in range(10):
        turn()
    memory, descriptors = process.memory_info().rss, process.num_fds()
    for _ in range(TURNS):
        turn()
    assert process.num_fds() <= descriptors + 2
    # PostgreSQL once leaked 0.85 MB for each.
    assert process.memory_info().rss - memory < TURNS * 0.3 * 1e6 + 10e6
