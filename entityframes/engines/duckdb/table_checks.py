"""Which rows of a batch a type or a constraint of a table refuses: DuckDB names only the first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl

from entityframes.engines.duckdb.session import Session
from entityframes.engines.duckdb.table_sql import Sql
from entityframes.engines.duckdb.types import cast_to
from entityframes.engines.rules import rule_of
from entityframes.engines.tables import (
    Column,
    Relation,
    literal,
    quoted,
    rejections,
)
from entityframes.errors import PermanentError, RowError


def own_references(session: Session, sql: Sql) -> list[tuple[list[str], list[str]]]:
    """The foreign keys by which rows of the table reference others of it: the names in the frame of the columns."""
    relation = sql.writing.relation
    sent = {column.name: f"c{number}" for number, column in enumerate(sql.writing.columns)}
    return [
        ([sent[name] for name in one["columns"]], [sent[name] for name in one["referenced"]])
        for one in session.query("table_constraints", *relation.address).iter_rows(named=True)
        if is_own_reference(one, relation) and {*one["columns"], *one["referenced"]} <= set(sent)
    ]


def is_own_reference(constraint: dict[str, Any], relation: Relation) -> bool:
    """Whether a constraint is a foreign key to the same table."""
    return constraint["kind"] == "FOREIGN KEY" and bool(
        constraint["referenced_table"].lower() == relation.parts[1].lower()
    )


#: Families whose values have been converted, so that the database takes them.
CONVERTED = ("boolean", "integer", "float", "text", "binary", "date", "timestamp", "timestamptz", "time")


def invalid_rows(session: Session, sql: Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows with values that are no values of the types of their columns."""
    session.register("given", given)
    whens = [
        f"WHEN s.c{number} IS NOT NULL AND TRY(CAST(s.c{number} AS {column.sql_type})) IS NULL THEN {number}"
        for number, column in enumerate(sql.writing.columns)
        if column.family not in CONVERTED
    ]
    if not whens:
        return rejections(given["position"].clear(), "", "")
    found = session.query("table_invalid", placeholders={"whens": " ".join(whens)})
    errors = []
    for position, number in found.iter_rows():
        column, value = sql.writing.columns[number], given[f"c{number}"][position]
        shown = str(value.to_list() if isinstance(value, pl.Series) else value)[:100]
        errors.append(f"{column.name}: {shown!r} is not a valid {column.sql_type}")
    rejected = rejections(found["position"], "", "invalid_value", "22000")
    return rejected.with_columns(pl.Series("error", errors, dtype=pl.String))


