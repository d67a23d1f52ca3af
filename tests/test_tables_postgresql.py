"""Tables of PostgreSQL of every kind, triggers, policies, privileges and settings.

DuckDB has none of these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, time
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from tests.databases import execute
from tests.test_tables import of, rules, statuses

Sql = Callable[..., list]


@pytest.fixture
def sql(postgres_url: str) -> Sql:
    return lambda *statements: execute(postgres_url, *statements)


@pytest.fixture
def open_table(postgres_url: str) -> Iterator[Callable[..., ef.Table]]:
    """A function that opens a table without a store; all opened tables are closed at the end."""
    tables: list[ef.Table] = []

    def open_table(name: str, key: Any = None, url: str = postgres_url) -> ef.Table:
        tables.append(ef.table(url, name, key))
        return tables[-1]

    yield open_table
    for table in tables:
        table.close()


PLAIN = "CREATE TABLE z.x (k integer PRIMARY KEY, v text)"

#: Tables that are refused: their definitions, the key, and what the message says.
REFUSED: dict[str, tuple[list[str], Any, str]] = {
    "no key": (["CREATE TABLE z.x (k integer, v text)"], None, "no primary key.*unique keys: none"),
    "no index": (["CREATE TABLE z.x (k integer PRIMARY KEY, v text)"], "v", r"no unique .* on \(v\).*unique keys: \(k\)"),
    "partial": (["CREATE TABLE z.x (k integer, v text)", "CREATE UNIQUE INDEX ON z.x (k) WHERE v IS NOT NULL"], "k", "not usable: CREATE UNIQUE INDEX .* WHERE"),
    "expression": (["CREATE TABLE z.x (k integer, v text)", "CREATE UNIQUE INDEX ON z.x (abs(k))"], "k", r"not usable: .*abs\(k\)"),
    "deferrable": (["CREATE TABLE z.x (k integer PRIMARY KEY DEFERRABLE, v text)"], None, "not usable: .*deferrable"),
    "deferred": (["CREATE TABLE z.x (k integer UNIQUE DEFERRABLE INITIALLY DEFERRED, v text)"], "k", "not usable: .*deferrable"),
    "exclusion": (["CREATE TABLE z.x (k int4range, v text, EXCLUDE USING gist (k WITH =))"], "k", "no unique"),
    "keys of a partition": (["CREATE TABLE z.x (k integer, v text) PARTITION BY RANGE (k)", "CREATE TABLE z.p PARTITION OF z.x FOR VALUES FROM (0) TO (9)", "CREATE UNIQUE INDEX ON z.p (k)"], "k", "no unique"),
    "view": (["CREATE VIEW z.x AS SELECT 1 AS k"], "k", "z.x is a view"),
    "materialized view": (["CREATE MATERIALIZED VIEW z.x AS SELECT 1 AS k"], "k", "z.x is a materialized view"),
    "sequence": (["CREATE SEQUENCE z.x"], None, "z.x is a sequence"),
    "type": (["CREATE TYPE z.x AS (k integer)"], None, "z.x is a type"),
    "index": (["CREATE TABLE z.y (k integer)", "CREATE INDEX x ON z.y (k)"], None, "z.x is an index"),
    "another case": (['CREATE TABLE z."X" (k integer PRIMARY KEY)'], None, "no table 'z.x'"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_tables_that_are_refused(sql: Sql, open_table, case: str) -> None:
    """When they are opened, with the unique indexes that there are."""
    statements, key, message = REFUSED[case]
    sql("CREATE SCHEMA z", *statements)
    with pytest.raises(ef.SchemaError, match=message):
        open_table("z.x", key)


def test_a_foreign_table_is_refused(sql: Sql, open_table) -> None:
    """By name; as a partition of a table it is written to like the others."""
    if not sql("SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'"):
        pytest.skip("this server has no foreign tables")
    sql(
        "CREATE EXTENSION postgres_fdw", "CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw",
        "CREATE FOREIGN TABLE distant (k integer) SERVER other",
    )  # fmt: skip
    with pytest.raises(ef.SchemaError, match="public.distant is a foreign table"):
        open_table("distant", "k")


#: Tables that can be written to: their definitions, the key, the statuses of rows 1, 2 and 1 again, and in a second run.
WRITTEN: dict[str, tuple[list[str], Any, list[str], list[str]]] = {
    "nullable key": (["CREATE TABLE z.x (k integer UNIQUE, v text)"], None, ["created"] * 2, ["unchanged"] * 2),
    "nulls not distinct": (["CREATE TABLE z.x (k integer UNIQUE NULLS NOT DISTINCT, v text)"], None, ["created"] * 2, ["unchanged"] * 2),
    "included columns": (["CREATE TABLE z.x (k integer, v text, UNIQUE (k) INCLUDE (v))"], None, ["created"] * 2, ["unchanged"] * 2),
    "descending index": (["CREATE TABLE z.x (k integer, v text)", "CREATE UNIQUE INDEX ON z.x (k DESC NULLS FIRST)"], None, ["created"] * 2, ["unchanged"] * 2),
    "unlogged": (["CREATE UNLOGGED TABLE z.x (k integer PRIMARY KEY, v text)"], None, ["created"] * 2, ["unchanged"] * 2),
    "dropped columns": (["CREATE TABLE z.x (a integer, k integer PRIMARY KEY, b integer, v text)", "ALTER TABLE z.x DROP a, DROP b"], None, ["created"] * 2, ["unchanged"] * 2),
    "generated column": (["CREATE TABLE z.x (k integer PRIMARY KEY, v text, g integer GENERATED ALWAYS AS (k * 2) STORED)"], None, ["created"] * 2, ["unchanged"] * 2),
    "identity": (["CREATE TABLE z.x (id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY, k integer UNIQUE, v text)"], "k", ["created"] * 2, ["unchanged"] * 2),
    "serial": (["CREATE TABLE z.x (id serial PRIMARY KEY, k integer UNIQUE, v text)"], "k", ["created"] * 2, ["unchanged"] * 2),
    "hash partitions": (["CREATE TABLE z.x (k integer PRIMARY KEY, v text) PARTITION BY HASH (k)", *(f"CREATE TABLE z.p{n} PARTITION OF z.x FOR VALUES WITH (MODULUS 2, REMAINDER {n})" for n in (0, 1))], None, ["created"] * 2, ["unchanged"] * 2),
    "no partition for a row": (["CREATE TABLE z.x (k integer PRIMARY KEY, v text) PARTITION BY RANGE (k)", "CREATE TABLE z.p PARTITION OF z.x FOR VALUES FROM (0) TO (2)"], None, ["failed", "created"], ["failed", "unchanged"]),
    "child": ([PLAIN, "CREATE TABLE z.c (w integer) INHERITS (z.x)", "INSERT INTO z.c VALUES (1, 'old', 5)"], None, ["created", "updated"], ["unchanged"] * 2),
    "key stored twice": ([PLAIN, "CREATE TABLE z.c (w integer) INHERITS (z.x)", "INSERT INTO z.c VALUES (1, 'c', 5), (1, 'e', 6)"], None, ["created", "failed"], ["unchanged", "failed"]),
    "rule for deletions": ([PLAIN, "CREATE RULE r AS ON DELETE TO z.x DO ALSO SELECT 1"], None, ["created"] * 2, ["unchanged"] * 2),
    "domain that is required": (["CREATE DOMAIN z.d AS text NOT NULL", "CREATE TABLE z.x (k integer PRIMARY KEY, v text, w z.d)"], None, ["failed"] * 2, ["failed"] * 2),
    "trigger that skips": ([PLAIN, "IF NEW.k = 2 THEN RETURN NULL; END IF;"], None, ["failed", "created"], ["failed", "unchanged"]),
    "trigger that changes keys": ([PLAIN, "IF NEW.k = 2 THEN NEW.k := 77; END IF;"], None, ["failed", "created"], ["failed", "unchanged"]),
    "trigger that raises": ([PLAIN, "IF NEW.k = 2 THEN RAISE 'no'; END IF;"], None, ["failed", "created"], ["failed", "unchanged"]),
    "trigger that divides": ([PLAIN, "PERFORM 1 / (NEW.k - 2);"], None, ["failed", "created"], ["failed", "unchanged"]),
    "trigger of a partition": (["CREATE TABLE z.x (k integer PRIMARY KEY, v text) PARTITION BY RANGE (k)", "CREATE TABLE z.p PARTITION OF z.x FOR VALUES FROM (0) TO (9)", "IF NEW.k = 2 THEN RETURN NULL; END IF;"], None, ["failed", "created"], ["failed", "unchanged"]),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_tables_that_are_written_to(sql: Sql, open_table, case: str) -> None:
    """Each row has one outcome, which is what the table has."""
    statements, key, first, second = WRITTEN[case]
    *statements, last = statements
    if last.endswith(";"):
        table = "z.p" if "partition" in case else "z.x"
        body = f"AS $$ BEGIN {last} RETURN NEW; END $$"
        statements.append(f"CREATE FUNCTION z.f() RETURNS trigger LANGUAGE plpgsql {body}")
        last = f"CREATE TRIGGER f BEFORE INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION z.f()"
    sql("CREATE SCHEMA z", *statements, last)
    table = open_table("z.x", key)
    frame = of([1, 2, 1], ["a", "b", "c"])
    plan = table.plan(frame)
    result = table.upsert(frame)
    assert statuses(result) == ["duplicate", *first], result.failed
    assert statuses(table.upsert(frame)) == ["duplicate", *second]
    stored = table.get([1, 2])
    assert stored.height == 2
    assert stored["v"].to_list()[0] == ("c" if first[1] != "failed" or "twice" in case else None)
    assert stored["v"].to_list()[1] == ("b" if first[0] != "failed" else None)
    # A plan foresees what concerns keys and types, not what triggers and constraints do.
    assert plan.frame["action"].to_list()[2] == {"updated": "update", "created": "create"}.get(
        first[1], "invalid" if "twice" in case else "create"
    )
    again = plan.apply()
    assert again.outcomes.height == 3
    assert table.delete(frame).outcomes.height == 3


def test_rules_are_refused(sql: Sql, open_table) -> None:
    """Before anything is sent; reads work."""
    sql(PLAIN.replace("z.", ""), "INSERT INTO x VALUES (1, 'a')", "CREATE RULE r AS ON INSERT TO x DO ALSO SELECT 1")
    table = open_table("x")
    for call in (table.upsert, table.plan):
        with pytest.raises(ef.SchemaError, match="public.x has rules for INSERT or UPDATE"):
            call(of([1], ["b"]))
    assert table.read().rows() == [(1, "a")]


def test_computed_keys_are_refused(sql: Sql, open_table) -> None:
    """A generated key cannot be written, with it or without it."""
    sql("CREATE TABLE x (a integer, k integer GENERATED ALWAYS AS (a * 2) STORED UNIQUE)")
    for frame in (pl.DataFrame({"a": [1]}), pl.DataFrame({"a": [1], "k": [2]})):
        with pytest.raises(ef.SchemaError, match="computes 'k' of the key.*another key"):
            open_table("x", "k").upsert(frame)
    sql("CREATE TABLE y (id integer GENERATED ALWAYS AS IDENTITY, k integer PRIMARY KEY)")
    with pytest.raises(ef.SchemaError, match=r"computes 'id' .*frame.drop\('id'\)"):
        open_table("y").upsert(pl.DataFrame({"id": [1], "k": [2]}))


def test_an_identity_by_default(sql: Sql, open_table) -> None:
    """A given value is stored; with nulls="keep" a null stands for the next one."""
    sql("CREATE TABLE x (id integer GENERATED BY DEFAULT AS IDENTITY, k integer PRIMARY KEY)")
    table = open_table("x")
    frame = pl.DataFrame({"id": [50, None], "k": [1, 2]})
    assert rules(table.upsert(frame)) == [None, "not_null:id"]
    assert statuses(table.upsert(frame, nulls="keep")) == ["unchanged", "created"]
    assert table.read("id")["id"].to_list() == [50, 1]
    assert table.upsert(frame, nulls="keep").counts["unchanged"] == 2


def test_a_row_that_would_leave_its_partition(sql: Sql, open_table) -> None:
    """A partition opened by its own key takes no rows of others; a row of the whole table moves."""
    sql(
        "CREATE TABLE x (k integer, p text, v text) PARTITION BY LIST (p)",
        *(f"CREATE TABLE x_{p} PARTITION OF x (PRIMARY KEY (k)) FOR VALUES IN ('{p}')" for p in "ab"),
    )
    table = open_table("x_a")
    frame = pl.DataFrame({"k": [1, 2], "p": ["a", "b"], "v": ["x", "y"]})
    assert statuses(table.upsert(frame)) == ["created", "failed"]
    assert statuses(table.upsert(frame.with_columns(p=pl.lit("b")))) == ["failed", "failed"]
    assert execute_rows(sql) == [("x_a", 1, "a")]
    sql(
        "CREATE TABLE y (k integer, p text, PRIMARY KEY (k, p)) PARTITION BY LIST (p)",
        "CREATE TABLE y_a PARTITION OF y DEFAULT",
    )
    assert statuses(open_table("y").upsert(frame.drop("v"))) == ["created", "created"]


def execute_rows(sql: Sql) -> list:
    return sql("SELECT tableoid::regclass::text, k, p FROM x")


def test_a_trigger_that_rewrites_values(sql: Sql, open_table) -> None:
    """Such rows differ from the frame again and again; each has one outcome in each of several batches."""
    sql(
        "CREATE TABLE x (k integer PRIMARY KEY, v text)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.v := upper(NEW.v); RETURN NEW; END $$",
        "CREATE TRIGGER f BEFORE INSERT OR UPDATE ON x FOR EACH ROW EXECUTE FUNCTION f()",
    )
    table = open_table("x")
    frame = of(list(range(40)), ["a"] * 40)
    assert table.upsert(frame, batch_size=10).counts["created"] == 40
    for _ in range(2):
        result = table.upsert(frame, batch_size=10)
        assert result.outcomes["row"].to_list() == list(range(40))
        assert result.counts["updated"] == 40
    assert table.read("v")["v"].unique().to_list() == ["A"]
    # Of each batch but for the first, most rows are updated at once.
    some = of(list(range(80)), [("A" if n % 20 == 3 else "a") for n in range(80)])
    table.upsert(some)
    result = table.upsert(some, batch_size=20)
    assert result.outcomes["row"].to_list() == list(range(80))
    assert result.counts["updated"] == 76


def test_no_trigger_fires_for_what_is_unchanged(sql: Sql, open_table) -> None:
    """Nor is a row version made: of 100 rows in five runs only the changed ones are touched."""
    sql(
        "CREATE TABLE x (k integer PRIMARY KEY, v text, n numeric, c text)",
        "CREATE TABLE fired (k integer)",
        "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO fired VALUES (NEW.k); RETURN NEW; END $$",
        "CREATE TRIGGER f AFTER INSERT OR UPDATE ON x FOR EACH ROW EXECUTE FUNCTION f()",
    )
    table = open_table("x")
    frame = of(list(range(100)), ["a"] * 100, n=["1.0"] * 100, c=[None] * 100)
    table.upsert(frame)
    versions = sql("SELECT k, ctid::text, xmin::text FROM x ORDER BY k")
    sql("TRUNCATE fired")
    assert table.upsert(frame).counts["unchanged"] == 100
    assert table.upsert(frame.with_columns(n=pl.lit("1.00"))).counts["unchanged"] == 100
    assert table.upsert(frame.with_columns(v=pl.lit("b")), on_match="skip").counts["unchanged"] == 100
    assert table.plan(frame).apply().counts["unchanged"] == 100
    one = frame.with_columns(v=pl.when(pl.col("k") == 7).then(pl.lit("b")).otherwise("v"))
    assert table.upsert(one).counts["updated"] == 1
    assert sql("SELECT k FROM fired") == [(7,)]
    assert [row for row in sql("SELECT k, ctid::text, xmin::text FROM x ORDER BY k") if row[0] != 7] == [
        row for row in versions if row[0] != 7
    ]


# Users.


@pytest.fixture
def user(sql: Sql, postgres_url: str) -> Iterator[str]:
    """The address of a user who may use the schema app, and nothing else."""
    [(database,)] = sql("SELECT current_database()")
    name = f"user_{database}"
    sql(f"CREATE ROLE {name} LOGIN", "CREATE SCHEMA app", f"GRANT USAGE ON SCHEMA app TO {name}")
    yield postgres_url.replace("//postgres:@", f"//{name}:@").replace("//postgres@", f"//{name}@")
    sql("DROP SCHEMA app CASCADE", f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def name_of(user: str) -> str:
    return user.partition("//")[2].partition("@")[0].rstrip(":")


CATALOG = """
    SELECT 'class', count(*), sum(hashtextextended(oid::text || relname || relnatts || relhastriggers, 0)) FROM pg_class
        WHERE relpersistence <> 't' AND relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT 'namespace', count(*), NULL FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'type', count(*), NULL FROM pg_type AS t JOIN pg_namespace AS n ON n.oid = t.typnamespace
        WHERE nspname !~ '^pg_(toast_)?temp_'
    UNION ALL SELECT 'function', count(*), NULL FROM pg_proc UNION ALL SELECT 'trigger', count(*), NULL FROM pg_trigger
    UNION ALL SELECT 'constraint', count(*), NULL FROM pg_constraint UNION ALL SELECT 'index', count(*), NULL FROM pg_index
    UNION ALL SELECT 'column', count(*), NULL FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
        WHERE relpersistence <> 't' AND relnamespace <> 'pg_toast'::regnamespace
    UNION ALL SELECT 'depend', count(*), NULL FROM pg_depend UNION ALL SELECT 'setting', count(*), NULL FROM pg_db_role_setting
    UNION ALL SELECT 'role', count(*), NULL FROM pg_roles UNION ALL SELECT 'comment', count(*), NULL FROM pg_description
