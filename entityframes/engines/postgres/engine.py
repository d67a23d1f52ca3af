"""The PostgreSQL engine, based on ADBC.

A small batch is a single statement with arrays: two round trips, including the transaction, or one if the arrays are
short enough for literals. A larger batch is first compared with the stored keys and hashes; then new rows are copied
directly into the table, and rows that differ are merged from a staging table.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines import migrations, predicates
from entityframes.engines.base import FORMAT, check_format
from entityframes.engines.batch import Batch, retry_all
from entityframes.engines.database import unopened
from entityframes.engines.postgres import citus
from entityframes.engines.postgres.database import PostgresDatabase
from entityframes.engines.postgres.errors import INTERNAL, REKEYED, UNIQUE_VIOLATION, committed
from entityframes.engines.postgres.probe import FEW_TYPES, by_type, probe
from entityframes.engines.postgres.session import Session
from entityframes.engines.rules import with_rules
from entityframes.errors import (
    ConnectError,
    ConnectionLostError,
    DatabaseError,
    PermanentError,
    RowError,
    TransientError,
)
from entityframes.interrupt import Interrupt
from entityframes.retry import retry, retry_stream

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.tables import TableEngine
    from entityframes.engines.text import TextEngine

#: Batches up to this size are written by a single statement; for larger ones the staging table is faster (measured).
ARRAY_ROWS = 2_000
ARRAY_BYTES = 2 << 20

_COPIED = ("entity_type", "id", "content", "metadata", "content_hash", "metadata_hash")

_STAGED = ("position", "entity_type", "id", "content", "metadata", "content_hash", "metadata_hash", "differs")


@dataclass
class _Seen:
    """What the batches of a run have learned, for later batches of the same run."""

    #: Whether a type had no entities when the run first wrote to it.
    was_empty: dict[str, bool] = field(default_factory=dict)
    #: The types whose keys are scattered, see `probe`.
    scattered: set[str] = field(default_factory=set)


class PostgresEngine:
    """The store in a PostgreSQL database; opening it creates or migrates it if necessary."""

    def __init__(self, database: PostgresDatabase) -> None:
        self.database = database
        #: Keyed by the interrupt of the run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()
        try:
            with database.session() as session:
                database.statements.set(created=database.created)
                self._migrate(session)
                database.opened(session)
        except ConnectError:
            database.close()
            raise
        except DatabaseError as error:
            database.close()
            raise unopened("store", database.address, error) from error

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            return self._write_once(rows, batch)
        except _MayLackError:
            return retry_all(rows)

    def _write_once(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with self.database.session(batch.interrupt) as session, self._rejections(session):
            expecting = "expected" in rows.columns
            if rows.height <= ARRAY_ROWS and rows.estimated_size() <= ARRAY_BYTES:
                columns = [rows[name] for name in _COPIED]
                if expecting:
                    return self._merge_expected(session, rows, batch, columns)
                merged = session.query("merge_arrays", *header, *columns, *_known(batch), committing=True)
                with committed():
                    written = merged.drop_nulls("created")
                    return self._with_skipped(session, rows, merged["position"], written, batch)
            if not expecting and self._likely_new(session, rows, batch):
                copied = self._copied(session, rows, _all_new(rows), batch)
                if copied is not None:
                    return copied
            changed = self._probe(session, rows, self._seen_by(batch).scattered)
            if changed.is_empty():
                # A standby could also return this, as nothing was written.
                session.check_primary()
                return changed.select("position", created=pl.lit(False), due=pl.lit(False))
            copied = self._copied(session, rows, changed, batch) if changed["created"].any() else None
            return self._write(session, rows, changed, batch) if copied is None else copied

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            with self.database.session(batch.interrupt) as session:
                return self._each(session, rows, self._probe(session, rows), batch)
        except _MayLackError:
            return retry_all(rows)

    def _each(self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write rows that are new or differ in one transaction, except for rows that are rejected."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with session.transaction(batch.interrupt):
            changed, conflicts = self._hold(session, rows, changed)
            self._stage(session, _pick(rows, changed))
            session.execute("index_staging")
            session.execute("create_tried")
            session.execute("immediate_constraints")
            session.query("set_batch", batch.batch_id, str(conflicts is not None))
            session.execute("merge_each")
            outcomes = with_rules(session.query("finish_each", *header))
            self._check_known(session, rows, outcomes, batch)
            if skipped := self._skipped(session, rows, changed["position"], outcomes).to_list():
                rejected = pl.DataFrame({"position": skipped}, {"position": outcomes.schema["position"]})
                rejected = rejected.with_columns(error=pl.lit(_SKIPPED), rule=pl.lit("skipped"))
                outcomes = pl.concat([outcomes, rejected], how="diagonal")
            if batch.whole and (rejected := outcomes.drop_nulls("error")).height:
                raise RowError(rejected["error"][0], rejected["sqlstate"][0], rejected["rule"][0])
            return _with_conflicts(outcomes, rows, conflicts)

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self.database.session() as session:
            session.check_primary()
            if not session.query("recorded", batch.batch_id).item():
                return None
            return session.query("written_by", batch.batch_id, rows["entity_type"], rows["id"])

    def deleted_by(self, batch: Batch) -> int | None:
        with self.database.session() as session:
            session.check_primary()
            return session.query("deleted_by", batch.batch_id).item()  # type: ignore[no-any-return]

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        with self.database.session() as session:
            session.check_primary()
            given = pl.Series(batch_ids, dtype=pl.String)
            return session.query("not_recorded", given)["batch_id"].to_list()

    def batches_between(self, first: str, last: str) -> list[str]:
        return self.database.read("batches_between", first, last)["batch_id"].to_list()

    def written_between(self, keys: pl.DataFrame, first: str, last: str) -> pl.DataFrame:
        return self.database.read("written_between", first, last, keys["entity_type"], keys["id"])

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self.database.read("hashes", keys["entity_type"], keys["id"])

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self.database.read("stored", keys["entity_type"], keys["id"])

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("existing", "existing_of_types", keys)

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("lookup", "lookup_of_types", keys)

    def contains(self, entity_type: str, id: str) -> bool:
        return not self.database.read("existing", entity_type, pl.Series([id])).is_empty()

    def find(self, entity_type: str, id: str) -> dict[str, Any] | None:
        found = self.database.read("lookup", entity_type, pl.Series([id]))
        return found.drop("id").row(0, named=True) if found.height else None

    def _by_type(self, name: str, of_types: str, keys: pl.DataFrame) -> pl.DataFrame:
        """Look up keys with one statement per type, which takes two thirds of the time of a single statement."""
        parts = by_type(keys)
        if not parts:
            return self.database.read(of_types, keys["entity_type"], keys["id"])
        found = [(part, self.database.read(name, part["entity_type"][0], part["id"])) for part in parts]
        return pl.concat(part.select("position", "id").join(stored, on="id").drop("id") for part, stored in found)

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        name = "delete_unchanged" if "content_hash" in keys.columns else "delete"
        deleted: pl.DataFrame | None = None
        try:
            with (
                self.database.session(batch.interrupt) as session,
                self._rejections(session, deleting=True),
                session.transaction(batch.interrupt),
            ):
                deleted = session.query(name, batch.batch_id, batch.run_id, *keys)
                gone = keys[deleted["position"]]
                session.execute("delete_passages", gone["entity_type"], gone["id"])
                numbered = keys.with_columns(position=pl.int_range(keys.height, dtype=pl.UInt32))
                kept = self._kept(session, numbered.join(deleted, on="position", how="anti", maintain_order="left"))
        except ConnectionLostError as error:
            error.answer = deleted
            raise
        if kept.is_empty():
            return deleted
        return pl.concat([deleted, kept.with_columns(error=pl.lit(_KEPT), rule=pl.lit("skipped"))], how="diagonal")

    def _kept(self, session: Session, keys: pl.DataFrame) -> pl.DataFrame:
        """The positions of keys that are stored (with the given hashes, if any) although they were to be deleted."""
        if keys.is_empty() or not session.query("may_keep", self.database.namespace).item():
            return keys.select("position").clear()
        stored = session.query("hashes", keys["entity_type"], keys["id"])
        if "content_hash" in keys.columns:
            given = keys[stored["position"]].select("content_hash", "metadata_hash")
            same = (given["content_hash"] == stored["content_hash"]) & (
                given["metadata_hash"] == stored["metadata_hash"]
            )
            stored = stored.filter(same)
        return keys[stored["position"]].select("position")

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        return self.database.read("fields", pl.Series(entity_types, dtype=pl.String))

    def record_fields(self, fields: pl.DataFrame) -> None:
        def record() -> None:
            with self.database.session() as session:
                session.execute("record_fields", *fields)

        retry(record)

    def is_empty(self, entity_type: str) -> bool:
        return bool(self.database.read("is_empty", entity_type).item())

    def stats(self, space: str | None) -> pl.DataFrame:
        return self.database.read("stats", space)

    @cached_property
    def embedding(self) -> EmbeddingEngine:
        from entityframes.engines.postgres.embedding import PostgresEmbedding

        return PostgresEmbedding(self.database)

    @cached_property
    def tables(self) -> TableEngine:
        from entityframes.engines.postgres.tables import PostgresTables

        return PostgresTables(self.database)

    @cached_property
    def text(self) -> TextEngine:
        from entityframes.engines.postgres.text import PostgresText

        return PostgresText(self.database)

    @cached_property
    def directory(self) -> DirectoryEngine:
        from entityframes.engines.postgres.directory import PostgresDirectory

        return PostgresDirectory(self.database)

    def types(self) -> pl.DataFrame:
        return self.database.read("types")

    def runs(self, limit: int | None) -> pl.DataFrame:
        return self.database.read("runs", None if limit is None else str(limit))

    def size(self) -> int | None:
        size = self.database.read("size", self.database.namespace).item()
        return int(size) if size else None

    def count(self, entity_type: str | None) -> int:
        return int(self.database.read("count", entity_type).item())

    @property
    def checks(self) -> list[str]:
        return [name.removeprefix("find_") for name in self.database.statements.checks()]

    def inconsistencies(self, before_each: Callable[[], None]) -> pl.DataFrame:
        found = []
        snapshot = self.database.statements["snapshot"]
        with self.database.session() as session, session.transaction(Interrupt(), snapshot):
            for name in self.checks:
                before_each()
                found.append(session.query(f"find_{name}").select(pl.lit(name).alias("check"), pl.all()))
        return pl.concat(found)

    def repair(self, checks: list[str]) -> None:
        with self.database.session() as session, session.transaction(Interrupt()):
            session.execute("keep_writers_out")
            for name in self.database.statements.repairs(checks):
                session.execute(name)

    def kinds(self) -> pl.DataFrame:
        return self.database.read("kinds")

    def all_fields(self) -> pl.DataFrame:
        return self.database.read("all_fields")

    def forget_fields(self, fields: pl.DataFrame) -> None:
        with self.database.session() as session:
            session.execute("forget_fields", fields["entity_type"], fields["field"])

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        placeholders = predicates.placeholders(predicates.POSTGRESQL, columns, entity_type, where, limit)

        def rows() -> Generator[pl.DataFrame]:
            with self.database.session(interrupt) as session:
                yield from session.stream("select", placeholders=placeholders)

        return retry_stream(rows)

    def drop(self) -> None:
        with self.database.session() as session:
            session.execute("drop")

    def _probe(self, session: Session, rows: pl.DataFrame, scattered: set[str] | None = None) -> pl.DataFrame:
        return probe(session.query, rows, scattered)

    def _likely_new(self, session: Session, rows: pl.DataFrame, batch: Batch) -> bool:
        """Whether the types of these rows had no entities when the run started, so that a probe can be skipped."""
        if batch.initial:
            return True
        entity_types = rows["entity_type"].unique().to_list()
        if len(entity_types) > FEW_TYPES:
            return False
        was_empty = self._seen_by(batch).was_empty
        for name in entity_types:
            if name not in was_empty:
                was_empty[name] = bool(session.query("is_empty", name).item())
        return all(was_empty[name] for name in entity_types)

    def _seen_by(self, batch: Batch) -> _Seen:
        """What earlier batches of the same run have learned."""
        return self._seen.setdefault(batch.interrupt, _Seen())

    def _copied(self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """Write with new rows copied directly into the table; None if one of them already exists."""
        try:
            return self._write(session, rows, changed, batch, copied=pl.col("created"))
        except (RowError, PermanentError) as error:
            # Citus reports a rejected row of a COPY as an internal error.
            if error.sqlstate not in (UNIQUE_VIOLATION, INTERNAL):
                raise
            session.rollback()
            return None

    def _write(
        self,
        session: Session,
        rows: pl.DataFrame,
        changed: pl.DataFrame,
        batch: Batch,
        *,
        copied: pl.Expr = pl.lit(False),  # noqa: B008
    ) -> pl.DataFrame:
        """Copy some of the changed rows directly into the table, merge the others, and record the batch."""
        due = pl.col("differs") & (pl.col("content") != "") & pl.lit(batch.embed)
        with session.transaction(batch.interrupt):
            changed, conflicts = self._hold(session, rows, changed)
            given = _pick(rows, changed).with_columns(due=due)
            if given.select(copied.any()).item() and session.query("may_leave_out", self.database.namespace).item():
                # COPY does not report which rows a trigger skipped; a merge does.
                copied = pl.lit(False)
            fresh, others = given.filter(copied), given.filter(~copied)
            written = fresh.select("position", "created", "due")
            if fresh.height:
                table = fresh.select(_COPIED).with_columns(batch_id=pl.lit(uuid.UUID(batch.batch_id).bytes))
                session.copy("entities", table)
            if others.height:
                self._stage(session, others)
                if not others["created"].any():
                    session.execute("nested_loops")
                    updated = _under_their_keys(session.query("update_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, updated], how="vertical")
                # Includes rows whose entity was deleted since the probe; the updated rows no longer differ.
                if written.height < given.height:
                    merged = _under_their_keys(session.query("merge_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, merged], how="vertical")
            self._check_known(session, rows, written, batch)
            if written.height:
                embed = given.join(written.filter("due"), on="position", how="semi", maintain_order="left")
                created = int(written["created"].sum())
                counts = [str(created), str(written.height - created)]
                header = [batch.batch_id, batch.run_id, batch.job_id]
                session.execute("record", *header, *counts, embed["entity_type"], embed["id"])
            if self._skipped(session, rows, given["position"], written).len():
                raise _rekeyed()
            return _with_conflicts(written, rows, conflicts)

    def _check_known(self, session: Session, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> None:
        """Check that no entity was overwritten by a row that may lack fields of it.

        The check follows the write, which locks the entities: a field that is recorded later is also written later.

        Raises:
            _MayLackError: a row may lack fields; the transaction must not be committed.
        """
        if not batch.guarded or written["created"].fill_null(True).all():
            return
        recorded = session.query("fields", rows["entity_type"].unique())
        if batch.may_lack(recorded.select("entity_type", "field").iter_rows()):
            raise _MayLackError("a concurrent transaction has recorded a field")

    def _merge_expected(
        self, session: Session, rows: pl.DataFrame, batch: Batch, columns: list[pl.Series]
    ) -> pl.DataFrame:
        """Write a small batch with expected hashes in a single statement."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        expected = [rows["expected"], rows["expected_metadata"]]
        outcomes = session.query("merge_expected", *header, *columns, *expected, *_known(batch), committing=True)
        written = outcomes.filter(pl.col("created").is_not_null()).drop("conflict", "again")
        conflicts = outcomes.filter("conflict")["position"]
        again = outcomes.filter("again").select("position", "again")
        given = outcomes.filter(~pl.col("again") & ~pl.col("conflict"))["position"]
        with committed():
            # Among the rows that were not written may be one whose entity a concurrent transaction has just created.
            written = self._with_skipped(session, rows, given, written, batch)
        return pl.concat([_with_conflicts(written, rows, conflicts), again], how="diagonal")

    def _with_skipped(
        self, session: Session, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame, batch: Batch
    ) -> pl.DataFrame:
        """The outcomes of a small batch, including rows that were not written but still differ, which are retried.

        Args:
            session: the session that wrote the batch.
            rows: the rows of the batch.
            given: the positions of the rows to write.
            written: the outcomes of the rows that were written.
            batch: the batch, which has been committed.
        """
        skipped = self._skipped(session, rows, given, written)
        if skipped.is_empty():
            return written
        if batch.guarded and "expected" not in rows.columns:
            # They may lack fields of the stored entities.
            again = pl.DataFrame({"position": skipped}).with_columns(again=pl.lit(True))
            return pl.concat([written, again], how="diagonal")
        rows = rows[skipped]
        outcomes = self._each(session, rows, self._probe(session, rows), replace(batch, batch_id=batch.new_id()))
        position = skipped.gather(outcomes["position"])
        return pl.concat([written, outcomes.with_columns(position=position)], how="diagonal")

    def _skipped(self, session: Session, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame) -> pl.Series:
        """The positions of rows that were not written but still differ, because of a trigger or a row-level policy.

        Args:
            session: the session that wrote the batch, in the same transaction if there is one.
            rows: the rows of the batch.
            given: the positions of the rows to write.
            written: the outcomes of the rows that were written or rejected.
        """
        if written.height == len(given):
            return given.clear()
        missing = given.filter(~given.is_in(written["position"].implode()))
        return missing[self._probe(session, rows[missing])["position"]]

    @contextmanager
    def _rejections(self, session: Session, *, deleting: bool = False) -> Iterator[None]:
        """Distinguish a policy or trigger that rejects a row, with any SQLSTATE, from an error that affects all rows.

        Raises:
            RowError: this user may write entities, so a row was rejected.
        """
        try:
            yield
        except RowError as error:
            raise (_rekeyed() if REKEYED in str(error) else error) from None
        except PermanentError as error:
            if (error.sqlstate or "")[:2] not in ("42", "55"):
                raise
            session.rollback()
            try:
                check = ("may_keep", self.database.namespace) if deleting else ("may_write",)
                rejects_rows = session.query(*check).item()
            except PermanentError:
                rejects_rows = False
            if not rejects_rows:
                raise
            raise RowError(str(error), error.sqlstate, error.rule) from None

    def _hold(
        self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.Series | None]:
        """Lock the entities to be changed, and separate the positions of those without the expected hashes."""
        if "expected" not in rows.columns:
            return changed, None
        expected = rows[changed["position"]]
        given = [expected[name] for name in ("entity_type", "id", "expected", "expected_metadata")]
        differing = session.query("hold", *given)["position"]
        conflicting = pl.int_range(changed.height).is_in(differing.cast(pl.Int64).implode())
        return changed.filter(~conflicting), changed.filter(conflicting)["position"]

    def _stage(self, session: Session, rows: pl.DataFrame) -> None:
        """Copy rows into the staging table of this transaction."""
        session.execute("create_staging")
        session.stage("entityframes_staging", rows.select(_STAGED).cast({"position": pl.Int32}))

    def _migrate(self, session: Session) -> None:
        """Create the store, or migrate it to the format of this version; safe with concurrent connections."""
        version = self._format(session)
        check_format(self.database, version)
        if version == FORMAT:
            return
        with session.transaction(Interrupt()):
            session.query("migration_lock", self.database.namespace.lower())
            version = self._format(session)
            check_format(self.database, version)
            if version == 0 and not session.query("schema_exists", self.database.namespace).item():
                session.execute("create_schema")
            if version == 0 and self.database.has_citus:
                citus.edit_migrations(self.database.statements)
            for step in range(version + 1, FORMAT + 1):
                if version and step == migrations.REPAIRED_AT + 1:
                    self._repair(session)
                session.execute(f"migrate_{step}")

    def _repair(self, session: Session) -> None:
        """Repair the tables of a store that was created by an earlier version."""

        def parts() -> list[str]:
            return session.query("parts", self.database.namespace)["part"].to_list()

        migrations.repair(self.database.name, self.database.address, parts, session.execute)

    def _format(self, session: Session) -> int:
        """The format of the store, 0 if there is none. The namespace is matched case-insensitively."""
        if not session.query("format_table", self.database.namespace).item():
            found = session.query("namespaces", self.database.namespace)["namespace"].to_list()
            if found and self.database.namespace not in found:
                if len(found) > 1:
                    raise ConnectError(
                        f"{self.database.namespace!r} can be any of the namespaces {', '.join(map(repr, found))}, "
                        "which differ in case only",
                        advice="use the exact spelling of one of them",
                    )
                self.database.statements.use(found[0])
                return self._format(session)
            return 0
        return migrations.known_version(self.database.address, session.query("format_version").item())


