"""Frames, batches and tables of every kind: what is refused as a whole, what fails alone, and what is left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

import entityframes as ef

Sql = Callable[..., list]


@pytest.fixture
def notes(store: ef.EntityStore, sql: Sql) -> ef.Table:
    """A table of texts by number."""
    sql("CREATE TABLE notes (k integer PRIMARY KEY, v text, n numeric(6,2))")
    return store.table("notes")


def of(keys: list[Any], values: list[Any], **columns: list[Any]) -> pl.DataFrame:
    return pl.DataFrame({"k": keys, "v": values, **columns})


def statuses(result: ef.UpsertResult | ef.DeleteResult) -> list[str]:
    return result.outcomes["status"].to_list()


def rules(result: ef.UpsertResult | ef.DeleteResult) -> list[str | None]:
    return result.outcomes["rule"].to_list()


# Frames.

REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no columns": (pl.DataFrame, "lacks 'k' of the key"),
    "no key": (lambda: pl.DataFrame({"v": ["a"]}), "lacks 'k' of the key"),
    "another case": (lambda: pl.DataFrame({"k": [1], "V": ["a"]}), "no column 'V' .there is 'v'"),
    "unknown columns": (lambda: pl.DataFrame({"k": [1], "x": [1], "y": [1]}), "'x', 'y'.*table.add_columns"),
    "repeated columns": (lambda: pa.table([[1], ["a"], ["b"]], names=["k", "v", "v"]), "'v'"),
    "number for text": (lambda: of([1], [1]), "'v' is Int64, .* text|'v' is Int64, .*VARCHAR"),
    "bytes for text": (lambda: of([1], [b"a"]), "'v' is Binary"),
    "Boolean for integer": (lambda: of([True], ["a"]), "'k' is Boolean"),
    "struct for integer": (lambda: of([{"a": 1}], ["a"]), "'k' is Struct"),
    "object": (lambda: pl.DataFrame({"k": pl.Series([object()], dtype=pl.Object)}), "'k' is Object"),
    "not a frame": (lambda: 5, "expected a frame, got int"),
    "text": (lambda: "k", "expected a frame, got str"),
}


def test_frames_that_are_refused(notes: ef.Table) -> None:
    """Before anything is written, with the columns in the message; likewise by a plan, and in a stream."""
    for name, (make, message) in REFUSED.items():
        calls: list[Callable[[Any], Any]] = [notes.upsert, notes.plan]
        for call in calls + ([lambda frame: notes.upsert(iter([frame]))] if isinstance(make(), pl.DataFrame) else []):
            with pytest.raises(ef.SchemaError, match=message):
                call(make())
            assert notes.read().is_empty(), name
    with pytest.raises(ef.SchemaError, match="ignore has 'x'"):
        notes.upsert(of([1], ["a"]), ignore="x")
    for option in ({"on_match": "x"}, {"nulls": "x"}, {"batch_size": 0}, {"on_error": "x"}, {"on_duplicate": "x"}):
        with pytest.raises(ValueError, match=next(iter(option))):
            notes.upsert(of([1], ["a"]), **option)


def test_a_later_frame_of_a_stream_is_refused(notes: ef.Table) -> None:
    """What came before stays stored and is counted in the message."""
    frames = iter([of([1], ["a"]), pl.DataFrame({"k": [2], "x": [1]}), of([3], ["c"])])
    with pytest.raises(ef.SchemaError, match="'x'.*before that, 1 created"):
        notes.upsert(frames, batch_size=1)
    assert statuses(notes.last_result) == ["created"]
    assert notes.read(["k", "v"]).rows() == [(1, "a")]


def test_frames_without_rows_or_values(notes: ef.Table) -> None:
    """An empty outcome; nulls of no dtype are nulls of any."""
    for empty in (
        pl.DataFrame({"k": [], "v": []}),
        pl.DataFrame(schema={"k": pl.String}),
        iter([]),
        pl.LazyFrame({"k": []}),
    ):
        result = notes.upsert(empty)
        assert result.ok
        assert result.outcomes.schema["k"] == pl.Int32
        assert result.outcomes.is_empty()
    assert notes.plan(pl.DataFrame({"k": [], "v": []})).frame.is_empty()
    assert notes.delete([]).outcomes.is_empty()
    assert notes.exists([]).is_empty()
    assert statuses(notes.upsert(of([1, None], [None, None], n=[None, None]))) == ["created", "failed"]
    assert notes.read().rows() == [(1, None, None)]


def test_rows_that_fail_alone(notes: ef.Table) -> None:
    """Each with its rule, an error that names the column, and its key where it has one."""
    broken = pa.Array.from_buffers(
        pa.string(), 3, [None, pa.py_buffer(b"\0\0\0\0\1\0\0\0\3\0\0\0\4\0\0\0"), pa.py_buffer(b"a\xff\xfeb")]
    )
    result = notes.upsert(pa.table({"k": [1, 2, 3], "v": broken}))
    assert rules(result) == [None, "not_utf8", None]
    result = notes.upsert(of([None, 4, 5, 6, 2**40], ["a", "nul \0", "c", "d", "e"], n=["1", "1", "1.001", "1e9", "1"]))
    assert rules(result) == ["null_key", "nul_character", "loses_digits", "out_of_range", "out_of_range"]
    assert result.outcomes["k"].to_list() == [None, 4, 5, 6, None]
    named = zip(["k", "v", "n", "n", "k"], result.outcomes["error"], strict=True)
    assert all(
        error.startswith(f"{column} is null" if column == "k" and "null" in error else f"{column}: ")
        for column, error in named
    )
    assert notes.read(["k", "v"]).rows() == [(1, "a"), (3, "b")]


def test_an_error_is_shown_safely(notes: ef.Table) -> None:
    """Control characters, bidi overrides and long values in an error are escaped and cut."""
    result = notes.upsert(of([1, 2], ["a", "b"], n=["\x1b[31m\u202e" + "9" * 5_000, "x\n"]))
    for error in result.outcomes["error"]:
        assert error.isprintable()
        assert len(error) < 300


# Names.

NAMES = [
    "row", "status", "error", "position", "c0", "t", "s", "created", "stored", "stored:", "old:v", "key.x", "value:x",
    "key:x", "found", "batch_id", "action", "changes", "e0", "v0", "lower", "step", "top", "again", "written",
    "constraint_name", "inserted", "{table}", "$1", "$tag$", "%s", 'a"b', "a'b", "a\\b", "; DROP TABLE t; --", "/*",
    "é" * 31, "x" * 63, "select", " lead", "a\nb", "entityframes_rows", "excluded", "true", "A", "count",
]  # fmt: skip


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@pytest.mark.parametrize("part", [0, 1])
def test_names_of_the_key(store: ef.EntityStore, sql: Sql, part: int) -> None:
    """Whatever the columns are called: rows that fail among others, a plan, reads and deletions."""
    names = NAMES[part::2]
    key = ", ".join(map(quoted, names))
    sql(
        f"CREATE TABLE t ({key.replace(',', ' integer,')} integer, v text, z integer CHECK (z > 0), PRIMARY KEY ({key}))"
    )
    table = store.table("t")
    keys = pl.DataFrame({name: [2, 1, 3, 2] for name in names})
    frame = keys.with_columns(v=pl.Series(["a", "b", "c", "d"]), z=pl.Series([1, 1, 1, 1]))
    assert statuses(table.upsert(frame)) == ["duplicate", "created", "created", "created"]
    result = table.upsert(frame.with_columns(z=pl.Series([1, -1, 2, 1])))
    assert statuses(result) == ["duplicate", "failed", "updated", "unchanged"]
    assert set(names) & set(result.outcomes.columns[1 : len(names) + 1])
    assert statuses(table.plan(frame.with_columns(z=pl.lit(7))).apply()) == ["duplicate"] + ["updated"] * 3
    assert table.get(keys)["v"].to_list() == ["d", "b", "c", "d"]
    assert table.read().columns == [*names, "v", "z"]
    assert statuses(table.delete(pl.concat([keys[1:2], keys[1:2] + 8, keys[1:2]]))) == [
        "deleted",
        "missing",
        "duplicate",
    ]
    assert table.missing(frame)[names[0]].to_list() == [1]


def test_names_of_other_columns(store: ef.EntityStore, sql: Sql) -> None:
    """All in one table, which has a table's own name with quotes and a dot."""
    columns = ", ".join(f"{quoted(name)} integer CHECK ({quoted(name)} <> -1)" for name in NAMES)
    table_name = quoted('a "b".c; --')
    sql(f"CREATE TABLE {table_name} (k integer PRIMARY KEY, {columns})")
    table = store.table(table_name)
    frame = pl.DataFrame({"k": [1, 2, 3], **{name: [1, -1 if name == "lower" else 1, None] for name in NAMES}})
    assert statuses(table.upsert(frame)) == ["created", "failed", "created"]
    changed = frame.with_columns(pl.lit(7, pl.Int64).alias(name) for name in NAMES)
    plan = table.plan(changed)
    assert [one["field"] for one in plan.frame["changes"][0]] == NAMES
    assert statuses(plan.apply()) == ["updated", "created", "updated"]
    assert statuses(table.upsert(changed.with_columns(step=pl.Series([7, -1, 8])))) == [
        "unchanged",
        "failed",
        "updated",
    ]
    assert table.read().columns == ["k", *NAMES]
    assert table.read("step")["step"].to_list() == [7, 7, 8]


