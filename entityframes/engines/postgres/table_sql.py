"""The SQL text of statements on a table: its columns, keys and comparisons, and their parameters."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from functools import cached_property

import polars as pl

from entityframes.engines.postgres.session import Session
from entityframes.engines.postgres.types import as_staged, as_text, cast_to, from_text, read_expression, staging_type
from entityframes.engines.tables import (
    Column,
    Relation,
    SoftDelete,
    Writing,
    literal,
)


class Sql:
    """The SQL text for the columns of a batch."""

    def __init__(self, writing: Writing) -> None:
        self.writing = writing

    @cached_property
    def placeholders(self) -> dict[str, str]:
        writing = self.writing
        relation = writing.relation
        columns = [f"c{number} {staging_type(column)}" for number, column in enumerate(writing.columns)]
        if writing.expecting:
            # One array, because a table has at most 1,600 columns.
            columns += ["stored boolean", "expected text[]"]
        first = writing.key[0][1].quoted
        key = [(name, column.quoted) for name, column in writing.key]
        names = [column.quoted for column in writing.columns]
        return {
            "table": relation.sql,
            "columns": ", ".join(columns),
            "first": first,
            "matches": " AND ".join(f"t.{column.quoted} = {cast_to(name, column)}" for name, column in writing.key),
            "cast_key": ", ".join(cast_to(name, column) for name, column in writing.key),
            "differs": self._differs(),
            "unexpected": " OR ".join(
                is_other(column.quoted, f"s.expected[{place}]")
                for place, (_, column) in enumerate(writing.values, 1)
            ) or "false",
            "assignments": self._assignments(),
            "names": ", ".join(names),
            "values": ", ".join(self._inserted(f"c{number}", column) for number, column in enumerate(writing.columns)),
            "key": ", ".join(quoted for _, quoted in key),
            "returned": ", ".join(f"t.{quoted}" for _, quoted in key),
            "old_texts": ", ".join(f"t.{column.quoted}::text" for _, column in writing.values),
            "new_texts": ", ".join(f"({self._updated(name, column)})::text" for name, column in writing.values),
        }  # fmt: skip

    def each(self, session: Session) -> dict[str, str]:
        """The placeholders of table_merge_each."""
        placeholders = self.placeholders
        if self.writing.on_match == "update" and self.writing.values:
            slice = session.text("table_update_slice", placeholders)
        else:
            slice = ""
        return {**placeholders, "update_slice": slice, "tag": delimiter()}

    @property
    def joins(self) -> dict[str, str]:
        """The placeholders of statements that choose how staged rows are joined."""
        return {"table_name": literal(self.writing.relation.sql), "tag": delimiter()}

    @property
    def casts(self) -> str:
        """The conversions of staged text that may fail; empty if there are none."""
        casts = [cast_to(f"c{number}", column) for number, column in enumerate(self.writing.columns)]
        return ", ".join(cast for cast in casts if "::" in cast)

    @property
    def inexact(self) -> str:
        """The number of a column whose staged value a cast to the type would change; empty if there is none."""
        numbered = [(number, f"s.c{number}", column) for number, column in enumerate(self.writing.columns)]
        return " ".join(
            f"WHEN {value}::{column.exact} IS DISTINCT FROM {value}::{column.sql_type} THEN {number}"
            for number, value, column in numbered
            if column.exact
        )

    def staged(self, rows: pl.DataFrame) -> pl.DataFrame:
        """The rows as they are copied."""
        writing = self.writing
        columns = [pl.int_range(rows.height, dtype=pl.Int32, eager=True).alias("position")]
        columns += [as_staged(rows[f"c{number}"], column) for number, column in enumerate(writing.columns)]
        if writing.expecting:
            texts = [pl.col(f"e{name[1:]}") for name, _ in writing.values] or [pl.lit(None, pl.String)]
            columns += [rows["stored"], rows.select(expected=pl.concat_list(texts)).to_series()]
        return pl.DataFrame(columns)

    def _differs(self) -> str:
        """Whether a staged row differs from the stored one."""
        if self.writing.on_match == "skip":
            return "false"
        if self.writing.on_match == "fail":
            return "true"
        parts = []
        for name, column in self.writing.compared:
            new, old = self._updated(name, column), f"t.{column.quoted}"
            if column.loose or column.incomparable:
                collate = ' COLLATE "C"'
                new, old = f"({new})::text{collate}", f"{old}::text{collate}"
            parts.append(f"{old} IS DISTINCT FROM {new}")
        if self.writing.undelete:
            parts.append(SoftDelete(self.writing.relation[self.writing.undelete]).is_deleted)
        return "(" + " OR ".join(parts) + ")" if parts else "false"

    def _updated(self, name: str, column: Column) -> str:
        """The value of a column after an update."""
        new = cast_to(name, column)
        return f"coalesce({new}, t.{column.quoted})" if self.writing.nulls == "keep" else new

    def _assignments(self) -> str:
        assigned = [f"{column.quoted} = {self._updated(name, column)}" for name, column in self.writing.values]
        if self.writing.undelete:
            column = self.writing.relation[self.writing.undelete]
            assigned.append(f"{column.quoted} = {SoftDelete(column).undeleted}")
        # Not used if the rows have only their key.
        return ", ".join(assigned) or f"{self.writing.key[0][1].quoted} = {cast_to(*self.writing.key[0])}"

    def _inserted(self, name: str, column: Column) -> str:
        """The value of a column of a new row."""
        value = cast_to(name, column)
        default = column.default
        if column.identity:
            default = f"nextval(pg_get_serial_sequence({literal(self.writing.relation.sql)}, {literal(column.name)}))"
        return f"coalesce({value}, {default})" if self.writing.nulls == "keep" and default else value


def is_other(column: str, expected: str) -> str:
    """Whether the text of a column is not exactly the expected one, also where its collation takes both for equal."""
    return f't.{column}::text COLLATE "C" IS DISTINCT FROM {expected}'


def key_sql(relation: Relation) -> Sql:
    """The SQL text for frames of keys."""
    return Sql(Writing(relation, tuple(relation[name] for name in relation.key)))


def delimiter() -> str:
    """A delimiter of a string that no identifier can contain by chance."""
    return f"$ef_{secrets.token_hex(8)}$"


def key_parameters(relation: Relation, keys: pl.DataFrame) -> list[pl.Series]:
    """Keys, and the texts of further columns, as parameters: arrays of text."""
    given, columns = keys.get_columns(), [relation[name] for name in relation.key]
    return [*map(as_text, given[: len(columns)], columns), *given[len(columns) :]]


def by_arrays(relation: Relation, expected: Sequence[str] = ()) -> dict[str, str]:
    """The placeholders of statements whose parameters are the columns of the key, and expected values."""
    columns = [relation[name] for name in relation.key]
    names = [*(f"c{number}" for number in range(len(columns))), *(f"e{number}" for number in range(len(expected)))]
    return {
        "table": relation.sql,
        "arrays": ", ".join(f"${number}::text[]" for number in range(1, len(names) + 1)),
        "keys": ", ".join(names),
        "matches": " AND ".join(
            f"t.{column.quoted} = {from_text(f's.c{number}', column)}" for number, column in enumerate(columns)
        ),
    }


def selected_columns(columns: Sequence[Column]) -> str:
    """The columns as they are read, as v0, v1, ..."""
    return (
        ", ".join(f"{read_expression(column)} AS v{number}" for number, column in enumerate(columns)) or "NULL AS none"
    )
