"""Tables of the user: their columns and keys, and the Protocol of the operations on them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import polars as pl

from entityframes.errors import SchemaError
from entityframes.interrupt import Interrupt

if TYPE_CHECKING:
    from entityframes.engines.batch import Batch
    from entityframes.engines.database import Database


class NoTableError(SchemaError):
    """There is no table of this name."""


#: What values a column takes, whatever the database calls its type. ``other`` takes text in the form of the database.
Family = Literal[
    "boolean", "integer", "float", "decimal", "text", "binary", "uuid", "date", "timestamp", "timestamptz", "time",
    "interval", "json", "enum", "array", "vector", "struct", "map", "other",
]  # fmt: skip


#: The errors of a row whose key stands for several stored rows, and of one whose key is stored but must not be.
REPEATED = "the key is stored more than once in the table"
EXISTS = "a row with this key is stored"


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    name: str
    #: The type as SQL text, such as ``numeric(10,2)``.
    sql_type: str
    family: Family
    #: The dtype that is read.
    dtype: pl.DataType = field(default_factory=pl.String)
    #: Bits of an integer or float, maximum number of characters of text, number of values of an array or vector; None
    #: if there is no limit.
    size: int | None = None
    #: Whether `size` counts bytes.
    in_bytes: bool = False
    #: Whether an integer has no sign.
    unsigned: bool = False
    #: The digits of a decimal; the digits of the fraction of a decimal or of the seconds of a time.
    precision: int | None = None
    scale: int | None = None
    #: The labels of an enum.
    labels: tuple[str, ...] = ()
    #: The type of the values of an array, or of a vector whose values may be null.
    element: Column | None = None
    #: The fields of a struct; the key and the value of a map.
    fields: tuple[Column, ...] = ()
    #: The type without its length or digits, if a cast to the type changes values that exceed them.
    exact: str | None = None
    #: Whether values that the database considers equal may have different texts, such as ``a`` and ``A``.
    loose: bool = False
    #: Whether blanks at the end of text do not count.
    padded: bool = False
    #: Whether the type has no equality.
    incomparable: bool = False
    nullable: bool = True
    #: The default as a SQL expression.
    default: str | None = None
    #: Whether the database computes the value, so that none can be written.
    generated: bool = False
    #: Whether the default is the next value of a sequence.
    identity: bool = False
    #: The collation as SQL text, if it is not the default one (DuckDB: any text, if there may be one).
    collation: str | None = None

    @property
    def quoted(self) -> str:
        """The name as an SQL identifier."""
        return quoted(self.name)


@dataclass(frozen=True)
class Relation:
    """A table and the key by which its rows are found."""

    #: The name for messages, such as ``sales.customers``.
    name: str
    #: The qualified name as SQL text.
    sql: str
    columns: tuple[Column, ...]
    #: The names of the key columns, in the order of the index.
    key: tuple[str, ...] = ()
    #: The unique keys that there are, the primary key first.
    unique: tuple[tuple[str, ...], ...] = ()
    #: The definitions of the unique indexes that are no keys, such as partial ones.
    unusable: tuple[str, ...] = ()
    #: The schema and the name of the table, unquoted.
    parts: tuple[str, str] = ("", "")
    #: The database of the table, where an address needs it.
    catalog: str = ""
    #: Whether a trigger or a row-level policy may change or skip rows, which COPY would not report.
    may_skip: bool = False
    #: Whether there are rules for INSERT or UPDATE, with which rows cannot be upserted.
    has_rules: bool = False
    #: How many columns can be written at once.
    most_columns: int | None = None
    #: Whether rows of child tables belong to the table, so that a key may be stored more than once.
    inherited: bool = False
    #: Whether the key has a unique constraint or index.
    is_unique: bool = True

    def __getitem__(self, name: str) -> Column:
        return self.by_name[name]

    @property
    def address(self) -> tuple[str, str, str]:
        """The names of the database, the schema and the table."""
        return self.catalog, *self.parts

    @property
    def may_repeat(self) -> bool:
        """Whether a key may be stored more than once."""
        return self.inherited or not self.is_unique

    @property
    def has_loose_key(self) -> bool:
        """Whether only the database can tell which keys are equal."""
        return any(_is_loose(self[name]) for name in self.key)

    @cached_property
    def by_name(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in self.columns}

    def keyed(self, key: Sequence[str]) -> Relation:
        """This table with a key.

        Raises:
            SchemaError: a column of the key is missing in the table.
        """
        missing = [name for name in key if name not in self.by_name]
        if missing:
            raise SchemaError(
                f"the table {self.name} has no column {', '.join(map(repr, missing))}; "
                f"it has {', '.join(map(repr, self.by_name))}"
            )
        if not key:
            raise SchemaError(f"the key of {self.name} has no columns", advice="name them, or leave out key")
        if len(set(key)) < len(key):
            raise SchemaError(f"duplicate columns in the key of {self.name}: {', '.join(map(repr, key))}")
        # In the order of the index, so that rows are written in its order.
        found = next((unique for unique in self.unique if set(unique) == set(key)), None)
        return replace(self, key=found or tuple(key), is_unique=found is not None)


def _is_loose(column: Column) -> bool:
    parts = [*column.fields, *([] if column.element is None else [column.element])]
    nested = any(_is_loose(part) or part.family == "decimal" for part in parts)
    return column.loose or nested or column.family in ("interval", "json", "other")


@dataclass(frozen=True)
class Writing:
    """What a batch writes: the columns of its rows, and how rows that are stored are treated."""

    relation: Relation
    #: The columns of the rows; the frame has them as ``c0``, ``c1``, ... in this order, the key among them.
    columns: tuple[Column, ...]
    on_match: Literal["update", "skip", "fail"] = "update"
    nulls: Literal["write", "keep"] = "write"
    #: The columns that do not count as a difference.
    ignore: frozenset[str] = frozenset()
    #: Whether the rows have the columns ``stored`` (Boolean) and ``e0``, ``e1``, ... (String): whether the row was
    #: stored when a plan was made, and its values.
    expecting: bool = False
    #: A column with the time of a soft delete: a row that is written gets a null there.
    undelete: str | None = None

    @property
    def key(self) -> tuple[tuple[str, Column], ...]:
        """The key columns with their names in the frame, in the order of the index."""
        names = {column.name: f"c{number}" for number, column in enumerate(self.columns)}
        return tuple((names[name], self.relation[name]) for name in self.relation.key)

    @property
    def values(self) -> tuple[tuple[str, Column], ...]:
        """The other columns with their names in the frame."""
        numbered = ((f"c{number}", column) for number, column in enumerate(self.columns))
        return tuple((name, column) for name, column in numbered if column.name not in self.relation.key)

    @property
    def compared(self) -> tuple[tuple[str, Column], ...]:
        """The other columns that count as a difference."""
        return tuple((name, column) for name, column in self.values if column.name not in self.ignore)


_FLOATS: dict[int | None, pl.DataType] = {32: pl.Float32(), 64: pl.Float64()}
_SIGNED: dict[int | None, pl.DataType] = {8: pl.Int8(), 16: pl.Int16(), 32: pl.Int32(), 64: pl.Int64()}
_UNSIGNED: dict[int | None, pl.DataType] = {8: pl.UInt8(), 16: pl.UInt16(), 32: pl.UInt32(), 64: pl.UInt64()}
_FIXED: dict[str, pl.DataType] = {
    "boolean": pl.Boolean(),
    "binary": pl.Binary(),
    "date": pl.Date(),
    "timestamptz": pl.Datetime("us", "UTC"),
    "time": pl.Time(),
    "vector": pl.List(pl.Float32()),
}


def canonical(column: Column) -> pl.DataType:
    """The dtype in which values for a column are compared and written."""
    if column.family == "struct":
        return pl.Struct({field.name: canonical(field) for field in column.fields})
    if column.family == "map":
        return pl.Map(*map(canonical, column.fields))
    if column.family == "integer":
        return (_UNSIGNED if column.unsigned else _SIGNED).get(column.size, pl.String())
    if column.family == "float":
        return _FLOATS[column.size]
    if column.family == "timestamp":
        return pl.Datetime("ns" if column.scale == 9 else "us")
    if column.family == "array" and column.element is not None:
        return pl.List(canonical(column.element))
    return _FIXED.get(column.family, pl.String())


@dataclass(frozen=True)
class SoftDelete:
    """The SQL of a column that tells which rows are deleted, in a statement where ``t`` is the table."""

    column: Column

    @property
    def is_deleted(self) -> str:
        """Whether a row is deleted."""
        name = f"t.{self.column.quoted}"
        return f"{name} IS TRUE" if self.column.family == "boolean" else f"{name} IS NOT NULL"

    @property
    def deleted(self) -> str:
        """The value of a row that is deleted now."""
        return "true" if self.column.family == "boolean" else f"now()::{self.column.sql_type}"

    @property
    def undeleted(self) -> str:
        """The value of a row that is not deleted."""
        return "false" if self.column.family == "boolean" else "NULL"


def rejections(positions: pl.Series, error: str | pl.Series, rule: str, sqlstate: str | None = None) -> pl.DataFrame:
    """The results of rows that are rejected: position, error, rule and sqlstate."""
    return pl.DataFrame({"position": positions}).with_columns(
        error=pl.lit(error, pl.String), rule=pl.lit(rule, pl.String), sqlstate=pl.lit(sqlstate, pl.String)
    )


def as_text(columns: Iterable[Column]) -> list[Column]:
    """These columns, to be read as text in the form of the database."""
    return [replace(column, family="other", dtype=pl.String()) for column in columns]


class TableEngine(Protocol):
    """The operations on tables of the user, which need no store.

    Frames of rows have ``c0``, ``c1``, ... as described in `Writing`; frames of keys have the columns of the key
    in the same way. All methods are thread-safe and may raise DatabaseError.
    """

    @property
    def database(self) -> Database:
        """The database."""

    def describe(self, name: str) -> Relation:
        """A table, without a key.

        Args:
            name: ``table`` or ``schema.table``; parts may be quoted.

        Raises:
            NoTableError: there is no such table.
            SchemaError: it is no table that can be written to.
        """

    def tables(self) -> pl.DataFrame:
        """The tables of the user.

        Returns:
            table, key (names of the columns of its primary key; null if it has none), rows (UInt64, estimated; null if
            there is no estimate yet), name (as an SQL identifier), small (whether it is probably counted quickly).
        """

    def counts(self, names: Sequence[str]) -> list[int]:
        """The numbers of rows of several tables, given as SQL identifiers.

        Raises:
            DatabaseError: one of them cannot be counted quickly.
        """

    def count(self, relation: Relation) -> int:
        """The number of rows of a table."""

    def write(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows that are new or differ, in one transaction.

        Args:
            writing: what to write.
            rows: the rows in key order, without duplicate keys.
            batch: the batch.

        Returns:
            As `Engine.write`: position, created, and conflict, error, rule, sqlstate where there are any.
        """

    def write_each(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Like `write`, but skip rows that the database rejects; they have error, rule and sqlstate."""

    def recovered(self, batch: Batch, answer: Any, later: pl.DataFrame | None) -> pl.DataFrame | None:
        """The result of a batch whose COMMIT got no response; None if it was not committed.

        Args:
            batch: the batch.
            answer: the ``answer`` of the error of the COMMIT.
            later: the result of a later attempt to write the batch; None before it.

        Raises:
            ConnectionLostError: the server cannot tell, or not yet.
        """

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        """The given batches that are not in the database, after another server has taken over."""

    def compare(self, writing: Writing, rows: pl.DataFrame) -> pl.DataFrame:
        """Compare rows with the stored ones, without writing.

        Returns:
            position, created, and as text the stored and the new value of each column apart from the key, as ``o<n>``
            and ``n<n>``, of the rows that are new or differ; position, error, rule and sqlstate of rows with values
            that are none of the types of their columns.
        """

    def same_keys(self, relation: Relation, keys: pl.DataFrame) -> pl.Series:
        """The position of the first key that is equal to each key, as far as the database can compare it."""

    def existing(self, relation: Relation, keys: pl.DataFrame) -> pl.DataFrame:
        """Position of each key that is stored."""

    def lookup(self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame) -> pl.DataFrame:
        """Position and the given columns, as ``v0``, ``v1``, ..., of each key that is stored."""

    def delete(
        self,
        relation: Relation,
        keys: pl.DataFrame,
        batch: Batch,
        soft: str | None = None,
        expected: Sequence[str] = (),
    ) -> pl.DataFrame:
        """Delete rows in one transaction.

        Args:
            relation: the table.
            keys: the keys; with `expected` also ``e0``, ``e1``, ... (String), the text of these columns.
            batch: the batch.
            soft: a column that is set to the current time instead, if it is null.
            expected: columns; only rows with the given values are deleted.

        Returns:
            position of each row that was deleted, and of each that was refused, with error and rule.
        """

    def unmatched(
        self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame, where: str | None
    ) -> Iterator[pl.DataFrame]:
        """The given columns of the stored rows, as ``v0``, ..., and absent: whether none of the keys is theirs."""

    def select(
        self, relation: Relation, columns: Sequence[Column], where: str | None, interrupt: Interrupt | None = None
    ) -> Iterator[pl.DataFrame]:
        """The given columns as ``v0``, ``v1``, ..., of all rows or those that satisfy an SQL condition, in chunks."""

    def create(self, name: str, columns: dict[str, pl.DataType], key: Sequence[str]) -> None:
        """Create a table with a primary key."""

    def add_columns(self, relation: Relation, columns: dict[str, pl.DataType]) -> None:
        """Add columns to a table."""


def named(chunk: pl.DataFrame, columns: Sequence[Column]) -> pl.DataFrame:
    """A result of the engine with the names and dtypes of the columns."""
    return pl.DataFrame(
        [
            chunk[f"v{number}"].cast(column.dtype).alias(column.name)
            for number, column in enumerate(columns)
        ]
    )  # fmt: skip


#: What to do about a table that is not created because there is one.
THERE = "open it with store.table(name) or entityframes.table(url, name), or choose another name"


def counting(names: Sequence[str]) -> str:
    """A query that numbers some tables, given as SQL identifiers, and counts their rows."""
    return " UNION ALL ".join(f"SELECT {position}, count(*) FROM {name}" for position, name in enumerate(names))  # noqa: S608


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Text as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


def parse_name(name: str) -> list[tuple[str, bool]]:
    """The parts of ``table`` or ``schema.table``, and whether each was quoted.

    Raises:
        SchemaError: the name has no or too many parts, or a quote is not closed.
    """
    parts, place = [], 0
    while isinstance(name, str) and place <= len(name) and "\0" not in name:
        part = _PART.match(name, place)
        if part is None:
            break
        parts.append((part[1].replace('""', '"') if part[1] else part[2].strip(), part[1] is not None))
        place = part.end()
        if place == len(name):
            if len(parts) > 3 or not all(text for text, _ in parts):
                break
            return parts
        if name[place] != ".":
            break
        place += 1
    raise SchemaError(
        f"invalid table name {name!r}",
        advice="use table or schema.table, and quote a name that contains a dot or a quote, as "
        "in 'schema.\"my.table\"'",
    )