"""


def test_nothing_is_left_behind(sql: Sql, open_table, user: str) -> None:
    """A user who may only read, write and make temporary tables does all that tables do; the catalogs stay equal."""
    sql("CREATE TABLE app.t (k integer PRIMARY KEY, v text CHECK (v <> 'bad'), w jsonb)", "REVOKE CREATE ON SCHEMA public FROM public",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON app.t TO {name_of(user)}")  # fmt: skip
    before = sql(CATALOG)
    table = open_table("app.t", url=user)
    frame = of(list(range(3_000)), ["x"] * 3_000, w=['{"a": 1}'] * 3_000)
    assert table.upsert(frame).counts["created"] == 3_000
    changed = frame.with_columns(v=pl.when(pl.col("k") == 5).then(pl.lit("bad")).otherwise(pl.lit("y")))
    assert table.upsert(changed, batch_size=1_000).counts["failed"] == 1
    assert table.upsert(frame.with_columns(w=pl.lit("{"))).counts["failed"] == 3_000
    assert table.plan(frame).apply().counts["updated"] == 2_999
    assert table.upsert(iter([frame, changed])).counts["failed"] == 1
    assert table.read().equals(table.scan().collect().sort("k"))
    assert table.get([1])["found"].item()
    assert table.mirror(frame[:2_900]).counts["deleted"] == 100
    assert table.delete(frame).counts["deleted"] == 2_900
    for call in (
        lambda: table.add_columns({"z": pl.Int64}),
        lambda: ef.create_table(user, "app.q", {"k": pl.Int64}, key="k"),
    ):
        with pytest.raises(ef.PermanentError, match="owner|permission denied"):
            call()
    table.close()
    assert sql(CATALOG) == before


@pytest.mark.parametrize("privilege", ["INSERT", "UPDATE", "SELECT", "DELETE"])
def test_a_privilege_is_missing(sql: Sql, open_table, user: str, privilege: str) -> None:
    """What needs it is refused as a whole, with the server's reason; the rest works, and nothing is half-written."""
    sql("CREATE TABLE app.t (k integer PRIMARY KEY, v text)", "INSERT INTO app.t VALUES (1, 'a')")
    others = {"INSERT", "UPDATE", "SELECT", "DELETE"} - {privilege}
    sql(f"GRANT {', '.join(others)} ON app.t TO {name_of(user)}")
    table = open_table("app.t", url=user)
    # The rows of a deletion are locked first, which needs the privilege of an update.
    calls: dict[Callable[[], Any], set[str]] = {
        lambda: table.read(): {"SELECT"},
        lambda: table.upsert(of([1], ["b"])): {"SELECT", "UPDATE"},
        lambda: table.upsert(of([2], ["c"])): {"SELECT", "INSERT"},
        lambda: table.delete([1]): {"SELECT", "UPDATE", "DELETE"},
    }
    for call, needed in calls.items():
        if privilege in needed:
            with pytest.raises(ef.PermanentError, match="permission denied for table t"):
                call()
        else:
            call()
    expected = {"INSERT": [], "UPDATE": [(1, "a"), (2, "c")], "SELECT": [(1, "a")], "DELETE": [(1, "b"), (2, "c")]}
    assert sql("SELECT * FROM app.t ORDER BY k") == expected[privilege]


