"""A filter on a scan is pushed down to the database and keeps exactly the rows that it keeps on the whole frame."""

from __future__ import annotations

import datetime as dt
import hashlib
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from functools import reduce
from operator import and_, or_
from typing import Any, NamedTuple

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import entityframes as ef
from entityframes.engines import predicates
from entityframes.engines.predicates import Compare, EntityColumn, IsIn, IsNull, MetadataField
from entityframes.reading.scan import ScanQuery, lazy_frame
from tests.examples import examples

from .conftest import ENGINES, execute, with_database

C = pl.col

TEXTS = [
    "", "a", "A", "b", "a'b", "'; DROP TABLE x; --", "back\\slash", "\\'", "\u00e9", "e\u0301", "\u00c9", "z", "\U0001f986", "\uffff",
    "%", "_", "$1", "{condition}", "NaN", "5", "true", "null", "tab\tnew\nline", '"two"', "{}",
]  # fmt: skip
FLOATS = [
    0.0, -0.0, 1.0, -1.5, 2.5, 0.1, 0.30000000000000004, -2.30654604825513e-95, -2.3065460482551302e-95, 1e16, 1e22,
    1.5e-7, 1e300, -1e300, 5e-324, 2.0**53, 2.0**53 + 2, math.nan, math.inf, -math.inf, 100.0,
]  # fmt: skip
INSTANTS = [
    dt.datetime(1, 1, 1), dt.datetime(1, 1, 1, 0, 0, 0, 1000), dt.datetime(1582, 10, 10), dt.datetime(1969, 12, 31, 23, 59, 59, 999000),
    dt.datetime(1970, 1, 1), dt.datetime(2026, 3, 29, 0, 30), dt.datetime(2026, 3, 29, 1, 30), dt.datetime(2026, 10, 25, 0, 30),
    dt.datetime(2026, 10, 25, 1, 30), dt.datetime(2026, 10, 25, 1, 30, 0, 1000), dt.datetime(9999, 12, 31, 23, 59, 59, 999000),
]  # fmt: skip
NANO_INSTANTS = [moment for moment in INSTANTS if 1700 < moment.year < 2200]
DAYS = [dt.date(1, 1, 1), dt.date(999, 12, 31), dt.date(1969, 12, 31), dt.date(2026, 1, 5), dt.date(9999, 12, 31)]
#: Days and instants of the years 0, -1 and 10000 and at the limits of the range, as integers of Polars.
FAR_DAYS = [-719_163, -719_528, -720_000, 2_932_897, -(2**31) + 1, 2**31 - 1]
INTS = [0, 1, -1, 5, 100, 2**53, 2**53 + 1, -(2**53) - 1, 2**63 - 1, -(2**63)]


def _far(per_day: int) -> list[int]:
    return [-719_163 * per_day, -719_162 * per_day - 1, 2_932_897 * per_day, 2**63 - 1]


def _moments(dtype: pl.Datetime, far: list[int]) -> pl.Series:
    given = NANO_INSTANTS if dtype.time_unit == "ns" else INSTANTS
    near = pl.Series(given, dtype=pl.Datetime("us")).dt.cast_time_unit(dtype.time_unit)
    moments = pl.concat([near, pl.Series(far, dtype=pl.Int64).cast(pl.Datetime(dtype.time_unit))])
    return (
        moments
        if dtype.time_zone is None
        else moments.dt.replace_time_zone("UTC").dt.convert_time_zone(dtype.time_zone)
    )


