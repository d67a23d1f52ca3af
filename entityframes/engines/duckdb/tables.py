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
from entityframes.engines.rules import rule_of
from entityframes.engines.tables import (
    REPEATED,
    Column,
    Family,
    NoTableError,
    Relation,
    SoftDelete,
    Writing,
    literal,
    parse_name,
    quoted,
)
from entityframes.errors import ClosedError, DatabaseError, PermanentError, RowError, SchemaError
from entityframes.interrupt import Interrupt

#: The family and the bits of the types by name.
_FAMILIES: dict[str, tuple[Family, int | None]] = {
    "BOOLEAN": ("boolean", None), "TINYINT": ("integer", 8), "SMALLINT": ("integer", 16), "INTEGER": ("integer", 32),
    "BIGINT": ("integer", 64), "HUGEINT": ("integer", 128), "BIGNUM": ("integer", None), "FLOAT": ("float", 32),
    "DOUBLE": ("float", 64),
    "VARCHAR": ("text", None), "BLOB": ("binary", None), "UUID": ("uuid", None), "DATE": ("date", None),
    "TIMESTAMP": ("timestamp", 6), "TIMESTAMP_S": ("timestamp", 0), "TIMESTAMP_MS": ("timestamp", 3),
    "TIMESTAMP_NS": ("timestamp", 9), "TIMESTAMP WITH TIME ZONE": ("timestamptz", 6), "TIME": ("time", 6),
    "TIME_NS": ("time", 9), "INTERVAL": ("interval", None), "JSON": ("json", None),
}  # fmt: skip

#: Families that are read as text, because Arrow or Polars cannot represent them, or not without loss.
_AS_TEXT = ("uuid", "enum", "interval", "json", "other")

