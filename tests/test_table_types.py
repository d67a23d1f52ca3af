"""Types of columns: what is written is read back equal, and is unchanged when it is written again, or fails its row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import entityframes as ef
from tests.databases import execute

NAN, INF = float("nan"), float("inf")
UUID = "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"


@dataclass
class Type:
    """A type of a column.

    Args:
        sql: the type, on PostgreSQL and on DuckDB; None where there is none.
        same: values that are read as they were written.
        read: values and what is read.
        refused: values and the rule of their failures.
        dtype: the dtype in which the frame has all values; None for that which Polars infers from each.
    """

    sql: tuple[str | None, str | None]
    same: list[Any] = field(default_factory=list)
    read: list[tuple[Any, Any]] = field(default_factory=list)
    refused: list[tuple[Any, str]] = field(default_factory=list)
    dtype: Any = None


def both(sql: str, *same: Any, read: Any = (), refused: Any = (), dtype: Any = None) -> Type:
    return Type((sql, sql), [*same], [*read], [*refused], dtype)


def postgres(sql: str, *same: Any, read: Any = (), refused: Any = (), dtype: Any = None) -> Type:
    return Type((sql, None), [*same], [*read], [*refused], dtype)


def duck(sql: str, *same: Any, read: Any = (), refused: Any = (), dtype: Any = None) -> Type:
    return Type((None, sql), [*same], [*read], [*refused], dtype)


def too(rule: str, *values: Any) -> list[tuple[Any, str]]:
    return [(value, rule) for value in values]


NUMBERS = [
    both(
        "integer", 0, 2**31 - 1, -(2**31),
        read=[("1.0", 1), (" 7 ", 7), ("+5", 5), (3.0, 3), (Decimal("4.00"), 4)],
        refused=[
            *too("out_of_range", 2**31, "99999999999999999999999999999999999999999999", 1e300),
            *too("loses_digits", 1.5, NAN, INF, Decimal("1.5")),
            *too("invalid_text", "", "x", "1e3", "0x10", "1_0", "٣"),
        ],
    ),
    both("bigint", 2**63 - 1, refused=too("out_of_range", "9223372036854775808")),
    both("bigint", refused=too("out_of_range", 2**64 - 1), dtype=pl.UInt64),
    both(
        "double precision", 0.1, INF, -INF, 5e-324, 2**53,
        read=[("1e5", 1e5), ("Infinity", INF), (".5", 0.5), (Decimal("0.1"), 0.1)],
        refused=[
            *too("out_of_range", "1e400", "-1e400", "1e-400"),
            *too("loses_digits", 2**53 + 1, 2**63 - 1),
            *too("invalid_text", "", "0x10", "1_0", "1d"),
        ],
    ),
    both(
        "real", 1.5, 16777216.0,
        read=[(0.1, pytest.approx(0.1, rel=1e-7)), ("0.1", pytest.approx(0.1, rel=1e-7))],
        refused=[*too("loses_digits", 16777217, 0.123456789, 1e-50), *too("out_of_range", 1e39, "3.4028236e38")],
    ),
    both(
        "numeric(10,2)", Decimal("99999999.99"), Decimal("-0.01"),
        read=[("1e2", 100), ("0001.10", Decimal("1.10")), (0.01, Decimal("0.01")), (7, 7), ("-0", 0)],
        refused=[
            *too("out_of_range", "100000000", "nan", "Infinity", NAN, "1e1000000000", 10**8),
            *too("loses_digits", "1.005", 0.1 + 0.2, "1e-3", "1" + "0" * 5 + ".001e0"),
            *too("invalid_text", "", "1_0", "٣"),
        ],
    ),
    Type(("numeric(38,10)", "decimal(38,10)"), read=[("1.1234567890e0", Decimal("1.123456789"))],
         refused=too("loses_digits", "1.12345678901234567890123456789012345e0")),
    postgres("numeric", "1.50", "1" * 60, refused=too("out_of_range", "nan", "infinity")),
    postgres("numeric(3,-2)", "12300", refused=[*too("loses_digits", "12345"), *too("out_of_range", "100000")]),
    postgres("numeric(2,4)", "0.0012", refused=[*too("out_of_range", "0.01"), *too("loses_digits", "0.00123")]),
    postgres("numeric(50,2)", "1" * 48 + ".25", refused=too("out_of_range", "1" * 49)),
    duck("utinyint", 255, 0, refused=too("out_of_range", 256, -1)),
    duck("ubigint", 2**64 - 1, dtype=pl.UInt64),
    duck("hugeint", str(2**127 - 1), str(-(2**127)), read=[(5, "5"), (2.0, "2")],
         refused=[*too("out_of_range", str(2**127)), *too("loses_digits", 1.5), *too("invalid_text", "1.5")]),
    duck("uhugeint", str(2**128 - 1), refused=too("out_of_range", str(2**128), "-1")),
    duck("bignum", "1" * 60, "-1", refused=[*too("invalid_text", "1.5"), *too("loses_digits", 1.5)]),
    both("boolean", True, False, read=[("yes", True), ("0", False)], refused=too("invalid_text", "", "2", "tr")),
]  # fmt: skip

TEXTS = [
    both("text", "", "a", "A", "é", "e\u0301", "'\"\\{b}$1", "x" * 10_000, refused=too("nul_character", "a\0b")),
    postgres("varchar(3)", "abc", "   ", "😀😀😀", refused=too("too_long", "abcd", "abc ", "abc\n")),
    postgres("char(3)", "abc", "", read=[("a  ", "a")], refused=too("too_long", "abcd", "abc ")),
    postgres("name", "x" * 63, refused=too("too_long", "x" * 64, "é" * 40)),
    postgres('"char"', "a", "", refused=too("too_long", "ab", "é")),
    postgres("short", "abc", "ab ", refused=too("too_long", "abcd")),
    postgres("email", "a@b", refused=too("check", "ab")),
    both("uuid", UUID, read=[(UUID.upper(), UUID), (f"{{{UUID}}}", UUID), (UUID.replace("-", ""), UUID)],
         refused=too("invalid_text", "x", UUID[:-1], "{" + UUID, b"1" * 15)),
    both("uuid", read=[(b"1" * 16, "31313131-3131-3131-3131-313131313131")], dtype=pl.Binary),
    both("mood", "sad", "o'k", refused=too("unknown_label", "", "happy", "Sad")),
    Type(("bytea", "blob"), [b"", b"\x00\xff", b"\\x00"]),
    postgres("bit(3)", "101", refused=[*too("loses_digits", "10101", "1"), *too("invalid_text", "12")]),
    postgres("varbit(3)", "1", "", refused=too("loses_digits", "10101")),
    postgres("bits", "101", refused=too("loses_digits", "1")),
    duck("bit", "10101"),
]  # fmt: skip

TIMES = [
    both("date", date(1, 1, 1), date(9999, 12, 31), read=[("2024-02-29", date(2024, 2, 29)), (datetime(2024, 1, 1), date(2024, 1, 1))],
         refused=[*too("invalid_text", "2023-02-29", "infinity", "now", ""), *too("loses_digits", datetime(2024, 1, 1, 12))]),
    both("timestamp", datetime(1, 1, 1), datetime(9999, 12, 31, 23, 59, 59, 999999),
         read=[("2024-01-01", datetime(2024, 1, 1)), ("2024-01-01T12:00", datetime(2024, 1, 1, 12)), (date(2024, 1, 1), datetime(2024, 1, 1))],
         refused=[*too("invalid_text", "infinity", "2024-01-01 25:00", "2024-01-01 12:00+02"), *too("loses_digits", "2024-01-01 00:00:00.1234567")]),
    both("timestamptz", datetime(1950, 1, 1, 12, 0, 0, 5, tzinfo=UTC),
         read=[("2024-01-01 12:00:00+02:30", datetime(2024, 1, 1, 9, 30, tzinfo=UTC)), ("2024-01-01 12:00Z", datetime(2024, 1, 1, 12, tzinfo=UTC))],
         refused=too("invalid_text", "2024-01-01 12:00:00", "infinity")),
    both("time", time(0), time(23, 59, 59, 999999), time(12, 0, 0, 5), read=[("12:00", time(12))],
         refused=[*too("invalid_text", "24:00:00", "25:00", "noon"), *too("loses_digits", "12:00:00.1234567")]),
    postgres("timestamp(0)", datetime(2024, 1, 1), refused=too("loses_digits", datetime(2024, 1, 1, 0, 0, 0, 500_000), "2024-01-01 00:00:00.5")),
    postgres("timestamptz(3)", refused=too("loses_digits", "2024-01-01 00:00:00.1234+00")),
    postgres("time(0)", time(12), refused=too("loses_digits", time(12, 0, 0, 5), "12:00:00.5")),
    postgres("timetz", "12:00:00+02", refused=too("out_of_range", "25:00:00+02")),
    postgres("timetz(2)", "12:00:00.12+02", refused=too("loses_digits", "12:00:00.123+02")),
    duck("timestamp_s", datetime(2024, 1, 1), refused=too("loses_digits", datetime(2024, 1, 1, 0, 0, 0, 5))),
    duck("timestamp_ms", datetime(2024, 1, 1, 0, 0, 0, 5000), refused=too("loses_digits", datetime(2024, 1, 1, 0, 0, 0, 5))),
    duck("timestamp_ns", datetime(2024, 1, 1, 0, 0, 0, 5), refused=[*too("out_of_range", datetime(9999, 1, 1), "9999-01-01", "1600-01-01 12:00")]),
    duck("time_ns", time(12, 0, 0, 5)),
    duck("timetz", "12:00:00+02"),
    both("interval", "1 day", "1 year 2 days", refused=too("invalid_value", "x")),
    both("interval", read=[(timedelta(days=1, seconds=5), "24:00:05"), (timedelta(microseconds=-1), "-00:00:00.000001")]),
    postgres("interval(0)", "00:00:01", refused=too("loses_digits", "1.6 seconds")),
    postgres("interval year to month", "1 year", refused=too("loses_digits", "1 year 1 day")),
]  # fmt: skip

BAD_JSON = ["", "nope", '{"a": NaN}', "Infinity", "nan", "[1,]", '{"a":1,}', "[" * 5000 + "nan" + "]" * 5000]
DOCUMENTS = [
    both("json", '{"b": 1,  "a": 2}', "1", '"NaN, or inf"', '{"a":"\\\\u0000"}',
         refused=[*too("invalid_text", *BAD_JSON), *too("nul_character", '"\\u0000"', '{"a\\u0000":1}')]),
    duck("json", refused=too("invalid_value", '"\\ud800"')),
    postgres("jsonb", '{"a": 1.00}', read=[('{"b":1,"a":2}', '{"a": 2, "b": 1}')],
             refused=[*too("invalid_text", *BAD_JSON, '"\\ud800"'), *too("out_of_range", "1e200000")]),
    both("json", read=[({"b": 1, "a": None, "c": [1.5, 2.0]}, '{"a":null,"b":1,"c":[1.5,2]}'), ([1, 2], "[1,2]")],
         refused=[*too("out_of_range", {"a": NAN}, [1.0, INF]), *too("nul_character", {"a": "x\0"})]),
]  # fmt: skip

ODD_TEXTS = ['q"', "b\\", "a,b", "", "NULL", "null", "{}", " ", "'", "[x]", None]
LISTS = [
    both("integer[]", [1, None, 3], [], refused=too("out_of_range", [1, 2**31])),
    both("text[]", ODD_TEXTS, [None], [], refused=too("nul_character", ["a", "b\0"])),
    both("boolean[]", [True, None, False]),
    both("date[]", [date(1, 1, 1), None, date(9999, 12, 31)], []),
    both("timestamptz[]", [datetime(2024, 1, 1, 12, 0, 0, 5, tzinfo=UTC), None]),
    both("timestamp[]", [datetime(2024, 1, 1, 12, 0, 0, 5)]),
    both("time[]", [time(12, 0, 0, 5), None]),
    both("uuid[]", [UUID, None], refused=too("invalid_text", ["x"])),
    both("mood[]", ["sad", None, "o'k"], refused=too("unknown_label", ["happy"])),
    both("double precision[]", [1.5, INF, 0.1, 5e-324]),
    both("real[]", [1.5], refused=too("loses_digits", [16777217.0])),
    both("numeric(4,1)[]", read=[(["1.5", None], [Decimal("1.5"), None])],
         refused=[*too("loses_digits", ["1.55"]), *too("out_of_range", ["12345"])]),
    Type(("bytea[]", "blob[]"), [[b"\x00\xff", b"", None]]),
    postgres("varchar(3)[]", ["abc", "ab "], refused=too("too_long", ["abcd"])),
    postgres("char(3)[]", ["abc"], refused=too("too_long", ["abcd"])),
    postgres("integers", [1, None], refused=too("out_of_range", [2**31])),
    # Arrays of these are texts in the form of the database.
    postgres("bit(3)[]", "{101}", refused=too("loses_digits", "{10101}")),
    postgres("jsonb[]", '{"{\\"a\\": 1}",NULL}', refused=too("invalid_text", "{x}")),
    postgres("interval[]", '{"1 day"}'),
    postgres("pair[]", '{"(1,x)"}'),
    duck("json[]", ['{"a":1}', None]),
    duck("interval[]", ["1 day", None]),
    duck("hugeint[]", ["5"], refused=too("loses_digits", [1.5])),
    duck("integer[2]", [1, 2], [1, None],
         refused=[*too("wrong_length", [1], [1, 2, 3]), *too("out_of_range", [2**40, 1]), *too("loses_digits", [1.5, 2.0])]),
    duck("float[3]", [1.0, 2.0, 3.0], [1.0, None, 3.0], refused=[*too("wrong_length", [1.0]), *too("invalid_text", ["1", "x", "3"])]),
    duck("integer[][]", [[1], [None], None, []], refused=[*too("loses_digits", [[1.5]]), *too("out_of_range", [[2**40]])]),
    duck("struct(a integer, \"b c\" varchar)", {"a": 1, "b c": "x"}, {"a": None, "b c": None},
         read=[({"a": "7"}, {"a": 7, "b c": None})],
         refused=[*too("loses_digits", {"a": 1.5}), *too("out_of_range", {"a": 2**40}), *too("nul_character", {"a": 1, "b c": "\0"})]),
    duck("struct(u uuid, j json, e mood, \"JSON\" integer)", {"u": UUID, "j": "[1]", "e": "sad", "JSON": 5},
         refused=[*too("invalid_text", {"u": "x"}), *too("unknown_label", {"e": "x"})]),
    duck("struct(a integer)[]", [{"a": 1}, None], refused=too("loses_digits", [{"a": 1.5}])),
    duck("map(varchar, integer)", {"a": 1, "b": None}, {}, dtype=pl.Map(pl.String, pl.Int64)),
    duck("map(varchar, integer)", refused=[*too("out_of_range", {"a": 2**40}), *too("nul_character", {"\0": 1})], dtype=pl.Map(pl.String, pl.Int64)),
    duck("union(n integer, t varchar)", "5", "x"),
]  # fmt: skip

OTHERS = [
    postgres("inet", "10.0.0.1", "10.0.0.1/8", "::1", refused=too("invalid_text", "10.1")),
    postgres("cidr", "10.0.0.0/8", refused=too("invalid_text", "10.0.0.1/8")),
    postgres("macaddr", "08:00:2b:01:02:03", refused=too("invalid_text", "x")),
    postgres("money", "$1.50", "-$2.00", refused=too("invalid_text", "x")),
    postgres("point", "(1,2)", refused=too("invalid_text", "x")),
    postgres("polygon", "((0,0),(1,1),(1,0))"),
    postgres("path", "[(0,0),(1,1)]"),
    postgres("tsvector", "'a':1 'b':2"),
    # These types report a wrong text as a syntax error.
    postgres("tsquery", "'a' & 'b'", refused=too("sqlstate:42601", "a b")),
    postgres("regclass", "numbers", refused=too("sqlstate:42P01", "nope")),
    postgres("pg_lsn", "0/16B3748", refused=too("invalid_text", "x")),
    postgres("oid", "1", refused=too("out_of_range", "4294967296")),
    postgres("jsonpath", '$."a"', refused=too("sqlstate:42601", "$.")),
    postgres("int4range", "[1,3)", "empty", read=[("[1,2]", "[1,3)")], refused=too("invalid_value", "[3,1]")),
    postgres("tstzrange", '["2024-01-01 00:00:00+00","2024-02-01 00:00:00+00")'),
    postgres("int4multirange", "{[1,3),[5,7)}"),
    postgres("pair", "(1,x)", "(,)", '(1,"a,b")', refused=too("invalid_text", "x", "(1)")),
    postgres("positive", 5, refused=too("check:positive_check", -5)),
    duck("geometry", "POINT (1 2)", refused=too("invalid_value", "x")),
]  # fmt: skip

EXTENSIONS = {
    "vector": [
        postgres("vector(3)", [1.0, 2.0, 3.0], read=[([1, 2, 3], [1.0, 2.0, 3.0]), (["1", "2", "3"], [1.0, 2.0, 3.0])],
                 refused=[*too("wrong_length", [1.0]), *too("null_in_vector", [1.0, None, 3.0]), *too("invalid_text", ["1", "x", "3"]), *too("invalid_value", [1.0, 2.0, NAN])]),
        postgres("vector", [1.0], [1.0, 2.0]),
        postgres("halfvec(2)", [1.0, 0.5], refused=too("out_of_range", [1e6, 1.0])),
        postgres("sparsevec(5)", "{1:1.5}/5"),
    ],
    "citext": [postgres("citext", "a", "A", "ä"), postgres("citext[]", ["a", "B"])],
    "hstore": [postgres("hstore", '"a"=>"1"', '"a"=>NULL', refused=too("sqlstate:XX000", "x"))],
    "ltree": [postgres("ltree", "a.b.c", refused=too("sqlstate:42601", "a..b")), postgres("lquery", "a.*")],
    "cube": [postgres("cube", "(1, 2)", refused=too("invalid_text", "x"))],
    "isn": [postgres("isbn", "0-306-40615-2", refused=too("invalid_text", "x"))],
    "seg": [postgres("seg", "1.5", "1 .. 2", refused=too("sqlstate:42601", "x"))],
    "intarray": [postgres("query_int", "1 & 2", refused=too("sqlstate:42601", "1 &"))],
    "lo": [postgres("lo", "5")],
}  # fmt: skip

GROUPS = {
    "numbers": NUMBERS,
    "texts": TEXTS,
    "times": TIMES,
    "documents": DOCUMENTS,
    "lists": LISTS,
    "others": OTHERS,
}

Sql = Callable[..., list]


@pytest.fixture
def types(sql: Sql, engine: str) -> None:
    """The types of users that the cases use."""
    sql("CREATE TYPE mood AS ENUM ('sad', 'o''k')", "CREATE TABLE numbers (n integer)")
    if engine == "postgresql":
        sql(
            "CREATE TYPE pair AS (a integer, b text)", "CREATE DOMAIN positive AS integer CHECK (value > 0)",
            "CREATE DOMAIN short AS varchar(3)", "CREATE DOMAIN email AS text CHECK (value LIKE '%@%')",
            "CREATE DOMAIN bits AS bit(3)", "CREATE DOMAIN integers AS integer[]",
        )  # fmt: skip


def check(store: ef.EntityStore, sql: Sql, types: list[Type], place: int) -> None:
    """Write the values of each type, read them, and write what was read."""
    used = [one for one in types if one.sql[place] is not None]
    columns = ", ".join(f"c{number} {one.sql[place]}" for number, one in enumerate(used))
    sql(f"CREATE TABLE typed (k integer PRIMARY KEY, {columns})")
    table, first = store.table("typed"), 0
    for number, one in enumerate(used):
        kept = [*((value, value) for value in one.same), *one.read]
        for dtype in {_dtype(value, one) for value, _ in [*kept, *one.refused]}:
            good = [(value, read) for value, read in kept if _dtype(value, one) == dtype]
            bad = [(value, rule) for value, rule in one.refused if _dtype(value, one) == dtype]
            values = pl.Series(f"c{number}", [value for value, _ in [*bad, *good]], dtype=dtype)
            keys = pl.int_range(first, first + len(values), dtype=pl.Int32, eager=True)
            frame, first = pl.DataFrame([keys.alias("k"), values]), first + len(values)
            result = table.upsert(frame)
            rules = [rule for _, rule in bad]
            assert result.outcomes["rule"].to_list() == [*rules, *(None for _ in good)], (one, result.failed)
            assert result.counts["created"] == len(good), one
            stored = table.get(keys)
            assert stored[values.name][len(bad) :].to_list() == [read for _, read in good], one
            # A plan does not check constraints.
            actions = ["create" if "check:" in rule else "invalid" for rule in rules]
            assert table.plan(frame).frame["action"].to_list() == actions + ["unchanged"] * len(good), one
    stored = table.read()
    dtypes = {column.name: column.dtype for column in table._relation.columns}
    assert dict(stored.schema) == dtypes
    assert table.upsert(stored).counts["unchanged"] == stored.height


def _dtype(value: Any, one: Type) -> pl.DataType:
    return pl.Series([value], dtype=one.dtype).dtype


def _dtype_of(table: ef.Table) -> Callable[[str], pl.DataType]:
    return {column.name: column.dtype for column in table._relation.columns}.__getitem__


@pytest.mark.parametrize("group", GROUPS)
def test_types(store: ef.EntityStore, sql: Sql, engine: str, types: None, group: str) -> None:
    check(store, sql, GROUPS[group], engine == "duckdb")


@pytest.mark.parametrize("name", EXTENSIONS)
def test_types_of_extensions(postgres_url: str, name: str) -> None:
    """Those that the server has."""
    if not execute(postgres_url, f"SELECT 1 FROM pg_available_extensions WHERE name = '{name}'"):
        pytest.skip(f"this server has no {name}")
    execute(postgres_url, f"CREATE EXTENSION IF NOT EXISTS {name}")
    with ef.connect(postgres_url) as store:
        check(store, lambda *statements: execute(postgres_url, *statements), EXTENSIONS[name], 0)


MADE = {
    "boolean": pl.Series([True, False, None]),
    "int8": pl.Series([-128, 127, None], dtype=pl.Int8),
    "int16": pl.Series([-(2**15), 2**15 - 1, None], dtype=pl.Int16),
    "int32": pl.Series([-(2**31), 2**31 - 1, None], dtype=pl.Int32),
    "int64": pl.Series([-(2**63), 2**63 - 1, None], dtype=pl.Int64),
    "int128": pl.Series([-(2**120), 2**120, None], dtype=pl.Int128),
    "uint8": pl.Series([0, 255, None], dtype=pl.UInt8),
    "uint16": pl.Series([0, 2**16 - 1, None], dtype=pl.UInt16),
    "uint32": pl.Series([0, 2**32 - 1, None], dtype=pl.UInt32),
    "uint64": pl.Series([0, 2**64 - 1, None], dtype=pl.UInt64),
    "float32": pl.Series([1.1, -0.0, None], dtype=pl.Float32),
    "float64": pl.Series([0.1, float("inf"), None]),
    "decimal": pl.Series([Decimal("1.10"), Decimal("-99.99"), None], dtype=pl.Decimal(10, 2)),
    "string": pl.Series(["", "é\n\"'\\,", None]),
    "categorical": pl.Series(["a", "b", None], dtype=pl.Categorical),
    "enum": pl.Series(["a", "b", None], dtype=pl.Enum(["a", "b"])),
    "binary": pl.Series([b"", b"\x00\xff", None]),
    "date": pl.Series([date(1, 1, 1), date(9999, 12, 31), None]),
    "time": pl.Series([time(0), time(23, 59, 59, 999_999), None]),
    "duration": pl.Series([timedelta(days=-3, seconds=1), timedelta(microseconds=1), None]),
    "datetime": pl.Series([datetime(2024, 2, 29, 1, 2, 3, 4), datetime(1, 1, 1), None]),
    "zoned": pl.Series([datetime(2024, 2, 29, 1, 2, 3, 4), datetime(1970, 1, 1), None]).dt.replace_time_zone("UTC"),
    "nulls": pl.Series([None, None, None]),
    "list": pl.Series([[1, None], [], None], dtype=pl.List(pl.Int64)),
    "texts": pl.Series([["a,b", '"'], [None], None], dtype=pl.List(pl.String)),
    "array": pl.Series([[1.5, 2.5], [0.0, 1.0], None], dtype=pl.Array(pl.Float64, 2)),
    "nested": pl.Series([[[1, 2], []], [], None], dtype=pl.List(pl.List(pl.Int64))),
    "struct": pl.Series([{"a": 1, "b": "x"}, {"a": None, "b": None}, None]),
    "structs": pl.Series([[{"a": 1}], [], None], dtype=pl.List(pl.Struct({"a": pl.Int64}))),
}
#: What is read as text, in the form of the database.
TEXTS = {"int128": ["-" + str(2**120), str(2**120)], "duration": ["-71:59:59", "00:00:00.000001"]}
#: On PostgreSQL also what is stored as jsonb.
DOCUMENTS = {
    "nested": ["[[1, 2], []]", "[]"], "struct": ['{"a": 1, "b": "x"}', '{"a": null, "b": null}'],
    "structs": ['[{"a": 1}]', "[]"],
}  # fmt: skip


def test_a_table_that_is_made_for_a_frame(store: ef.EntityStore, engine: str) -> None:
    """Every dtype has a type that holds its values: they are read as they were written, and written back unchanged."""
    frame = pl.DataFrame({"k": [1, 2, 3], **MADE})
    table = ef.create_table(store, "made", frame, key="k")
    for source, status in ((frame, "created"), (frame, "unchanged"), (table.read, "unchanged")):
        result = table.upsert(source() if callable(source) else source, progress=False)
        assert result.outcomes["status"].to_list() == [status] * 3, result.failed
    texts = TEXTS | (DOCUMENTS if engine == "postgresql" else {})
    stored = table.read()
    for name, values in MADE.items():
        assert stored[name].to_list() == [*texts[name], None] if name in texts else values.to_list(), name