def rejected_rows(session: Session, sql: Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows that violate a type or a constraint, as far as single constraints can be checked by a query."""
    rejected = invalid_rows(session, sql, given)
    session.register("given", given.join(rejected, on="position", how="anti", maintain_order="left"))
    changed = session.query("table_probe", placeholders=sql.placeholders)
    if sql.writing.on_match == "fail":
        changed = changed.filter("created")
    # Constraints concern only the rows that would be written.
    given = given.join(changed, on="position", how="semi", maintain_order="left")
    checks = [*null_checks(sql), *constraint_checks(session, sql)]
    cascades = bool(own_references(session, sql))
    while True:
        before = rejected.height
        for condition, error, kind, name in checks:
            session.register("given", given.join(rejected, on="position", how="anti", maintain_order="left"))
            try:
                found = session.query("table_rejected", placeholders={"condition": condition, "error": error})
            except (PermanentError, RowError):
                # A condition that cannot be checked alone: the rows are written in halves instead.
                continue
            errors = rejections(found["position"], "", rule_of(kind, name), kind)
            rejected = pl.concat([rejected, errors.with_columns(found["error"])])
        # Rows that reference a rejected row are rejected as well.
        if not cascades or rejected.height == before:
            return rejected


def null_checks(sql: Sql) -> Iterator[tuple[str, str, str, str]]:
    """The conditions of rows that lack a value, with the error as SQL, the SQLSTATE and the name of the column."""
    writing = sql.writing
    sent = {column.name: f"c{number}" for number, column in enumerate(writing.columns)}
    for column in writing.relation.columns:
        if column.nullable or column.generated:
            continue
        error = literal(f"column {column.name} must not be null")
        if column.name in sent and writing.nulls == "write":
            yield f"s.{sent[column.name]} IS NULL", error, "23502", column.name
        elif column.name not in sent and column.default is None:
            stored = f"EXISTS (SELECT 1 FROM {writing.relation.sql} AS t WHERE {sql.placeholders['matches']})"
            yield f"NOT {stored}", error, "23502", column.name


def constraint_checks(session: Session, sql: Sql) -> Iterator[tuple[str, str, str, str]]:
    """Likewise for CHECK, UNIQUE and FOREIGN KEY constraints."""
    writing = sql.writing
    relation, matches = writing.relation, sql.placeholders["matches"]
    sent = {column.name: f"c{number}" for number, column in enumerate(writing.columns)}
    stored = f"FROM {relation.sql} AS t WHERE {matches}"
    new = {
        column.name: sql.inserted(sent[column.name], column)
        if column.name in sent
        else f"coalesce((SELECT t.{column.quoted} {stored}), {column.default or 'NULL'})"
        for column in relation.columns
        if not column.generated
    }
    for one in session.query("table_constraints", *relation.address).iter_rows(named=True):
        columns = [relation[name] for name in one["columns"] or () if name in new]
        if one["kind"] == "CHECK":
            row = ", ".join(f"{new[column.name]} AS {column.quoted}" for column in columns)
            condition = (
                f"EXISTS (SELECT 1 FROM (SELECT {row or '1'}) AS t WHERE NOT coalesce({one['expression']}, true))"
            )
            yield condition, literal(f"CHECK constraint failed: {one['expression']}"), "23514", one["name"]
        elif one["kind"] == "UNIQUE" and set(one["columns"]) != set(relation.key):
            same = " AND ".join(f"t.{column.quoted} = {new[column.name]}" for column in columns)
            condition = f"EXISTS (SELECT 1 FROM {relation.sql} AS t WHERE {same} AND NOT ({matches}))"
            error = with_values(f"{', '.join(one['columns'])}: another row has the value", columns, new)
            yield condition, error, "23505", one["name"]
            if {column.name for column in columns} <= sent.keys():
                same = " AND ".join(f"{cast_to(sent[each.name], each, 'o')} = {new[each.name]}" for each in columns)
                before = f"EXISTS (SELECT 1 FROM given AS o WHERE {same} AND o.position < s.position)"
                yield before, error, "23505", one["name"]
        elif one["kind"] == "FOREIGN KEY":
            schema = f"{quoted(relation.address[0])}.{quoted(relation.parts[0])}"
            pairs = zip(one["referenced"], columns, strict=True)
            same = " AND ".join(f"r.{quoted(name)} = {new[column.name]}" for name, column in pairs)
            there = f"EXISTS (SELECT 1 FROM {schema}.{quoted(one['referenced_table'])} AS r WHERE {same})"
            if is_own_reference(one, relation) and set(one["referenced"]) <= set(sent):
                pairs = zip(one["referenced"], columns, strict=True)
                same = " AND ".join(
                    f"{cast_to(sent[name], relation[name], 'o')} = {new[each.name]}" for name, each in pairs
                )
                there += f" OR EXISTS (SELECT 1 FROM given AS o WHERE {same} AND o.position <> s.position)"
            given = " AND ".join(f"{new[column.name]} IS NOT NULL" for column in columns)
            lacking = f"no row of {one['referenced_table']} has {', '.join(one['referenced'])} ="
            error = with_values(f"{', '.join(one['columns'])}: {lacking}", columns, new)
            yield f"{given} AND NOT ({there})", error, "23503", one["name"]


def with_values(text: str, columns: Sequence[Column], values: dict[str, str]) -> str:
    """A message that ends with the values of columns of a row, as SQL."""
    shown = ", ".join(f"CAST({values[column.name]} AS VARCHAR)" for column in columns)
    return f"{literal(text + ' ')} || left(concat_ws(', ', {shown}), 100)"
