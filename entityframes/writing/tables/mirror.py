"""A mirror of a table: its options, and the stored rows that a frame lacks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import polars as pl

from entityframes.engines.tables import Relation, TableEngine, as_text, named
from entityframes.errors import SchemaError
from entityframes.interrupt import Interrupt
from entityframes.writing.tables.target import OLD, usable_keys

#: What a mirror deletes: an expression over the columns of the table, or an SQL condition; None for all rows.
Scope = pl.Expr | str | None


def check_soft_delete(relation: Relation, soft_delete: str | None, columns: Sequence[str]) -> None:
    """Check the column of a soft delete.

    Raises:
        SchemaError: the table has no such column, it holds no time, or the frame has it too.
    """
    if soft_delete is None:
        return
    if soft_delete not in relation.by_name:
        raise SchemaError(f"soft_delete: the table {relation.name} has no column {soft_delete!r}")
    column = relation[soft_delete]
    if column.family not in ("timestamp", "timestamptz", "date", "boolean") or not column.nullable:
        raise SchemaError(f"soft_delete: {soft_delete!r} is {column.sql_type}, not a nullable time, date or boolean")
    if soft_delete in columns or soft_delete in relation.key:
        raise SchemaError(f"soft_delete: {soft_delete!r} is set by the mirror", advice="drop it from the frame")


@dataclass(frozen=True)
class Deletions:
    """The stored rows that a frame lacks."""

    relation: Relation
    #: Their keys, and the text of the expected columns as ``old:<name>``.
    rows: pl.DataFrame
    #: The number of stored rows in the scope.
    stored: int
    #: Whether the keys of all rows of the frame are valid, so that no other row is meant.
    complete: bool
    #: The columns whose values are compared before a row is deleted.
    expected: tuple[str, ...] = ()
    #: Whether they are those of a plan, so that a row that is not found as expected is a conflict.
    compared: bool = False

    def with_values(self, engine: TableEngine) -> Deletions:
        """With the values of the other columns, which are compared before the rows are deleted."""
        columns = [column for column in self.relation.columns if column.name not in self.relation.key]
        keys, _ = usable_keys(self.relation, self.rows)
        found = [pl.DataFrame(schema={"position": pl.UInt32} | {f"v{n}": pl.String for n in range(len(columns))})]
        for start in range(0, keys.height, engine.database.lookup_rows):
            part = engine.lookup(self.relation, as_text(columns), keys[start : start + engine.database.lookup_rows])
            found.append(part.with_columns(pl.col("position") + pl.lit(start, pl.UInt32)).select(found[0].columns))
        # A row that was deleted meanwhile needs no deletion.
        values = pl.concat(found).sort("position")
        named = [values[f"v{number}"].alias(OLD + column.name) for number, column in enumerate(columns)]
        rows = self.rows[values["position"]].hstack(named)
        return replace(self, rows=rows, expected=tuple(column.name for column in columns), compared=True)


def absent_rows(
    engine: TableEngine,
    relation: Relation,
    given: pl.DataFrame,
    scope: Scope,
    soft_delete: str | None,
    interrupt: Interrupt,
) -> Deletions:
    """Find the stored rows in a scope whose key is not in a frame.

    Args:
        engine: the engine.
        relation: the table.
        given: the frame.
        scope: the scope.
        soft_delete: the column of a soft delete; deleted rows are not in the scope.
        interrupt: stops the query.

    Raises:
        SchemaError: the scope uses a column that the table does not have.
    """
    keys, usable = usable_keys(relation, given.select(relation.key))
    roots = scope.meta.root_names() if isinstance(scope, pl.Expr) else []
    if unknown := [name for name in roots if name not in relation.by_name]:
        raise SchemaError(f"scope: the table {relation.name} has no column {', '.join(map(repr, unknown))}")
    names = dict.fromkeys([*relation.key, *roots, *([soft_delete] if soft_delete else [])])
    read = [relation[name] for name in names]
    parts = [pl.DataFrame(schema={column.name: column.dtype for column in read})]
    stored = 0
    where = scope if isinstance(scope, str) else None
    for chunk in engine.unmatched(relation, read, keys.filter(usable).unique(maintain_order=True), where):
        interrupt.check()
        rows = named(chunk, read)
        inside = pl.repeat(True, rows.height, eager=True)
        if isinstance(scope, pl.Expr):
            inside = rows.select(scope.fill_null(False)).to_series()
        if soft_delete is not None:
            inside &= _not_deleted(rows[soft_delete])
        stored += int(inside.sum())
        parts.append(rows.filter(inside & chunk["absent"]))
    return Deletions(relation, pl.concat(parts).select(relation.key), stored, bool(usable.all()))


def _not_deleted(values: pl.Series) -> pl.Series:
    return ~values.fill_null(False) if values.dtype == pl.Boolean else values.is_null()
