"""Generated tables on both engines against a model in plain Python, row by row.

The columns, types, constraints and defaults of each table are drawn from a seed, and so are the frames: good rows, bad
rows, repeated keys, nulls, and frames with fewer columns. $ENTITYFRAMES_TABLES is the number of tables, and
$ENTITYFRAMES_SEED the first seed.
"""

from __future__ import annotations

import json
import math
import os
import random
import struct
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl
import pytest

import entityframes as ef

COUNT = int(os.environ.get("ENTITYFRAMES_TABLES", "40"))
FIRST = int(os.environ.get("ENTITYFRAMES_SEED", "0"))


class InvalidError(Exception):
    """A value that a column does not take."""


@dataclass(frozen=True)
class Kind:
    """A type of a column: how values are drawn, and what is stored for them.

    Args:
        sql: the type on each engine.
        draw: draws a value, and a dtype in which a frame may have it.
        stored: the value that is stored for a value; raises InvalidError.
        dtypes: the dtypes in which a frame may have the column.
    """

    sql: tuple[str, str]
    dtypes: tuple[Any, ...]
    draw: Callable[[random.Random, Any], Any]
    stored: Callable[[Any], Any]


def _integer(bits: int) -> Kind:
    high = 2 ** (bits - 1) - 1

    def draw(rng: random.Random, dtype: Any) -> Any:
        value = rng.choice([0, 1, -1, 7, rng.randint(-100, 100), high, -high - 1, high + 1 if bits < 64 else 5])
        if dtype == pl.String:
            return (
                rng.choice([str(value), f" {value} ", f"{value}.0", "x", "", "1.5"])
                if rng.random() < 0.5
                else str(value)
            )
        if dtype == pl.Float64:
            return rng.choice([float(value % 1000), 1.5, math.nan, math.inf, float(value % 7)])
        return value

    def stored(value: Any) -> int:
        try:
            number = Decimal(value.strip()) if isinstance(value, str) else Decimal(value)
        except ArithmeticError:
            raise InvalidError from None
        if not number.is_finite() or number != number.to_integral_value() or not -high - 1 <= number <= high:
            raise InvalidError
        return int(number)

    names = {16: "smallint", 32: "integer", 64: "bigint"}
    return Kind((names[bits], names[bits]), (pl.Int64, pl.Float64, pl.String), draw, stored)


def _float(bits: int) -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        value = rng.choice([0.0, 1.5, -2.25, 0.1, 1e10, math.nan, math.inf, 0.123456789012345, 1e300])
        return str(value) if dtype == pl.String else value

    def narrow(value: float) -> float:
        try:
            return struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            raise InvalidError from None

    def stored(value: Any) -> float:
        number = float(value)
        if bits == 64 or not math.isfinite(number):
            return number
        narrowed = narrow(number)
        # By the shortest text that names the narrow number.
        shortest = next(text for digits in range(1, 10) if narrow(float(text := f"{narrowed:.{digits}g}")) == narrowed)
        if float(shortest) != number:
            raise InvalidError
        return narrowed

    return Kind((("real", "double precision")[bits == 64],) * 2, (pl.Float64, pl.String), draw, stored)


def _decimal() -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        value = rng.choice(["0", "1.5", "-2.25", "9999.99", "10000", "1.234", "1.50", "-0.01"])
        return {pl.String: str, pl.Float64: float}.get(dtype, Decimal)(value)

    def stored(value: Any) -> Decimal:
        number = Decimal(str(value))
        if number.quantize(Decimal("0.01")) != number or abs(number) >= 10_000:
            raise InvalidError
        return number.quantize(Decimal("0.01"))

    return Kind(("numeric(6,2)",) * 2, (pl.String, pl.Float64, pl.Decimal(10, 3)), draw, stored)


def _one_of(
    sql: str | tuple[str, str], dtypes: tuple[Any, ...], values: list[Any], stored: Callable[[Any], Any]
) -> Kind:
    both = sql if isinstance(sql, tuple) else (sql, sql)
    return Kind(both, dtypes, lambda rng, dtype: rng.choice(values), stored)


def _text(value: str) -> str:
    if "\0" in value:
        raise InvalidError
    return value


def _enum(value: str) -> str:
    if value not in ("sad", "ok", "so'so"):
        raise InvalidError
    return value


def _uuid(value: str) -> str:
    try:
        return str(uuid.UUID(value))
    except ValueError:
        raise InvalidError from None


def _json(value: str) -> Any:
    try:
        json.loads(value)
    except ValueError:
        raise InvalidError from None
    return value


def _date(value: Any) -> date:
    if isinstance(value, datetime):
        if value.time() != datetime.min.time():
            raise InvalidError
        return value.date()
    if isinstance(value, str):
        try:
            return date.fromisoformat(value)
        except ValueError:
            raise InvalidError from None
    return value


