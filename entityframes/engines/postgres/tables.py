"""Tables of the user on PostgreSQL.

The rows of a batch are copied to a staging table, compared with the stored rows, and updated or inserted, in one
transaction. The columns of the staging table have the types of the table where the driver copies values of this type;
other values are copied as text, and the database converts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.engines.postgres.database import PostgresDatabase
from entityframes.engines.postgres.errors import UNIQUE_VIOLATION
from entityframes.engines.postgres.session import Session
from entityframes.engines.postgres.table_sql import (
    Sql,
    by_arrays,
    delimiter,
    is_other,
    key_parameters,
    key_sql,
    selected_columns,
)
from entityframes.engines.postgres.types import COPIED, PLAIN_TEXT, described_column, sql_type
from entityframes.engines.rules import with_rules
from entityframes.engines.tables import (
    EXISTS,
    REPEATED,
    THERE,
    Column,
    NoTableError,
    Relation,
    SoftDelete,
    Writing,
    canonical,
    counting,
    parse_name,
    quoted,
    rejections,
)
from entityframes.errors import ConnectionLostError, PermanentError, RowError, SchemaError, TransientError
from entityframes.interrupt import Interrupt
from entityframes.retry import CommitUnknownError, retry, retry_stream

#: Rows that were skipped without an error.
_SKIPPED = "not stored by the database, which reported no error: a trigger or a row-level policy prevents it"

_KEPT = "not deleted by the database, which reported no error: a trigger, a rule or a row-level policy prevents it"

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
    #: The latest transaction of each batch.
    transactions: dict[str, _Transaction] = field(default_factory=dict)


class _Transaction(NamedTuple):
    """What identifies a transaction: the result of the statement ``transaction``."""

    id: str
    timeline: str
    reset: str
    durable: str


@dataclass
class _Answer:
    """What a transaction whose COMMIT got no response would have returned."""

    result: pl.DataFrame
    transaction: _Transaction
    #: Whether the transaction was in progress when the server was asked before.
    in_progress: bool = False


class PostgresTables:
    """The operations on tables of the user."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database
        #: Keyed by the interrupt of the run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()

    def describe(self, name: str) -> Relation:
        parts = parse_name(name)
        if any(len(text.encode()) > _LONGEST for text, _ in parts):
            # PostgreSQL would find another table.
            raise _no_table(name)
        exact = ".".join(quoted(text) for text, _ in parts)
        folded = ".".join(quoted(text if literal else text.lower()) for text, literal in parts)

        def query() -> Relation:
            with self.database.session() as session:
                return _described(session, name, exact, folded)

        return retry(query, what="describe")

    def tables(self) -> pl.DataFrame:
        return self.database.read("tables").with_columns(pl.col("rows").cast(pl.UInt64))

    def counts(self, names: Sequence[str]) -> list[int]:
        timeouts = self.database.statements["table_counts_timeouts"]
        with self.database.session() as session, session.transaction(None, timeouts):
            counted = session.query("table_counts", placeholders={"counts": counting(names)})
        return counted.sort("position")["rows"].to_list()

    def count(self, relation: Relation) -> int:
        return int(self.database.read("table_count", placeholders={"table": relation.sql}).item())

    def write(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        result: pl.DataFrame | None = None
        try:
            with self.database.session(batch.interrupt) as session, self._rejections(session, writing, rows):
                if (copied := self._copied(session, writing, rows, batch)) is not None:
                    return copied
                with session.transaction(batch.interrupt):
                    result = self._write(session, writing, rows, batch)
        except ConnectionLostError as error:
            self._keep(error, batch, result)
            raise
        return result

    def _write(self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        sql = Sql(writing)
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
                raise RowError(EXISTS, None, "key_exists")
            changed = changed.filter("created")
            session.execute("table_unstage", matches["position"])
            aside.append(rejections(matches["position"], EXISTS, "key_exists"))
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

    def _updated_at_once(self, session: Session, sql: Sql, batch: Batch) -> pl.DataFrame:
        """Update the rows that differ without a comparison, if nearly all rows of the batch before differed."""
        none = pl.DataFrame(schema={"position": pl.UInt32, "created": pl.Boolean})
        if not self._seen_by(batch).updates_all or sql.writing.on_match != "update" or sql.writing.expecting:
            return none
        self._lock_changed(session, sql)
        return session.query("table_update", placeholders=sql.placeholders).with_columns(created=pl.lit(False))

    def _lock_changed(self, session: Session, sql: Sql, *, always: bool = False) -> None:
        placeholders = {**sql.placeholders, "always": "true" if always else "false", "tag": delimiter()}
        session.execute("table_lock_changed", placeholders=placeholders)

    def _merged(self, session: Session, sql: Sql, height: int, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Update and insert the changed rows; position and created of those that were written."""
        written = [changed.clear()]
        updates = changed.filter(~pl.col("created"))["position"]
        if len(updates):
            self._lock_changed(session, sql)
            if len(updates) * _FEW <= height:
                updated = session.query("table_update_some", updates, placeholders=sql.placeholders)
            else:
                updated = session.query("table_update", placeholders=sql.placeholders)
            written.append(updated.with_columns(created=pl.lit(False)))
        if changed["created"].any():
            written.append(self._inserted(session, sql, height, changed.filter("created"), batch))
        return pl.concat(written)

    def _inserted(self, session: Session, sql: Sql, height: int, new: pl.DataFrame, batch: Batch) -> pl.DataFrame:
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
        sql: Sql,
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
            raise RowError(EXISTS, None, "key_exists")
        later = self._merged(session, sql, 0, again, batch)
        written = pl.concat([written, later.join(written, on="position", how="anti")])
        skipped = again.join(written, on="position", how="anti")["position"]
        if len(skipped):
            raise RowError(_SKIPPED, "EF001", "skipped")
        return written

    def _copied(self, session: Session, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """Copy rows directly into the table if all of them are new, most likely; None if that is not possible."""
        relation = writing.relation
        exact = all(canonical(column) in COPIED or PLAIN_TEXT.fullmatch(column.sql_type) for column in writing.columns)
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
            self._keep(error, batch, result)
            raise
        return result

    def _all_new(self, session: Session, writing: Writing, rows: pl.DataFrame) -> bool:
        keys = rows.select(name for name, _ in writing.key)
        relation = writing.relation
        return session.query(
            "table_existing", *key_parameters(relation, keys), placeholders=by_arrays(relation)
        ).is_empty()

    def write_each(self, writing: Writing, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        result: pl.DataFrame | None = None
        sql = Sql(writing)
        try:
            with self.database.session(batch.interrupt) as session, session.transaction(batch.interrupt):
                self._stage(session, sql, rows)
                session.execute("immediate_constraints")
                result = self._each(session, sql, batch, rows.height)
                self._note(session, batch)
        except ConnectionLostError as error:
            self._keep(error, batch, result)
            raise
        return result

    def _each(self, session: Session, sql: Sql, batch: Batch, height: int) -> pl.DataFrame:
        """Write the staged rows except for those that are rejected, within a transaction."""
        rejected = self._unstage_invalid(session, sql)
        aside: list[pl.DataFrame] = []
        if (conflicts := self._conflicts(session, sql)) is not None:
            aside.append(conflicts.with_columns(conflict=pl.lit(True)))
        # Unchanged rows are not tried, so that another run after one with failures takes little time.
        changed = session.query("table_probe", placeholders=sql.placeholders)
        positions = pl.int_range(height, dtype=pl.Int32, eager=True)
        unchanged = ~positions.is_in(changed["position"].cast(pl.Int32).implode())
        session.execute("table_unstage", positions.filter(unchanged))
        if sql.writing.on_match == "update" and not changed["created"].all():
            self._lock_changed(session, sql, always=True)
        tried = [self._tried(session, sql)]
        if session.query("table_probe", placeholders=sql.placeholders).height:
            # A concurrent transaction may have inserted or deleted rows.
            tried.append(self._tried(session, sql))
        outcomes = pl.concat(tried)
        missed = session.query("table_probe", placeholders=sql.placeholders)
        exists = pl.lit(sql.writing.on_match == "fail") & ~pl.col("created")
        refused = [
            rejections(missed.filter(exists)["position"], EXISTS, "key_exists"),
            rejections(missed.filter(~exists)["position"], _SKIPPED, "skipped"),
        ]
        outcomes = pl.concat([outcomes, rejected, *refused], how="diagonal")
        if batch.whole and (errors := outcomes.drop_nulls("error")).height:
            first = errors.row(0, named=True)
            raise RowError(first["error"], first["sqlstate"], first["rule"])
        return pl.concat([outcomes, *aside], how="diagonal")

    def _tried(self, session: Session, sql: Sql) -> pl.DataFrame:
        """Try to write the staged rows; returns and removes those that were written or rejected."""
        session.execute("table_merge_each", placeholders=sql.each(session))
        outcomes = with_rules(session.query("table_outcomes"))
        session.execute("table_unstage", outcomes["position"])
        session.execute("table_forget_outcomes")
        return outcomes

    def _prepare_single_rows(self, session: Session, sql: Sql) -> None:
        session.execute("table_index_staging")
        session.execute("table_analyze_staging")
        session.execute("table_joins_of_slices", placeholders=sql.joins)
        session.execute("table_tried")

    def compare(self, writing: Writing, rows: pl.DataFrame) -> pl.DataFrame:
        sql = Sql(writing)
        found = self._staged(sql, rows, lambda session: session.query("table_compare", placeholders=sql.placeholders))
        names = enumerate(name[1:] for name, _ in writing.values)
        texts = [pl.col(kind).list.get(n).alias(kind[0] + name) for n, name in names for kind in ("old", "new")]
        return found.select(pl.exclude("old", "new"), *texts)

    def _staged(self, sql: Sql, rows: pl.DataFrame, query: Callable[[Session], pl.DataFrame]) -> pl.DataFrame:
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

    def _unstage_invalid(self, session: Session, sql: Sql) -> pl.DataFrame:
        """Find the staged rows with values that are none of the types of their columns, and remove them."""
        self._prepare_single_rows(session, sql)
        invalid = [rejections(pl.Series(dtype=pl.UInt32), "", "")]
        if checks := sql.casts:
            session.execute("table_check_each", placeholders={"checks": checks, "tag": delimiter()})
            invalid.append(with_rules(session.query("table_outcomes")).drop("created"))
            session.execute("table_unstage", invalid[-1]["position"])
            session.execute("table_forget_outcomes")
        if (inexact := self._inexact(session, sql)).height:
            session.execute("table_unstage", inexact["position"])
            invalid.append(inexact)
        invalid.append(self._repeated(session, sql))
        return pl.concat(invalid, how="diagonal")

    def _repeated(self, session: Session, sql: Sql) -> pl.DataFrame:
        """Find the staged rows whose key is stored more than once, and remove them."""
        if not sql.writing.relation.may_repeat:
            return rejections(pl.Series(dtype=pl.UInt32), "", "")
        found = session.query("table_ambiguous", placeholders=sql.placeholders)["position"]
        session.execute("table_unstage", found)
        return rejections(found, REPEATED, "key_not_unique")

    def _inexact(self, session: Session, sql: Sql) -> pl.DataFrame:
        """The staged rows with values that a cast to the type of their column would change."""
        if not sql.inexact:
            return rejections(pl.Series(dtype=pl.UInt32), "", "")
        found = session.query("table_inexact", placeholders={"inexact": sql.inexact})
        columns = [sql.writing.columns[number] for number in found["number"]]
        errors = [f"{one.name}: has more digits, or another length, than {one.sql_type} holds" for one in columns]
        return rejections(found["position"], pl.Series(errors, dtype=pl.String), "loses_digits")

    def _keep(self, error: ConnectionLostError, batch: Batch, result: pl.DataFrame | None) -> None:
        """Keep what the transaction would have returned, for `recovered`."""
        transaction = self._seen_by(batch).transactions.get(batch.batch_id)
        if error.committing and result is not None and transaction is not None and error.answer is None:
            error.answer = _Answer(result, transaction)

    def recovered(self, batch: Batch, answer: Any, later: pl.DataFrame | None) -> pl.DataFrame | None:
        if not isinstance(answer, _Answer):
            # Nothing was written.
            return None
        status, crashed = self._status(answer.transaction)
        if status is None:
            raise CommitUnknownError("another server has taken over, which may lack the transaction")
        if status == "in progress":
            if later is None and not answer.in_progress:
                # Another attempt waits for it, because it holds locks on the rows.
                answer.in_progress = True
                return None
            raise ConnectionLostError("the server has not finished the transaction")
        if status == "committed" and crashed:
            # It may be another transaction. If a later attempt has found nothing to write, it was this one.
            found = answer.result if later is not None and _wrote_nothing(later) else None
        else:
            found = answer.result if status == "committed" else None
        if found is not None:
            self._seen_by(batch).transactions[batch.batch_id] = answer.transaction
        return found

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        known = {name: one for seen in list(self._seen.values()) for name, one in seen.transactions.items()}
        lost = []
        for batch_id in batch_ids:
            if batch_id not in known:
                continue
            status, crashed = self._status(known[batch_id])
            if status is None or (crashed and known[batch_id].durable != "true"):
                raise CommitUnknownError("the server has been recovered, and may lack the latest transactions")
            if status != "committed":
                lost.append(batch_id)
        return lost

    def _status(self, transaction: _Transaction) -> tuple[str | None, bool]:
        """committed, aborted or in progress, None if another server has taken over; and whether the server crashed."""
        with self.database.session() as session:
            session.check_primary()
            return session.query("transaction_status", *transaction[:3]).row(0)

    def same_keys(self, relation: Relation, keys: pl.DataFrame) -> pl.Series:
        sql = key_sql(relation)
        found = self._staged(sql, keys, lambda session: session.query("table_same_keys", placeholders=sql.placeholders))
        own = keys.select(position=pl.int_range(pl.len(), dtype=pl.UInt32))
        same = own.join(found, on="position", how="left", maintain_order="left")
        return same.select(pl.col("same").cast(pl.UInt32).fill_null(pl.col("position"))).to_series()

    def existing(self, relation: Relation, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_existing", relation, keys)

    def lookup(self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_key("table_lookup", relation, keys, columns=selected_columns(columns))

    def _by_key(self, name: str, relation: Relation, keys: pl.DataFrame, **placeholders: str) -> pl.DataFrame:
        return self.database.read(
            name, *key_parameters(relation, keys), placeholders={**by_arrays(relation), **placeholders}
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
        # In key order, in which all writers lock rows.
        keys = keys.with_row_index("place").sort(keys.columns[: len(relation.key)], maintain_order=True)
        places, keys = keys["place"], keys.drop("place")
        parameters, placeholders = key_parameters(relation, keys), by_arrays(relation, expected)
        conditions = [f"NOT ({is_other(quoted(one), f's.e{n}')})" for n, one in enumerate(expected)]
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
                    rejected = rejections(kept["position"], _KEPT, "skipped")
                    deleted = pl.concat([deleted, rejected], how="diagonal")
                deleted = deleted.with_columns(position=places.gather(deleted["position"]))
                self._note(session, batch)
        except ConnectionLostError as error:
            self._keep(error, batch, deleted)
            raise
        return deleted

    def unmatched(
        self, relation: Relation, columns: Sequence[Column], keys: pl.DataFrame, where: str | None
    ) -> Iterator[pl.DataFrame]:
        sql = key_sql(relation)
        condition = f"WHERE {where}" if where else ""
        placeholders = {**sql.placeholders, "columns": selected_columns(columns), "where": condition}

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
            "table": relation.sql, "columns": selected_columns(columns), "where": f"WHERE {where}" if where else "",
        }  # fmt: skip

        def rows() -> Any:
            with self.database.session(interrupt) as session:
                yield from session.stream("table_select", placeholders=placeholders)

        return retry_stream(rows)

    def create(self, name: str, columns: dict[str, pl.DataType], key: Sequence[str]) -> None:
        parts = parse_name(name)
        table = ".".join(quoted(text if literal else text.lower()) for text, literal in parts)
        for text in (*(text for text, _ in parts), *columns):
            _check_length(text)
        definitions = ", ".join(f"{quoted(column)} {sql_type(dtype, column)}" for column, dtype in columns.items())
        placeholders = {"table": table, "columns": definitions, "key": ", ".join(map(quoted, key))}
        with self.database.session() as session:
            try:
                session.execute("table_create", placeholders=placeholders)
            except PermanentError as error:
                if error.sqlstate == "42P07":
                    error.restate(f"there is already a table {name!r}", THERE)
                raise

    def add_columns(self, relation: Relation, columns: dict[str, pl.DataType]) -> None:
        for name in columns:
            _check_length(name)
        added = ", ".join(f"ADD COLUMN {quoted(name)} {sql_type(dtype, name)}" for name, dtype in columns.items())
        with self.database.session() as session:
            session.execute("table_add_columns", placeholders={"table": relation.sql, "columns": added})

    def _stage(self, session: Session, sql: Sql, rows: pl.DataFrame) -> None:
        """Copy rows into the staging table of this transaction."""
        session.execute("table_staging", placeholders=sql.placeholders)
        # The planner knows nothing about the staged rows, and would hash the whole table for each batch.
        session.execute("table_joins", placeholders={**sql.joins, "height": rows.height})
        session.stage("entityframes_rows", sql.staged(rows))

    def _conflicts(self, session: Session, sql: Sql) -> pl.DataFrame | None:
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
        self._seen_by(batch).transactions[batch.batch_id] = _Transaction(*session.query("transaction").row(0))

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
            sql = Sql(writing)
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

    def _has_invalid(self, session: Session, sql: Sql, rows: pl.DataFrame) -> bool:
        session.begin()
        try:
            self._stage(session, sql, rows)
            return self._unstage_invalid(session, sql).height > 0
        finally:
            session.rollback()


def _may_be_invalid(error: RowError | PermanentError, sql: Sql) -> bool:
    """Whether an error may have been caused by a text that is no value of the type of its column."""
    return isinstance(error, RowError) or bool(sql.casts and (error.sqlstate or "").startswith(("42", "XX000")))


def _wrote_nothing(result: pl.DataFrame) -> bool:
    """Whether a batch has written no row."""
    return result["created"].count() == 0 if "created" in result.columns else result.is_empty()


#: The length of a name in bytes, beyond which PostgreSQL cuts it without an error.
_LONGEST = 63


def _check_length(name: str) -> None:
    if len(name.encode()) > _LONGEST:
        raise SchemaError(f"{name!r} is longer than the {_LONGEST} bytes of a name in PostgreSQL", advice="rename it")


def _no_table(name: str) -> NoTableError:
    return NoTableError(
        f"there is no table {name!r} in the database, or the user may not see it",
        advice="check the name and the schema, or create it with entityframes.create_table",
    )


def _described(session: Session, name: str, exact: str, folded: str) -> Relation:
    found = session.query("relation", exact, folded)
    if found.is_empty():
        raise _no_table(name)
    row = found.row(0, named=True)
    shown = f"{row['schema']}.{row['name']}"
    if kind := _NO_TABLES.get(row["kind"]):
        raise SchemaError(f"{shown} is {kind}: only tables can be written to")
    oid = str(row["oid"])
    keys = session.query("table_keys", oid)
    columns = tuple(described_column(one) for one in session.query("table_columns", oid).iter_rows(named=True))
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
        # Apart from the position of a staged row, and its state when a plan was made.
        most_columns=1_597,
        inherited=row["inherited"],
    )