def test_privileges_on_columns(sql: Sql, open_table, user: str) -> None:
    """A user may be granted some columns only: the others are refused."""
    sql("CREATE TABLE app.t (k integer PRIMARY KEY, v text, secret text)",
        f"GRANT SELECT (k, v), INSERT (k, v), UPDATE (v) ON app.t TO {name_of(user)}")  # fmt: skip
    table = open_table("app.t", url=user)
    for value in ("a", "b"):
        assert table.upsert(of([1], [value])).ok
    assert table.plan(of([1], ["c"])).counts["update"] == 1
    assert table.read(["k", "v"]).rows() == [(1, "b")]
    with pytest.raises(ef.PermanentError, match="permission denied"):
        table.upsert(of([1], ["c"], secret=["x"]))
    with pytest.raises(ef.PermanentError, match="permission denied"):
        table.read()


def test_row_level_security(sql: Sql, open_table, user: str) -> None:
    """Rows that a policy hides or refuses fail, the others are written; hidden rows are not deleted."""
    sql("CREATE TABLE app.t (k integer PRIMARY KEY, v text)", "INSERT INTO app.t VALUES (1, 'secret'), (2, 'old')",
        "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY", f"GRANT ALL ON app.t TO {name_of(user)}",
        "CREATE POLICY p ON app.t USING (v NOT LIKE 'secret%') WITH CHECK (v NOT LIKE 'forbidden%')")  # fmt: skip
    table = open_table("app.t", url=user)
    frame = of([1, 2, 3, 4], ["a", "b", "forbidden", "d"])
    result = table.upsert(frame)
    assert statuses(result) == ["failed", "updated", "failed", "created"]
    assert rules(result) == ["skipped", None, "permission_denied", None]
    assert statuses(table.upsert(frame)) == ["failed", "unchanged", "failed", "unchanged"]
    assert statuses(table.upsert(frame, on_match="skip")) == ["failed", "unchanged", "failed", "unchanged"]
    assert statuses(table.plan(frame).apply())[1::2] == ["unchanged", "unchanged"]
    assert table.exists(frame)["exists"].to_list() == [False, True, False, True]
    assert statuses(table.delete([1, 2])) == ["missing", "deleted"]
    assert sql("SELECT * FROM app.t ORDER BY k") == [(1, "secret"), (4, "d")]