def _dates() -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        day = rng.choice([date(2020, 2, 29), date(1, 1, 1), date(9999, 12, 31), date(1970, 1, 1)])
        if dtype == pl.String:
            return rng.choice([day.isoformat(), "2021-02-29", "soon"])
        if dtype == pl.Datetime("us"):
            return rng.choice([datetime(2020, 2, 29), datetime(2020, 2, 29, 12, 30)])
        return day

    return Kind(("date", "date"), (pl.Date, pl.String, pl.Datetime("us")), draw, _date)


def _timestamps() -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        when = rng.choice([datetime(2020, 1, 1, 12, 30, 1, 5), datetime(1900, 1, 1), datetime(2500, 6, 7, 8, 9, 10)])
        if dtype == pl.String:
            return rng.choice([str(when), when.isoformat(), "12:00", "2020-01-01 00:00:00.1234567"])
        return when

    def stored(value: Any) -> datetime:
        if isinstance(value, str):
            if value in ("12:00", "2020-01-01 00:00:00.1234567"):
                raise InvalidError
            return datetime.fromisoformat(value)
        return value

    return Kind(("timestamp", "timestamp"), (pl.Datetime("us"), pl.Datetime("ms"), pl.String), draw, stored)


def _zoned() -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        when = rng.choice([datetime(2020, 1, 1, 12, tzinfo=UTC), datetime(1950, 1, 1, tzinfo=UTC)])
        if dtype == pl.String:
            return rng.choice(
                [when.isoformat(), "2020-01-01 14:00:00+02", "2020-01-01T12:00:00Z", "2020-01-01 12:00:00"]
            )
        return when

    def stored(value: Any) -> datetime:
        if isinstance(value, str):
            text = value.replace("Z", "+00:00")
            when = datetime.fromisoformat(text + ":00" if text.endswith("+02") else text)
            if when.tzinfo is None:
                raise InvalidError
            return when.astimezone(UTC)
        return value

    return Kind(("timestamptz", "timestamptz"), (pl.Datetime("us", "Europe/Berlin"), pl.String), draw, stored)


def _booleans() -> Kind:
    def draw(rng: random.Random, dtype: Any) -> Any:
        return rng.choice(["true", "F", " yes ", "maybe"]) if dtype == pl.String else rng.random() < 0.5

    def stored(value: Any) -> bool:
        if isinstance(value, bool):
            return value
        known = {"true": True, "f": False, "yes": True}
        if value.strip().lower() not in known:
            raise InvalidError
        return known[value.strip().lower()]

    return Kind(("boolean", "boolean"), (pl.Boolean, pl.String), draw, stored)


def _arrays(inner: str, values: list[Any], dtype: Any, stored: Callable[[Any], Any]) -> Kind:
    def draw(rng: random.Random, _: Any) -> Any:
        return [rng.choice([*values, None]) for _ in range(rng.randint(0, 3))]

    def of_all(value: list[Any]) -> list[Any]:
        return [None if one is None else stored(one) for one in value]

    return Kind((f"{inner}[]", f"{inner}[]"), (pl.List(dtype),), draw, of_all)


KINDS = {
    "int2": _integer(16),
    "int4": _integer(32),
    "int8": _integer(64),
    "float4": _float(32),
    "float8": _float(64),
    "numeric": _decimal(),
    "text": _one_of("text", (pl.String,), ["", "a", "A", "é", "x" * 300, 'it\'s "q" \\ {b}', "bad\0"], _text),
    "enum": _one_of(("mood", "mood"), (pl.String, pl.Categorical), ["sad", "ok", "so'so", "happy"], _enum),
    "uuid": _one_of(
        "uuid", (pl.String,),
        ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "{a0eebc999c0b4ef8bb6d6bb9bd380a11}", "x"],
        _uuid,
    ),
    "json": _one_of("json", (pl.String,), ['{"a": 1}', '{"a":1}', "[1, null]", '"x"', "{", ""], _json),
    "bytea": _one_of(("bytea", "blob"), (pl.Binary,), [b"", b"\x00\xff", b"abc"], lambda value: value),
    "date": _dates(),
    "timestamp": _timestamps(),
    "timestamptz": _zoned(),
    "boolean": _booleans(),
    "text[]": _arrays("text", ["", "a", 'q"\\', "{x,y}", "NULL", "bad\0"], pl.String, _text),
    "int[]": _arrays("integer", [1, -5, 2**31], pl.Int64, _integer(32).stored),
}  # fmt: skip
#: Types of key columns.
KEYS = ("int4", "int8", "text", "uuid", "date", "int2")