@pytest.mark.parametrize("name", ["", ".", "a.", '"', 'a"b', "a.b.c.d", "x\0y", '""', None, 5])
def test_names_of_no_table(store: ef.EntityStore, name: Any) -> None:
    with pytest.raises(ef.SchemaError, match="invalid table name"):
        store.table(name)


def test_tables_that_cannot_be_opened(store: ef.EntityStore, sql: Sql) -> None:
    """By name, and what to do."""
    sql("CREATE VIEW seen AS SELECT 1 AS k", "CREATE TABLE bare (k integer, v text)", "CREATE SEQUENCE numbers")
    for name, key, message in [
        ("nope", None, "no table 'nope'"),
        ("x; DROP TABLE bare", None, "no table"),
        ("seen", None, "main.seen is a view|public.seen is a view"),
        ("bare", None, r"no primary key: .* key=\[...\]"),
        ("bare", ["x"], "no column 'x'; it has 'k', 'v'"),
        ("bare", ["k", "k"], "duplicate columns in the key"),
        ("bare", [], "has no columns"),
        ("numbers", None, "is a sequence|no table"),
    ]:
        with pytest.raises(ef.SchemaError, match=message):
            store.table(name, key)
    assert sql("SELECT count(*) FROM bare") == [(0,)]


def test_names_that_are_too_long(store: ef.EntityStore, engine: str) -> None:
    """PostgreSQL would cut them without an error, so that two columns could become one."""
    for name in ("x" * 64, "é" * 32, "a\0b"):
        calls = [
            lambda name=name: ef.create_table(store, "made", {"k": pl.Int64, name: pl.Int64}, key="k"),
            lambda name=name: ef.create_table(store, quoted(name), {"k": pl.Int64}, key="k"),
        ]
        for call in calls if engine == "postgresql" or "\0" in name else []:
            with pytest.raises(ef.SchemaError):
                call()
    table = ef.create_table(store, "made", {"k": pl.Int64}, key="k")
    if engine == "postgresql":
        with pytest.raises(ef.SchemaError, match="63 bytes"):
            table.add_columns({"x" * 64: pl.Int64})
    assert table.columns["column"].to_list() == ["k"]