_EXISTS = "a row with this key is stored"


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
                    f"there is no table {name!r} in the database: check the name and the schema, or create it with "
                    f"entityframes.create_table{self.database.file.not_seen}"
                )
            if found.height > 1:
                schemas = ", ".join(f"{schema}.{table}" for schema, table in found.select("schema", "name").rows())
                raise SchemaError(f"{name!r} can be any of {schemas}: add the schema")
            row = found.row(0, named=True)
            if row["kind"] == "view":
                raise SchemaError(f"{row['schema']}.{row['name']} is a view: only tables can be written to")
            return _described(session, row["catalog"], row["schema"], row["name"])

    def tables(self) -> pl.DataFrame:
        return self.database.read("tables").select("table", "key", pl.col("rows").cast(pl.UInt64))

    def write(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        self.database.file.reserve(int(rows.estimated_size()))
        try:
            with self.database.session(batch.interrupt, writing=True) as session:
                return self.database.file.with_memory(lambda: self._write(session, writing, rows, batch))
        except PermanentError as error:
            # Some types report a wrong text like a wrong statement.
            with self.database.session(batch.interrupt) as session:
                if _invalid(session, _Sql(writing), rows.with_row_index("position")).is_empty():
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
        sql = _Sql(writing)
        with session.transaction(batch.interrupt):
            if self._was_empty(session, writing, batch):
                session.register("fresh", given)
                session.execute("table_insert", placeholders=sql.placeholders)
                return given.select("position", created=pl.lit(True))
            aside = _set_aside(session, sql, given)
            changed = session.query("table_probe", placeholders=sql.placeholders)
            changed = changed.join(aside, on="position", how="anti") if aside.height else changed
            if writing.on_match == "fail" and (matches := changed.filter(~pl.col("created"))).height:
                aside = pl.concat([aside, _errors(matches["position"], _EXISTS, "key_exists")], how="diagonal")
                changed = changed.filter("created")
            if batch.whole and "error" in aside.columns and (failed := aside.drop_nulls("error")).height:
                raise RowError(failed["error"][0], None, failed["rule"][0])
            _merge(session, sql, given.join(changed, on="position", maintain_order="left"), narrow=narrow)
        return pl.concat([changed.drop("place"), aside], how="diagonal")

    def _was_empty(self, session: Session, writing: Writing, batch: Batch) -> bool:
        """Whether rows can be inserted without a comparison, as the table was empty when the run started."""
        seen = self._seen.setdefault(batch.interrupt, _Seen())
        if seen.was_empty is None:
            found = session.query("table_select", placeholders=_emptiness(writing.relation))
            seen.was_empty = found.is_empty() and not writing.relation.may_repeat
        return seen.was_empty and not writing.expecting

    def write_each(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        # Rows that conflict with rows of the same run are found by a comparison.
        self._seen.setdefault(batch.interrupt, _Seen()).was_empty = False
        with self.database.session(batch.interrupt, writing=True) as session:
            given = rows.with_row_index("position")
            rejected = _rejected(session, _Sql(writing), given)
            accepted = given.join(rejected, on="position", how="anti", maintain_order="left")
            if batch.whole and rejected.height:
                first = rejected.row(0, named=True)
                raise RowError(first["error"], first["sqlstate"], first["rule"])
            results = [rejected, *self._bisect(session, writing, accepted, batch)]
            return pl.concat(results, how="diagonal").sort("position")

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
                    yield _errors(rows["position"], str(error), error.rule or "constraint", error.sqlstate)
                else:
                    half = rows.height // 2
                    parts += [rows[half:], rows[:half]]
            except (DatabaseError, ClosedError):
                if not written:
                    raise
                yield pl.concat([rows, *parts]).select("position", again=pl.lit(True))
                return

    def recovered(self, batch: Batch, answer: pl.DataFrame | None) -> pl.DataFrame | None:
        return None

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        return []

    def compare(self, writing: Writing, rows: pl.DataFrame) -> pl.DataFrame:
        sql = _Sql(writing)
        with self.database.session() as session:
            given = rows.with_row_index("position")
            invalid = _invalid(session, sql, given)
            session.register("given", given.join(invalid, on="position", how="anti", maintain_order="left"))
            invalid = pl.concat([invalid, _repeated(session, sql)], how="diagonal")
            found = session.query("table_compare", placeholders=sql.placeholders)
            return pl.concat([found.join(invalid, on="position", how="anti"), invalid], how="diagonal")

    def same_keys(self, relation: Relation, keys: pl.DataFrame) -> pl.Series:
        sql = _Sql(Writing(relation, tuple(relation[name] for name in relation.key)))
        given = keys.with_row_index("position")
        with self.database.session() as session:
            invalid = _invalid(session, sql, given)
            session.register("given", given.join(invalid, on="position", how="anti"))
            found = session.query("table_same_keys", placeholders=sql.placeholders)
        same = given.select("position").join(found, on="position", how="left", maintain_order="left")
        return same.select(pl.col("same").fill_null(pl.col("position"))).to_series()

    def existing(self, relation: Relation, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_existing", relation, keys)

    def lookup(self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame) -> pl.DataFrame:
        found = self._by_key("table_lookup", relation, keys, columns=_selected(columns))
        return found.unique("position", keep="first", maintain_order=True)

    def _by_key(self, name: str, relation: Relation, keys: pl.DataFrame, **placeholders: str) -> pl.DataFrame:
        with self.database.session() as session:
            session.register("given", keys.with_row_index("position"))
            return session.query(name, placeholders={**_by_keys(relation), **placeholders})

    def delete(
        self,
        relation: Relation,
        keys: pl.DataFrame,
        batch: Batch,
        soft: str | None = None,
        expected: Sequence[str] = (),
    ) -> pl.DataFrame:
        conditions = [f"t.{quoted(one)}::VARCHAR IS NOT DISTINCT FROM s.e{n}" for n, one in enumerate(expected)]
        placeholders = _by_keys(relation)
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
            **_by_keys(relation), "columns": _selected(columns), "where": f"WHERE {where}" if where else "",
        }  # fmt: skip
        with self.database.session() as session:
            session.register("given", keys.with_row_index("position"))
            yield from session.stream("table_unmatched", placeholders=placeholders)

    def select(
        self, relation: Relation, columns: Sequence[Column], where: str | None, interrupt: Interrupt | None = None
    ) -> Iterator[pl.DataFrame]:
        condition = f"WHERE {where}" if where else ""
        placeholders = {"table": relation.sql, "columns": _selected(columns), "where": condition}
        with self.database.session(interrupt) as session:
            yield from session.stream("table_select", placeholders=placeholders)

    def create(self, name: str, columns: dict[str, pl.DataType], key: Sequence[str]) -> None:
        table = ".".join(quoted(text) for text, _ in parse_name(name))
        definitions = ", ".join(f"{quoted(column)} {sql_type(dtype, column)}" for column, dtype in columns.items())
        placeholders = {"table": table, "columns": definitions, "key": ", ".join(map(quoted, key))}
        with self.database.session(writing=True) as session:
            session.execute("table_create", placeholders=placeholders)

    def add_columns(self, relation: Relation, columns: dict[str, pl.DataType]) -> None:
        with self.database.session(writing=True) as session, session.transaction():
            for name, dtype in columns.items():
                column = f"{quoted(name)} {sql_type(dtype, name)}"
                session.execute("table_add_column", placeholders={"table": relation.sql, "column": column})


class _Sql:
    """The SQL text for the columns of a batch."""

    def __init__(self, writing: Writing) -> None:
        self.writing = writing
        relation = writing.relation
        numbered = [(f"c{number}", column) for number, column in enumerate(writing.columns)]
        key = [(name, column.quoted, column) for name, column in writing.key]
        unexpected = [f"t.{column.quoted}::VARCHAR IS DISTINCT FROM s.e{name[1:]}" for name, column in writing.values]
        self.placeholders = {
            "table": relation.sql,
            "matches": " AND ".join(_matches(value, column) for value, _, column in key),
            "cast_key": ", ".join(_cast(value, column) for value, _, column in key),
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
        old, new = _compared(f"t.{column.quoted}", column), _compared(self.updated(name, column), column)
        return f"{old} IS DISTINCT FROM {new}"

    def updated(self, name: str, column: Column) -> str:
        """The value of a column after an update."""
        new = _cast(name, column)
        return f"coalesce({new}, t.{column.quoted})" if self.writing.nulls == "keep" else new

    def inserted(self, name: str, column: Column) -> str:
        """The value of a column of a new row."""
        value = _cast(name, column)
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


def _merge(session: Session, sql: _Sql, changed: pl.DataFrame, *, narrow: bool) -> None:
    """Update and insert the changed rows, within a transaction."""
    created = changed["created"]
    updates, fresh = changed.filter(~created), changed.filter(created)
    references = _own_references(session, sql) if narrow else []
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


def _insert(session: Session, sql: _Sql, rows: pl.DataFrame) -> None:
    session.register("fresh", rows)
    session.execute("table_insert", placeholders=sql.placeholders)


def _own_references(session: Session, sql: _Sql) -> list[tuple[list[str], list[str]]]:
    """The foreign keys by which rows of the table reference others of it: the names in the frame of the columns."""
    relation = sql.writing.relation
    sent = {column.name: f"c{number}" for number, column in enumerate(sql.writing.columns)}
    return [
        ([sent[name] for name in one["columns"]], [sent[name] for name in one["referenced"]])
        for one in session.query("table_constraints", *relation.address).iter_rows(named=True)
        if _is_own_reference(one, relation) and {*one["columns"], *one["referenced"]} <= set(sent)
    ]


def _is_own_reference(constraint: dict[str, Any], relation: Relation) -> bool:
    """Whether a constraint is a foreign key to the same table."""
    return constraint["kind"] == "FOREIGN KEY" and bool(
        constraint["referenced_table"].lower() == relation.parts[1].lower()
    )


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


def _differing(session: Session, sql: _Sql) -> list[str]:
    """The names in the frame of the columns that differ in one of the changed rows."""
    changes = [f"bool_or({sql.changes(name, column)}) AS {name}" for name, column in sql.writing.values]
    placeholders = {**sql.placeholders, "changes": ", ".join(changes)}
    found = session.query("table_differing", placeholders=placeholders).row(0, named=True)
    return [name for name, differs in found.items() if differs]


def _set_aside(session: Session, sql: _Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows that are not written: in conflict, duplicate, or of a key that is stored more than once."""
    parts = [given.select("position").clear()]
    if sql.writing.expecting:
        conflicts = session.query("table_conflicts", placeholders=sql.placeholders)
        parts.append(conflicts.with_columns(conflict=pl.lit(True)))
    parts.append(_repeated(session, sql))
    return pl.concat(parts, how="diagonal").unique("position", keep="first", maintain_order=True)


def _repeated(session: Session, sql: _Sql) -> pl.DataFrame:
    """The given rows whose key is stored more than once."""
    if not sql.writing.relation.may_repeat:
        return _errors(pl.Series(dtype=pl.UInt32), REPEATED, "key_not_unique")
    found = session.query("table_ambiguous", placeholders=sql.placeholders)
    return _errors(found["position"], REPEATED, "key_not_unique")


def _errors(positions: pl.Series, error: str, rule: str, sqlstate: str | None = None) -> pl.DataFrame:
    return pl.DataFrame({"position": positions}).with_columns(
        error=pl.lit(error, pl.String), rule=pl.lit(rule, pl.String), sqlstate=pl.lit(sqlstate, pl.String)
    )


def _invalid(session: Session, sql: _Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows with values that are no values of the types of their columns."""
    session.register("given", given)
    parts = [_errors(given["position"].clear(), "", "")]
    for number, column in enumerate(sql.writing.columns):
        condition = f"s.c{number} IS NOT NULL AND TRY(CAST(s.c{number} AS {column.sql_type})) IS NULL"
        found = session.query("table_rejected", placeholders={"condition": condition, "error": "NULL"})["position"]
        wrong = given.filter(pl.col("position").is_in(found.implode()))
        for position, given_value in wrong.select("position", f"c{number}").iter_rows():
            value = str(given_value)[:100]
            error = f"{column.name}: {value!r} is not a valid {column.sql_type}"
            parts.append(_errors(pl.Series([position], dtype=pl.UInt32), error, "invalid_value", "22000"))
    return pl.concat(parts).unique("position", keep="first", maintain_order=True)


def _rejected(session: Session, sql: _Sql, given: pl.DataFrame) -> pl.DataFrame:
    """The rows that violate a type or a constraint, as far as single constraints can be checked by a query."""
    rejected = _invalid(session, sql, given)
    session.register("given", given.join(rejected, on="position", how="anti", maintain_order="left"))
    changed = session.query("table_probe", placeholders=sql.placeholders)
    if sql.writing.on_match == "fail":
        changed = changed.filter("created")
    # Constraints concern only the rows that would be written.
    given = given.join(changed, on="position", how="semi", maintain_order="left")
    checks = [*_null_checks(sql), *_constraint_checks(session, sql)]
    cascades = bool(_own_references(session, sql))
    while True:
        before = rejected.height
        for condition, error, kind, name in checks:
            session.register("given", given.join(rejected, on="position", how="anti", maintain_order="left"))
            try:
                found = session.query("table_rejected", placeholders={"condition": condition, "error": error})
            except (PermanentError, RowError):
                # A condition that cannot be checked alone: the rows are written in halves instead.
                continue
            errors = _errors(found["position"], "", rule_of(kind, name), kind)
            rejected = pl.concat([rejected, errors.with_columns(found["error"])])
        # Rows that reference a rejected row are rejected as well.
        if not cascades or rejected.height == before:
            return rejected


def _null_checks(sql: _Sql) -> Iterator[tuple[str, str, str, str]]:
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


def _constraint_checks(session: Session, sql: _Sql) -> Iterator[tuple[str, str, str, str]]:
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
            error = _with_values(f"{', '.join(one['columns'])}: another row has the value", columns, new)
            yield condition, error, "23505", one["name"]
            if {column.name for column in columns} <= sent.keys():
                same = " AND ".join(f"{_cast(sent[one.name], one, 'o')} = {new[one.name]}" for one in columns)
                before = f"EXISTS (SELECT 1 FROM given AS o WHERE {same} AND o.position < s.position)"
                yield before, error, "23505", one["name"]
        elif one["kind"] == "FOREIGN KEY":
            schema = f"{quoted(relation.address[0])}.{quoted(relation.parts[0])}"
            pairs = zip(one["referenced"], columns, strict=True)
            same = " AND ".join(f"r.{quoted(name)} = {new[column.name]}" for name, column in pairs)
            there = f"EXISTS (SELECT 1 FROM {schema}.{quoted(one['referenced_table'])} AS r WHERE {same})"
            if _is_own_reference(one, relation) and set(one["referenced"]) <= set(sent):
                pairs = zip(one["referenced"], columns, strict=True)
                same = " AND ".join(
                    f"{_cast(sent[name], relation[name], 'o')} = {new[each.name]}" for name, each in pairs
                )
                there += f" OR EXISTS (SELECT 1 FROM given AS o WHERE {same} AND o.position <> s.position)"
            given = " AND ".join(f"{new[column.name]} IS NOT NULL" for column in columns)
            lacking = f"no row of {one['referenced_table']} has {', '.join(one['referenced'])} ="
            error = _with_values(f"{', '.join(one['columns'])}: {lacking}", columns, new)
            yield f"{given} AND NOT ({there})", error, "23503", one["name"]


def _with_values(text: str, columns: Sequence[Column], values: dict[str, str]) -> str:
    """A message that ends with the values of columns of a row, as SQL."""
    shown = ", ".join(f"CAST({values[column.name]} AS VARCHAR)" for column in columns)
    return f"{literal(text + ' ')} || left(concat_ws(', ', {shown}), 100)"


def _described(session: Session, catalog: str, schema: str, name: str) -> Relation:
    address = (catalog, schema, name)
    sql = ".".join(map(quoted, address))
    ((definition,),) = session.query("table_definition", *address).rows()
    collated = re.search(r"\bCOLLATE\b", definition, re.IGNORECASE) is not None
    described = session.query("table_columns", *address).rows(named=True)
    columns = [_column(row, collated) for row in described]
    dtypes = session.query("table_select", placeholders=_nothing(sql, columns)).dtypes
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
        indexed = tuple(map(_unquoted, _parts(sql.rstrip("; ")[:-1].partition(" ON ")[2].partition("(")[2])))
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


def _column(row: dict[str, Any], collated: bool) -> Column:
    column = _typed(row["name"], row["sql_type"])
    # Which collation it is, is not needed: texts are compared by their bytes.
    collation = "any" if collated and column.family == "text" else None
    identity = str(row["default"]).lower().startswith("nextval(")
    return replace(column, nullable=not row["required"], default=row["default"], identity=identity, collation=collation)


def _typed(name: str, sql_type: str) -> Column:
    """A column of a type."""
    if array := re.fullmatch(r"(.*)\[(\d*)\]", sql_type, re.DOTALL):
        inner = _typed(name, array[1])
        family: Family = "vector" if array[2] and array[1] == "FLOAT" else "array"
        return Column(name, sql_type, family, element=inner, size=int(array[2]) if array[2] else None)
    if enum := re.fullmatch(r"ENUM\((.*)\)", sql_type, re.DOTALL):
        labels = re.findall(r"'((?:[^']|'')*)'", enum[1])
        return Column(name, sql_type, "enum", labels=tuple(label.replace("''", "'") for label in labels))
    if decimal := re.fullmatch(r"DECIMAL\((\d+),(\d+)\)", sql_type):
        return Column(name, sql_type, "decimal", precision=int(decimal[1]), scale=int(decimal[2]))
    if nested := re.fullmatch(r"(STRUCT|MAP)\((.*)\)", sql_type, re.DOTALL):
        parts = _parts(nested[2])
        if nested[1] == "MAP":
            fields = [_typed(part, text) for part, text in zip(("key", "value"), parts, strict=True)]
            return Column(name, sql_type, "map", fields=tuple(fields))
        named = [re.fullmatch(r'("(?:[^"]|"")*"|\S+) (.*)', part, re.DOTALL) for part in parts]
        fields = [_typed(_unquoted(one[1]), one[2]) for one in named if one]
        return Column(name, sql_type, "struct", fields=tuple(fields))
    unsigned = sql_type.startswith("U") and sql_type[1:] in _FAMILIES and _FAMILIES[sql_type[1:]][0] == "integer"
    family, size = _FAMILIES.get(sql_type[1:] if unsigned else sql_type, ("other", None))
    if family in ("timestamp", "timestamptz", "time"):
        return Column(name, sql_type, family, scale=size)
    return Column(name, sql_type, family, size=size, unsigned=unsigned, loose=family == "interval")


#: A piece of the text of a type: a quoted name or label, an opening or closing parenthesis, a comma, other text.
_PIECE = re.compile(r"""("(?:[^"]|"")*"|'(?:[^']|'')*')|([(])|([)])|(,)|[^"'(),]+""", re.DOTALL)


def _parts(text: str) -> list[str]:
    """The types in a list of types, separated by commas."""
    parts, depth = [""], 0
    for piece in _PIECE.finditer(text):
        depth += (piece[2] is not None) - (piece[3] is not None)
        if piece[4] and depth == 0:
            parts.append("")
        else:
            parts[-1] += piece[0]
    return [part.strip() for part in parts]


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


def _cast(name: str, column: Column, alias: str = "s") -> str:
    """A given value as a value of the column."""
    value = f"{alias}.{name}"
    if column.sql_type == "VARCHAR":
        return value
    cast = f"CAST({value} AS {column.sql_type})"
    # A null would become a member of the union that is null.
    return f"CASE WHEN {value} IS NOT NULL THEN {cast} END" if column.sql_type.startswith("UNION(") else cast


def _matches(name: str, column: Column) -> str:
    """Whether a given value is that of a column of the key."""
    given, stored = _cast(name, column), f"t.{column.quoted}"
    # Indexes ignore collations.
    return f"encode({stored}) = encode({given})" if column.collation else f"{stored} = {given}"


def _compared(value: str, column: Column) -> str:
    """A value in the form in which it is compared."""
    if column.collation:
        return f"encode({value})"
    return f"CAST({value} AS VARCHAR)" if column.loose or column.family in ("json", "other") else value


def _selected(columns: Sequence[Column]) -> str:
    """The columns as they are read, as v0, v1, ..."""
    return ", ".join(f"{_read(column)} AS v{number}" for number, column in enumerate(columns)) or "NULL AS none"


def _read(column: Column) -> str:
    readable = _readable_type(column)
    value = f"t.{column.quoted}"
    return value if readable == column.sql_type else f"CAST({value} AS {readable})"


def _readable_type(column: Column) -> str:
    """The type in which values are read."""
    if column.family in ("array", "vector") and column.element is not None:
        return f"{_readable_type(column.element)}[{'' if column.size is None else column.size}]"
    if column.family == "struct":
        return "STRUCT(" + ", ".join(f"{one.quoted} {_readable_type(one)}" for one in column.fields) + ")"
    if column.family == "map":
        return "MAP(" + ", ".join(map(_readable_type, column.fields)) + ")"
    wide = column.family == "integer" and (column.size is None or column.size > 64)
    return "VARCHAR" if wide or column.family in _AS_TEXT else column.sql_type


def _nothing(sql: str, columns: Sequence[Column]) -> dict[str, str]:
    return {"table": sql, "columns": _selected(columns), "where": "LIMIT 0"}


def _emptiness(relation: Relation) -> dict[str, str]:
    return {"table": relation.sql, "columns": "1", "where": "LIMIT 1"}


def _by_keys(relation: Relation) -> dict[str, str]:
    columns = [relation[name] for name in relation.key]
    matches = " AND ".join(_matches(f"c{number}", column) for number, column in enumerate(columns))
    return {"table": relation.sql, "matches": matches}


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
    raise SchemaError(f"column {name!r} is {dtype}, for which there is no SQL type: cast it first")