def test_a_policy_of_updates_only(sql: Sql, open_table, user: str) -> None:
    """A row that is seen, but may not be updated, fails."""
    sql("CREATE TABLE app.t (k integer PRIMARY KEY, v text)", "INSERT INTO app.t VALUES (1, 'a'), (2, 'b')",
        "ALTER TABLE app.t ENABLE ROW LEVEL SECURITY", f"GRANT ALL ON app.t TO {name_of(user)}",
        "CREATE POLICY s ON app.t FOR SELECT USING (true)", "CREATE POLICY i ON app.t FOR INSERT WITH CHECK (true)",
        "CREATE POLICY u ON app.t FOR UPDATE USING (k > 1)")  # fmt: skip
    table = open_table("app.t", url=user)
    result = table.upsert(of([1, 2, 3], ["x", "y", "z"]))
    assert statuses(result) == ["failed", "updated", "created"]
    result = table.delete([1, 2])
    assert result.counts["deleted"] == 0
    assert sql("SELECT * FROM app.t ORDER BY k") == [(1, "a"), (2, "y"), (3, "z")]


# Settings.

#: Settings of a database that are in effect at the same time.
SETTINGS = [
    [
        "datestyle = 'German, DMY'", "intervalstyle = 'sql_standard'", "timezone = 'America/New_York'",
        "extra_float_digits = -15", "bytea_output = 'escape'", "standard_conforming_strings = off", "array_nulls = off",
        "transform_null_equals = on", "quote_all_identifiers = on", "search_path = ''", "xmlbinary = 'hex'",
    ],
    [
        "datestyle = 'SQL, MDY'", "intervalstyle = 'iso_8601'", "timezone = 'Asia/Kathmandu'", "client_encoding = 'LATIN1'",
        "search_path = 'app, pg_catalog'", "default_transaction_isolation = 'serializable'", "row_security = off",
        "plpgsql.variable_conflict = 'use_variable'", "plpgsql.extra_errors = 'all'",
    ],
    [
        "default_transaction_isolation = 'repeatable read'", "enable_indexscan = off", "enable_nestloop = off",
        "plan_cache_mode = 'force_generic_plan'", "work_mem = '64kB'",
    ],
]  # fmt: skip
VALUES: dict[str, tuple[str, Any]] = {
    "f": ("double precision", 0.1), "t": ("text", "a\\b'é\"{x}$1"), "b": ("bytea", b"\\x00\xff'"), "d": ("date", date(2024, 2, 3)),
    "s": ("timestamp", datetime(2024, 2, 3, 4, 5, 6, 7)), "z": ("timestamptz", datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=UTC)),
    "i": ("time", time(1, 2, 3, 4)), "n": ("interval", "1 mon 2 days 00:00:01"), "j": ("jsonb", '{"a": 1}'),
    "ta": ("text[]", ["a", None, "NULL", "x\\"]), "da": ("date[]", [date(2024, 2, 3), None]),
    "za": ("timestamptz[]", [datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=UTC)]), "fa": ("double precision[]", [0.1, None]),
    "m": ("app.mood", "a"), "ba": ("bytea[]", [b"\\", b"\x00"]), "r": ("tstzrange", '["2024-01-01 00:00:00+00",)'),
    "o": ("app.positive", 5),
}  # fmt: skip