#: Metadata fields with the values of their column.
FIELDS: dict[str, pl.Series] = {
    "i8": pl.Series([-128, -1, 0, 1, 5, 127], dtype=pl.Int8),
    "i64": pl.Series(INTS, dtype=pl.Int64),
    "u64": pl.Series([0, 1, 5, 2**63, 2**64 - 1], dtype=pl.UInt64),
    "i128": pl.Series([0, 5, -5, 2**127 - 1, -(2**127), 2**100], dtype=pl.Int128),
    "u128": pl.Series([0, 5, 2**128 - 1, 2**127], dtype=pl.UInt128),
    "f64": pl.Series(FLOATS),
    "f32": pl.Series([0.1, 1.0, math.nan, -0.0, 16777216.0], dtype=pl.Float32),
    "s": pl.Series(TEXTS),
    "b": pl.Series([True, False]),
    "day": pl.concat([pl.Series(DAYS), pl.Series(FAR_DAYS, dtype=pl.Int32).cast(pl.Date)]),
    "ms": _moments(pl.Datetime("ms"), _far(86_400_000)),
    "us": _moments(pl.Datetime("us"), _far(86_400_000_000)),
    "ns": _moments(pl.Datetime("ns"), [2**63 - 1, -(2**63) + 1, 1, -1]),
    "utc": _moments(pl.Datetime("us", "UTC"), _far(86_400_000_000)),
    "berlin": _moments(pl.Datetime("ms", "Europe/Berlin"), []),
    "dur": pl.Series([0, 1, -1, 3_600_000_000, 2**62], dtype=pl.Int64).cast(pl.Duration("us")),
    "dec": pl.Series([Decimal("1.10"), Decimal("-0.01"), Decimal("12345678901234567890.12")], dtype=pl.Decimal(38, 2)),
    "cat": pl.Series(["b", "a", "'", "é"], dtype=pl.Categorical),
    "en": pl.Series(["low", "high"], dtype=pl.Enum(["low", "mid", "high"])),
    "bin": pl.Series([b"", b"\x00\xff"]),
    "time": pl.Series([0, 86_399_999_999_999], dtype=pl.Int64).cast(pl.Time),
    "list": pl.Series([[1, None], [], [2]]),
    "struct": pl.Series([{"x": 1, "y": None}, {"x": None, "y": "t"}], dtype=pl.Struct({"x": pl.Int64, "y": pl.String})),
    "na'me/~ \"x\\": pl.Series([1, 2, 3]),
    "0": pl.Series([1, 2, 3]),
    "id": pl.Series(["x", "a'b"]),
}  # fmt: skip
ROWS = 61

#: JSON that fits the fields but is not formatted as the package writes their values.
JSON_ROWS = [
    "{}",
    '{"s": null, "i64": null, "f64": null, "b": null, "day": null, "us": null, "list": null, "cat": null}',
    '{"f64": 0.1000000000000000055511151231257827, "us": "2026-03-29T00:30:00", "utc": "2026-03-29T00:30:00.5"}',
    '{"f64": 1' + "0" * 30 + ', "us": "2026-03-29T00:30:00.000000000", "utc": "2026-03-29T00:30:00.000000Z"}',
    '{"f64": 9007199254740993, "ms": 5, "day": 18262, "u64": 5, "i128": -7, "utc": "2026-03-29T00:30:00.000001"}',
]
#: Another type with the same names, whose values are not numbers, days or instants.
POISON = '{"i64": "none", "f64": "x", "b": "maybe", "day": "today", "us": "now", "dur": "long", "0": "zero"}'


class Scanned(NamedTuple):
    """A type of a store, with a record of the queries that its scans send to the engine."""

    #: A scan of it.
    lazy: pl.LazyFrame
    #: The same as a frame.
    eager: pl.DataFrame
    #: The engine's SQL dialect.
    dialect: predicates.Dialect
    #: columns, where, limit and number of returned rows of each select since the last clear.
    asked: list[list[Any]]

    def check(self, query: Callable[[pl.LazyFrame], pl.LazyFrame], **options: Any) -> pl.DataFrame:
        """Assert that a query gives the same result on the scan and on the frame."""
        self.asked.clear()
        found = query(self.lazy).collect(**options)
        expected = query(self.eager.lazy()).collect()
        order = [name for name in ("id",) if name in expected.columns]
        assert found.schema == expected.schema
        assert found.sort(order).equals(expected.sort(order)), (found, expected)
        return expected


def _rows() -> pl.DataFrame:
    """The typed rows; each column cycles through its values and null with its own period."""
    columns = {}
    for name, values in FIELDS.items():
        padded = pl.concat([values, pl.Series([None], dtype=values.dtype)])
        columns[name] = padded.gather([row % len(padded) for row in range(ROWS)]).alias(name)
    keys = [text for text in TEXTS if text] + [f"k{row:02}" for row in range(ROWS)]
    return pl.DataFrame(
        {"key": keys[:ROWS], "text": [TEXTS[(3 * row) % len(TEXTS)] for row in range(ROWS)]}
    ).with_columns(columns.values())


