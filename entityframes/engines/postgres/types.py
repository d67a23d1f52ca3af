"""The types of PostgreSQL: columns of a table, how values are staged and read, and the types of new columns."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import polars as pl

from entityframes.engines.tables import (
    Column,
    Family,
    canonical,
    literal,
)
from entityframes.errors import SchemaError

#: The families of types by the name of the type.
FAMILIES: dict[str, Family] = {
    "bool": "boolean", "int2": "integer", "int4": "integer", "int8": "integer", "float4": "float", "float8": "float",
    "numeric": "decimal", "text": "text", "varchar": "text", "bpchar": "text", "name": "text", "char": "text",
    "citext": "text",
    "bytea": "binary", "uuid": "uuid", "date": "date", "timestamp": "timestamp", "timestamptz": "timestamptz",
    "time": "time", "interval": "interval", "json": "json", "jsonb": "json", "vector": "vector", "halfvec": "vector",
}  # fmt: skip
BITS = {"int2": 16, "int4": 32, "int8": 64, "float4": 32, "float8": 64}
DTYPES: dict[Family, pl.DataType] = {"boolean": pl.Boolean(), "binary": pl.Binary(), "date": pl.Date()}
INTEGERS: dict[int | None, pl.DataType] = {16: pl.Int16(), 32: pl.Int32(), 64: pl.Int64()}

#: The types of the staging table whose values the driver copies as they are. All others are staged as text.
COPIED = {
    pl.Boolean(): "boolean", pl.Int16(): "smallint", pl.Int32(): "integer", pl.Int64(): "bigint", pl.Float32(): "real",
    pl.Float64(): "double precision", pl.Binary(): "bytea", pl.Date(): "date", pl.Datetime("us"): "timestamp",
    pl.Datetime("us", "UTC"): "timestamptz",
}  # fmt: skip

#: The types of text that need no conversion.
PLAIN_TEXT = re.compile(r"text|character varying(\(\d+\))?")


def described_column(row: dict[str, Any]) -> Column:
    """A column as described by table_columns."""
    kind = {name: row[name] for name in ("labels", "typmod", "nondeterministic")}
    element = None
    if row["element"] is not None:
        element = typed("element", row["element_sql_type"], row["element"], row["element_kind"], None, **kind)
        element = None if element.family in ("other", "interval", "json", "vector") else element
    column = typed(row["name"], row["sql_type"], row["type"], row["kind"], element, **kind)
    return replace(
        column,
        nullable=not row["required"],
        default=None if row["generated"] else row["default"],
        generated=bool(row["generated"]) or row["identity"] == "a",
        identity=bool(row["identity"]),
        collation=row["collation"],
        exact=row["exact"],
    )


def typed(
    name: str,
    sql_type: str,
    base: str,
    kind: str,
    element: Column | None,
    *,
    labels: list[str] | None,
    typmod: int,
    nondeterministic: bool,
) -> Column:
    """A column of a type.

    Args:
        name: the name of the column.
        sql_type: the type as SQL text.
        base: the name of the type that a domain is based on, or else of the type.
        kind: the ``typtype`` of this type.
        element: the type of the elements of an array.
        labels: the labels of an enum.
        typmod: the ``atttypmod``, which encodes lengths and digits; -1 if there is none.
        nondeterministic: whether the collation considers different texts equal.
    """
    if element is not None:
        incomparable = element.incomparable
        dtype = pl.List(element.dtype)
        return Column(name, sql_type, "array", dtype, element=element, loose=element.loose, incomparable=incomparable)
    if kind == "e":
        return Column(name, sql_type, "enum", labels=tuple(labels or ()))
    family = FAMILIES.get(base, "other")
    column = Column(name, sql_type, family, incomparable=family == "other" or base == "json")
    if family == "integer":
        return replace(column, dtype=INTEGERS[BITS[base]], size=BITS[base])
    if family == "float":
        return replace(column, dtype=pl.Float32() if base == "float4" else pl.Float64(), size=BITS[base])
    if family == "decimal" and typmod >= 4:
        precision, scale = (typmod - 4) >> 16 & 0xFFFF, ((typmod - 4 & 0x7FF) ^ 1024) - 1024
        fits = precision <= 38 and 0 <= scale <= precision
        read: pl.DataType = pl.Decimal(precision, scale) if fits else pl.String()
        return replace(column, dtype=read, precision=precision, scale=scale)
    if family == "text":
        if base in ("name", "char"):
            return replace(column, size=63 if base == "name" else 1, in_bytes=True)
        size = typmod - 4 if base in ("varchar", "bpchar") and typmod >= 4 else None
        return replace(column, size=size, loose=base == "citext" or nondeterministic, padded=base == "bpchar")
    if family == "time":
        return replace(column, dtype=pl.Time(), scale=None if typmod < 0 else typmod)
    if family in ("timestamp", "timestamptz"):
        zone = "UTC" if family == "timestamptz" else None
        return replace(column, dtype=pl.Datetime("us", zone), scale=None if typmod < 0 else typmod)
    if family == "vector":
        return replace(column, dtype=pl.List(pl.Float32()), size=None if typmod < 0 else typmod)
    return replace(column, dtype=DTYPES.get(family, pl.String()), loose=family == "interval")


def staging_type(column: Column) -> str:
    """The type of a column of the staging table."""
    if copied := COPIED.get(canonical(column)):
        return copied
    return f"text COLLATE {column.collation}" if column.collation else "text"


def cast_to(name: str, column: Column, alias: str = "s") -> str:
    """A staged value as a value of the column."""
    if canonical(column) in COPIED or PLAIN_TEXT.fullmatch(column.sql_type):
        # Not cast, because a cast to varchar(n) truncates.
        return f"{alias}.{name}"
    return f"{alias}.{name}::{column.sql_type}"


def as_staged(values: pl.Series, column: Column) -> pl.Series:
    """Canonical values as they are copied: arrays as text in the form of PostgreSQL."""
    return as_text(values, column) if isinstance(values.dtype, pl.List | pl.Time) else values


def as_text(values: pl.Series, column: Column) -> pl.Series:
    """Canonical values as text in the form of PostgreSQL."""
    if not isinstance(values.dtype, pl.List):
        if values.dtype == pl.Binary:
            return "\\x" + values.bin.encode("hex")
        if isinstance(values.dtype, pl.Date | pl.Datetime):
            return dates_as_text(values)
        if values.dtype == pl.Time:
            # A cast would cut the digits of the second.
            return values.dt.to_string("%H:%M:%S%.f")
        return values.cast(pl.String)
    items = values.list.explode(empty_as_null=False, keep_nulls=False)
    texts = as_text(items, column)
    if column.family != "vector":
        escaped = texts.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
        texts = ('"' + escaped + '"').fill_null("NULL")
    lengths = pl.DataFrame({"length": values.list.len()}).with_row_index("row")
    rows = lengths.drop_nulls().select(pl.col("row").repeat_by("length").list.explode(empty_as_null=False)).to_series()
    joined = pl.DataFrame({"row": rows, "text": texts}).group_by("row").agg(pl.col("text").str.join(","))
    left, right = "[]" if column.family == "vector" else "{}"
    text = pl.lit(left) + pl.col("text").fill_null("") + pl.lit(right)
    listed = lengths.join(joined, on="row", how="left", maintain_order="left")
    return listed.select(pl.when(pl.col("length").is_not_null()).then(text).alias(values.name)).to_series()


def dates_as_text(values: pl.Series) -> pl.Series:
    """Dates and timestamps as text; Polars and PostgreSQL write years before 1 and after 9999 differently."""
    texts, years = values.cast(pl.String), values.dt.year()
    for place in ((years < 1) | (years > 9999)).fill_null(False).arg_true():
        year = years[place]
        rest = texts[place].removeprefix("-").removeprefix("+").partition("-")[2]
        texts[place] = f"{year:04}-{rest}" if year > 0 else f"{1 - year:04}-{rest} BC"
    return texts


def from_text(text: str, column: Column) -> str:
    """A parameter, which is text, as a value of the column."""
    collate = f" COLLATE {column.collation}" if column.collation else ""
    if PLAIN_TEXT.fullmatch(column.sql_type):
        return text + collate
    return f"{text}::{column.exact or column.sql_type}{collate}"


#: The families that the driver reads without loss, also as values of arrays.
READ_FAMILIES = ("boolean", "integer", "float", "binary", "date", "timestamp", "timestamptz", "time")


def read_expression(column: Column) -> str:
    """A column as the driver returns it without loss."""
    value = f"t.{column.quoted}"
    if column.family == "vector":
        return f"{value}::real[]"
    one = column.element or column
    native = one.family in READ_FAMILIES
    kind = column.sql_type if native else "text[]" if column.element else "text"
    # The cast of text(inet) always adds a netmask.
    read = f"textin(inet_out({value}))" if column.sql_type == "inet" else value if native else f"{value}::{kind}"
    refused = [f"array_ndims({value}) > 1"] if column.element else []
    if unreadable := unless_readable("e" if column.element else value, one):
        refused.append(
            f"EXISTS (SELECT FROM unnest({value}) AS e WHERE {unreadable})" if column.element else unreadable
        )
    if not refused:
        return read
    # This cast fails, and the error shows the message.
    message = literal(f"column {column.name} has a value that a dataframe cannot represent: ")
    failing = "integer::text" if kind == "text" else kind
    wrong = f"({message} || {value}::text)::{failing}"
    return f"CASE WHEN {' OR '.join(refused)} THEN {wrong} ELSE {read} END"


def unless_readable(value: str, column: Column) -> str | None:
    """Whether a value cannot be represented by the dtype that is read; None if each can."""
    if column.family in ("date", "timestamp", "timestamptz"):
        return f"NOT isfinite({value})"
    if column.family == "time":
        return f"{value} = '24:00'"
    return f"{value} = 'NaN'" if isinstance(column.dtype, pl.Decimal) else None


def sql_type(dtype: pl.DataType, name: str) -> str:
    """The SQL type of a new column for a dtype.

    Raises:
        SchemaError: no type holds the values of this dtype.
    """
    simple: dict[Any, str] = {
        pl.Boolean: "boolean", pl.Int8: "smallint", pl.Int16: "smallint", pl.Int32: "integer", pl.Int64: "bigint",
        pl.UInt8: "smallint", pl.UInt16: "integer", pl.UInt32: "bigint", pl.UInt64: "numeric(20,0)", pl.Float32: "real",
        pl.Float64: "double precision", pl.String: "text", pl.Categorical: "text", pl.Enum: "text", pl.Binary: "bytea",
        pl.Date: "date", pl.Time: "time", pl.Duration: "interval", pl.Struct: "jsonb", pl.Int128: "numeric(39,0)",
        pl.Null: "text",
    }  # fmt: skip
    if isinstance(dtype, pl.Datetime):
        return "timestamptz" if dtype.time_zone else "timestamp"
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})" if dtype.precision else "numeric"
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        if isinstance(inner, pl.List | pl.Array | pl.Struct):
            return "jsonb"
        return f"{sql_type(inner, name)}[]"  # type: ignore[arg-type]
    if found := simple.get(dtype.base_type()):
        return found
    raise SchemaError(f"column {name!r} is {dtype}, for which there is no SQL type", advice="cast it first")