def test_settings_that_change_what_text_means(sql: Sql, open_table, postgres_url: str) -> None:
    """What is written is read back equal, found unchanged, planned, looked up and deleted under every one."""
    sql(
        "CREATE SCHEMA app",
        "CREATE TYPE app.mood AS ENUM ('a', 'b')",
        "CREATE DOMAIN app.positive AS integer CHECK (value > 0)",
    )
    columns = ", ".join(f"{name} {kind}" for name, (kind, _) in VALUES.items())
    sql(f"CREATE TABLE app.t (k date, k2 text, k3 timestamptz, {columns}, PRIMARY KEY (k, k2, k3))")
    moment = datetime(2024, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
    keys = pl.DataFrame({"k": [date(2024, 3, 4), date(2024, 4, 3)], "k2": ["a\\", "é'"], "k3": [moment] * 2})
    frame = keys.with_columns(pl.Series(name, [value] * 2) for name, (_, value) in VALUES.items())
    [(database,)] = sql("SELECT current_database()")
    for setting in SETTINGS:
        sql(f"ALTER DATABASE {database} RESET ALL", *(f"ALTER DATABASE {database} SET {one}" for one in setting))
        table = open_table("app.t")
        assert statuses(table.upsert(frame)) == ["created"] * 2, setting
        assert statuses(table.upsert(frame)) == ["unchanged"] * 2, setting
        stored = table.read()
        for name, (_, value) in VALUES.items():
            assert stored[name].to_list() == [value] * 2, (setting, name)
        changed = frame.with_columns(o=pl.Series([6, -5]))
        assert statuses(table.upsert(changed)) == ["updated", "failed"], setting
        plan = table.plan(frame)
        assert plan.frame["changes"].to_list() == [[{"field": "o", "old": "6", "new": "5"}], None], setting
        assert statuses(plan.apply()) == ["updated", "unchanged"], setting
        assert table.exists(frame)["exists"].all(), setting
        assert statuses(table.delete(frame)) == ["deleted"] * 2, setting
        table.close()
    sql(f"ALTER DATABASE {database} RESET ALL")


def test_two_tables_of_one_name(sql: Sql, open_table, postgres_url: str) -> None:
    """As in SQL: the first schema of the search path, the exact name before the folded one."""
    sql('CREATE SCHEMA a', "CREATE SCHEMA b", *(f"CREATE TABLE {s}.t (k integer PRIMARY KEY)" for s in "ab"),
        'CREATE TABLE "Mixed" (k integer PRIMARY KEY)', 'CREATE TABLE mixed (k integer PRIMARY KEY)',
        'CREATE TABLE a."b.t" (k integer PRIMARY KEY)')  # fmt: skip
    url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-csearch_path%3Db,a"
    assert open_table("t", url=url).name == "b.t"
    assert open_table("A.T").name == "a.t"
    assert open_table("Mixed").name == "public.Mixed"
    assert open_table("MIXED").name == "public.mixed"
    assert open_table('a."b.t"').name == "a.b.t"
    with pytest.raises(ef.SchemaError, match="no table"):
        open_table("t")


def test_a_name_is_not_cut(sql: Sql, open_table) -> None:
    """A longer name is another name."""
    sql(f'CREATE TABLE "{"x" * 63}" (k integer PRIMARY KEY)')
    assert open_table("x" * 63).key == ["k"]
    with pytest.raises(ef.SchemaError, match="no table"):
        open_table("x" * 64)


def test_values_that_a_frame_cannot_have(sql: Sql, open_table) -> None:
    """They are named when they are read, never silently null; other columns can be read, and other rows."""
    values = {
        "date": "'infinity'", "timestamp": "'-infinity'", "timestamptz": "'infinity'", "time": "'24:00'",
        "numeric(6,2)": "'NaN'", "date[]": "ARRAY['infinity'::date]", "integer[]": "'{{1,2},{3,4}}'",
    }  # fmt: skip
    columns = ", ".join(f"c{number} {kind}" for number, kind in enumerate(values))
    sql(f"CREATE TABLE x (k integer PRIMARY KEY, {columns})", "INSERT INTO x (k) VALUES (0)")
    for number, value in enumerate(values.values()):
        sql(f"INSERT INTO x (k, c{number}) VALUES ({number + 1}, {value})")
    table = open_table("x")
    for number in range(len(values)):
        with pytest.raises(ef.DatabaseError, match=f"column c{number} has a value that a dataframe cannot represent"):
            table.read(["k", f"c{number}"])
        with pytest.raises(ef.DatabaseError, match=f"column c{number}"):
            table.get([number + 1])
        # It can be overwritten.
        assert statuses(table.upsert(pl.DataFrame({"k": [number + 1], f"c{number}": [None]}))) == ["updated"]
    assert table.get([0])["found"].item()
    assert table.read().height == len(values) + 1


@pytest.mark.slow
def test_statistics_of_a_table_that_was_empty(sql: Sql, open_table) -> None:
    """The planner takes the table for empty: no statement takes the square of the number of rows."""
    sql("CREATE TABLE x (k integer PRIMARY KEY, v integer CHECK (v >= 0))", "ALTER TABLE x SET (autovacuum_enabled = off)",
        "INSERT INTO x SELECT n, 1 FROM generate_series(1, 20000) AS n", "DELETE FROM x", "ANALYZE x")  # fmt: skip
    [(database,)] = sql("SELECT current_database()")
    # Twenty thousand rows squared take half a minute.
    sql(f"ALTER DATABASE {database} SET statement_timeout = '15s'")
    table = open_table("x")
    frame = pl.DataFrame({"k": range(20_000)}).with_columns(v=pl.when(pl.col("k") == 7).then(-1).otherwise(1))
    assert table.upsert(frame).counts["failed"] == 1
    assert table.upsert(frame).counts["unchanged"] == 19_999
    assert table.upsert(frame.with_columns(pl.col("v") * 2)).counts["updated"] == 19_999
    sql(f"ALTER DATABASE {database} RESET ALL")


def test_defaults_of_other_tables(sql: Sql, open_table) -> None:
    """The columns of a table have its own defaults."""
    sql(
        "CREATE TABLE x (k integer PRIMARY KEY, v text, n integer DEFAULT 5)",
        *(f"CREATE TABLE other{n} (a integer DEFAULT 1, b text DEFAULT 'b', c integer DEFAULT {n})" for n in range(3)),
    )
    assert open_table("x").columns.select("column", "default").rows() == [("k", None), ("v", None), ("n", "5")]
