"""Predicates that are pushed down to the database, and their rendering in each SQL dialect.

A rendered condition keeps every row that satisfies the predicate, and may keep more: the predicate is applied again to
the result. Therefore there is no NOT, rows are kept if an engine might parse their value differently than Polars, and
comparisons that an engine would evaluate differently are omitted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import polars as pl


@dataclass(frozen=True)
class EntityColumn:
    """A column of the entities table."""

    name: str


@dataclass(frozen=True)
class MetadataField:
    """A field of the metadata."""

    name: str
    #: The dtype that it is read as; None if it is read as JSON text.
    dtype: pl.DataType | None


Column = EntityColumn | MetadataField

#: A constant as stored in the column; dates and times in the metadata are text.
Value = str | int | float


@dataclass(frozen=True)
class Compare:
    """``column op value``, with op one of = <> < <= > >=."""

    column: Column
    op: str
    value: Value


@dataclass(frozen=True)
class IsIn:
    """The column has one of the values; false if there are no values."""

    column: Column
    values: tuple[Value, ...]


@dataclass(frozen=True)
class IsNull:
    """The column is null, or is not."""

    column: Column
    negated: bool = False


@dataclass(frozen=True)
class And:
    """All of the parts hold."""

    parts: tuple[Predicate, ...]


@dataclass(frozen=True)
class Or:
    """One of the parts holds."""

    parts: tuple[Predicate, ...]


Predicate = Compare | IsIn | IsNull | And | Or


@dataclass(frozen=True)
class Dialect:
    """The SQL that differs between engines."""

    #: The expressions of entity columns that are not selected by name.
    outputs: dict[str, str]
    #: A string literal.
    quoted: Callable[[str], str]
    #: Text that is compared by bytes.
    by_bytes: str
    #: The text of a metadata field, and the path of the field within that expression.
    field: str
    path: Callable[[str], str]
    #: Text as a number; null if the engine may parse it differently than Polars, or not at all.
    integer: str
    number: str
    float: str
    #: A timestamp from ISO text in UTC.
    instant: str
    #: A binary value from hex digits.
    blob: str


def _quoted(text: str) -> str:
    """A literal for dialects without backslash escapes."""
    return "'" + text.replace("'", "''") + "'"


def _escaped(text: str) -> str:
    """A literal with the same meaning whether or not backslash escapes are enabled."""
    return _quoted(text) if "\\" not in text else "E" + _quoted(text.replace("\\", "\\\\"))


POSTGRESQL = Dialect(
    outputs={"metadata": "metadata::text AS metadata", "content_hash": "encode(content_hash, 'hex') AS content_hash"},
    quoted=_escaped,
    by_bytes='({} COLLATE "C")',
    field='((metadata->>{}) COLLATE "C")',
    path=lambda name: name,
    integer="CASE WHEN {0} ~ '^-?[0-9]+$' THEN {0}::numeric END",
    # A float8 that is out of range raises an error, so numbers with exponents are excluded.
    number="CASE WHEN length({0}) < 40 AND {0} ~ '^-?[0-9]+[.]?[0-9]*$' THEN {0}::float8 END",
    float="'{}'::float8",
    instant="timestamptz {}",
    blob="decode({}, 'hex')",
)
DUCKDB = Dialect(
    outputs={"metadata": "metadata::VARCHAR AS metadata", "content_hash": "lower(hex(content_hash)) AS content_hash"},
    quoted=_quoted,
    by_bytes="{}",
    field="json_extract_string(metadata, {})",
    # A JSON pointer, which can contain any name.
    path=lambda name: "/" + name.replace("~", "~0").replace("/", "~1"),
    integer="TRY_CAST({0} AS HUGEINT)",
    number="TRY_CAST({0} AS DOUBLE)",
    float="'{}'::DOUBLE",
    instant="TIMESTAMPTZ {}",
    blob="unhex({})",
)


def placeholders(
    dialect: Dialect, columns: Sequence[str], entity_type: str | None, where: Predicate | None, limit: int | None
) -> dict[str, str]:
    """The placeholders of a scan statement, which selects columns of the entities of a type that satisfy a predicate.

    The condition is last, because it contains text of the user, in which nothing may be substituted.
    """
    conditions = []
    if entity_type is not None:
        conditions.append(f"entity_type = {dialect.quoted(entity_type)}" if _is_plain(entity_type) else "false")
    if where is not None:
        conditions.append(render(where, dialect))
    return {
        "columns": ", ".join(dialect.outputs.get(name, name) for name in columns),
        "limit": "" if limit is None else f"LIMIT {limit:d}",
        "condition": " AND ".join(conditions) or "true",
    }


def render(predicate: Predicate, dialect: Dialect) -> str:
    """A predicate as SQL that can be combined with others."""
    if isinstance(predicate, And | Or):
        word = " AND " if isinstance(predicate, And) else " OR "
        return "(" + word.join(render(part, dialect) for part in predicate.parts) + ")"
    column = predicate.column
    if isinstance(column, MetadataField):
        text = dialect.field.format(dialect.quoted(dialect.path(column.name)))
    else:
        text = dialect.by_bytes.format(column.name) if column.name in _TEXTS else column.name
    if isinstance(predicate, IsNull):
        return f"{text} IS {'NOT ' if predicate.negated else ''}NULL"
    if isinstance(predicate, IsIn) and not predicate.values:
        return "false"
    values = (predicate.value,) if isinstance(predicate, Compare) else predicate.values
    given = ", ".join(_literal(column, value, dialect) for value in values)
    test = f"{predicate.op} {given}" if isinstance(predicate, Compare) else f"IN ({given})"
    read = _parsed(column, text, dialect)
    # IS NOT FALSE: the comparison is true, or the text could not be parsed.
    return f"({text} {test})" if read is None else f"(({read} {test}) IS NOT FALSE AND {text} IS NOT NULL)"


_TEXTS = ("entity_type", "id", "content")
_TIMESTAMPS = ("created_at", "updated_at")
_FRACTIONS = {"ms": 3, "us": 6, "ns": 9}


def _parsed(column: Column, text: str, dialect: Dialect) -> str | None:
    """SQL for the parsed value of a column, which is null if it is ambiguous; None if the text itself is compared."""
    dtype = column.dtype if isinstance(column, MetadataField) else None
    if _is_integer(dtype):
        return dialect.integer.format(text)
    if isinstance(dtype, pl.Float64):
        return dialect.number.format(text)
    if isinstance(dtype, pl.Date | pl.Datetime):
        # Only texts of the same format are ordered like their values; years outside 1 to 9999 are stored as integers.
        shape = "____-__-__"
        if isinstance(dtype, pl.Datetime):
            shape += f"T__:__:__.{'_' * _FRACTIONS[dtype.time_unit]}{'Z' if dtype.time_zone else ''}"
        return f"CASE WHEN {text} LIKE '{shape}' THEN {text} END"
    return None


def _literal(column: Column, value: Value, dialect: Dialect) -> str:
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return dialect.float.format(value)
    if column == EntityColumn("content_hash"):
        return dialect.blob.format(dialect.quoted(value))
    if isinstance(column, EntityColumn) and column.name in _TIMESTAMPS:
        return dialect.instant.format(dialect.quoted(value))
    return dialect.quoted(value)


def _is_plain(text: str) -> bool:
    """Whether text can be stored and be part of a statement: it has no NUL characters and no lone surrogates."""
    return re.search("[\0\ud800-\udfff]", text) is None


def _is_integer(dtype: pl.DataType | None) -> bool:
    return dtype is not None and (dtype.is_integer() or isinstance(dtype, pl.Duration))


def literals(column: Column, op: str, constants: pl.Series) -> tuple[Value, ...] | None:
    """Constants as stored in the column.

    Args:
        column: the column that they are compared with.
        op: the comparison operator; = also for is_in.
        constants: the constants, without nulls, of the dtype that Polars compares the column with.

    Returns:
        The values in order, or None if the database might evaluate one of the comparisons differently.
    """
    if isinstance(column, MetadataField):
        return _field_literals(column.dtype, op, constants)
    if column.name in _TIMESTAMPS:
        return _moments(pl.Datetime("us", "UTC"), constants, "%Y-%m-%d %H:%M:%S%.6f+00")
    texts = _texts(constants)
    if texts is None or column.name not in (*_TEXTS, "content_hash"):
        return None
    if column.name != "content_hash":
        return texts
    hashes = tuple(text for text in texts if len(text) == 64 and not set(text) - set("0123456789abcdef"))
    # A value that is not a hash is not equal to any, but may be less or greater.
    return hashes if op == "=" or len(hashes) == len(texts) else None


def _field_literals(dtype: pl.DataType | None, op: str, constants: pl.Series) -> tuple[Value, ...] | None:
    given = constants.dtype
    if isinstance(dtype, pl.String):
        return _texts(constants)
    if isinstance(dtype, pl.Categorical | pl.Enum):
        return _texts(constants.cast(pl.String) if given == dtype else constants) if op == "=" else None
    if isinstance(dtype, pl.Boolean):
        return tuple("true" if item else "false" for item in constants) if given == pl.Boolean else None
    if isinstance(dtype, pl.Date):
        return _moments(dtype, constants, "%Y-%m-%d")
    if isinstance(dtype, pl.Datetime):
        fraction, zone = _FRACTIONS[dtype.time_unit], "Z" if dtype.time_zone else ""
        return _moments(dtype, constants, f"%Y-%m-%dT%H:%M:%S%.{fraction}f{zone}")
    if isinstance(dtype, pl.Float64) and (given == pl.Float64 or given.is_integer()):
        floats = tuple(float(item) for item in constants)
        # NaN occurs in floats only, and is equal to itself in both engines, as in Polars.
        return floats if given == pl.Float64 or floats == tuple(constants) else None
    if _is_integer(dtype) and (given == dtype if isinstance(dtype, pl.Duration) else given.is_integer()):
        numbers = tuple(int(item) for item in constants.to_physical())
        return numbers if all(abs(number) < 2**126 for number in numbers) else None
    return None


def _texts(constants: pl.Series) -> tuple[str, ...] | None:
    texts = tuple(constants) if constants.dtype == pl.String else ("\0",)
    return texts if all(map(_is_plain, texts)) else None


def _moments(dtype: pl.DataType, constants: pl.Series, pattern: str) -> tuple[str, ...] | None:
    """Dates and times as text in UTC, or None for years outside 1 to 9999."""
    if constants.dtype != dtype:
        return None
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        constants = constants.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return tuple(constants.dt.to_string(pattern)) if constants.dt.year().is_between(1, 9999).all() else None
