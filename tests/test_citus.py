"""The SQL for PostgreSQL keeps to what Citus supports in a schema that is a shard, and it works there.

The rules were found with Citus 14 on three nodes. `EXCEPTIONS` lists statements that break one; they fail on Citus.
$ENTITYFRAMES_TEST_CITUS names a database with the extension, for the test that needs one.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator

import polars as pl
import pytest

import entityframes as ef
from entityframes.engines import queries
from entityframes.engines.postgres import citus
from entityframes.engines.postgres.database import PostgresDatabase
from entityframes.engines.queries import Statements
from tests.databases import execute

#: The files whose statements run on the tables of a store, or of a user. Those of `earlier` repair stores that were
#: created before Citus was supported.
FILES = ("engine", "checks", "embedding", "text", "directory", "tables")

#: Statements that break a rule, and why. The reads of written rows and the conditions of an upsert are one round trip.
_ONE_TRIP = "one round trip with the ledger; on Citus it has to be several statements"
_NOT_YET = "embedding and search have not been changed for Citus yet"
_CHILDREN = "LIMIT keeps rows of child tables apart; a plain join would return both"
EXCEPTIONS = {
    ("merge_arrays", "subquery in the condition of ON CONFLICT"): _ONE_TRIP,
    ("record_fields", "subquery in the condition of ON CONFLICT"): "declared fields are kept in the same statement",
    ("merge_arrays", "written rows are read twice"): _ONE_TRIP,
    ("delete", "written rows are read twice"): _ONE_TRIP,
    ("delete_unchanged", "written rows are read twice"): _ONE_TRIP,
    ("table_existing", "LATERAL with LIMIT"): _CHILDREN,
    ("table_existing", "SELECT without columns"): _CHILDREN,
    ("table_lookup", "LATERAL with LIMIT"): _CHILDREN,
    ("table_lock", "SELECT without columns"): "no column is needed to lock rows",
    ("repair_duplicate_key", "a system column"): "rows of one key differ in nothing else; Citus has no such rows",
    ("filed", "LATERAL with LIMIT"): "looks each file up in the index, whatever the statistics; to be measured",
    ("origins", "LATERAL with LIMIT"): "the latest of several files of a key",
    ("rename", "written rows are read twice"): _ONE_TRIP,
    ("add_space", "now() in CASE"): _NOT_YET,
    ("enqueue_keys", "LATERAL with LIMIT"): _NOT_YET,
    ("hold_current", "LATERAL with LIMIT"): _NOT_YET,
    ("hold_current", "SELECT without columns"): _NOT_YET,
    ("members", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest", "SELECT without columns"): _NOT_YET,
    ("nearest_of", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest_of", "SELECT without columns"): _NOT_YET,
    ("nearest_of_few", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest_of_few", "SELECT without columns"): _NOT_YET,
    ("nearest_of_few_where", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest_of_few_where", "SELECT without columns"): _NOT_YET,
    ("nearest_of_many", "LATERAL with LIMIT"): _NOT_YET,
    ("nearest_of_many", "SELECT without columns"): _NOT_YET,
    ("move", "now() in CASE"): _NOT_YET,
    ("store_inline", "ALTER ... SET STORAGE"): _NOT_YET,
    ("index_documents", "subquery in the condition of ON CONFLICT"): _NOT_YET,
    ("matching", "LATERAL with LIMIT"): _NOT_YET,
}


def _closing(text: str, start: int) -> int:
    """The position of the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position
    raise ValueError("unbalanced parentheses")


def _ctes(text: str) -> Iterator[tuple[str, str]]:
    """The name and the body of each common table expression."""
    for found in re.finditer(r"\b(\w+) AS (?:MATERIALIZED )?\((?=\s*(?:SELECT|INSERT|UPDATE|DELETE|WITH))", text):
        yield found[1], text[found.end() : _closing(text, found.end() - 1)]


def storage(text: str) -> bool:
    return "SET STORAGE" in text


def identity(text: str) -> bool:
    return re.search(r"\bint[24]\b[^,]*AS IDENTITY", text) is not None