@dataclass
class Column:
    name: str
    kind: Kind
    type: str
    required: bool = False
    default: Any = None
    #: Whether a CHECK allows only values of at least 0.
    positive: bool = False
    #: Whether a foreign key allows only 1, 2 and 7.
    references: bool = False

    def ddl(self, place: int) -> str:
        quoted = '"' + self.name.replace('"', '""') + '"'
        text = f"{quoted} {self.kind.sql[place]}"
        if self.default is not None:
            text += f" DEFAULT {self.default}"
        if self.required:
            text += " NOT NULL"
        if self.positive:
            text += f" CHECK ({quoted} >= 0)"
        if self.references:
            text += " REFERENCES numbers (n)"
        return text


NAMES = [
    "a",
    "B",
    "select",
    "with space",
    'quo"te',
    "row",
    "status",
    "é",
    "c0",
    "position",
    "{table}",
    "$1",
    "value:x",
    "t",
    "s",
]


@dataclass
class Made:
    """A generated table with the model of its rows."""

    rng: random.Random
    name: str
    key: list[Column] = field(default_factory=list)
    others: list[Column] = field(default_factory=list)
    rows: dict[tuple, dict[str, Any]] = field(default_factory=dict)

    def draw(self) -> None:
        rng = self.rng
        names = rng.sample(NAMES, k=rng.randint(2, 7))
        for name in names[: rng.randint(1, min(2, len(names) - 1))]:
            kind = rng.choice(KEYS)
            self.key.append(Column(name, KINDS[kind], kind, required=True))
        for name in names[len(self.key) :]:
            kind = rng.choice(list(KINDS))
            column = Column(name, KINDS[kind], kind, required=rng.random() < 0.3)
            if kind in ("int4", "int8") and rng.random() < 0.5:
                column.default = rng.choice([1, 7])
            if kind in ("int4", "float8", "numeric") and rng.random() < 0.4:
                column.positive = True
            elif kind == "int4" and rng.random() < 0.4:
                column.references = True
            self.others.append(column)

    @property
    def columns(self) -> list[Column]:
        return [*self.key, *self.others]

    def ddl(self, place: int) -> str:
        keys = ", ".join('"' + column.name.replace('"', '""') + '"' for column in self.key)
        columns = ", ".join(column.ddl(place) for column in self.columns)
        return f'CREATE TABLE "{self.name}" ({columns}, PRIMARY KEY ({keys}))'

    def frame(self) -> pl.DataFrame:
        rng = self.rng
        sent = [*self.key, *rng.sample(self.others, k=rng.randint(0, len(self.others)))]
        rng.shuffle(sent)
        height = rng.choice([0, 1, 5, 12, 30])
        columns = []
        # The same few keys again and again, so that there are updates and duplicates.
        for column in sent:
            dtype = rng.choice(column.kind.dtypes)
            values = [
                None if rng.random() < 0.08 else self._value(column, dtype) for _ in range(height)
            ]  # fmt: skip
            if all(value is None for value in values) and rng.random() < 0.5:
                dtype = pl.Null
            if dtype == pl.Categorical:
                columns.append(pl.Series(column.name, values, dtype=pl.String).cast(pl.Categorical))
            elif dtype == pl.Datetime("us", "Europe/Berlin"):
                series = pl.Series(column.name, values, dtype=pl.Datetime("us", "UTC"))
                columns.append(series.dt.convert_time_zone("Europe/Berlin"))
            else:
                columns.append(pl.Series(column.name, values, dtype=dtype))
        return pl.DataFrame(columns)

    def _value(self, column: Column, dtype: Any) -> Any:
        value = column.kind.draw(self.rng, dtype)
        if column.kind.dtypes[0] == pl.Int64 and dtype == pl.Int64 and self.rng.random() < 0.5:
            return self.rng.choice([1, 2, 7])
        return value

    def upsert(self, frame: pl.DataFrame, options: dict[str, Any]) -> list[str]:
        """The expected status of each row; changes the rows of the model."""
        known = {column.name: column for column in self.columns}
        names = [column.name for column in self.key]
        converted: list[dict[str, Any] | None] = []
        for row in frame.iter_rows(named=True):
            try:
                values = {
                    name: None if value is None else known[name].kind.stored(value) for name, value in row.items()
                }
            except InvalidError:
                values = None
            converted.append(None if values is None or any(values[name] is None for name in names) else values)
        chosen: dict[tuple, int] = {}
        for place, values in enumerate(converted):
            if values is not None:
                key = tuple(values[name] for name in names)
                if options["on_duplicate"] == "last" or key not in chosen:
                    chosen[key] = place
        statuses = []
        for place, values in enumerate(converted):
            if values is None:
                statuses.append("failed")
            elif chosen[tuple(values[name] for name in names)] != place:
                statuses.append("duplicate")
            else:
                statuses.append(self._write(values, options))
        return statuses

    def _write(self, values: dict[str, Any], options: dict[str, Any]) -> str:
        key = tuple(values[column.name] for column in self.key)
        keep = options["nulls"] == "keep"
        stored = self.rows.get(key)
        if stored is not None:
            if options["on_match"] != "update":
                return "failed" if options["on_match"] == "fail" else "unchanged"
            new = {name: stored[name] if keep and value is None else value for name, value in values.items()}
            compared = [name for name in new if name not in options["ignore"]]
            if all(same(stored[name], new[name]) for name in compared):
                return "unchanged"
            row = {**stored, **new}
        else:
            row = {column.name: column.default for column in self.columns}
            row |= {name: value for name, value in values.items() if value is not None or not keep}
        if not self._allowed(row):
            return "failed"
        self.rows[key] = row
        return "created" if stored is None else "updated"

    def _allowed(self, row: dict[str, Any]) -> bool:
        for column in self.columns:
            value = row[column.name]
            if column.required and value is None:
                return False
            # NaN is greater than every number.
            if column.positive and value is not None and value < 0:
                return False
            if column.references and value is not None and value not in (1, 2, 7):
                return False
        return True


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one) and math.isnan(other):
        return True
    return one == other