# Duplicates.


@pytest.mark.parametrize("batch_size", [None, 1])
def test_equal_keys(notes: ef.Table, batch_size: int | None) -> None:
    """Texts and numbers that are one key; which row wins does not depend on the batches."""
    frame = of(["1", "01", " 1", "1.0", "2"], list("abcde"))
    options: dict[str, Any] = {"batch_size": batch_size}
    assert statuses(notes.upsert(frame, **options)) == ["duplicate"] * 3 + ["created"] * 2
    assert notes.read("v")["v"].to_list() == ["d", "e"]
    assert statuses(notes.upsert(frame, on_duplicate="first", **options)) == ["updated"] + ["duplicate"] * 3 + [
        "unchanged"
    ]
    assert notes.read("v")["v"].to_list() == ["a", "e"]
    with pytest.raises(ef.DuplicateError, match="3 rows repeat the key of another row .1."):
        notes.upsert(frame.with_columns(v=pl.lit("x")), on_duplicate="error", **options)
    assert notes.read("v")["v"].to_list() == ["a", "e"]
    # An invalid row supersedes no other.
    assert statuses(notes.upsert(of([1, 1], ["new", "nul \0"]), **options)) == ["updated", "failed"]
    assert statuses(notes.delete(["1", "1.0", "x", "7"])) == ["deleted", "duplicate", "missing", "missing"]


def test_floats_as_keys(store: ef.EntityStore, sql: Sql) -> None:
    """There is one zero and one NaN."""
    sql("CREATE TABLE floats (k double precision PRIMARY KEY, v text)")
    table = store.table("floats")
    frame = of([0.0, -0.0, float("nan"), float("nan"), 1.5], list("abcde"))
    assert statuses(table.upsert(frame)) == ["duplicate", "created", "duplicate", "created", "created"]
    assert table.upsert(frame, batch_size=2).counts["unchanged"] == 3
    assert table.exists(frame)["exists"].all()
    assert statuses(table.delete(frame)) == ["deleted", "duplicate", "deleted", "duplicate", "deleted"]