def on_conflict(text: str) -> bool:
    """Whether a condition after DO UPDATE has a subquery."""
    for found in re.finditer(r"DO UPDATE SET", text):
        clause = text[found.end() :].partition("RETURNING")[0]
        if "SELECT" in clause.partition("WHERE")[2].partition("\n)")[0]:
            return True
    return False


def without_columns(text: str) -> bool:
    """Whether there is a SELECT without columns that is not within EXISTS."""
    return (
        re.search(r"(?<!EXISTS \()(?<!EXISTS \(\n)\bSELECT FROM\b", re.sub(r"\(\s+SELECT", "(SELECT", text)) is not None
    )


def read_twice(text: str) -> bool:
    for name, body in _ctes(text):
        if re.match(r"\s*(INSERT|UPDATE|DELETE)", body) and len(re.findall(rf"(?:FROM|JOIN|USING) {name}\b", text)) > 1:
            return True
    return False


def now_in_case(text: str) -> bool:
    return any("now()" in found for found in re.findall(r"\bCASE\b.*?\bEND\b", text, re.DOTALL))


def lateral_limit(text: str) -> bool:
    return any(
        re.search(r"\b(LIMIT|OFFSET)\b", text[found.end() : _closing(text, found.end() - 1)])
        for found in re.finditer(r"LATERAL \(", text)
    )


def system_column(text: str) -> bool:
    return re.search(r"\b(xmax|xmin|cmin|cmax|ctid|tableoid)\b", text) is not None


RULES: dict[str, Callable[[str], bool]] = {
    "ALTER ... SET STORAGE": storage,
    "identity of int4": identity,
    "subquery in the condition of ON CONFLICT": on_conflict,
    "SELECT without columns": without_columns,
    "written rows are read twice": read_twice,
    "now() in CASE": now_in_case,
    "LATERAL with LIMIT": lateral_limit,
    "a system column": system_column,
}


def statements() -> Iterator[tuple[str, str, str]]:
    """File, name and text of each statement, as a server with Citus gets it."""
    of_citus = Statements("postgres", "store")
    citus.edit_migrations(of_citus)
    for file in FILES:
        for name in queries.names(f"postgres/{file}.sql"):
            # Statements that read the catalog only are not distributed.
            if '"store"' in of_citus[name] or "{table}" in of_citus[name]:
                yield f"{file}.sql", name, of_citus[name]
    for name in filter(lambda name: name.startswith("migrate_"), of_citus._texts):
        yield "migrations", name, of_citus[name]


def violations() -> set[tuple[str, str, str]]:
    """File, name and rule of each violation."""
    return {(file, name, rule) for file, name, text in statements() for rule, breaks in RULES.items() if breaks(text)}


@pytest.mark.postgresql
def test_statements_keep_to_what_citus_supports() -> None:
    """Each violation is listed with its reason; a listed one that is gone has to be removed from the list."""
    found = violations()
    unlisted = [
        f"{file}: {name}: {rule}: write it in another way, or list it in EXCEPTIONS with the reason"
        for file, name, rule in sorted(found)
        if (name, rule) not in EXCEPTIONS
    ]
    assert not unlisted, "\n" + "\n".join(unlisted)
    gone = set(EXCEPTIONS) - {(name, rule) for _, name, rule in found}
    assert not gone, f"no longer violated, remove from EXCEPTIONS: {sorted(gone)}"


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("ALTER ... SET STORAGE", "ALTER TABLE t ALTER a SET STORAGE PLAIN"),
        ("identity of int4", "CREATE TABLE t (n int4 NOT NULL GENERATED ALWAYS AS IDENTITY)"),
        (
            "subquery in the condition of ON CONFLICT",
            "INSERT INTO t VALUES (1) ON CONFLICT (a) DO UPDATE SET b = 1\nWHERE t.b IN (SELECT 1)",
        ),
        ("SELECT without columns", "WITH a AS (\n    SELECT FROM t\n) SELECT count(*) FROM a"),
        (
            "written rows are read twice",
            "WITH a AS (DELETE FROM t RETURNING b), c AS (SELECT b FROM a) SELECT b FROM a",
        ),
        ("now() in CASE", "UPDATE t SET a = CASE WHEN b\nTHEN now() END"),
        ("LATERAL with LIMIT", "SELECT FROM t CROSS JOIN LATERAL (SELECT (a) FROM u LIMIT 1) AS u"),
        ("a system column", "INSERT INTO t VALUES (1) RETURNING xmax = 0"),
    ],
)
def test_each_rule_finds_its_violation(rule: str, text: str) -> None:
    """And nothing in a statement that keeps to all rules."""
    assert RULES[rule](text)
    harmless = (
        "WITH a AS (DELETE FROM t RETURNING b) SELECT CASE WHEN c THEN b END, now() FROM a JOIN LATERAL (SELECT 1) AS d "
        "ON EXISTS (SELECT FROM e LIMIT 1); CREATE TABLE t (n int8 GENERATED ALWAYS AS IDENTITY, m int4); INSERT INTO t "
        "VALUES ((SELECT 1)) ON CONFLICT (a) DO UPDATE SET b = 1 WHERE t.b <> EXCLUDED.b"
    )
    assert [rule for rule, breaks in RULES.items() if breaks(harmless)] == []


