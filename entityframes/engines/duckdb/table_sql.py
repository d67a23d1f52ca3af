"""The SQL text of statements on a table: its columns, keys and comparisons."""

from __future__ import annotations

from collections.abc import Sequence

from entityframes.engines.duckdb.types import cast_to, comparable, read_expression
from entityframes.engines.tables import (
    Column,
    Relation,
    SoftDelete,
    Writing,
)


class Sql:
    """The SQL text for the columns of a batch."""

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        relation = writing.relation
        numbered = [(f"c{number}", column) for number, column in enumerate(writing.columns)]
        key = [(name, column.quoted, column) for name, column in writing.key]
        unexpected = [is_other(column.quoted, f"s.e{name[1:]}") for name, column in writing.values]
        self.placeholders = {
            "table": relation.sql,
            "matches": " AND ".join(key_matches(value, column) for value, _, column in key),
            "cast_key": ", ".join(cast_to(value, column) for value, _, column in key),
            "differs": self._differs(),
            "unexpected": " OR ".join(unexpected) or "false",
            "assignments": self.assignments([name for name, _ in writing.values]),
            "names": ", ".join(column.quoted for _, column in numbered),
            "values": ", ".join(self.inserted(name, column) for name, column in numbered),
            "texts": "".join(
                f", t.{column.quoted}::VARCHAR AS o{name[1:]}, ({self.updated(name, column)})::VARCHAR AS n{name[1:]}"
                for name, column in writing.values
            ),
        }

    def _differs(self) -> str:
        """Whether a given row differs from the stored one."""
        if self.writing.on_match == "skip":
            return "false"
        if self.writing.on_match == "fail":
            return "true"
        parts = [self.changes(name, column) for name, column in self.writing.compared]
        if self.writing.undelete:
            parts.append(SoftDelete(self.writing.relation[self.writing.undelete]).is_deleted)
        return "(" + " OR ".join(parts) + ")" if parts else "false"

    def changes(self, name: str, column: Column) -> str:
        """Whether an update changes the value of a column."""
        old, new = comparable(f"t.{column.quoted}", column), comparable(self.updated(name, column), column)
        return f"{old} IS DISTINCT FROM {new}"

    def updated(self, name: str, column: Column) -> str:
        """The value of a column after an update."""
        new = cast_to(name, column)
        return f"coalesce({new}, t.{column.quoted})" if self.writing.nulls == "keep" else new

    def inserted(self, name: str, column: Column) -> str:
        """The value of a column of a new row."""
        value = cast_to(name, column)
        if self.writing.nulls == "keep" and column.default is not None:
            return f"coalesce({value}, {column.default})"
        return value

    def assignments(self, names: Sequence[str]) -> str:
        """The assignments of an update to some of the columns."""
        values = [(name, column) for name, column in self.writing.values if name in names]
        assigned = [f"{column.quoted} = {self.updated(name, column)}" for name, column in values]
        if self.writing.undelete:
            column = self.writing.relation[self.writing.undelete]
            assigned.append(f"{column.quoted} = {SoftDelete(column).undeleted}")
        return ", ".join(assigned)


def is_other(column: str, expected: str) -> str:
    """Whether the text of a column is not exactly the expected one, also where its collation takes both for equal."""
    return f"encode(t.{column}::VARCHAR) IS DISTINCT FROM encode({expected})"


def key_matches(name: str, column: Column) -> str:
    """Whether a given value is that of a column of the key."""
    given, stored = cast_to(name, column), f"t.{column.quoted}"
    # Indexes ignore collations.
    return f"encode({stored}) = encode({given})" if column.collation else f"{stored} = {given}"


def selected_columns(columns: Sequence[Column]) -> str:
    """The columns as they are read, as v0, v1, ..."""
    return (
        ", ".join(f"{read_expression(column)} AS v{number}" for number, column in enumerate(columns)) or "NULL AS none"
    )


def no_rows(sql: str, columns: Sequence[Column]) -> dict[str, str]:
    """The placeholders of a query that returns the columns and no rows."""
    return {"table": sql, "columns": selected_columns(columns), "where": "LIMIT 0"}


def first_row(relation: Relation) -> dict[str, str]:
    """The placeholders of a query that returns a row if there is one."""
    return {"table": relation.sql, "columns": "1", "where": "LIMIT 1"}


def by_keys(relation: Relation) -> dict[str, str]:
    """The placeholders of statements on the rows of given keys."""
    columns = [relation[name] for name in relation.key]
    matches = " AND ".join(key_matches(f"c{number}", column) for number, column in enumerate(columns))
    return {"table": relation.sql, "matches": matches}
