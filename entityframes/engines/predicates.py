"""Predicates that reach the database: a small tree, and how each dialect writes it.

A rendered condition keeps every row that the predicate keeps, and may keep more: the predicate is applied again to
what comes back. So there is no NOT here, and a comparison that an engine would judge otherwise is not made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl


@dataclass(frozen=True)
class EntityColumn:
    """A column of the entities table."""

    name: str


@dataclass(frozen=True)
class MetadataField:
    """A field of the metadata, with the dtype that it has when it is read."""

    name: str
    dtype: pl.DataType


Column = EntityColumn | MetadataField


@dataclass(frozen=True)
class Compare:
    """``column op value``, with op one of = <> < <= > >=."""

    column: Column
    op: str
    value: Any


@dataclass(frozen=True)
class IsIn:
    """The column has one of the values; there is at least one and none is null."""

    column: Column
    values: tuple[Any, ...]


@dataclass(frozen=True)
class IsNull:
    """The column is null, or not."""

    column: Column
    negated: bool = False


@dataclass(frozen=True)
class Both:
    """All of the parts hold."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True)
class Either:
    """One of the parts holds."""

    parts: tuple[Predicate, ...]


Predicate = Compare | IsIn | IsNull | Both | Either


@dataclass(frozen=True)
class Dialect:
    """What an engine writes differently."""

    #: How an entity column is selected, where that is not by its name.
    outputs: dict[str, str]
    #: Text compared by bytes.
    by_bytes: str
    #: Text to a number or boolean; SQL with {} for the text.
    integer: str
    float: str
    boolean: str
    #: An instant from ISO text in UTC.
    instant: str
    #: A blob from hex digits.
    blob: str

    def field(self, name: str) -> str:
        """The text of a metadata field."""
        if self is POSTGRESQL:
            return f"(metadata->>{_literal(name)})"
        # Matched as a JSON pointer, in which any key can be written.
        pointer = "/" + name.replace("~", "~0").replace("/", "~1")
        return f"json_extract_string(metadata, {_literal(pointer)})"


POSTGRESQL = Dialect(
    outputs={"metadata": "metadata::text AS metadata", "content_hash": "encode(content_hash, 'hex') AS content_hash"},
    by_bytes='{} COLLATE "C"',
    integer="{}::numeric",
    float="{}::float8",
    boolean="{}::boolean",
    instant="timestamptz {}",
    blob="decode({}, 'hex')",
)
DUCKDB = Dialect(
    outputs={"metadata": "metadata::VARCHAR AS metadata", "content_hash": "lower(hex(content_hash)) AS content_hash"},
    by_bytes="{}",
    integer="TRY_CAST({} AS HUGEINT)",
    float="TRY_CAST({} AS DOUBLE)",
    boolean="TRY_CAST({} AS BOOLEAN)",
    instant="TIMESTAMPTZ {}",
    blob="unhex({})",
)


def select(
    template: str,
    dialect: Dialect,
    columns: Sequence[str],
    entity_type: str | None,
    where: Predicate | None,
    limit: int | None,
) -> str:
    """The statement of a scan: entity columns of the entities of a type that satisfy a predicate."""
    conditions = [] if entity_type is None else [f"entity_type = {_literal(entity_type)}"]
    if where is not None:
        conditions.append(render(where, dialect))
    return (
        template.replace("{columns}", ", ".join(dialect.outputs.get(name, name) for name in columns))
        .replace("{limit}", "" if limit is None else f"LIMIT {limit:d}")
        .replace("{condition}", " AND ".join(conditions) or "true")
    )


def render(predicate: Predicate, dialect: Dialect) -> str:
    """A predicate as SQL."""
    if isinstance(predicate, Both | Either):
        word = " AND " if isinstance(predicate, Both) else " OR "
        return "(" + word.join(render(part, dialect) for part in predicate.parts) + ")"
    column = predicate.column
    if isinstance(predicate, IsNull):
        text = dialect.field(column.name) if isinstance(column, MetadataField) else column.name
        return f"{text} IS {'NOT ' if predicate.negated else ''}NULL"
    left, literal, always = _sides(column, dialect)
    if isinstance(predicate, Compare):
        condition = f"{left} {predicate.op} {literal(predicate.value)}"
    else:
        condition = f"{left} IN ({', '.join(literal(value) for value in predicate.values)})"
    return f"({condition}{f' OR {always}' if always else ''})"


def _sides(column: Column, dialect: Dialect) -> tuple[str, Any, str]:
    """The column's side of a comparison, how its literals are written, and which rows to keep in any case."""
    if isinstance(column, EntityColumn):
        if column.name == "content_hash":
            return column.name, lambda value: dialect.blob.format(_literal(value)), ""
        if column.name in ("created_at", "updated_at"):
            return column.name, lambda value: dialect.instant.format(_literal(value)), ""
        return dialect.by_bytes.format(column.name), _literal, ""
    text = dialect.field(column.name)
    if column.dtype.is_integer() or isinstance(column.dtype, pl.Duration):
        return dialect.integer.format(text), str, ""
    if column.dtype.is_float():
        return dialect.float.format(text), lambda value: dialect.float.format(_literal(repr(value))), ""
    if isinstance(column.dtype, pl.Boolean):
        return dialect.boolean.format(text), lambda value: "true" if value else "false", ""
    if column.dtype.is_temporal():
        # A year outside 1 to 9999 is stored as an integer, which has no dash after four digits.
        return dialect.by_bytes.format(text), _literal, f"substr({text}, 5, 1) <> '-'"
    return dialect.by_bytes.format(text), _literal, ""


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def literal_value(column: Column, value: pl.Series) -> Any:
    """A constant as the column's literals are written, or None if the database could judge it otherwise.

    Args:
        column: what it is compared with.
        value: a Series of one value, with the dtype that Polars gave the constant.
    """
    item, dtype = value[0], value.dtype
    if item is None:
        return None
    if isinstance(column, EntityColumn):
        if column.name in ("created_at", "updated_at"):
            return _instant(value)
        if column.name == "content_hash" and not (isinstance(item, str) and _is_hash(item)):
            return None
        return _plain(item) if column.name != "metadata" else None
    kind = column.dtype
    if kind.is_integer() and dtype.is_integer():
        return int(item) if -(2**126) < int(item) < 2**126 else None
    if isinstance(kind, pl.Float64) and (dtype.is_integer() or isinstance(dtype, pl.Float64)):
        return float(item) if float(item) == item and abs(item) != float("inf") else None
    if isinstance(kind, pl.Boolean) and isinstance(item, bool):
        return item
    if isinstance(kind, pl.String) and isinstance(item, str):
        return _plain(item)
    if isinstance(kind, pl.Date) and dtype == pl.Date:
        return item.isoformat()
    return None


def _plain(item: Any) -> str | None:
    """Text that a statement can hold."""
    return item if isinstance(item, str) and "\0" not in item else None


def _is_hash(text: str) -> bool:
    return len(text) == 64 and not set(text) - set("0123456789abcdef")


def _instant(value: pl.Series) -> str | None:
    if not isinstance(value.dtype, pl.Datetime) or value.dtype.time_zone is None or value.dtype.time_unit == "ns":
        return None
    utc = value.dt.convert_time_zone("UTC")
    return utc.dt.to_string("%Y-%m-%d %H:%M:%S%.6f+00")[0] if 1 <= utc.dt.year()[0] <= 9999 else None


def describe(predicate: Predicate) -> str:
    """A predicate for people, for example in a query plan."""
    return json.dumps(render(predicate, DUCKDB), ensure_ascii=False)