def _whole_life(url: str, namespace: str) -> None:
    """Create, update, leave, reject, read, embed, search, delete."""
    with ef.connect(url, namespace=namespace) as store:
        many = pl.DataFrame({"n": range(3_000)}).select(
            entity_type=pl.lit("note"), id=pl.format("n{}", "n"), content=pl.format("text {}", "n")
        )
        assert store.upsert(many).counts["created"] == 3_000
        changed = many.with_columns(
            pl.when(pl.col("id") == "n7").then(pl.lit("new")).otherwise("content").alias("content")
        )
        again = store.upsert(changed)
        assert (again.counts["updated"], again.counts["unchanged"]) == (1, 2_999)
        few = pl.concat([many[:2], ef.entities({"id": ["x"]}, "note", id="id").with_columns(content=pl.lit("x"))])
        assert store.upsert(few).outcomes["status"].to_list() == ["unchanged", "unchanged", "created"]
        assert store.upsert_entity("note", "x", "other")["status"] == "updated"
        assert store.get(ef.ids("note", ["n7", "no"]))["content"].to_list() == ["new", None]
        assert store.embed(ef.HashingEmbedder(16)).counts["embedded"] == 3_001
        assert store.search("text", k=3).height == 3
        assert store.delete(ef.ids("note", ["x", "no"])).counts["deleted"] == 1
        assert store.verify().is_empty()


@pytest.mark.parametrize("created", ["old.id IS NULL", "xmax = 0", "e.created_at = e.updated_at"])
def test_the_forms_for_other_servers(empty_postgres_url: str, monkeypatch: pytest.MonkeyPatch, created: str) -> None:
    """The tables as on Citus, and each way to tell created from updated, on the PostgreSQL of the tests."""
    [(version,)] = execute(empty_postgres_url, "SELECT current_setting('server_version_num')::int4")
    if version < (180_000 if created.startswith("old") else 160_000):
        pytest.skip("this server is older than the form")
    monkeypatch.setattr(PostgresDatabase, "created", created)
    monkeypatch.setattr(PostgresDatabase, "has_citus", True)
    _whole_life(empty_postgres_url, "entityframes")
    [(kind,)] = execute(
        empty_postgres_url,
        "SELECT data_type FROM information_schema.columns WHERE table_schema = 'entityframes' AND column_name = 'number'",
    )
    assert kind == "bigint"
    assert execute(
        empty_postgres_url,
        "SELECT attstorage::text FROM pg_attribute WHERE attrelid = 'entityframes.embedding_jobs'::regclass AND attname = 'ids'",
    ) == [("e",)]


@pytest.mark.slow
@pytest.mark.skipif("ENTITYFRAMES_TEST_CITUS" not in os.environ, reason="$ENTITYFRAMES_TEST_CITUS names no database")
def test_a_distributed_schema() -> None:
    """A namespace that is a shard, on a real Citus."""
    url, namespace = os.environ["ENTITYFRAMES_TEST_CITUS"], f"test_{uuid.uuid4().hex[:8]}"
    execute(url, f"CREATE SCHEMA {namespace}", f"SELECT citus_schema_distribute('{namespace}')")
    try:
        _whole_life(url, namespace)
    finally:
        execute(url, f"DROP SCHEMA {namespace} CASCADE")