#: Types of keys that are equal in other texts, on PostgreSQL and on DuckDB: equal keys, and another one.
EQUAL = {
    "numeric": (("numeric", "decimal(18,3)"), ["1.0", "1.00", "1", "+1e0", "0001."], "2"),
    "interval": (("interval", None), ["1 day", "24 hours", "24:00:00"], "2 days"),
    "char": (("char(5)", None), ["a", "a ", "a   "], "b"),
    "inet": (("inet", None), ["10.0.0.1", "10.0.0.1/32"], "::1"),
    "jsonb": (("jsonb", None), ['{"a": 1, "b": 2}', '{"b":2,"a":1}'], "{}"),
    "range": (("int4range", None), ["[1,3)", "[1,2]", "(0,2]"], "empty"),
    "array": (("numeric[]", None), [["1.0", None], ["1", None]], ["2"]),
    "uuid": (("uuid", "uuid"), ["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "a0eebc999c0b4ef8bb6d6bb9bd380a11"], "0" * 32),
    "hugeint": ((None, "hugeint"), ["1", "01", "1.0"], "-0"),
    "citext": (("citext", None), ["a", "A"], "b"),
    "collation": (("text COLLATE caseless", None), ["a", "A"], "b"),
}  # fmt: skip


@pytest.mark.parametrize("kind", EQUAL)
def test_keys_that_are_equal_in_other_texts(store: ef.EntityStore, sql: Sql, engine: str, kind: str) -> None:
    """As the database compares them: within a batch, across batches, in a stream, in a plan and in deletions."""
    types, same, other = EQUAL[kind]
    type_ = types[engine == "duckdb"]
    if type_ is None:
        pytest.skip("a type of the other engine")
    if kind == "citext":
        if not sql("SELECT 1 FROM pg_available_extensions WHERE name = 'citext'"):
            pytest.skip("this server has no citext")
        sql("CREATE EXTENSION citext")
    if kind == "collation":
        if not sql("SELECT 1 FROM pg_collation WHERE collprovider = 'i' AND collname = 'und-x-icu'"):
            pytest.skip("this server has no ICU")
        sql("CREATE COLLATION caseless (provider = icu, locale = 'und-u-ks-level2', deterministic = false)")
    sql(f"CREATE TABLE loose (k {type_} PRIMARY KEY, v text)")
    table = store.table("loose")
    frame = of([*same, other], [f"v{n}" for n in range(len(same) + 1)])
    last = ["duplicate"] * (len(same) - 1)
    assert [row["action"] for row in table.plan(frame).frame.to_dicts()] == [*last, "create", "create"]
    assert statuses(table.upsert(frame)) == [*last, "created", "created"]
    assert statuses(table.upsert(frame, batch_size=1)) == [*last, "unchanged", "unchanged"]
    assert sorted(table.read("v")["v"]) == [f"v{len(same) - 1}", f"v{len(same)}"]
    assert statuses(table.upsert(frame, on_duplicate="first", batch_size=1)) == ["updated", *last, "unchanged"]
    with pytest.raises(ef.DuplicateError):
        table.upsert(frame, on_duplicate="error")
    # In a stream a later batch updates what an earlier one wrote.
    result = table.upsert(iter([frame[:1], frame[1:]]), batch_size=1)
    assert statuses(result)[:2] == ["unchanged", "updated"]
    assert table.get(frame)["v"].to_list() == [f"v{len(same) - 1}"] * len(same) + [f"v{len(same)}"]
    assert table.exists(frame)["exists"].all()
    if kind not in ("char", "uuid", "citext", "collation"):
        bad = frame.with_columns(k=frame["k"] if kind == "array" else pl.Series([f"x{n}" for n in range(frame.height)]))
        expected = bad.height if kind != "array" else 0
        assert table.upsert(pl.concat([frame, bad])).counts["failed"] == expected
    assert statuses(table.delete(frame)) == ["deleted", *("duplicate" for _ in same[1:]), "deleted"]


# Options.


def test_what_a_match_means(notes: ef.Table) -> None:
    """Skipped rows are unchanged; refused ones fail, alone or with their batch, also when the plan is applied."""
    notes.upsert(of([1, 2], ["a", "b"]))
    frame = of([1, 2, 3], ["x", "b", "c"])
    assert notes.plan(frame, on_match="fail").frame["action"].to_list() == ["invalid", "invalid", "create"]
    assert notes.plan(frame, on_match="skip").frame["action"].to_list() == ["unchanged", "unchanged", "create"]
    assert statuses(notes.upsert(frame, on_match="fail", on_error="rollback")) == ["failed"] * 3
    with pytest.raises(ef.RowError, match="a row with this key is stored"):
        notes.upsert(frame, on_match="fail", on_error="raise")
    assert notes.read("v")["v"].to_list() == ["a", "b"]
    result = notes.upsert(frame, on_match="fail")
    assert (statuses(result), rules(result)) == (["failed", "failed", "created"], ["key_exists"] * 2 + [None])
    assert statuses(notes.upsert(frame, on_match="skip")) == ["unchanged"] * 3
    # Together with a row that the database rejects.
    mixed = of([1, 4, 5], ["x", "d", "e"], n=["1", "1", "1"])
    assert statuses(notes.upsert(mixed, on_match="skip")) == ["unchanged", "created", "created"]
    assert notes.read("v")["v"].to_list() == ["a", "b", "c", "d", "e"]


def test_nulls_that_keep(store: ef.EntityStore, sql: Sql) -> None:
    """A null leaves what is stored, or stands for the default, also of a sequence; without it a null is written."""
    sql(
        "CREATE SEQUENCE numbers START 7",
        "CREATE TABLE kept (k integer PRIMARY KEY, v text DEFAULT 'it''s {table} $1', n integer DEFAULT nextval('numbers') NOT NULL)",
    )
    table = store.table("kept")
    frame = of([1, 2], [None, "b"], n=[None, 1]).cast({"v": pl.String})
    assert rules(table.upsert(frame)) == ["not_null:n", None]
    assert statuses(table.upsert(frame, nulls="keep")) == ["created", "unchanged"]
    assert table.read().rows() == [(1, "it's {table} $1", 7), (2, "b", 1)]
    assert table.plan(of([1, 2], [None, None], n=[None, 5]).cast({"v": pl.String}), nulls="keep").counts["update"] == 1
    assert statuses(table.upsert(of([1, 2], [None, None], n=[None, 5]).cast({"v": pl.String}), nulls="keep")) == [
        "unchanged",
        "updated",
    ]
    assert statuses(table.upsert(of([1], [None]).cast({"v": pl.String}))) == ["updated"]
    assert table.read().rows() == [(1, None, 7), (2, "b", 5)]


def test_ignored_columns(notes: ef.Table) -> None:
    """They are written with a change, but are none."""
    notes.upsert(of([1, 2], ["a", "b"], n=["1", "1"]))
    assert statuses(notes.upsert(of([1, 2], ["a", "x"], n=["2", "2"]), ignore="n")) == ["unchanged", "updated"]
    assert [float(n) for n in notes.read("n")["n"]] == [1, 2]
    assert notes.plan(of([1], ["a"], n=["9"]), ignore=["n"]).counts["unchanged"] == 1


def test_columns_that_are_not_sent(notes: ef.Table) -> None:
    """They keep their values; a frame may have the key alone."""
    notes.upsert(of([1, 2], ["a", "b"], n=["1", "2"]))
    assert statuses(notes.upsert(pl.DataFrame({"n": ["3", "2", "4"], "k": [1, 2, 3]}))) == [
        "updated",
        "unchanged",
        "created",
    ]
    assert statuses(notes.upsert(pl.DataFrame({"k": [3, 4, 3]}))) == ["duplicate", "created", "unchanged"]
    assert notes.read("v")["v"].to_list() == ["a", "b", None, None]


# Constraints.

ROWS = 10_000


def breaking(count: int, kinds: dict[str, dict[str, Any]]) -> tuple[pl.DataFrame, list[int]]:
    """Rows of which `count` break a constraint, in turn of each kind."""
    bad = {place * 97 + 7: kind for place, kind in zip(range(count), [*kinds] * count, strict=False)}
    frame = pl.DataFrame({"k": range(ROWS)}).with_columns(
        v=pl.lit(1), r=pl.col("k") % 100, u=pl.col("k"), x=pl.lit("y"), a=pl.lit(1), b=pl.lit(20)
    )
    for kind, values in kinds.items():
        places = [place for place, one in bad.items() if one == kind]
        frame = frame.with_columns(
            pl.when(pl.col("k").is_in(places)).then(pl.lit(value)).otherwise(name).alias(name)
            for name, value in values.items()
        )
    return frame, list(bad)


@pytest.mark.parametrize("count", [1, 10, 100])
def test_rows_that_break_constraints(store: ef.EntityStore, sql: Sql, engine: str, count: int) -> None:
    """Exactly those fail, with the rule of the constraint, and again in a second run, which writes nothing."""
    sql(
        "CREATE TABLE ref (n integer PRIMARY KEY)", f"INSERT INTO ref SELECT {SERIES[engine]}",
        "CREATE TABLE t (k integer PRIMARY KEY, v integer CHECK (v >= 0), r integer REFERENCES ref (n), u integer UNIQUE, "
        "x text NOT NULL DEFAULT 'x', a integer, b integer, CONSTRAINT ab CHECK (a < b))",
    )  # fmt: skip
    kinds: dict[str, dict[str, Any]] = {
        "check": {"v": -1}, "foreign_key": {"r": 1_000}, "unique": {"u": 5}, "not_null": {"x": None}, "check:": {"a": 30},
    }  # fmt: skip
    if engine == "postgresql":
        sql(
            "ALTER TABLE t ADD spot int4range GENERATED ALWAYS AS (CASE WHEN a = 12 THEN '[1,2)'::int4range END) STORED, "
            "ADD CONSTRAINT spots EXCLUDE USING gist (spot WITH &&)",
            "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.a = 13 THEN RAISE 'unlucky'; END IF; ASSERT NEW.a <> 14; RETURN NEW; END $$",
            "CREATE TRIGGER f BEFORE INSERT OR UPDATE ON t FOR EACH ROW EXECUTE FUNCTION f()",
        )
        kinds |= {"trigger": {"a": 13}, "trigger:": {"a": 14}}
    table = store.table("t")
    frame, bad = breaking(count, kinds)
    result = table.upsert(frame)
    assert result.failed["row"].to_list() == bad
    assert result.counts["created"] == ROWS - count
    expected = [kind.rstrip(":") for kind in [*kinds] * count][:count]
    found = [rule.partition(":")[0] for rule in result.failed["rule"]]
    assert found == expected
    assert not table.exists(pl.Series("k", bad))["exists"].any()
    before = sql(VERSIONS[engine])
    again = table.upsert(frame)
    assert again.failed.select("row", "rule").equals(result.failed.select("row", "rule"))
    assert again.counts["unchanged"] == ROWS - count
    assert sql(VERSIONS[engine]) == before
    # All rows change, the same ones fail.
    changed = table.upsert(frame.with_columns(b=pl.lit(21)))
    assert changed.failed["row"].to_list() == bad
    assert changed.counts["updated"] == ROWS - count


SERIES = {"postgresql": "generate_series(0, 99)", "duckdb": "unnest(range(0, 100))"}
#: What changes if a row is written.
VERSIONS = {
    "postgresql": "SELECT sum(hashtext(ctid::text || xmin::text)), count(*) FROM t",
    "duckdb": "SELECT sum(hash(rowid)), count(*) FROM t",
}


@pytest.mark.parametrize("batch_size", [None, 3])
def test_a_batch_with_a_bad_row(store: ef.EntityStore, sql: Sql, batch_size: int | None) -> None:
    """on_error decides what becomes of the other rows of its batch, and of the run."""
    sql("CREATE TABLE t (k integer PRIMARY KEY, v text CHECK (v <> 'bad'))")
    table = store.table("t")
    frame = of(list(range(9)), ["bad" if n == 4 else "a" for n in range(9)])
    result = table.upsert(frame, on_error="rollback", batch_size=batch_size)
    lost = list(range(9)) if batch_size is None else [3, 4, 5]
    assert result.failed["row"].to_list() == lost
    assert table.read("k")["k"].to_list() == [n for n in range(9) if n not in lost]
    invalid = frame.with_columns(v=pl.when(pl.col("k") == 4).then(pl.lit("\0")).otherwise("v"))
    assert table.upsert(invalid, on_error="rollback", batch_size=batch_size).failed["row"].to_list() == lost
    with pytest.raises(ef.RowError):
        table.upsert(frame, on_error="raise", batch_size=batch_size)
    with pytest.raises(ef.ValidationError, match=r"row 4 .4."):
        table.upsert(invalid, on_error="raise", batch_size=batch_size)
    assert table.last_result.outcomes["row"].to_list() == list(range(9))
    assert table.upsert(frame).counts["failed"] == 1


def test_values_that_are_taken_within_a_frame(store: ef.EntityStore, sql: Sql) -> None:
    """The first new row in key order gets a value of another unique column."""
    sql("CREATE TABLE t (k integer PRIMARY KEY, u integer UNIQUE)")
    table = store.table("t")
    result = table.upsert(pl.DataFrame({"k": [3, 1, 2, 4], "u": [7, 7, 7, None]}))
    assert statuses(result) == ["failed", "created", "failed", "created"]
    assert {rule.partition(":")[0] for rule in rules(result) if rule} == {"unique"}


def test_several_keys(store: ef.EntityStore, sql: Sql) -> None:
    """A table with several unique keys is opened by any of them, whatever the order of the columns."""
    sql("CREATE TABLE t (a integer, b integer, k integer PRIMARY KEY, v text, UNIQUE (b, a))")
    table = store.table("t", ["a", "b"])
    frame = pl.DataFrame({"a": [1, 1, 2], "b": [1, 2, 1], "k": [1, 2, 3], "v": ["x", "y", "z"]})
    assert table.key == ["b", "a"]
    assert statuses(table.upsert(frame)) == ["created"] * 3
    assert statuses(store.table("t").upsert(frame)) == ["unchanged"] * 3
    # A key that is a value of the other key: DuckDB cannot change a row's indexed column to one that is stored.
    assert statuses(table.upsert(pl.DataFrame({"a": [1], "b": [1], "k": [2]}))) == ["failed"]
    assert statuses(table.delete(frame)) == ["deleted"] * 3


def test_reads_of_odd_keys(notes: ef.Table) -> None:
    """Keys that cannot be stored are nowhere; a key of another dtype is compared by value."""
    notes.upsert(of([1, 2], ["a", "b"]))
    assert notes.exists(["1", "x", None, "2.0", "9" * 30])["exists"].to_list() == [True, False, False, True, False]
    assert notes.get([2.0, 1.5])["v"].to_list() == ["b", None]
    assert statuses(notes.delete([None, 1.5])) == ["missing", "missing"]
    for call in (notes.exists, notes.get, notes.delete, notes.missing):
        with pytest.raises(ef.SchemaError, match="'k'"):
            call(pl.DataFrame({"x": [1]}))
        with pytest.raises(ef.SchemaError, match="'k' is Boolean"):
            call([True])
    with pytest.raises(ef.SchemaError, match="no column 'x'"):
        notes.read("x")


def test_dates_far_away_as_keys(store: ef.EntityStore, sql: Sql) -> None:
    """Years that have no four digits, and before Christ."""
    sql("CREATE TABLE dates (k date, l timestamp, v integer, PRIMARY KEY (k, l))")
    table = store.table("dates")
    days = pl.Series("k", [-1_000_000, 0, 4_000_000, -719_528], dtype=pl.Int32).cast(pl.Date)
    frame = pl.DataFrame([days, days.cast(pl.Datetime("us")).alias("l"), pl.int_range(4, eager=True).alias("v")])
    assert statuses(table.upsert(frame)) == ["created"] * 4
    assert table.exists(frame)["exists"].all()
    assert table.get(frame)["v"].to_list() == [0, 1, 2, 3]
    assert table.read().equals(frame.sort("k"), null_equal=True) or table.read("v")["v"].to_list() == [0, 3, 1, 2]
    assert statuses(table.upsert(frame)) == ["unchanged"] * 4
    assert statuses(table.delete(frame)) == ["deleted"] * 4


@pytest.mark.slow
def test_wide_tables(store: ef.EntityStore, sql: Sql, engine: str) -> None:
    """As many columns as PostgreSQL allows: written, found unchanged, and planned."""
    names = [f"column_{n}" for n in range(1_599 if engine == "postgresql" else 200)]
    sql(f"CREATE TABLE wide (k integer PRIMARY KEY, {', '.join(f'{name} smallint' for name in names)})")
    table = store.table("wide")
    frame = pl.DataFrame({"k": [1, 2], **{name: [1, 2] for name in names}})
    if engine == "postgresql":
        with pytest.raises(ef.SchemaError, match="1,600 columns, and at most 1,597"):
            table.upsert(frame)
        frame = frame.drop("column_0", "column_1", "column_2")
    assert statuses(table.upsert(frame)) == ["created"] * 2
    changed = frame.with_columns(column_150=pl.Series([1, 40_000]), column_7=pl.Series([5, 5]))
    assert rules(table.upsert(changed)) == [None, "out_of_range"]
    assert statuses(table.upsert(changed)) == ["unchanged", "failed"]
    [changes] = table.plan(frame).frame["changes"].drop_nulls().to_list()
    assert changes == [{"field": "column_7", "old": "5", "new": "1"}]
    assert statuses(table.plan(frame).apply()) == ["updated", "unchanged"]


def stream(frames: list[pl.DataFrame], error: BaseException) -> Iterator[pl.DataFrame]:
    yield from frames
    raise error


def test_an_input_that_fails(notes: ef.Table) -> None:
    """What it yielded before is stored and has outcomes; its own exception is raised."""
    with pytest.raises(ZeroDivisionError):
        notes.upsert(stream([of([1, 2], ["a", "b"]), of([3], ["c"])], ZeroDivisionError()), batch_size=2)
    assert set(statuses(notes.last_result)) == {"created"}
    assert notes.last_result.outcomes.height == notes.read().height == 3


def test_a_progress_callback_that_fails(notes: ef.Table) -> None:
    """Each row has one outcome, and what is stored is what they say."""

    def progress(done: int, total: int | None, counts: Any = None) -> None:
        raise ZeroDivisionError

    frame = of(list(range(100)), ["a"] * 100)
    with pytest.raises(ZeroDivisionError):
        notes.upsert(frame, batch_size=10, progress=progress)
    result = notes.last_result
    assert result.outcomes["row"].to_list() == list(range(100))
    assert result.counts["unknown"] == 0
    assert result.counts["created"] == notes.read().height
    assert notes.upsert(frame).ok
    assert notes.read("k")["k"].to_list() == list(range(100))


def test_a_constraint_that_cannot_be_evaluated(store: ef.EntityStore, sql: Sql) -> None:
    """For a value that its conversion refuses: that row fails."""
    sql("CREATE TABLE checked (k integer PRIMARY KEY, v text CHECK (CAST(v AS integer) > 0))")
    result = store.table("checked").upsert(of([1, 2, 3, 4], ["1", "x", "3", "-4"]), progress=False)
    assert statuses(result) == ["created", "failed", "created", "failed"]


def test_a_conflict_of_a_plan_is_no_failure_of_its_batch(notes: ef.Table) -> None:
    """With on_error="rollback" and "raise" the other rows are written."""
    for on_error in ("rollback", "raise"):
        notes.upsert(of([1, 2], ["a", "b"]), progress=False)
        plan = notes.plan(of([1, 2], ["x", "y"]))
        notes.upsert(of([1], ["changed"]), progress=False)
        assert statuses(plan.apply(on_error=on_error, progress=False)) == ["conflict", "updated"]
        assert notes.read("v")["v"].to_list() == ["changed", "y"]


def test_one_of_many_plans_wins_each_step(notes: ef.Table) -> None:
    """Counters that are read, raised and applied by several threads at once: no step is lost or counted twice."""
    keys = list(range(40))
    notes.upsert(of(keys, ["0"] * len(keys)), progress=False)

    def work(number: int) -> int:
        won = 0
        for _ in range(6):
            seen = notes.read(["k", "v"])
            raised = (pl.col("v").cast(pl.Int64) + 1).cast(pl.String)
            plan = notes.plan(seen.with_columns(v=raised, n=pl.lit(f"{number}.00")))
            # Rows that are still as they were read when the plan is made.
            fields = plan.frame["changes"].list.eval(pl.element().struct.field("field"))
            steps = plan.frame.filter(fields.list.contains("v"))["row"]
            outcomes = plan.apply(progress=False).outcomes
            assert outcomes.filter(~pl.col("status").is_in(["updated", "conflict", "unchanged"])).is_empty()
            won += outcomes.filter(pl.col("row").is_in(steps.implode()), pl.col("status") == "updated").height
        return won

    with ThreadPoolExecutor(4) as threads:
        won = sum(threads.map(work, range(4)))
    assert notes.read("v")["v"].cast(pl.Int64).sum() == won


def test_objects_that_are_nested_too_deep_for_json(store: ef.EntityStore, sql: Sql) -> None:
    """They fail alone."""
    sql("CREATE TABLE documents (k integer PRIMARY KEY, v json)")
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    result = store.table("documents").upsert(
        [{"k": 1, "v": [1]}, {"k": 2, "v": deep}, {"k": 3, "v": None}], progress=False
    )
    assert (statuses(result), rules(result)) == (["created", "failed", "created"], [None, "invalid_json", None])


def test_the_first_rows_of_a_scan(notes: ef.Table) -> None:
    """As many as are asked for, also from several chunks."""
    count = 150_000
    notes.upsert(pl.select(k=pl.int_range(count, dtype=pl.Int32), v=pl.lit("text")), progress=False)
    for first in (0, 1, 70_000, count - 1, count + 1):
        assert notes.scan().head(first).collect().height == min(first, count)


def test_columns_that_are_added_are_known_at_once(notes: ef.Table) -> None:
    """To the table that added them."""
    frame = of([1], ["a"], added=[2.5])
    assert notes.add_columns(frame) == ["added"]
    assert notes.columns["column"].to_list() == ["k", "v", "n", "added"]
    assert statuses(notes.upsert(frame, progress=False)) == ["created"]
    assert notes.read("added")["added"].to_list() == [2.5]
    assert notes.add_columns(frame) == []


@pytest.mark.parametrize("text", ["", "{", "[1,]", "nan", '{"a": Infinity}', "{'a': 1}"])
def test_json_that_is_malformed_and_ignored(store: ef.EntityStore, sql: Sql, text: str) -> None:
    """Its row fails, although nothing else differs, so that nothing would be written."""
    sql("CREATE TABLE documents (id integer PRIMARY KEY, n integer, j json)")
    table = store.table("documents")
    table.upsert(pl.DataFrame({"id": [1, 2], "n": [1, 2], "j": ["1", "2"]}), progress=False)
    frame = pl.DataFrame({"id": [1, 2], "n": [1, 2], "j": [text, "[2]"]})
    result = table.upsert(frame, ignore=["j"], progress=False)
    assert (statuses(result), rules(result)) == (["failed", "unchanged"], ["invalid_text", None])
    assert table.read().sort("id")["j"].to_list() == ["1", "2"]
