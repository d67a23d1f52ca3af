"""Tables of the user on DuckDB: the frame of a batch is scanned in place, compared, and updated or inserted."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.duckdb.database import DuckDBDatabase
from entityframes.engines.duckdb.session import Session
from entityframes.engines.duckdb.table_checks import invalid_rows, own_references, rejected_rows
from entityframes.engines.duckdb.table_sql import Sql, by_keys, first_row, is_other, no_rows, selected_columns
from entityframes.engines.duckdb.types import described_column, split_type, sql_type, unquoted
from entityframes.engines.tables import (
    EXISTS,
    REPEATED,
    THERE,
    Column,
    NoTableError,
    Relation,
    SoftDelete,
    Writing,
    counting,
    parse_name,
    quoted,
    rejections,
)
from entityframes.errors import ClosedError, DatabaseError, PermanentError, RowError, SchemaError
from entityframes.interrupt import Interrupt


@dataclass
class _Seen:
    """What the batches of a run have learned, for later batches of the same run."""

    #: Whether the table had no rows when the run first wrote to it.
    was_empty: bool | None = None


class DuckDBTables:
    """The operations on tables of the user."""

    def __init__(self, database: DuckDBDatabase) -> None:
        self.database = database
        #: Keyed by the interrupt of the run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()

    def describe(self, name: str) -> Relation:
        parts = [text for text, _ in parse_name(name)]
        with self.database.session() as session:
            found = session.query("relation", parts[-2] if len(parts) > 1 else None, parts[-1])
            if len(parts) > 2:
                found = found.filter(pl.col("catalog").str.to_lowercase() == parts[0].lower())
            if found.is_empty():
                raise NoTableError(
                    f"there is no table {name!r} in the database",
                    advice="check the name and the schema, or create it with "
                    f"entityframes.create_table{self.database.file.not_seen}",
                )
            if found.height > 1:
                schemas = ", ".join(f"{schema}.{table}" for schema, table in found.select("schema", "name").rows())
                raise SchemaError(f"{name!r} can be any of {schemas}", advice="add the schema")
            row = found.row(0, named=True)
            if row["kind"] == "view":
                raise SchemaError(f"{row['schema']}.{row['name']} is a view: only tables can be written to")
            return _described(session, row["catalog"], row["schema"], row["name"])

    def tables(self) -> pl.DataFrame:
        return self.database.read("tables").with_columns(pl.col("rows").cast(pl.UInt64))

    def counts(self, names: Sequence[str]) -> list[int]:
        counted = self.database.read("table_counts", placeholders={"counts": counting(names)})
        return counted.sort("position")["rows"].to_list()

    def count(self, relation: Relation) -> int:
        return int(self.database.read("table_count", placeholders={"table": relation.sql}).item())

    def write(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        self.database.file.reserve(int(rows.estimated_size()))
        try:
            with self.database.session(batch.interrupt, writing=True) as session:
                return self.database.file.with_memory(lambda: self._write(session, writing, rows, batch))
        except PermanentError as error:
            # Some types report a wrong text like a wrong statement.
            with self.database.session(batch.interrupt) as session:
                if invalid_rows(session, Sql(writing), rows.with_row_index("position")).is_empty():
                    raise
            raise RowError(str(error), error.sqlstate, error.rule) from None

    def _write(
        self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch, *, narrow: bool = False
    ) -> pl.DataFrame:
        """Write the rows that are new or differ, in one transaction.

        Args:
            session: a session that may write.
            writing: what to write.
            rows: the rows.
            batch: the batch.
            narrow: whether to take care of foreign keys. DuckDB replaces a row if an indexed column or a list is
                assigned, which it refuses while a foreign key references the row: only columns that differ in one of
                the rows are assigned. It looks for a referenced row before the statement: new rows that reference
                each other are inserted by several statements.
        """
        given = rows.with_row_index("position")
        session.register("given", given)
        sql = Sql(writing)
        with session.transaction(batch.interrupt):
            if self._was_empty(session, writing, batch):
                session.register("fresh", given)
                session.execute("table_insert", placeholders=sql.placeholders)
                return given.select("position", created=pl.lit(True))
            aside = _set_aside(session, sql, given)
            changed = session.query("table_probe", placeholders=sql.placeholders)
            changed = changed.join(aside, on="position", how="anti") if aside.height else changed
            if writing.on_match == "fail" and (matches := changed.filter(~pl.col("created"))).height:
                aside = pl.concat([aside, rejections(matches["position"], EXISTS, "key_exists")], how="diagonal")
                changed = changed.filter("created")
            if batch.whole and "error" in aside.columns and (failed := aside.drop_nulls("error")).height:
                raise RowError(failed["error"][0], None, failed["rule"][0])
            _merge(session, sql, given.join(changed, on="position", maintain_order="left"), narrow=narrow)
        return pl.concat([changed.drop("place"), aside], how="diagonal")

    def _was_empty(self, session: Session, writing: Writing, batch: Batch) -> bool:
        """Whether rows can be inserted without a comparison, as the table was empty when the run started."""
        seen = self._seen.setdefault(batch.interrupt, _Seen())
        if seen.was_empty is None:
            found = session.query("table_select", placeholders=first_row(writing.relation))
            seen.was_empty = found.is_empty() and not writing.relation.may_repeat
        return seen.was_empty and not writing.expecting

    def write_each(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        # Rows that conflict with rows of the same run are found by a comparison.
        self._seen.setdefault(batch.interrupt, _Seen()).was_empty = False
        with self.database.session(batch.interrupt, writing=True) as session:
            # In key order, so that the first row in this order gets a value that must be unique.
            key = [name for name, _ in writing.key]
            given = rows.with_row_index("place").sort(key, maintain_order=True).with_row_index("position")
            places, given = given["place"], given.drop("place")
            rejected = rejected_rows(session, Sql(writing), given)
            accepted = given.join(rejected, on="position", how="anti", maintain_order="left")
            if batch.whole and rejected.height:
                first = rejected.row(0, named=True)
                raise RowError(first["error"], first["sqlstate"], first["rule"])
            results = [rejected, *self._bisect(session, writing, accepted, batch)]
            result = pl.concat(results, how="diagonal")
            return result.with_columns(position=places.gather(result["position"])).sort("position")

    def _bisect(self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch) -> Iterator[pl.DataFrame]:
        """Write rows in one transaction; if the database rejects a row, halve them until only that row fails.

        If it is stopped in between, the rows that are not written yet have to be written again.
        """
        parts, written = [rows] if rows.height else [], False
        while parts:
            rows = parts.pop()
            try:
                result = self._write(session, writing, rows.drop("position"), batch, narrow=True)
                yield result.with_columns(position=rows["position"].gather(result["position"]))
                written = True
            except RowError as error:
                if batch.whole:
                    raise
                if rows.height == 1:
                    yield rejections(rows["position"], str(error), error.rule or "constraint", error.sqlstate)
                else:
                    half = rows.height // 2
                    parts += [rows[half:], rows[:half]]
            except (DatabaseError, ClosedError):
                if not written:
                    raise
                yield pl.concat([rows, *parts]).select("position", again=pl.lit(True))
                return

    def recovered(self, batch: Batch, answer: Any, later: pl.DataFrame | None) -> pl.DataFrame | None:
        return None

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        return []

    def compare(self, writing: Writing, rows: pl.DataFrame) -> pl.DataFrame:
        sql = Sql(writing)
        with self.database.session() as session:
            given = rows.with_row_index("position")
            invalid = invalid_rows(session, sql, given)
            session.register("given", given.join(invalid, on="position", how="anti", maintain_order="left"))
            invalid = pl.concat([invalid, _repeated(session, sql)], how="diagonal")
            found = session.query("table_compare", placeholders=sql.placeholders)
            return pl.concat([found.join(invalid, on="position", how="anti"), invalid], how="diagonal")

    def same_keys(self, relation: Relation, keys: pl.DataFrame) -> pl.Series:
        sql = Sql(Writing(relation, tuple(relation[name] for name in relation.key)))
        given = keys.with_row_index("position")
        with self.database.session() as session:
            invalid = invalid_rows(session, sql, given)
            session.register("given", given.join(invalid, on="position", how="anti"))
            found = session.query("table_same_keys", placeholders=sql.placeholders)
        same = given.select("position").join(found, on="position", how="left", maintain_order="left")
        return same.select(pl.col("same").fill_null(pl.col("position"))).to_series()

    def existing(self, relation: Relation, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_existing", relation, keys)

    def lookup(self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame) -> pl.DataFrame:
        found = self._by_key("table_lookup", relation, keys, columns=selected_columns(columns))
        return found.unique("position", keep="first", maintain_order=True)

    def _by_key(self, name: str, relation: Relation, keys: pl.DataFrame, **placeholders: str) -> pl.DataFrame:
        with self.database.session() as session:
            session.register("given", keys.with_row_index("position"))
            return session.query(name, placeholders={**by_keys(relation), **placeholders})

    def delete(
        self,
        relation: Relation,
        keys: pl.DataFrame,
        batch: Batch,
        soft: str | None = None,
        expected: Sequence[str] = (),
    ) -> pl.DataFrame:
        conditions = [f"NOT ({is_other(quoted(one), f's.e{n}')})" for n, one in enumerate(expected)]
        placeholders = by_keys(relation)
        if soft is not None:
            marked = SoftDelete(relation[soft])
            conditions.append(f"NOT ({marked.is_deleted})")
            placeholders |= {"column": marked.column.quoted, "value": marked.deleted}
        placeholders["condition"] = " AND ".join(conditions) or "true"
        with self.database.session(batch.interrupt, writing=True) as session:
            session.register("given", keys.with_row_index("position"))
            with session.transaction(batch.interrupt):
                found = session.query("table_deletable", placeholders=placeholders)
                if found.height:
                    session.execute("table_soft_delete" if soft else "table_delete", placeholders=placeholders)
            return found

    def unmatched(
        self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame, where: str | None
    ) -> Iterator[pl.DataFrame]:
        placeholders = {
            **by_keys(relation), "columns": selected_columns(columns), "where": f"WHERE {where}" if where else "",
        }  # fmt: skip
        with self.database.session() as session:
            session.register("given", keys.with_row_index("position"))
            yield from session.stream("table_unmatched", placeholders=placeholders)

    def select(
        self, relation: Relation, columns: Sequence[Column], where: str | None, interrupt: Interrupt | None = None
    ) -> Iterator[pl.DataFrame]:
        condition = f"WHERE {where}" if where else ""
        placeholders = {"table": relation.sql, "columns": selected_columns(columns), "where": condition}
        with self.database.session(interrupt) as session:
            yield from session.stream("table_select", placeholders=placeholders)

    def create(self, name: str, columns: dict[str, pl.DataType], key: Sequence[str]) -> None:
        table = ".".join(quoted(text) for text, _ in parse_name(name))
        definitions = ", ".join(f"{quoted(column)} {sql_type(dtype, column)}" for column, dtype in columns.items())
        placeholders = {"table": table, "columns": definitions, "key": ", ".join(map(quoted, key))}
        with self.database.session(writing=True) as session:
            try:
                session.execute("table_create", placeholders=placeholders)
            except PermanentError as error:
                if "already exists" in str(error):
                    error.restate(f"there is already a table {name!r}", THERE)
                raise

    def add_columns(self, relation: Relation, columns: dict[str, pl.DataType]) -> None:
        with self.database.session(writing=True) as session, session.transaction():
            for name, dtype in columns.items():
                column = f"{quoted(name)} {sql_type(dtype, name)}"
                session.execute("table_add_column", placeholders={"table": relation.sql, "column": column})


def _merge(session: Session, sql: Sql, changed: pl.DataFrame, *, narrow: bool) -> None:
    """Update and insert the changed rows, within a transaction."""
    created = changed["created"]
    updates, fresh = changed.filter(~created), changed.filter(created)
    references = own_references(session, sql) if narrow else []
    if references:
        # Updates may reference new rows.
        for rows in _in_order_of(references, fresh):
            _insert(session, sql, rows)
    if updates.height and sql.placeholders["assignments"]:
        session.register("changed", updates)
        assignments = sql.assignments(_differing(session, sql)) if narrow else sql.placeholders["assignments"]
        session.execute("table_update", placeholders={**sql.placeholders, "assignments": assignments})
    if fresh.height and not references:
        _insert(session, sql, fresh)


def _insert(session: Session, sql: Sql, rows: pl.DataFrame) -> None:
    session.register("fresh", rows)
    session.execute("table_insert", placeholders=sql.placeholders)


def _in_order_of(references: list[tuple[list[str], list[str]]], rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Rows in parts, so that rows reference only rows of earlier parts; the last part is a cycle if there is one."""
    while rows.height:
        waiting = [
            rows.join(rows.select(referenced), left_on=columns, right_on=referenced, how="semi")["position"]
            for columns, referenced in references
        ]
        ready = rows.filter(~pl.col("position").is_in(pl.concat(waiting).implode()))
        yield ready if ready.height else rows
        rows = rows.join(ready, on="position", how="anti", maintain_order="left") if ready.height else ready


