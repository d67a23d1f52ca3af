"""Tables of the user on PostgreSQL.

The rows of a batch are copied to a staging table, compared with the stored rows, and updated or inserted, in one
transaction. The columns of the staging table have the types of the table where the driver copies values of this type;
other values are copied as text, and the database converts them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.postgres.database import PostgresDatabase
from entityframes.engines.postgres.errors import UNIQUE_VIOLATION
from entityframes.engines.postgres.session import Session
from entityframes.engines.rules import with_rules
from entityframes.engines.tables import (
    REPEATED,
    Column,
    Family,
    NoTableError,
    Relation,
    SoftDelete,
    Writing,
    canonical,
    literal,
    parse_name,
    quoted,
)
from entityframes.errors import ConnectionLostError, PermanentError, RowError, SchemaError, TransientError
from entityframes.interrupt import Interrupt
from entityframes.retry import retry, retry_stream

#: The families of types by the name of the type.
_FAMILIES: dict[str, Family] = {
    "bool": "boolean", "int2": "integer", "int4": "integer", "int8": "integer", "float4": "float", "float8": "float",
    "numeric": "decimal", "text": "text", "varchar": "text", "bpchar": "text", "name": "text", "char": "text",
    "citext": "text",
    "bytea": "binary", "uuid": "uuid", "date": "date", "timestamp": "timestamp", "timestamptz": "timestamptz",
    "time": "time", "interval": "interval", "json": "json", "jsonb": "json", "vector": "vector", "halfvec": "vector",
}  # fmt: skip
_BITS = {"int2": 16, "int4": 32, "int8": 64, "float4": 32, "float8": 64}
_DTYPES: dict[Family, pl.DataType] = {"boolean": pl.Boolean(), "binary": pl.Binary(), "date": pl.Date()}
_INTEGERS: dict[int | None, pl.DataType] = {16: pl.Int16(), 32: pl.Int32(), 64: pl.Int64()}

#: The types of the staging table whose values the driver copies as they are. All others are staged as text.
_COPIED = {
    pl.Boolean(): "boolean", pl.Int16(): "smallint", pl.Int32(): "integer", pl.Int64(): "bigint", pl.Float32(): "real",
    pl.Float64(): "double precision", pl.Binary(): "bytea", pl.Date(): "date", pl.Datetime("us"): "timestamp",
    pl.Datetime("us", "UTC"): "timestamptz",
}  # fmt: skip

#: The types of text that need no conversion.
_PLAIN_TEXT = re.compile(r"text|character varying(\(\d+\))?")

#: Rows that were skipped without an error.
_SKIPPED = "not stored by the database, which reported no error: a trigger or a row-level policy prevents it"

_KEPT = "not deleted by the database, which reported no error: a trigger, a rule or a row-level policy prevents it"
_EXISTS = "a row with this key is stored"

#: The condition of rows given by their positions.
_SOME = "WHERE s.position = ANY ($1::int4[])"

#: At most one of so many rows of a batch are updated by position; nearly all are more than all but one of so many.
_FEW, _MOST = 4, 10

#: The kinds of relations that cannot be written to.
_NO_TABLES = {
    "v": "a view", "m": "a materialized view", "f": "a foreign table", "S": "a sequence", "i": "an index",
    "I": "an index", "c": "a type", "t": "a table that PostgreSQL uses itself",
}  # fmt: skip


@dataclass
class _Seen:
    """What the batches of a run have learned, for later batches of the same run."""

    #: Whether the table had no rows when the run first wrote to it.
    was_empty: bool | None = None
    #: Whether nearly all rows of a batch were updated, so that the next one is not compared first; and whether all
    #: were created, so that of the next one only the keys are compared.
    updates_all: bool = False
    creates_all: bool = False
    #: Whether concurrent transactions insert the same keys, so that each inserted row is returned.
    contested: bool = False
    #: The transaction of each batch: its id and timeline.
    transactions: dict[str, tuple[str, str]] = field(default_factory=dict)


class PostgresTables:
    """The operations on tables of the user."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database
        #: Keyed by the interrupt of the run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()

    def describe(self, name: str) -> Relation:
        parts = parse_name(name)
        exact = ".".join(quoted(text) for text, _ in parts)
        folded = ".".join(quoted(text if literal else text.lower()) for text, literal in parts)

        def query() -> Relation:
            with self.database.session() as session:
                return _described(session, name, exact, folded)

        return retry(query, what="describe")

    def tables(self) -> pl.DataFrame:
        return self.database.read("tables").select("table", "key", pl.col("rows").cast(pl.UInt64))

    def write(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        result: pl.DataFrame | None = None
        try:
            with self.database.session(batch.interrupt) as session, self._rejections(session, writing, rows):
                if (copied := self._copied(session, writing, rows, batch)) is not None:
                    return copied
                with session.transaction(batch.interrupt):
                    result = self._write(session, writing, rows, batch)
        except ConnectionLostError as error:
            error.answer = result
            raise
        return result

    def _write(self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        sql = _Sql(writing)
        self._stage(session, sql, rows)
        if (inexact := self._inexact(session, sql)).height:
            raise RowError(inexact["error"][0], None, "loses_digits")
        aside = [self._repeated(session, sql)]
        if batch.whole and aside[0].height:
            raise RowError(REPEATED, None, "key_not_unique")
        conflicts = self._conflicts(session, sql)
        updated = self._updated_at_once(session, sql, batch)
        if updated.height == rows.height:
            self._note(session, batch)
            return updated
        changed = session.query("table_probe", placeholders=sql.placeholders)
        # A trigger may have changed rows so that they still differ.
        changed = changed.join(updated, on="position", how="anti") if updated.height else changed
        if writing.on_match == "fail" and (matches := changed.filter(~pl.col("created"))).height:
            if batch.whole:
                raise RowError(_EXISTS, None, "key_exists")
            changed = changed.filter("created")
            session.execute("table_unstage", matches["position"])
            aside.append(_rejected(matches["position"], _EXISTS, "key_exists"))
        if conflicts is not None:
            changed = changed.join(conflicts, on="position", how="anti")
        written = self._merged(session, sql, rows.height, changed, batch)
        if written.height < changed.height:
            written = self._with_skipped(session, sql, changed, written, batch, expecting=conflicts is not None)
        written = pl.concat([updated, written], how="diagonal")
        if written.height:
            self._note(session, batch)
        if written["position"].null_count():
            raise RowError("a trigger stores rows under other keys", "EF001")
        updates = written.height - written["created"].sum()
        seen = self._seen_by(batch)
        seen.updates_all = updates * _MOST > rows.height * (_MOST - 1)
        seen.creates_all = written["created"].sum() == rows.height
        if conflicts is not None:
            aside.append(conflicts.with_columns(conflict=pl.lit(True)))
        return pl.concat([written, *aside], how="diagonal")

    def _updated_at_once(self, session: Session, sql: _Sql, batch: Batch) -> pl.DataFrame:
        """Update the rows that differ without a comparison, if nearly all rows of the batch before differed."""
        none = pl.DataFrame(schema={"position": pl.UInt32, "created": pl.Boolean})
        if not self._seen_by(batch).updates_all or sql.writing.on_match != "update" or sql.writing.expecting:
            return none
        return session.query("table_update", placeholders=sql.placeholders).with_columns(created=pl.lit(False))

    def _merged(self, session: Session, sql: _Sql, height: int, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Update and insert the changed rows; position and created of those that were written."""
        written = [changed.clear()]
        updates = changed.filter(~pl.col("created"))["position"]
        if len(updates):
            if len(updates) * _FEW <= height:
                updated = session.query("table_update_some", updates, placeholders=sql.placeholders)
            else:
                updated = session.query("table_update", placeholders=sql.placeholders)
            written.append(updated.with_columns(created=pl.lit(False)))
        if changed["created"].any():
            written.append(self._inserted(session, sql, height, changed.filter("created"), batch))
        return pl.concat(written)

    def _inserted(self, session: Session, sql: _Sql, height: int, new: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Insert new rows; position and created of those that were inserted.

        Raises:
            TransientError: a concurrent transaction has inserted some of them; a retry finds out which.
        """
        some, positions = ("", []) if new.height == height else (_SOME, [new["position"]])
        placeholders = {**sql.placeholders, "some": some}
        seen = self._seen_by(batch)
        if seen.contested or sql.writing.relation.may_skip:
            session.execute("any_joins")
            inserted = session.query("table_insert_each", *positions, placeholders=placeholders)
            return inserted.with_columns(created=pl.lit(True))
        if session.query("table_insert", *positions, placeholders=placeholders).item() != new.height:
            seen.contested = True
            raise TransientError("a concurrent transaction has inserted the same keys", "40001")
        return new

    def _with_skipped(
        self,
        session: Session,
        sql: _Sql,
        changed: pl.DataFrame,
        written: pl.DataFrame,
        batch: Batch,
        *,
        expecting: bool,
    ) -> pl.DataFrame:
        """Look again at rows that differ but were not written: a concurrent transaction has written or deleted them."""
        missed = changed.join(written, on="position", how="anti")
        if expecting:
            # The rows are locked, so a concurrent transaction has inserted them.
            return pl.concat([written, missed.select("position", conflict=pl.lit(True))], how="diagonal")
        again = session.query("table_probe", placeholders=sql.placeholders).join(missed, on="position", how="semi")
        if again.is_empty():
            return written
        if sql.writing.on_match == "fail" and not again["created"].all():
            raise RowError(_EXISTS, None, "key_exists")
        later = self._merged(session, sql, 0, again, batch)
        written = pl.concat([written, later.join(written, on="position", how="anti")])
        skipped = again.join(written, on="position", how="anti")["position"]
        if len(skipped):
            raise RowError(_SKIPPED, "EF001", "skipped")
        return written

    def _copied(self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """Copy rows directly into the table if all of them are new, most likely; None if that is not possible."""
        relation = writing.relation
        exact = all(
            canonical(column) in _COPIED or _PLAIN_TEXT.fullmatch(column.sql_type) for column in writing.columns
        )
        # COPY does not check that the type of a column that is not sent allows nulls.
        sent = {column.name for column in writing.columns}
        lacking = any(
            not (column.nullable or column.default or column.generated or column.identity or column.name in sent)
            for column in relation.columns
        )
        if not exact or lacking or relation.may_skip or writing.expecting or writing.nulls == "keep":
            return None
        seen = self._seen_by(batch)
        if seen.was_empty is None:
            seen.was_empty = bool(session.query("table_is_empty", placeholders={"table": relation.sql}).item())
        if not (seen.was_empty or (seen.creates_all and self._all_new(session, writing, rows))):
            return None
        names = [f"c{number}" for number in range(len(writing.columns))]
        table = rows.select(
            pl.col(name).alias(column.name) for name, column in zip(names, writing.columns, strict=True)
        )
        result = pl.DataFrame({"position": pl.int_range(rows.height, dtype=pl.UInt32, eager=True)})
        result = result.with_columns(created=pl.lit(True))
        try:
            with session.transaction(batch.interrupt):
                session.copy(relation.parts[1], table, schema=relation.parts[0])
                self._note(session, batch)
        except RowError as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            seen.was_empty = seen.creates_all = False
            session.rollback()
            return None
        except ConnectionLostError as error:
            error.answer = result
            raise
        return result

    def _all_new(self, session: Session, writing: Writing, rows: pl.DataFrame) -> bool:
        keys = rows.select(name for name, _ in writing.key)
        relation = writing.relation
        return session.query(
            "table_existing", *_parameters(relation, keys), placeholders=_by_arrays(relation)
        ).is_empty()

    def write_each(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        result: pl.DataFrame | None = None
        sql = _Sql(writing)
        try:
            with self.database.session(batch.interrupt) as session, session.transaction(batch.interrupt):
                self._stage(session, sql, rows)
                session.execute("immediate_constraints")
                result = self._each(session, sql, batch, rows.height)
                self._note(session, batch)
        except ConnectionLostError as error:
            error.answer = result
            raise
        return result

    def _each(self, session: Session, sql: _Sql, batch: Batch, height: int) -> pl.DataFrame:
        """Write the staged rows except for those that are rejected, within a transaction."""
        rejected = self._unstage_invalid(session, sql)
        aside: list[pl.DataFrame] = []
        if (conflicts := self._conflicts(session, sql)) is not None:
            aside.append(conflicts.with_columns(conflict=pl.lit(True)))
        # Unchanged rows are not tried, so that another run after one with failures takes little time.
        changed = session.query("table_probe", placeholders=sql.placeholders)["position"]
        positions = pl.int_range(height, dtype=pl.Int32, eager=True)
        session.execute("table_unstage", positions.filter(~positions.is_in(changed.cast(pl.Int32).implode())))
        tried = [self._tried(session, sql)]
        if session.query("table_probe", placeholders=sql.placeholders).height:
            # A concurrent transaction may have inserted or deleted rows.
            tried.append(self._tried(session, sql))
        outcomes = pl.concat(tried)
        for created, position in (
            session.query("table_probe", placeholders=sql.placeholders).select("created", "position").rows()
        ):
            exists = sql.writing.on_match == "fail" and not created
            error = (_EXISTS, "key_exists") if exists else (_SKIPPED, "skipped")
            rejected = pl.concat([rejected, _rejected(pl.Series([position], dtype=pl.UInt32), *error)], how="diagonal")
        outcomes = pl.concat([outcomes, rejected], how="diagonal")
        if batch.whole and (errors := outcomes.drop_nulls("error")).height:
            first = errors.row(0, named=True)
            raise RowError(first["error"], first["sqlstate"], first["rule"])
        return pl.concat([outcomes, *aside], how="diagonal")

    def _tried(self, session: Session, sql: _Sql) -> pl.DataFrame:
        """Try to write the staged rows; returns and removes those that were written or rejected."""
        session.execute("table_merge_each", placeholders=sql.each(session))
        outcomes = with_rules(session.query("table_outcomes"))
        session.execute("table_unstage", outcomes["position"])
        session.execute("table_forget_outcomes")
        return outcomes

    def _prepare_single_rows(self, session: Session) -> None:
        session.execute("table_index_staging")
        session.execute("table_analyze_staging")
        session.execute("any_joins")
        session.execute("table_tried")

    def compare(self, writing: Writing, rows: pl.DataFrame) -> pl.DataFrame:
        sql = _Sql(writing)
        return self._staged(sql, rows, lambda session: session.query("table_compare", placeholders=sql.placeholders))

    def _staged(self, sql: _Sql, rows: pl.DataFrame, query: Callable[[Session], pl.DataFrame]) -> pl.DataFrame:
        """The result of a query on staged rows, in a transaction that is not committed.

        Rows with values that are none of the types of their columns are not staged, and have their error in the result.
        """

        def staged(*, check: bool) -> pl.DataFrame:
            with self.database.session() as session:
                session.begin()
                try:
                    self._stage(session, sql, rows)
                    invalid = [self._unstage_invalid(session, sql)] if check else []
                    return pl.concat([query(session), *invalid], how="diagonal")
                finally:
                    session.rollback()

        if sql.inexact or sql.writing.relation.may_repeat:
            return retry(lambda: staged(check=True), what="compare")
        try:
            return retry(lambda: staged(check=False), what="compare")
        except (RowError, PermanentError) as error:
            if not _may_be_invalid(error, sql):
                raise
            return retry(lambda: staged(check=True), what="compare")

    def _unstage_invalid(self, session: Session, sql: _Sql) -> pl.DataFrame:
        """Find the staged rows with values that are none of the types of their columns, and remove them."""
        self._prepare_single_rows(session)
        invalid = [_rejected(pl.Series(dtype=pl.UInt32), "", "")]
        if checks := sql.casts:
            session.execute("table_check_each", placeholders={"checks": checks, "tag": _tag()})
            invalid.append(with_rules(session.query("table_outcomes")).drop("created"))
            session.execute("table_unstage", invalid[-1]["position"])
            session.execute("table_forget_outcomes")
        if (inexact := self._inexact(session, sql)).height:
            session.execute("table_unstage", inexact["position"])
            invalid.append(inexact)
        invalid.append(self._repeated(session, sql))
        return pl.concat(invalid, how="diagonal")

    def _repeated(self, session: Session, sql: _Sql) -> pl.DataFrame:
        """Find the staged rows whose key is stored more than once, and remove them."""
        if not sql.writing.relation.may_repeat:
            return _rejected(pl.Series(dtype=pl.UInt32), "", "")
        found = session.query("table_ambiguous", placeholders=sql.placeholders)["position"]
        session.execute("table_unstage", found)
        return _rejected(found, REPEATED, "key_not_unique")

    def _inexact(self, session: Session, sql: _Sql) -> pl.DataFrame:
        """The staged rows with values that a cast to the type of their column would change."""
        if not sql.inexact:
            return _rejected(pl.Series(dtype=pl.UInt32), "", "")
        found = session.query("table_inexact", placeholders={"inexact": sql.inexact})
        columns = [sql.writing.columns[number] for number in found["number"]]
        errors = [f"{one.name}: has more digits, or another length, than {one.sql_type} holds" for one in columns]
        return _rejected(found["position"], pl.Series(errors, dtype=pl.String), "loses_digits")

    def recovered(self, batch: Batch, answer: pl.DataFrame | None) -> pl.DataFrame | None:
        transaction = self._seen_by(batch).transactions.get(batch.batch_id)
        if transaction is None or answer is None:
            return None
        status = self._status(transaction)
        if status == "in progress" or status is None:
            raise ConnectionLostError(
                "it is unknown whether the transaction was committed: "
                + ("the server has not finished it" if status else "another server has taken over")
            )
        return answer if status == "committed" else None

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        known = {name: token for seen in self._seen.values() for name, token in seen.transactions.items()}
        lost = []
        for batch_id in batch_ids:
            status = self._status(known[batch_id]) if batch_id in known else "committed"
            if status is None:
                raise ConnectionLostError("another server has taken over, which may lack the latest transactions")
            if status != "committed":
                lost.append(batch_id)
        return lost

    def _status(self, transaction: tuple[str, str]) -> str | None:
        """committed, aborted or in progress; None if another server has taken over."""
        with self.database.session() as session:
            session.check_primary()
            return session.query("transaction_status", *transaction).item()  # type: ignore[no-any-return]

    def same_keys(self, relation: Relation, keys: pl.DataFrame) -> pl.Series:
        sql = _key_sql(relation)
        found = self._staged(sql, keys, lambda session: session.query("table_same_keys", placeholders=sql.placeholders))
        own = keys.select(position=pl.int_range(pl.len(), dtype=pl.UInt32))
        same = own.join(found, on="position", how="left", maintain_order="left")
        return same.select(pl.col("same").cast(pl.UInt32).fill_null(pl.col("position"))).to_series()

    def existing(self, relation: Relation, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_existing", relation, keys)

    def lookup(self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_lookup", relation, keys, columns=_selected(columns))

    def _by_key(self, name: str, relation: Relation, keys: pl.DataFrame, **placeholders: str) -> pl.DataFrame:
        return self.database.read(
            name, *_parameters(relation, keys), placeholders={**_by_arrays(relation), **placeholders}
        )

    def delete(
        self,
        relation: Relation,
        keys: pl.DataFrame,
        batch: Batch,
        soft: str | None = None,
        expected: Sequence[str] = (),
    ) -> pl.DataFrame:
        name = "table_delete" if soft is None else "table_soft_delete"
        parameters, placeholders = _parameters(relation, keys), _by_arrays(relation, expected)
        conditions = [f"t.{quoted(one)}::text IS NOT DISTINCT FROM s.e{n}" for n, one in enumerate(expected)]
        if soft is not None:
            marked = SoftDelete(relation[soft])
            conditions.append(f"NOT ({marked.is_deleted})")
            placeholders |= {"column": marked.column.quoted, "value": marked.deleted}
        placeholders["condition"] = " AND ".join(conditions) or "true"
        deleted: pl.DataFrame | None = None
        try:
            with self.database.session(batch.interrupt) as session, session.transaction(batch.interrupt):
                deleted = session.query(name, *parameters, placeholders=placeholders).unique("position")
                if relation.may_skip and deleted.height < keys.height and not conditions:
                    kept = session.query("table_existing", *parameters, placeholders=placeholders)
                    kept = kept.join(deleted, on="position", how="anti")
                    rejected = _rejected(kept["position"], _KEPT, "skipped")
                    deleted = pl.concat([deleted, rejected], how="diagonal")
                self._note(session, batch)
        except ConnectionLostError as error:
            error.answer = deleted
            raise
        return deleted

    def unmatched(
        self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame, where: str | None
    ) -> Iterator[pl.DataFrame]:
        sql = _key_sql(relation)
        condition = f"WHERE {where}" if where else ""
        placeholders = {**sql.placeholders, "columns": _selected(columns), "where": condition}

        def rows() -> Any:
            # The transaction is not committed: it only holds the staging table.
            with self.database.session() as session:
                session.begin()
                try:
                    self._stage(session, sql, keys)
                    session.execute("table_analyze_staging")
                    session.execute("any_joins")
                    yield from session.stream("table_unmatched", placeholders=placeholders)
                finally:
                    session.rollback()

        return retry_stream(rows)

    def select(
        self, relation: Relation, columns: Sequence[Column], where: str | None, interrupt: Interrupt | None = None
    ) -> Iterator[pl.DataFrame]:
        placeholders = {
            "table": relation.sql, "columns": _selected(columns), "where": f"WHERE {where}" if where else "",
        }  # fmt: skip

        def rows() -> Any:
            with self.database.session(interrupt) as session:
                yield from session.stream("table_select", placeholders=placeholders)

        return retry_stream(rows)

    def create(self, name: str, columns: dict[str, pl.DataType], key: Sequence[str]) -> None:
        parts = parse_name(name)
        table = ".".join(quoted(text if literal else text.lower()) for text, literal in parts)
        definitions = ", ".join(f"{quoted(column)} {sql_type(dtype, column)}" for column, dtype in columns.items())
        placeholders = {"table": table, "columns": definitions, "key": ", ".join(map(quoted, key))}
        with self.database.session() as session:
            session.execute("table_create", placeholders=placeholders)

    def add_columns(self, relation: Relation, columns: dict[str, pl.DataType]) -> None:
        added = ", ".join(f"ADD COLUMN {quoted(name)} {sql_type(dtype, name)}" for name, dtype in columns.items())
        with self.database.session() as session:
            session.execute("table_add_columns", placeholders={"table": relation.sql, "columns": added})

    def _stage(self, session: Session, sql: _Sql, rows: pl.DataFrame) -> None:
        """Copy rows into the staging table of this transaction."""
        session.execute("table_staging", placeholders=sql.placeholders)
        # The planner knows nothing about the staged rows, and would hash the whole table for each batch.
        relation = sql.writing.relation
        placeholders = {"table_name": literal(relation.sql), "height": rows.height, "tag": _tag()}
        session.execute("table_joins", placeholders=placeholders)
        session.stage("entityframes_rows", sql.staged(rows))

    def _conflicts(self, session: Session, sql: _Sql) -> pl.DataFrame | None:
        """Lock the stored rows, and separate the positions of those that are not as expected."""
        if not sql.writing.expecting:
            return None
        session.query("table_lock", placeholders=sql.placeholders)
        found = session.query("table_conflicts", placeholders=sql.placeholders)
        if found.height:
            session.execute("table_unstage", found["position"])
        return found

    def _note(self, session: Session, batch: Batch) -> None:
        """Note the id of this transaction, by which the server knows what became of it."""
        found = session.query("transaction").row(0)
        self._seen_by(batch).transactions[batch.batch_id] = found

    def _seen_by(self, batch: Batch) -> _Seen:
        return self._seen.setdefault(batch.interrupt, _Seen())

    @contextmanager
    def _rejections(self, session: Session, writing: Writing, rows: pl.DataFrame) -> Iterator[None]:
        """Distinguish a row that is rejected from an error that affects all rows.

        Raises:
            RowError: this user may write to the table, so a policy rejected a row; or a text is no value of the type
                of its column, for which some types report a syntax error or an internal one.
        """
        try:
            yield
        except PermanentError as error:
            sql = _Sql(writing)
            denied = error.sqlstate == "42501"
            if not denied and not _may_be_invalid(error, sql):
                raise
            session.rollback()
            if denied:
                rejected = session.query("table_may_write", writing.relation.sql).item()
            else:
                rejected = self._has_invalid(session, sql, rows)
            if not rejected:
                raise
            raise RowError(str(error), error.sqlstate, error.rule) from None

    def _has_invalid(self, session: Session, sql: _Sql, rows: pl.DataFrame) -> bool:
        session.begin()
        try:
            self._stage(session, sql, rows)
            return self._unstage_invalid(session, sql).height > 0
        finally:
            session.rollback()


def _may_be_invalid(error: RowError | PermanentError, sql: _Sql) -> bool:
    """Whether an error may have been caused by a text that is no value of the type of its column."""
    return isinstance(error, RowError) or bool(sql.casts and (error.sqlstate or "").startswith(("42", "XX000")))


class _Sql:
    """The SQL text for the columns of a batch."""

    def __init__(self, writing: Writing) -> None:
        self.writing = writing

    @property
    def placeholders(self) -> dict[str, str]:
        writing = self.writing
        relation = writing.relation
        columns = [f"c{number} {_staging_type(column)}" for number, column in enumerate(writing.columns)]
        if writing.expecting:
            columns += ["stored boolean", *(f"e{name[1:]} text" for name, _ in writing.values)]
        first = writing.key[0][1].quoted
        key = [(name, column.quoted) for name, column in writing.key]
        names = [column.quoted for column in writing.columns]
        return {
            "table": relation.sql,
            "columns": ", ".join(columns),
            "first": first,
            "matches": " AND ".join(f"t.{column.quoted} = {_cast(name, column)}" for name, column in writing.key),
            "cast_key": ", ".join(_cast(name, column) for name, column in writing.key),
            "differs": self._differs(),
            "unexpected": " OR ".join(
                f"t.{column.quoted}::text IS DISTINCT FROM s.e{name[1:]}" for name, column in writing.values
            ) or "false",
            "assignments": self._assignments(),
            "names": ", ".join(names),
            "values": ", ".join(self._inserted(f"c{number}", column) for number, column in enumerate(writing.columns)),
            "key": ", ".join(quoted for _, quoted in key),
            "returned": ", ".join(f"t.{quoted}" for _, quoted in key),
            "texts": "".join(
                f", t.{column.quoted}::text AS o{name[1:]}, ({self._updated(name, column)})::text AS n{name[1:]}"
                for name, column in writing.values
            ),
        }  # fmt: skip

    def each(self, session: Session) -> dict[str, str]:
        """The placeholders of table_merge_each."""
        placeholders = self.placeholders
        if self.writing.on_match == "update" and self.writing.values:
            slice = session.text("table_update_slice", placeholders)
        else:
            slice = ""
        return {**placeholders, "update_slice": slice, "tag": _tag()}

    @property
    def casts(self) -> str:
        """The conversions of staged text that may fail; empty if there are none."""
        casts = [_cast(f"c{number}", column) for number, column in enumerate(self.writing.columns)]
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
            columns += [rows["stored"], *(rows[f"e{name[1:]}"] for name, _ in writing.values)]
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
        new = _cast(name, column)
        return f"coalesce({new}, t.{column.quoted})" if self.writing.nulls == "keep" else new

    def _assignments(self) -> str:
        assigned = [f"{column.quoted} = {self._updated(name, column)}" for name, column in self.writing.values]
        if self.writing.undelete:
            column = self.writing.relation[self.writing.undelete]
            assigned.append(f"{column.quoted} = {SoftDelete(column).undeleted}")
        # Not used if the rows have only their key.
        return ", ".join(assigned) or f"{self.writing.key[0][1].quoted} = {_cast(*self.writing.key[0])}"

    def _inserted(self, name: str, column: Column) -> str:
        """The value of a column of a new row."""
        value = _cast(name, column)
        default = column.default
        if column.identity:
            default = f"nextval(pg_get_serial_sequence({literal(self.writing.relation.sql)}, {literal(column.name)}))"
        return f"coalesce({value}, {default})" if self.writing.nulls == "keep" and default else value


def _key_sql(relation: Relation) -> _Sql:
    """The SQL text for frames of keys."""
    return _Sql(Writing(relation, tuple(relation[name] for name in relation.key)))


def _tag() -> str:
    """A delimiter of a string that no identifier can contain by chance."""
    return f"$ef_{secrets.token_hex(8)}$"


def _rejected(positions: pl.Series, error: str | pl.Series, rule: str) -> pl.DataFrame:
    return pl.DataFrame({"position": positions}).with_columns(
        error=pl.lit(error, pl.String), rule=pl.lit(rule, pl.String), sqlstate=pl.lit(None, pl.String)
    )


def _described(session: Session, name: str, exact: str, folded: str) -> Relation:
    found = session.query("relation", exact, folded)
    if found.is_empty():
        raise NoTableError(
            f"there is no table {name!r} in the database, or the user may not see it: check the name and the schema, "
            "or create it with entityframes.create_table"
        )
    row = found.row(0, named=True)
    shown = f"{row['schema']}.{row['name']}"
    if kind := _NO_TABLES.get(row["kind"]):
        raise SchemaError(f"{shown} is {kind}: only tables can be written to")
    oid = str(row["oid"])
    keys = session.query("table_keys", oid)
    columns = tuple(_column(one) for one in session.query("table_columns", oid).iter_rows(named=True))
    usable = [tuple(columns) for columns in keys["columns"].to_list() if columns]
    return Relation(
        shown,
        f"{quoted(row['schema'])}.{quoted(row['name'])}",
        columns,
        unique=tuple(dict.fromkeys(usable)),
        unusable=tuple(keys.filter(pl.col("columns").is_null())["definition"]),
        parts=(row["schema"], row["name"]),
        may_skip=row["may_skip"],
        has_rules=row["has_rules"],
        inherited=row["inherited"],
    )


def _column(row: dict[str, Any]) -> Column:
    """A column as described by table_columns."""
    kind = {name: row[name] for name in ("labels", "typmod", "nondeterministic")}
    element = None
    if row["element"] is not None:
        element = _typed("element", row["element_sql_type"], row["element"], row["element_kind"], None, **kind)
        element = None if element.family in ("other", "interval", "json", "vector") else element
    column = _typed(row["name"], row["sql_type"], row["type"], row["kind"], element, **kind)
    return replace(
        column,
        nullable=not row["required"],
        default=None if row["generated"] else row["default"],
        generated=bool(row["generated"]) or row["identity"] == "a",
        identity=bool(row["identity"]),
        collation=row["collation"],
        exact=row["exact"],
    )


def _typed(
    name: str,
    sql_type: str,
    base: str,
    kind: str,
    element: Column | None,
    *,
    labels: list[str] | None,
    typmod: int,
    nondeterministic: bool,
) -> Column:
    """A column of a type.

    Args:
        name: the name of the column.
        sql_type: the type as SQL text.
        base: the name of the type that a domain is based on, or else of the type.
        kind: the ``typtype`` of this type.
        element: the type of the elements of an array.
        labels: the labels of an enum.
        typmod: the ``atttypmod``, which encodes lengths and digits; -1 if there is none.
        nondeterministic: whether the collation considers different texts equal.
    """
    if element is not None:
        incomparable = element.incomparable
        dtype = pl.List(element.dtype)
        return Column(name, sql_type, "array", dtype, element=element, loose=element.loose, incomparable=incomparable)
    if kind == "e":
        return Column(name, sql_type, "enum", labels=tuple(labels or ()))
    family = _FAMILIES.get(base, "other")
    column = Column(name, sql_type, family, incomparable=family == "other" or base == "json")
    if family == "integer":
        return replace(column, dtype=_INTEGERS[_BITS[base]], size=_BITS[base])
    if family == "float":
        return replace(column, dtype=pl.Float32() if base == "float4" else pl.Float64(), size=_BITS[base])
    if family == "decimal" and typmod >= 4:
        precision, scale = (typmod - 4) >> 16 & 0xFFFF, ((typmod - 4 & 0x7FF) ^ 1024) - 1024
        fits = precision <= 38 and 0 <= scale <= precision
        read: pl.DataType = pl.Decimal(precision, scale) if fits else pl.String()
        return replace(column, dtype=read, precision=precision, scale=scale)
    if family == "text":
        if base in ("name", "char"):
            return replace(column, size=63 if base == "name" else 1, in_bytes=True)
        size = typmod - 4 if base in ("varchar", "bpchar") and typmod >= 4 else None
        return replace(column, size=size, loose=base == "citext" or nondeterministic, padded=base == "bpchar")
    if family == "time":
        return replace(column, dtype=pl.Time(), scale=None if typmod < 0 else typmod)
    if family in ("timestamp", "timestamptz"):
        zone = "UTC" if family == "timestamptz" else None
        return replace(column, dtype=pl.Datetime("us", zone), scale=None if typmod < 0 else typmod)
    if family == "vector":
        return replace(column, dtype=pl.List(pl.Float32()), size=None if typmod < 0 else typmod)
    return replace(column, dtype=_DTYPES.get(family, pl.String()), loose=family == "interval")


def _staging_type(column: Column) -> str:
    """The type of a column of the staging table."""
    if copied := _COPIED.get(canonical(column)):
        return copied
    return f"text COLLATE {column.collation}" if column.collation else "text"


def _cast(name: str, column: Column, alias: str = "s") -> str:
    """A staged value as a value of the column."""
    if canonical(column) in _COPIED or _PLAIN_TEXT.fullmatch(column.sql_type):
        # Not cast, because a cast to varchar(n) truncates.
        return f"{alias}.{name}"
    return f"{alias}.{name}::{column.sql_type}"


def as_staged(values: pl.Series, column: Column) -> pl.Series:
    """Canonical values as they are copied: arrays as text in the form of PostgreSQL."""
    return as_text(values, column) if isinstance(values.dtype, pl.List | pl.Time) else values


def as_text(values: pl.Series, column: Column) -> pl.Series:
    """Canonical values as text in the form of PostgreSQL."""
    if not isinstance(values.dtype, pl.List):
        if values.dtype == pl.Binary:
            return "\\x" + values.bin.encode("hex")
        if isinstance(values.dtype, pl.Date | pl.Datetime):
            return _dates_as_text(values)
        if values.dtype == pl.Time:
            # A cast would cut the digits of the second.
            return values.dt.to_string("%H:%M:%S%.f")
        return values.cast(pl.String)
    items = values.list.explode(empty_as_null=False, keep_nulls=False)
    texts = as_text(items, column)
    if column.family != "vector":
        escaped = texts.str.replace_all("\\", "\\\\", literal=True).str.replace_all('"', '\\"', literal=True)
        texts = ('"' + escaped + '"').fill_null("NULL")
    lengths = pl.DataFrame({"length": values.list.len()}).with_row_index("row")
    rows = lengths.drop_nulls().select(pl.col("row").repeat_by("length").list.explode(empty_as_null=False)).to_series()
    joined = pl.DataFrame({"row": rows, "text": texts}).group_by("row").agg(pl.col("text").str.join(","))
    left, right = "[]" if column.family == "vector" else "{}"
    text = pl.lit(left) + pl.col("text").fill_null("") + pl.lit(right)
    listed = lengths.join(joined, on="row", how="left", maintain_order="left")
    return listed.select(pl.when(pl.col("length").is_not_null()).then(text).alias(values.name)).to_series()


def _dates_as_text(values: pl.Series) -> pl.Series:
    """Dates and timestamps as text; Polars and PostgreSQL write years before 1 and after 9999 differently."""
    texts, years = values.cast(pl.String), values.dt.year()
    for place in ((years < 1) | (years > 9999)).fill_null(False).arg_true():
        year = years[place]
        rest = texts[place].removeprefix("-").removeprefix("+").partition("-")[2]
        texts[place] = f"{year:04}-{rest}" if year > 0 else f"{1 - year:04}-{rest} BC"
    return texts


def _parameters(relation: Relation, keys: pl.DataFrame) -> list[pl.Series]:
    """Keys, and the texts of further columns, as parameters: arrays of text."""
    given, columns = keys.get_columns(), [relation[name] for name in relation.key]
    return [*map(as_text, given[: len(columns)], columns), *given[len(columns) :]]


def _by_arrays(relation: Relation, expected: Sequence[str] = ()) -> dict[str, str]:
    """The placeholders of statements whose parameters are the columns of the key, and expected values."""
    columns = [relation[name] for name in relation.key]
    names = [*(f"c{number}" for number in range(len(columns))), *(f"e{number}" for number in range(len(expected)))]
    return {
        "table": relation.sql,
        "arrays": ", ".join(f"${number}::text[]" for number in range(1, len(names) + 1)),
        "keys": ", ".join(names),
        "matches": " AND ".join(
            f"t.{column.quoted} = {_from_text(f's.c{number}', column)}" for number, column in enumerate(columns)
        ),
    }


def _from_text(text: str, column: Column) -> str:
    collate = f" COLLATE {column.collation}" if column.collation else ""
    if _PLAIN_TEXT.fullmatch(column.sql_type):
        return text + collate
    return f"{text}::{column.exact or column.sql_type}{collate}"


def _selected(columns: Sequence[Column]) -> str:
    """The columns as they are read, as v0, v1, ..."""
    return ", ".join(f"{_read(column)} AS v{number}" for number, column in enumerate(columns)) or "NULL AS none"


#: The families that the driver reads without loss, also as values of arrays.
_READ = ("boolean", "integer", "float", "binary", "date", "timestamp", "timestamptz", "time")


def _read(column: Column) -> str:
    """A column as the driver returns it without loss."""
    value = f"t.{column.quoted}"
    if column.family == "vector":
        return f"{value}::real[]"
    one = column.element or column
    native = one.family in _READ
    kind = column.sql_type if native else "text[]" if column.element else "text"
    # The cast of text(inet) always adds a netmask.
    read = f"textin(inet_out({value}))" if column.sql_type == "inet" else value if native else f"{value}::{kind}"
    refused = [f"array_ndims({value}) > 1"] if column.element else []
    if unreadable := _unreadable("e" if column.element else value, one):
        refused.append(
            f"EXISTS (SELECT FROM unnest({value}) AS e WHERE {unreadable})" if column.element else unreadable
        )
    if not refused:
        return read
    # This cast fails, and the error shows the message.
    message = literal(f"column {column.name} has a value that a dataframe cannot represent: ")
    failing = "integer::text" if kind == "text" else kind
    wrong = f"({message} || {value}::text)::{failing}"
    return f"CASE WHEN {' OR '.join(refused)} THEN {wrong} ELSE {read} END"


def _unreadable(value: str, column: Column) -> str | None:
    """Whether a value cannot be represented by the dtype that is read; None if each can."""
    if column.family in ("date", "timestamp", "timestamptz"):
        return f"NOT isfinite({value})"
    if column.family == "time":
        return f"{value} = '24:00'"
    return f"{value} = 'NaN'" if isinstance(column.dtype, pl.Decimal) else None


def sql_type(dtype: pl.DataType, name: str) -> str:
    """The SQL type of a new column for a dtype.

    Raises:
        SchemaError: no type holds the values of this dtype.
    """
    simple: dict[Any, str] = {
        pl.Boolean: "boolean", pl.Int8: "smallint", pl.Int16: "smallint", pl.Int32: "integer", pl.Int64: "bigint",
        pl.UInt8: "smallint", pl.UInt16: "integer", pl.UInt32: "bigint", pl.UInt64: "numeric(20,0)", pl.Float32: "real",
        pl.Float64: "double precision", pl.String: "text", pl.Categorical: "text", pl.Enum: "text", pl.Binary: "bytea",
        pl.Date: "date", pl.Time: "time", pl.Duration: "interval", pl.Struct: "jsonb", pl.Int128: "numeric(39,0)",
        pl.Null: "text",
    }  # fmt: skip
    if isinstance(dtype, pl.Datetime):
        return "timestamptz" if dtype.time_zone else "timestamp"
    if isinstance(dtype, pl.Decimal):
        return f"numeric({dtype.precision},{dtype.scale})" if dtype.precision else "numeric"
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        if isinstance(inner, pl.List | pl.Array | pl.Struct):
            return "jsonb"
        return f"{sql_type(inner, name)}[]"  # type: ignore[arg-type]
    if found := simple.get(dtype.base_type()):
        return found
    raise SchemaError(f"column {name!r} is {dtype}, for which there is no SQL type: cast it first")