@pytest.fixture(scope="module", params=ENGINES)
def scanned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scanned]:
    """A type with difficult values on each engine in turn."""
    engine, url = request.param, str(tmp_path_factory.mktemp("scan") / "store.duckdb")
    if engine == "postgresql":
        server, template = request.getfixturevalue("postgres_server"), request.getfixturevalue("postgres_template")
        name = f"scan_predicates_{os.getpid()}"
        execute(server, f"CREATE DATABASE {name} TEMPLATE {template}")
        url = with_database(server, name)
    with ef.connect(url) as store:
        assert store.upsert(ef.entities(_rows(), "kind", id="key", content="text")).ok
        others = [("kind", f"json{n}", text) for n, text in enumerate(JSON_ROWS)] + [("other", "a'b", POISON)]
        frame = pl.DataFrame(others, ["entity_type", "id", "metadata"], orient="row")
        assert store.upsert(frame.with_columns(content=C("id") + " content")).ok
        # Every hour from 2026 on, and one microsecond more for each third.
        hours = "created_at = timestamptz '2026-01-01 00:00:00+00' + length(id) * INTERVAL '1 hour'"
        statement = (
            f"UPDATE entityframes.entities SET {hours}, updated_at = timestamptz '2026-01-01 12:00:00.000001+00'"
        )
        if engine == "postgresql":
            execute(url, statement)
        else:
            with store._engine.database.file.cursor() as cursor:
                cursor.sql(statement)
        asked: list[list[Any]] = []
        select = store._engine.select

        def recorded(
            columns: list[str], entity_type: str | None, where: Any, limit: int | None, interrupt: Any = None
        ) -> Iterator[pl.DataFrame]:
            asked.append([columns, where, limit, 0])
            for piece in select(columns, entity_type, where, limit, interrupt):
                asked[-1][-1] += piece.height
                yield piece

        store._engine.select = recorded
        dialect = predicates.POSTGRESQL if engine == "postgresql" else predicates.DUCKDB
        yield Scanned(store.scan("kind"), store.read("kind"), dialect, asked)
    if engine == "postgresql":
        execute(server, f"DROP DATABASE {name} WITH (FORCE)")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


UTC = dt.UTC
EPOCH = dt.datetime(1970, 1, 1)
ODD = "na'me/~ \"x\\"

