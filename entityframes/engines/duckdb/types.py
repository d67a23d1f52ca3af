"""The types of DuckDB: columns of a table, how values are compared and read, and the types of new columns."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import polars as pl

from entityframes.engines.tables import (
    Column,
    Family,
    quoted,
)
from entityframes.errors import SchemaError

#: The family and the bits of the types by name.
FAMILIES: dict[str, tuple[Family, int | None]] = {
    "BOOLEAN": ("boolean", None), "TINYINT": ("integer", 8), "SMALLINT": ("integer", 16), "INTEGER": ("integer", 32),
    "BIGINT": ("integer", 64), "HUGEINT": ("integer", 128), "BIGNUM": ("integer", None), "FLOAT": ("float", 32),
    "DOUBLE": ("float", 64),
    "VARCHAR": ("text", None), "BLOB": ("binary", None), "UUID": ("uuid", None), "DATE": ("date", None),
    "TIMESTAMP": ("timestamp", 6), "TIMESTAMP_S": ("timestamp", 0), "TIMESTAMP_MS": ("timestamp", 3),
    "TIMESTAMP_NS": ("timestamp", 9), "TIMESTAMP WITH TIME ZONE": ("timestamptz", 6), "TIME": ("time", 6),
    "TIME_NS": ("time", 9), "INTERVAL": ("interval", None), "JSON": ("json", None),
}  # fmt: skip

#: Families that are read as text, because Arrow or Polars cannot represent them, or not without loss.
AS_TEXT = ("uuid", "enum", "interval", "json", "other")


def described_column(row: dict[str, Any], collated: bool) -> Column:
    """A column as described by table_columns; `collated` is whether any column has a collation."""
    column = typed(row["name"], row["sql_type"])
    # Which collation it is, is not needed: texts are compared by their bytes.
    collation = "any" if collated and column.family == "text" else None
    identity = str(row["default"]).startswith("nextval(")
    return replace(column, nullable=not row["required"], default=row["default"], identity=identity, collation=collation)


def typed(name: str, sql_type: str) -> Column:
    """A column of a type."""
    if array := re.fullmatch(r"(.*)\[(\d*)\]", sql_type, re.DOTALL):
        inner = typed(name, array[1])
        family: Family = "vector" if array[2] and array[1] == "FLOAT" else "array"
        return Column(name, sql_type, family, element=inner, size=int(array[2]) if array[2] else None)
    if enum := re.fullmatch(r"ENUM\((.*)\)", sql_type, re.DOTALL):
        labels = re.findall(r"'((?:[^']|'')*)'", enum[1])
        return Column(name, sql_type, "enum", labels=tuple(label.replace("''", "'") for label in labels))
    if decimal := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", sql_type):
        return Column(name, sql_type, "decimal", precision=int(decimal[1]), scale=int(decimal[2]))
    if nested := re.fullmatch(r"(STRUCT|MAP)\((.*)\)", sql_type, re.DOTALL):
        parts = split_type(nested[2])
        if nested[1] == "MAP":
            fields = [typed(part, text) for part, text in zip(("key", "value"), parts, strict=True)]
            return Column(name, sql_type, "map", fields=tuple(fields))
        named = [re.fullmatch(r'("(?:[^"]|"")*"|\S+) (.*)', part, re.DOTALL) for part in parts]
        fields = [typed(unquoted(one[1]), one[2]) for one in named if one]
        return Column(name, sql_type, "struct", fields=tuple(fields))
    unsigned = sql_type.startswith("U") and sql_type[1:] in FAMILIES and FAMILIES[sql_type[1:]][0] == "integer"
    family, size = FAMILIES.get(sql_type[1:] if unsigned else sql_type, ("other", None))
    if family in ("timestamp", "timestamptz", "time"):
        return Column(name, sql_type, family, scale=size)
    return Column(name, sql_type, family, size=size, unsigned=unsigned, loose=family == "interval")


#: A piece of the text of a type: a quoted name or label, an opening or closing parenthesis, a comma, other text.
PIECE = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|([(])|([)])|(,)|[^"'(),]+""", re.DOTALL)