def _differing(session: Session, sql: Sql) -> list[str]:
    """The names in the frame of the columns that differ in one of the changed rows."""
    changes = [f"bool_or({sql.changes(name, column)}) AS {name}" for name, column in sql.writing.values]
    placeholders = {**sql.placeholders, "changes": ", ".join(changes)}
    found = session.query("table_differing", placeholders=placeholders).row(0, named=True)
    return [name for name, differs in found.items() if differs]


def _set_aside(session: Session, sql: Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not written: in conflict, duplicate, or of a key that is stored more than once."""
    parts = [given.select("position").clear()]
    if sql.writing.expecting:
        conflicts = session.query("table_conflicts", placeholders=sql.placeholders)
        parts.append(conflicts.with_columns(conflict=pl.lit(True)))
    parts.append(_repeated(session, sql))
    return pl.concat(parts, how="diagonal").unique("position", keep="first", maintain_order=True)


def _repeated(session: Session, sql: Sql) -> pl.DataFrame:
    """The given rows whose key is stored more than once."""
    found = pl.DataFrame(schema={"position": pl.UInt32})
    if sql.writing.relation.may_repeat:
        found = session.query("table_ambiguous", placeholders=sql.placeholders)
    return rejections(found["position"], REPEATED, "key_not_unique")


def _described(session: Session, catalog: str, schema: str, name: str) -> Relation:
    address = (catalog, schema, name)
    sql = ".".join(map(quoted, address))
    ((definition,),) = session.query("table_definition", *address).rows()
    collated = re.search(r"\bCOLLATE\b", definition, re.IGNORECASE) is not None
    described = session.query("table_columns", *address).rows(named=True)
    columns = [described_column(row, collated) for row in described]
    dtypes = session.query("table_select", placeholders=no_rows(sql, columns)).dtypes
    columns = [
        replace(column, dtype=dtype, generated=column.default is not None and _is_generated(session, sql, column))
        for column, dtype in zip(columns, dtypes, strict=True)
    ]
    unique, unusable = _keys(session, address, columns)
    return Relation(
        f"{schema}.{name}", sql, tuple(columns), unique=unique, unusable=unusable, parts=(schema, name), catalog=catalog
    )


def _keys(
    session: Session, address: tuple[str, str, str], columns: Sequence[Column]
) -> tuple[tuple[tuple[str, ...], ...], tuple[str, ...]]:
    """The unique keys, and the definitions of unique indexes that are none."""
    found = session.query("table_constraints", *address).filter(pl.col("kind").is_in(["PRIMARY KEY", "UNIQUE"]))
    unique = [tuple(names) for names in found["columns"]]
    unusable = []
    names = {column.name for column in columns}
    for (sql,) in session.query("table_indexes", *address).iter_rows():
        indexed = tuple(map(unquoted, split_type(sql.rstrip("; ")[:-1].partition(" ON ")[2].partition("(")[2])))
        if set(indexed) <= names:
            unique.append(indexed)
        else:
            unusable.append(sql)
    return tuple(dict.fromkeys(unique)), tuple(unusable)


def _is_generated(session: Session, sql: str, column: Column) -> bool:
    """Whether a column with an expression is a generated one, which duckdb_columns() does not tell from a default."""
    try:
        session.query("table_check_update", placeholders={"table": sql, "column": column.quoted})
    except PermanentError:
        return True
    return False