#: Predicates that the database evaluates completely: it returns exactly the matching rows.
EXACT: dict[str, pl.Expr] = {
    "id": C("id") == "a'b",
    "id mirrored": pl.lit("a'b") == C("id"),
    "id not": C("id") != "a'b",
    "id negated": ~(C("id") == "a'b"),
    "id greater": C("id") > "a",
    "id mirrored less": pl.lit("b") < C("id"),
    "id in": C("id").is_in(["a'b", "nope", "\u00e9", "back\\slash", None]),
    "id in a Series": C("id").is_in(pl.Series(["A", "b"])),
    "id in an Array": C("id").is_in(pl.Series([["A", "b"]], dtype=pl.Array(pl.String, 2))),
    "id in nothing": C("id").is_in(pl.Series([], dtype=pl.String).implode()),
    "id between": C("id").is_between(pl.lit("A"), pl.lit("a'b")),
    "content": C("content") == "'; DROP TABLE x; --",
    "content NFC": C("content") == "\u00e9",
    "content NFD": C("content") >= "e\u0301",
    "content beyond the BMP": C("content") > "\uffff",
    "content empty": C("content") == "",
    "hash": C("content_hash") == _sha("a"),
    "hash not": C("content_hash") != _sha("a"),
    "hash less": C("content_hash") < _sha("a"),
    "hash of nothing": C("content_hash") == "ABC",
    "hash in": C("content_hash").is_in([_sha("a"), _sha("b").upper(), _sha(""), "x"]),
    "created": C("created_at") > dt.datetime(2026, 1, 1, 3, tzinfo=UTC),
    "created at": C("created_at") == dt.datetime(2026, 1, 1, 3, tzinfo=UTC),
    "created plus": C("created_at") < pl.lit(dt.datetime(2026, 1, 1, tzinfo=UTC)) + pl.duration(hours=4),
    "created ms": C("created_at") >= pl.lit(dt.datetime(2026, 1, 1, 4, tzinfo=UTC), pl.Datetime("ms", "UTC")),
    "created ns": C("created_at") >= pl.lit(dt.datetime(2026, 1, 1, 4, tzinfo=UTC), pl.Datetime("ns", "UTC")),
    "created in": C("created_at").is_in([dt.datetime(2026, 1, 1, 3, tzinfo=UTC)]),
    "updated": C("updated_at") <= dt.datetime(2026, 1, 1, 12, tzinfo=UTC),
    "updated microsecond": C("updated_at") == dt.datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC),
    "updated after all": C("updated_at") < dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
    "i8": C("i8") > 3,
    "i8 beyond": C("i8") < 300,
    "i8 wider": C("i8") == pl.lit(5, pl.Int64),
    "i8 in wider": C("i8").is_in([5, 300]),
    "i8 as float": C("i8") > 0.5,
    "i8 as float mirrored": pl.lit(0.5) > C("i8"),
    "i8 as whole float": C("i8") >= 1.0,
    "i8 not as float": C("i8") != 1.0,
    "i64": C("i64") >= 2**53 + 1,
    "i64 least": C("i64") == -(2**63),
    "i64 in": C("i64").is_in([0, None, 5, -1]),
    "i64 negative": C("i64") < -1,
    "i64 as float": C("i64") <= 4.5,
    "i64 between": C("i64").is_between(0, 5),
    "u64": C("u64") >= 2**63,
    "i128 null": C("i128").is_null(),
    "dur": C("dur") >= dt.timedelta(hours=1),
    "s": C("s") == "\\'",
    "s braces": C("s") == "{condition}",
    "s less": C("s") < "\u00e9",
    "s is upper": C("s").is_in(["A", "\u00c9", "\U0001f986"]),
    "s null": C("s").is_null(),
    "s not null": C("s").is_not_null(),
    "s missing or a": C("s").is_null() | (C("s") == "a"),
    "s eq_missing": C("s").eq_missing("tab\tnew\nline"),
    "b": C("b"),
    "b not": ~C("b"),
    "b is": C("b") == True,  # noqa: E712
    "b is not": C("b") != True,  # noqa: E712
    "b less": C("b") < True,
    "b in": C("b").is_in([False]),
    "cat": C("cat") == "'",
    "cat in": C("cat").is_in(["a", "b", "zzz"]),
    "en": C("en") == "low",
    "en in": C("en").is_in(["high", "mid"]),
    "list null": C("list").is_null(),
    "struct not null": C("struct").is_not_null(),
    "bin null": C("bin").is_null(),
    "time null": C("time").is_not_null(),
    "dec null": C("dec").is_null(),
    "f32 null": C("f32").is_null(),
    "day null": C("day").is_null(),
    "quoted name": C(ODD) == 2,
    "name is a number": C("0") == 2,
    "shadowed id": C("metadata.id") == "a'b",
    "two": (C("i64") > 0) & (C("id") > "a"),
    "either": (C("i64") == 5) | (C("s") == "a") | (C("b")),
    "any_horizontal": pl.any_horizontal(C("i64") == 5, C("s") == "a"),
    "mixed": ((C("i64") == 5) | (C("s") == "a")) & (C("b") | C("s").is_null()),
}  # fmt: skip