class _MayLackError(RowError):
    """Rows may lack fields of the entities that they have overwritten; the transaction is rolled back."""


def _known(batch: Batch) -> tuple[str | None, pl.Series]:
    """Parameters of merge_arrays: the number of known fields (null if irrelevant), and the entity types."""
    known = batch.known or {}
    count = "none" if batch.only_new else None if batch.known is None else str(sum(map(len, known.values())))
    return count, pl.Series(list(known), dtype=pl.String)


_KEPT = "not deleted by the database, which reported no error: a trigger or a row-level policy prevents it"
_SKIPPED = "not stored by the database, which reported no error: a trigger or a row-level policy prevents it"


def _rekeyed() -> RowError:
    error = RowError("a trigger changes the keys of rows, or skips rows", REKEYED)
    error.rekeyed = True
    return error


def _under_their_keys(written: pl.DataFrame) -> pl.DataFrame:
    """Return the written rows, after checking that a trigger has not changed their keys.

    Raises:
        RowError: a row was written under another key.
    """
    if written["position"].null_count():
        raise _rekeyed()
    return written


def _all_new(rows: pl.DataFrame) -> pl.DataFrame:
    """The result of a probe if none of the rows is stored."""
    return rows.select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("position"), created=pl.lit(True), differs=pl.lit(True)
    )


def _pick(rows: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """The rows at the positions of `changed`, with its columns."""
    return rows[changed["position"]].with_columns(changed.get_columns())


def _with_conflicts(written: pl.DataFrame, rows: pl.DataFrame, conflicts: pl.Series | None) -> pl.DataFrame:
    """The rows that were written, and the positions of conflicting rows, which were not.

    Raises:
        TransientError: an entity that was expected not to exist was created by a concurrent transaction after the
            check. The transaction must not be committed; a retry finds the conflict.
    """
    if conflicts is None:
        return written
    # Rows that a trigger has stored under another key are not considered.
    own_key = pl.col("other_id").is_null() if "other_id" in written.columns else pl.lit(True)
    updated = written.filter(pl.col("created").not_() & own_key)["position"]
    if rows[updated]["expected"].null_count():
        raise TransientError("an entity was created by a concurrent transaction", "40001")
    conflicting = pl.DataFrame({"position": conflicts.cast(written.schema["position"])}).with_columns(conflict=True)
    return pl.concat([written, conflicting], how="diagonal")