def check(seed: int, store: ef.EntityStore, sql: Callable[..., Any], engine: str) -> None:
    """Generate a table and a few upserts, and compare each with the model."""
    rng = random.Random(seed)
    made = Made(rng, f"t {seed}")
    made.draw()
    sql(made.ddl(engine == "duckdb"))
    table = store.table(f'"{made.name}"')
    try:
        for _ in range(rng.randint(1, 3)):
            frame = made.frame()
            sent = [name for name in frame.columns if name not in [column.name for column in made.key]]
            options = {
                "on_match": rng.choice(["update", "update", "update", "skip", "fail"]),
                "nulls": rng.choice(["write", "write", "keep"]),
                "on_duplicate": rng.choice(["last", "first"]),
                "ignore": rng.sample(sent, k=1) if sent and rng.random() < 0.15 else [],
            }
            given = iter([frame]) if rng.random() < 0.2 else frame
            result = table.upsert(given, **options, batch_size=rng.choice([None, None, 50]), progress=False)
            expected = made.upsert(frame, options)
            outcomes = result.outcomes.select("row", "status", "rule", "error").rows()
            wrong = [(row, wanted) for row, wanted in zip(outcomes, expected, strict=True) if row[1] != wanted]
            assert not wrong, (options, [(*one, frame.row(one[0][0], named=True)) for one in wrong])
            stored = {
                tuple(row[column.name] for column in made.key): row for row in table.read().iter_rows(named=True)
            }  # fmt: skip
            assert stored.keys() == made.rows.keys()
            for key, row in made.rows.items():
                assert all(same(stored[key][name], value) for name, value in row.items()), (stored[key], row)
            again = table.get(table.read([column.name for column in made.key]))
            assert again["found" if "found" in again.columns else "found:"].all()
    except Exception as error:
        error.add_note(f"seed {seed}: {made.ddl(engine == 'duckdb')}")
        raise
    finally:
        sql(f'DROP TABLE "{made.name}"')


def test_generated_tables(store: ef.EntityStore, sql: Callable[..., Any], engine: str) -> None:
    """Every row has the outcome, and every stored row the values, that the model has."""
    sql("CREATE TYPE mood AS ENUM ('sad', 'ok', 'so''so')", "CREATE TABLE numbers (n integer PRIMARY KEY)")
    sql("INSERT INTO numbers VALUES (1), (2), (7)")
    for seed in range(FIRST, FIRST + COUNT):
        check(seed, store, sql, engine)


def test_the_model_notices(store: ef.EntityStore, sql: Callable[..., Any], engine: str) -> None:
    """A model with another rule is contradicted."""
    made = Made(random.Random(1), "t")
    made.key, made.others = [Column("k", KINDS["int4"], "int4", True)], [Column("v", KINDS["int4"], "int4")]
    sql(made.ddl(engine == "duckdb"))
    frame = pl.DataFrame({"k": [1, 1, None, 2**31], "v": [1, 2, 3, 4]})
    options = {"on_match": "update", "nulls": "write", "on_duplicate": "last", "ignore": []}
    assert made.upsert(frame, options) == ["duplicate", "created", "failed", "failed"]
    result = store.table("t").upsert(frame, on_duplicate="first", progress=False)
    with pytest.raises(AssertionError):
        assert result.outcomes["status"].to_list() == made.upsert(frame, options)