def split_type(text: str) -> list[str]:
    """The types in a list of types, separated by commas."""
    parts, depth = [""], 0
    for piece in PIECE.finditer(text):
        depth += (piece[2] is not None) - (piece[3] is not None)
        if piece[4] and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece[0]
    return [part.strip() for part in parts]


def unquoted(name: str) -> str:
    """A name without its quotes."""
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def cast_to(name: str, column: Column, alias: str = "s") -> str:
    """A given value as a value of the column."""
    value = f"{alias}.{name}"
    if column.sql_type == "VARCHAR":
        return value
    cast = f"CAST({value} AS {column.sql_type})"
    # A null would become a member of the union that is null.
    return f"CASE WHEN {value} IS NOT NULL THEN {cast} END" if column.sql_type.startswith("UNION(") else cast


def comparable(value: str, column: Column) -> str:
    """A value in the form in which it is compared."""
    if column.collation:
        return f"encode({value})"
    return f"CAST({value} AS VARCHAR)" if column.loose or column.family in ("json", "other") else value


def read_expression(column: Column) -> str:
    """A column as it is read without loss."""
    readable = readable_type(column)
    value = f"t.{column.quoted}"
    return value if readable == column.sql_type else f"CAST({value} AS {readable})"


def readable_type(column: Column) -> str:
    """The type in which values are read."""
    if column.family in ("array", "vector") and column.element is not None:
        return f"{readable_type(column.element)}[{'' if column.size is None else column.size}]"
    if column.family == "struct":
        return "STRUCT(" + ", ".join(f"{one.quoted} {readable_type(one)}" for one in column.fields) + ")"
    if column.family == "map":
        return "MAP(" + ", ".join(map(readable_type, column.fields)) + ")"
    wide = column.family == "integer" and (column.size is None or column.size > 64)
    return "VARCHAR" if wide or column.family in AS_TEXT else column.sql_type


def sql_type(dtype: pl.DataType, name: str) -> str:
    """The SQL type of a new column for a dtype.

    Raises:
        SchemaError: no type holds the values of this dtype.
    """
    simple: dict[Any, str] = {
        pl.Boolean: "BOOLEAN", pl.Int8: "TINYINT", pl.Int16: "SMALLINT", pl.Int32: "INTEGER", pl.Int64: "BIGINT",
        pl.UInt8: "UTINYINT", pl.UInt16: "USMALLINT", pl.UInt32: "UINTEGER", pl.UInt64: "UBIGINT", pl.Int128: "HUGEINT",
        pl.Float32: "FLOAT", pl.Float64: "DOUBLE", pl.String: "VARCHAR", pl.Categorical: "VARCHAR", pl.Enum: "VARCHAR",
        pl.Binary: "BLOB", pl.Date: "DATE", pl.Time: "TIME", pl.Duration: "INTERVAL", pl.Null: "VARCHAR",
    }  # fmt: skip
    if isinstance(dtype, pl.Datetime):
        return (
            "TIMESTAMP WITH TIME ZONE"
            if dtype.time_zone
            else "TIMESTAMP_NS"
            if dtype.time_unit == "ns"
            else "TIMESTAMP"
        )
    if isinstance(dtype, pl.Decimal):
        return f"DECIMAL({dtype.precision or 38},{dtype.scale})"
    if isinstance(dtype, pl.List | pl.Array):
        return f"{sql_type(dtype.inner, name)}[]"  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return "STRUCT(" + ", ".join(f"{quoted(one.name)} {sql_type(one.dtype, name)}" for one in dtype.fields) + ")"  # type: ignore[arg-type]
    if found := simple.get(dtype.base_type()):
        return found
    raise SchemaError(f"column {name!r} is {dtype}, for which there is no SQL type", advice="cast it first")