#: Predicates that the database evaluates in part, or for which it keeps uncertain rows.
PART: dict[str, pl.Expr] = {
    "f64": C("f64") > 1,
    "f64 equal": C("f64") == 0.1,
    "f64 last digit": C("f64") == -2.30654604825513e-95,
    "f64 zero": C("f64") == 0,
    "f64 minus zero": C("f64") == -0.0,
    "f64 NaN": C("f64") == math.nan,
    "f64 not NaN": C("f64") != math.nan,
    "f64 to NaN": C("f64") >= math.nan,
    "f64 infinite": C("f64") < math.inf,
    "f64 minus infinite": C("f64") > -math.inf,
    "f64 in": C("f64").is_in([0.0, math.nan, 1e300, None, 0.30000000000000004, -math.inf]),
    "f64 2**53": C("f64") == 2**53,
    "f64 between": C("f64").is_between(-1.5, 2.5, closed="none"),
    "i64 open": C("i64").is_between(0, 5, closed="none"),
    "i128": C("i128") > 2**70,
    "u128": C("u128") < 6,
    "day": C("day") >= dt.date(2026, 1, 5),
    "day before": C("day") < dt.date(1000, 1, 1),
    "day is": C("day") == dt.date(1, 1, 1),
    "day is not": C("day") != dt.date(2026, 1, 5),
    "day in": C("day").is_in([dt.date(2026, 1, 5), dt.date(9999, 12, 31)]),
    "day between": C("day").is_between(dt.date(1, 1, 1), dt.date(2026, 1, 4)),
    "ms": C("ms") > EPOCH,
    "us": C("us") == dt.datetime(2026, 3, 29, 0, 30),
    "us before": C("us") <= dt.datetime(1, 1, 1),
    "us in": C("us").is_in([EPOCH, dt.datetime(2026, 3, 29, 0, 30)]),
    "ns": C("ns") < pl.lit(EPOCH, pl.Datetime("ns")),
    "utc": C("utc") >= dt.datetime(2026, 3, 29, 0, 30, tzinfo=UTC),
    "berlin": C("berlin") >= pl.lit(dt.datetime(2026, 10, 25, 0, 30)).dt.replace_time_zone("UTC").dt.convert_time_zone("Europe/Berlin"),
    "and more": (C("i64") > 0) & C("s").str.contains("a"),
    "and more inside": ((C("i64") > 0) & C("s").str.contains("a")) | (C("id") == "a'b"),
    "and a year beyond": (C("day") > pl.lit(2_932_897, pl.Int32).cast(pl.Date)) & (C("i64") >= 0),
    "between with one end known": C("day").is_between(pl.lit(-800_000, pl.Int32).cast(pl.Date), dt.date(2026, 1, 1)),
}  # fmt: skip

#: Predicates that are left to Polars.
LEFT: dict[str, pl.Expr] = {
    "or more": (C("i64") > 0) | C("s").str.contains("a"),
    "not in": ~C("id").is_in(["a"]),
    "ne_missing": C("s").ne_missing("a"),
    "in with nulls": C("s").is_in(["a", None], nulls_equal=True),
    "two columns": C("i8") < C("i64"),
    "arithmetic": C("i64") - 1 > 2,
    "cast": C("s").cast(pl.Int64, strict=False) > 1,
    "NUL": C("s") < "a\0b",
    "NUL in": C("s").is_in(["a", "b\0"]),
    "hash order": C("content_hash") > "abc",
    "hash not a hash": C("content_hash") != "abc",
    "xor": (C("i64") > 0) ^ (C("s") == "a"),
    "is_nan": C("f64").is_nan(),
    "i64 beyond floats": C("i64") > 2.0**53,
    "i64 NaN": C("i64") < math.nan,
    "f32": C("f32") == pl.lit(0.1, pl.Float32),
    "f64 in an int that it cannot hold": C("f64").cast(pl.Int64, strict=False) == 2**53 + 1,
    "u128 beyond": C("u128") > pl.lit(pl.Series([2**127], dtype=pl.UInt128)),
    "dec": C("dec") > Decimal("1.05"),
    "bin": C("bin") == b"",
    "time": C("time") > dt.time(12),
    "cat order": C("cat") < "b",
    "en order": C("en") < "high",
    "day as instant": C("day") > dt.datetime(2026, 1, 5, 12),
    "day beyond": C("day") > pl.lit(2_932_897, pl.Int32).cast(pl.Date),
    "us beyond": C("us") <= pl.lit(_far(86_400_000_000)[0], pl.Int64).cast(pl.Datetime("us")),
    "created beyond": C("created_at") < pl.lit(2**62, pl.Int64).cast(pl.Datetime("us", "UTC")),
    "year": C("day").dt.year() == 2026,
    "everything": pl.lit(True),
    "nothing": pl.lit(False),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
def test_predicates_that_the_database_evaluates(scanned: Scanned, name: str) -> None:
    """Only matching rows are returned by the database."""
    expected = scanned.check(lambda lf: lf.filter(EXACT[name]))
    [[_, where, limit, rows]] = scanned.asked
    assert where is not None
    assert limit is None
    assert rows == expected.height


@pytest.mark.parametrize("name", PART)
def test_predicates_that_the_database_evaluates_in_part(scanned: Scanned, name: str) -> None:
    """The database returns fewer than all rows, and all matching ones."""
    scanned.check(lambda lf: lf.filter(PART[name]))
    [[_, where, _, rows]] = scanned.asked
    assert where is not None
    assert rows < scanned.eager.height


@pytest.mark.parametrize("name", LEFT)
def test_predicates_that_are_left_to_polars(scanned: Scanned, name: str) -> None:
    """A predicate that has no equivalent in SQL is not pushed down."""
    scanned.check(lambda lf: lf.filter(LEFT[name]))
    assert [where for _, where, _, _ in scanned.asked] in ([None], [])


@pytest.mark.parametrize("predicate", [*EXACT.values(), *PART.values(), *LEFT.values()], ids=str)
def test_streaming_engine(scanned: Scanned, predicate: pl.Expr) -> None:
    """The streaming engine gives the same rows."""
    scanned.check(lambda lf: lf.filter(predicate), engine="streaming")


QUERIES: dict[str, Callable[[pl.LazyFrame], pl.LazyFrame]] = {
    "projection": lambda lf: lf.select("id", "s", "metadata.id"),
    "projection without the filtered column": lambda lf: lf.filter(C("i64") == 5, C("f64") > 0).select("id"),
    "sort and head": lambda lf: lf.sort("id").head(3),
    "filter, sort and head": lambda lf: lf.filter(C("i64") >= 0).sort("id").head(3),
    "filter, sort and head, by infinity": lambda lf: lf.filter(C("f64") < math.inf).sort("id").head(3),
    "top_k": lambda lf: lf.filter(C("i64") >= 0).top_k(3, by="id"),
    "bottom_k": lambda lf: lf.filter(C("s").str.len_chars() > 0).bottom_k(3, by="id").filter(C("i64") > 0),
    "len": lambda lf: lf.select(pl.len()),
    "filter and len": lambda lf: lf.filter(C("i64") == 5).select(pl.len()),
    "group": lambda lf: lf.filter(C("b")).group_by("b").agg(C("id").count()),
    "join": lambda lf: lf.select("id", "i8").join(lf.select("id", "b"), on="id").filter(C("b"), C("i8") > 0),
    "in an empty list": lambda lf: lf.filter(C("id").is_in([])),
    "no row": lambda lf: lf.filter(C("id") == "nope"),
    "no row and a limit": lambda lf: lf.filter(C("id") == "nope").head(3),
    "head of nothing": lambda lf: lf.head(0),
    "head of more": lambda lf: lf.head(1_000),
    "unnamed constant": lambda lf: lf.filter(C("i64") == pl.lit(2).sqrt().floor() + 4).select("id"),
}


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@pytest.mark.parametrize("name", QUERIES)
def test_queries(scanned: Scanned, name: str, engine: str) -> None:
    """The optimizations of Polars for a larger query (limits, hints, common subplans) change no result."""
    scanned.check(QUERIES[name], engine=engine)


def test_projection_reaches_the_database(scanned: Scanned) -> None:
    """Only the selected or filtered columns are fetched, and metadata only if one of its fields is."""
    scanned.check(lambda lf: lf.filter(C("content") == "a").select("id"))
    assert set(scanned.asked[0][0]) == {"id", "content"}
    scanned.check(lambda lf: lf.filter(C("i64") == 5).select("id"))
    assert set(scanned.asked[0][0]) == {"id", "metadata"}


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
def test_limit_reaches_the_database(scanned: Scanned, engine: str) -> None:
    """A limit becomes a LIMIT; one below a filter applies before it, one above a filter after it."""
    scanned.asked.clear()
    assert scanned.lazy.head(5).collect(engine=engine).height == 5
    assert scanned.asked[-1][1:] == [None, 5, 5]
    # Whichever five rows are returned, all of them have an id, and a filter finds nothing else.
    assert scanned.lazy.head(5).filter(C("id") != "").collect(engine=engine).height == 5
    assert scanned.asked[-1][1:] == [None, 5, 5]
    expected = scanned.eager.filter(C("b")).height
    assert expected > 5
    assert scanned.lazy.filter(C("b")).head(5).collect(engine=engine).height == 5
    assert scanned.asked[-1][2] is None


def _leaf(column: str, values: list[Any], dtype: pl.DataType) -> st.SearchStrategy[pl.Expr]:
    # A 128-bit literal can only be made from a Series.
    literal = st.sampled_from(values).map(
        lambda value: pl.lit(pl.Series([value], dtype=dtype)) if "128" in str(dtype) else pl.lit(value, dtype)
    )
    comparison = st.builds(
        lambda op, right, mirrored: getattr(right, op)(C(column)) if mirrored else getattr(C(column), op)(right),
        st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge", "eq_missing", "ne_missing"]),
        literal,
        st.booleans(),
    )
    members = st.lists(st.sampled_from([*values, None]), max_size=4)
    membership = members.map(lambda items: C(column).is_in(pl.Series(items, dtype=dtype).implode()))
    between = st.builds(C(column).is_between, literal, literal, st.sampled_from(["both", "left", "right", "none"]))
    return st.one_of(comparison, membership, between, st.just(C(column).is_null()), st.just(C(column).is_not_null()))


def _leaves() -> st.SearchStrategy[pl.Expr]:
    kinds: list[st.SearchStrategy[pl.Expr]] = [
        _leaf(name, [value for value in FIELDS[name].to_list() if value is not None], FIELDS[name].dtype)
        for name in ("i8", "i64", "u64", "i128", "u128", "f64", "f32", "s", "b", "dur", "dec", "0", ODD)
    ]
    # Python has no years 0 and 10000, so these literals stay in range.
    kinds += [_leaf("day", DAYS, pl.Date())]
    kinds += [
        _leaf(name, NANO_INSTANTS if name == "ns" else INSTANTS, FIELDS[name].dtype) for name in ("ms", "us", "ns")
    ]
    kinds += [_leaf("utc", [moment.replace(tzinfo=UTC) for moment in INSTANTS], FIELDS["utc"].dtype)]
    kinds += [_leaf(name, TEXTS, pl.String()) for name in ("id", "content", "metadata.id")]
    kinds += [_leaf("content_hash", [*map(_sha, TEXTS[:5]), "", "ABC"], pl.String())]
    hours = [dt.datetime(2026, 1, 1, hour, tzinfo=UTC) for hour in range(6)]
    kinds += [_leaf("created_at", hours, pl.Datetime("us", "UTC"))]
    anything = st.sampled_from([C("s").str.contains("a"), C("i8") < C("i64"), C("b"), C("f64") > C("i64")])
    floats = st.floats(allow_nan=True).map(lambda value: C("f64") >= value)
    as_float = st.builds(
        lambda op, value: getattr(C("i64"), op)(value),
        st.sampled_from(["eq", "ne", "lt", "le", "gt", "ge"]),
        st.sampled_from([0.0, 0.5, -0.5, 4.999, 5.0, 2.0**53 - 1, -(2.0**53) + 1, 2.0**53, 1e300, math.inf, math.nan]),
    )
    return st.one_of(*kinds, anything, floats, as_float)


PREDICATES = st.recursive(
    _leaves(),
    lambda inner: st.one_of(
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: reduce(and_, parts)),
        st.lists(inner, min_size=2, max_size=4).map(lambda parts: reduce(or_, parts)),
        inner.map(lambda part: ~part),
    ),
    max_leaves=8,
)


@settings(
    max_examples=examples(250), deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(predicate=PREDICATES)
def test_any_predicate(scanned: Scanned, predicate: pl.Expr) -> None:
    """For every combination of comparisons, conjunctions and negations the store returns the rows of the frame."""
    scanned.check(lambda lf: lf.filter(predicate))


@settings(max_examples=examples(100), deadline=None)
@given(values=st.lists(st.floats(), min_size=1, max_size=3))
@example(values=[-2.30654604825513e-95])
def test_float_constants_keep_their_last_digit(values: list[float]) -> None:
    """Constants are compared exactly as written, in the database and in Polars."""
    frame = pl.DataFrame({"x": values})
    asked: list[ScanQuery] = []

    def read(query: ScanQuery) -> Iterator[pl.DataFrame]:
        asked.append(query)
        yield frame

    lf = lazy_frame(frame.schema, {"x": MetadataField("x", pl.Float64())}, read, name="floats")
    for value in values:
        assert lf.filter(C("x") == value).collect().equals(frame.filter(C("x") == value))
        assert repr(asked[-1].where) == repr(Compare(MetadataField("x", pl.Float64()), "=", value))


def test_type_errors_are_the_same(scanned: Scanned) -> None:
    """A comparison that is an error on a frame is an error on a scan."""
    elsewhere = pl.lit(dt.datetime(2026, 1, 1)).dt.replace_time_zone("Europe/Paris")
    for predicate in (C("created_at") > elsewhere, C("i64") == "a", C("s") > 1, C("id").is_in([1])):
        with pytest.raises(pl.exceptions.PolarsError) as lazily:
            scanned.lazy.filter(predicate).collect()
        with pytest.raises(type(lazily.value)):
            scanned.eager.filter(predicate)


@pytest.mark.slow
@pytest.mark.parametrize("terms", [100, 300, 700])
def test_long_chains(scanned: Scanned, terms: int) -> None:
    """A chain of any length returns the right rows; up to a certain length it is pushed down as one list."""
    predicate = reduce(or_, [C("i64") == number for number in range(terms)])
    scanned.check(lambda lf: lf.filter(predicate).select("id"))
    where = scanned.asked[0][1]
    assert where is None or len(where.parts) == terms
    assert where is not None or terms > 100


@pytest.mark.slow
def test_large_lists(scanned: Scanned) -> None:
    """Ten thousand ids are pushed down; larger lists are left to Polars."""
    for count, pushed in ((10_000, True), (10_001, False), (200_000, False)):
        ids = [f"k{number}" for number in range(count - 1)] + ["a'b"]
        scanned.check(lambda lf, ids=ids: lf.filter(C("id").is_in(ids)))
        assert (scanned.asked[0][1] is not None) == pushed


def test_a_field_of_json_text_is_only_compared_with_null() -> None:
    """Values without a common dtype are read as JSON text, which the database would not compare in the same way."""
    field = MetadataField("x", None)
    assert predicates.literals(field, "=", pl.Series(["a"])) is None
    assert predicates.render(IsNull(field), predicates.POSTGRESQL) == "((metadata->>'x') COLLATE \"C\") IS NULL"


def test_dialects() -> None:
    """The same predicate in both dialects, quoted."""
    odd = MetadataField("a'/~", pl.String())
    assert predicates.render(Compare(odd, "=", "it's"), predicates.POSTGRESQL) == (
        "(((metadata->>'a''/~') COLLATE \"C\") = 'it''s')"
    )
    assert predicates.render(Compare(odd, "=", "it's"), predicates.DUCKDB) == (
        "(json_extract_string(metadata, '/a''~1~0') = 'it''s')"
    )
    assert predicates.render(IsIn(EntityColumn("id"), ()), predicates.DUCKDB) == "false"


@pytest.mark.parametrize("entity_type", ["a\0b", "a\udc00"])
def test_an_impossible_type_is_not_queried(entity_type: str) -> None:
    """A type name that would end or break the statement is not part of it."""
    for dialect in (predicates.POSTGRESQL, predicates.DUCKDB):
        placeholders = predicates.placeholders(dialect, ["id"], entity_type, None, None)
        assert "{columns} {condition} {limit}".format(**placeholders).split() == ["id", "false"]


def test_the_reader_is_closed_early() -> None:
    """A reader with remaining rows is closed once no more are needed, and when an error occurs."""
    for query, fails in ((lambda lf: lf.head(3), False), (lambda lf: lf.filter(C("x") > 0).head(3), False),
                         (lambda lf: lf.filter(C("x").cast(pl.String).str.to_integer() > 3), True)):  # fmt: skip
        state: list[str] = []

        def read(_: ScanQuery, state: list[str] = state) -> Iterator[pl.DataFrame]:
            try:
                for number in itertools.count(1):
                    yield pl.DataFrame({"x": [number]})
                    if number == 1_000:
                        raise RuntimeError("enough")
            finally:
                state.append("closed")

        lf = lazy_frame({"x": pl.Int64()}, {"x": MetadataField("x", pl.Int64())}, read, name="numbers")
        if fails:
            with pytest.raises(Exception, match="enough"):
                query(lf).collect()
        else:
            assert query(lf).collect()["x"].to_list() == [1, 2, 3]
        # Polars releases a source in a separate thread, and only when it gets other work.
        deadline = time.monotonic() + 120
        while not state and time.monotonic() < deadline:
            time.sleep(0.01)
        assert state == ["closed"]


def test_a_reader_may_be_any_iterator() -> None:
    """It need not be a generator."""
    frames = [pl.DataFrame({"x": [1, 2]}), pl.DataFrame({"x": [3]})]
    lf = lazy_frame({"x": pl.Int64()}, {}, lambda _: iter(frames), name="frames")
    assert lf.filter(C("x") > 1).collect()["x"].to_list() == [2, 3]
    assert lazy_frame({"x": pl.Int64()}, {}, lambda _: iter([]), name="none").collect().schema == {"x": pl.Int64}
