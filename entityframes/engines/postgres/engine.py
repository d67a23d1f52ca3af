"""PostgreSQL through ADBC.

A small batch is one statement with array parameters: two round trips, transaction included. A larger one asks first
(keys and hashes only), then copies what is new straight into the table and merges what differs from a staging table.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines import migrations, predicates
from entityframes.engines.base import FORMAT, Batch, check_format
from entityframes.engines.postgres.errors import READ_ONLY, REKEYED, UNIQUE_VIOLATION, committed
from entityframes.engines.postgres.pool import Pool, for_writing
from entityframes.engines.postgres.probe import FEW_TYPES, by_type, probe
from entityframes.engines.postgres.session import Session
from entityframes.engines.queries import Statements
from entityframes.engines.rules import with_rules
from entityframes.engines.url import Location
from entityframes.errors import (
    ConnectError,
    ConnectionLostError,
    DatabaseError,
    PermanentError,
    RowError,
    StatementCancelledError,
    TransientError,
)
from entityframes.interrupt import Interrupt
from entityframes.retry import retry, retry_stream

if TYPE_CHECKING:
    from entityframes.engines.directory import DirectoryEngine
    from entityframes.engines.embedding import EmbeddingEngine
    from entityframes.engines.predicates import Predicate
    from entityframes.engines.text import TextEngine

#: Batches up to this size go as one statement; above it the staging table wins (measured).
ARRAY_ROWS = 2_000
ARRAY_BYTES = 2 << 20

_COPIED = ("entity_type", "id", "content", "metadata", "content_hash", "metadata_hash")

_STAGED = ("position", "entity_type", "id", "content", "metadata", "content_hash", "metadata_hash", "differs")


@dataclass
class _Seen:
    """What the batches of a run have found out for those that follow."""

    #: Whether a type had no entity when the run first met it.
    was_empty: dict[str, bool] = field(default_factory=dict)
    #: Types of which a batch had few of the entities between its keys.
    scattered: set[str] = field(default_factory=set)


class PostgresEngine:
    """A PostgreSQL database; each call borrows a connection of its own from a pool."""

    name = "postgresql"

    def __init__(self, location: Location, namespace: str, workers: int | None, read_only: bool = False) -> None:
        self.address, self.read_only = location.address, read_only
        self.workers = self.writers = workers or 2
        self.batch_bytes, self.batch_rows, self.lookup_rows, self.by_key = 8 << 20, 50_000, 50_000, True
        self.statements = Statements("postgres", namespace)
        # Each worker that embeds has a thread that writes beside it.
        self._pool = Pool(
            location.target if read_only else for_writing(location.target), 2 * self.workers, self.statements
        )
        #: By the interrupt of each run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()
        #: Whether the store was opened on a server that can be written to.
        self._opened_on_primary = False
        try:
            with self.session() as session:
                self._migrate(session)
                self._opened_on_primary = session.is_primary()
        except ConnectError:
            self.close()
            raise
        except DatabaseError as error:
            self.close()
            raise ConnectError(f"cannot open the store at {self.address}: {error}") from error

    @property
    def namespace(self) -> str:
        return self.statements.namespace

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            return self._write_once(rows, batch)
        except _MayLackError:
            return _all_again(rows)

    def _write_once(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with self.session(batch.interrupt) as session, self._refusals(session):
            expecting = "expected" in rows.columns
            if rows.height <= ARRAY_ROWS and rows.estimated_size() <= ARRAY_BYTES:
                columns = [rows[name] for name in _COPIED]
                if expecting:
                    return self._merge_expected(session, rows, batch, columns)
                told = session.ask("merge_arrays", *header, *columns, *_known(batch), committing=True)
                with committed():
                    written = told.drop_nulls("created")
                    return self._with_left_out(session, rows, told["position"], written, batch)
            if not expecting and self._likely_new(session, rows, batch):
                copied = self._copied(session, rows, _all_new(rows), batch)
                if copied is not None:
                    return copied
            changed = self._probe(session, rows, self._seen_by(batch).scattered)
            if changed.is_empty():
                # The only answer to a write that a standby could give.
                session.check_primary()
                return changed.select("position", created=pl.lit(False), due=pl.lit(False))
            copied = self._copied(session, rows, changed, batch) if changed["created"].any() else None
            return self._write(session, rows, changed, batch) if copied is None else copied

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            with self.session(batch.interrupt) as session:
                return self._each(session, rows, self._probe(session, rows), batch)
        except _MayLackError:
            return _all_again(rows)

    def _each(self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write what is new or differs in one transaction, each row unless it is refused."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with session.transaction(batch.interrupt):
            changed, conflicts = self._hold(session, rows, changed)
            self._stage(session, _pick(rows, changed))
            session.run("index_staging")
            session.run("create_tried")
            session.run("immediate_constraints")
            session.ask("set_batch", batch.batch_id, str(conflicts is not None))
            session.run("merge_each")
            told = with_rules(session.ask("finish_each", *header))
            self._check_known(session, rows, told, batch)
            if left := self._left_out(session, rows, changed["position"], told).to_list():
                refused = pl.DataFrame({"position": left}, {"position": told.schema["position"]})
                told = pl.concat(
                    [told, refused.with_columns(error=pl.lit(_LEFT_OUT), rule=pl.lit("left_out"))], how="diagonal"
                )
            if batch.whole and (refused := told.drop_nulls("error")).height:
                raise RowError(refused["error"][0], refused["sqlstate"][0], refused["rule"][0])
            return _with_conflicts(told, rows, conflicts)

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self.session() as session:
            session.check_primary()
            if not session.ask("recorded", batch.batch_id).item():
                return None
            return session.ask("written_by", batch.batch_id, rows["entity_type"], rows["id"])

    def deleted_by(self, batch: Batch) -> int | None:
        with self.session() as session:
            session.check_primary()
            return session.ask("deleted_by", batch.batch_id).item()  # type: ignore[no-any-return]

    @property
    def losses(self) -> int:
        return self._pool.losses

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        with self.session() as session:
            session.check_primary()
            asked = pl.Series(batch_ids, dtype=pl.String)
            return session.ask("not_recorded", asked)["batch_id"].to_list()

    def replicated(self, seconds: float) -> bool:
        # Whoever cancels a COMMIT that waits for its standby makes it succeed. The server warns of it in a notice, and
        # the driver drops notices. One more COMMIT that waits tells, unless it is this side that ends the wait.
        if not self._pool.synchronous:
            return True
        late = threading.Event()
        try:
            with self.session() as session:

                def end() -> None:
                    late.set()
                    session.connection.cancel()

                timer = threading.Timer(seconds, end)
                timer.start()
                try:
                    session.ask("wait_for_standby")
                finally:
                    timer.cancel()
                    timer.join()
                if late.is_set():
                    # The connection is not used again, which the cancellation may reach only now.
                    raise StatementCancelledError("the standby has not answered")
        except DatabaseError:
            if late.is_set():
                return False
            raise
        return True

    def hashes(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self.read("hashes", keys["entity_type"], keys["id"])

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self.read("stored", keys["entity_type"], keys["id"])

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("existing", "existing_of_types", keys)

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("lookup", "lookup_of_types", keys)

    def _by_type(self, name: str, of_types: str, keys: pl.DataFrame) -> pl.DataFrame:
        """What is stored of keys, by a statement for each type, which takes two thirds of the time of one for all."""
        own = by_type(keys)
        if not own:
            return self.read(of_types, keys["entity_type"], keys["id"])
        found = [(one, self.read(name, one["entity_type"][0], one["id"])) for one in own]
        return pl.concat(one.select("position", "id").join(there, on="id").drop("id") for one, there in found)

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        name = "delete_unchanged" if "content_hash" in keys.columns else "delete"
        gone: pl.DataFrame | None = None
        try:
            with (
                self.session(batch.interrupt) as session,
                self._refusals(session, deleting=True),
                session.transaction(batch.interrupt),
            ):
                gone = session.ask(name, batch.batch_id, batch.run_id, *keys)
                deleted = keys[gone["position"]]
                session.run("delete_vectors", deleted["entity_type"], deleted["id"])
                numbered = keys.with_columns(position=pl.int_range(keys.height, dtype=pl.UInt32))
                kept = self._kept(session, numbered.join(gone, on="position", how="anti", maintain_order="left"))
        except ConnectionLostError as error:
            error.answer = gone
            raise
        return (
            pl.concat([gone, kept.with_columns(error=pl.lit(_KEPT), rule=pl.lit("left_out"))], how="diagonal")
            if kept.height
            else gone
        )

    def _kept(self, session: Session, left: pl.DataFrame) -> pl.DataFrame:
        """Positions of those of some keys that are stored as given and may not be deleted."""
        if left.is_empty() or not session.ask("may_keep", self.namespace).item():
            return left.select("position").clear()
        stored = session.ask("hashes", left["entity_type"], left["id"])
        if "content_hash" in left.columns:
            given = left[stored["position"]].select("content_hash", "metadata_hash")
            same = (given["content_hash"] == stored["content_hash"]) & (
                given["metadata_hash"] == stored["metadata_hash"]
            )
            stored = stored.filter(same)
        return left[stored["position"]].select("position")

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        return self.read("fields", pl.Series(entity_types, dtype=pl.String))

    def record_fields(self, fields: pl.DataFrame) -> None:
        def record() -> None:
            with self.session() as session:
                session.run("record_fields", *fields)

        retry(record)

    def is_empty(self, entity_type: str) -> bool:
        return bool(self.read("is_empty", entity_type).item())

    def stats(self, space: str | None) -> pl.DataFrame:
        return self.read("stats", space)

    @cached_property
    def embedding(self) -> EmbeddingEngine:
        from entityframes.engines.postgres.embedding import PostgresEmbedding

        return PostgresEmbedding(self)

    @cached_property
    def text(self) -> TextEngine:
        from entityframes.engines.postgres.text import PostgresText

        return PostgresText(self)

    @cached_property
    def directory(self) -> DirectoryEngine:
        from entityframes.engines.postgres.directory import PostgresDirectory

        return PostgresDirectory(self)

    def count(self, entity_type: str | None) -> int:
        return int(self.read("count", entity_type).item())

    @property
    def checks(self) -> list[str]:
        return [name.removeprefix("find_") for name in self.statements.checks()]

    def inconsistencies(self, before_each: Callable[[], None]) -> pl.DataFrame:
        found = []
        snapshot = self.statements["snapshot"]
        with self.session() as session, session.transaction(Interrupt(), snapshot):
            for name in self.checks:
                before_each()
                found.append(session.ask(f"find_{name}").select(pl.lit(name).alias("check"), pl.all()))
        return pl.concat(found)

    def repair(self, checks: list[str]) -> None:
        with self.session() as session, session.transaction(Interrupt()):
            session.run("keep_writers_out")
            for name in self.statements.repairs(checks):
                session.run(name)

    def kinds(self) -> pl.DataFrame:
        return self.read("kinds")

    def all_fields(self) -> pl.DataFrame:
        return self.read("all_fields")

    def forget_fields(self, fields: pl.DataFrame) -> None:
        with self.session() as session:
            session.run("forget_fields", fields["entity_type"], fields["field"])

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        places = predicates.places(predicates.POSTGRESQL, columns, entity_type, where, limit)

        def rows() -> Generator[pl.DataFrame]:
            with self.session(interrupt) as session:
                yield from session.pieces("select", places=places)

        return retry_stream(rows)

    def drop(self) -> None:
        with self.session() as session:
            session.run("drop")

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def session(self, interrupt: Interrupt | None = None, *, writing: bool = False) -> Iterator[Session]:
        """A connection of the pool for one call; a standby that refuses to be written to is as bad as a lost one.

        Args:
            interrupt: cancels what runs on it.
            writing: whether something is written, which makes no difference here.

        Raises:
            ConnectionLostError: the store was opened on a primary, and this is a standby of it.
        """
        with self._pool.borrow(interrupt) as connection:
            session = Session(connection, self.statements, self.address)
            try:
                yield session
            except PermanentError as error:
                if error.sqlstate == READ_ONLY and self._opened_on_primary:
                    session.rollback()
                    session.check_primary()
                raise

    def read(self, name: str, *parameters: Any, places: Mapping[str, object] | None = None) -> pl.DataFrame:
        """What a statement answers, in a session of its own; asked again where that helps, as it does no harm."""

        def ask() -> pl.DataFrame:
            with self.session() as session:
                return session.ask(name, *parameters, places=places)

        return retry(ask, what=name)

    def _probe(self, session: Session, rows: pl.DataFrame, scattered: set[str] | None = None) -> pl.DataFrame:
        return probe(session.ask, rows, scattered)

    def _likely_new(self, session: Session, rows: pl.DataFrame, batch: Batch) -> bool:
        """Whether the types of these rows had no entity when the run began, so that a probe would find nothing."""
        entity_types = rows["entity_type"].unique().to_list()
        if len(entity_types) > FEW_TYPES:
            return False
        was_empty = self._seen_by(batch).was_empty
        for name in entity_types:
            if name not in was_empty:
                was_empty[name] = bool(session.ask("is_empty", name).item())
        return all(was_empty[name] for name in entity_types)

    def _seen_by(self, batch: Batch) -> _Seen:
        """What the batches of its run have found out for those that follow."""
        return self._seen.setdefault(batch.interrupt, _Seen())

    def _copied(self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """Write with new rows copied straight into the table; None if one of them was there after all."""
        try:
            return self._write(session, rows, changed, batch, copied=pl.col("created"))
        except RowError as error:
            if error.sqlstate != UNIQUE_VIOLATION:
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
        """Copy some of the changed rows straight into the table, merge the others, and record the batch."""
        due = pl.col("differs") & (pl.col("content") != "") & pl.lit(batch.embed)
        with session.transaction(batch.interrupt):
            changed, conflicts = self._hold(session, rows, changed)
            given = _pick(rows, changed).with_columns(due=due)
            if given.select(copied.any()).item() and session.ask("may_leave_out", self.namespace).item():
                # A copy does not say which rows a trigger left out; a merge does.
                copied = pl.lit(False)
            fresh, others = given.filter(copied), given.filter(~copied)
            written = fresh.select("position", "created", "due")
            if fresh.height:
                table = fresh.select(_COPIED).with_columns(batch_id=pl.lit(uuid.UUID(batch.batch_id).bytes))
                session.copy("entities", table)
            if others.height:
                self._stage(session, others)
                if not others["created"].any():
                    session.run("nested_loops")
                    updated = _under_their_keys(session.ask("update_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, updated], how="vertical")
                # Also rows that were deleted since they were looked at; those just updated are equal by now.
                if written.height < given.height:
                    merged = _under_their_keys(session.ask("merge_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, merged], how="vertical")
            self._check_known(session, rows, written, batch)
            if written.height:
                embed = given.join(written.filter("due"), on="position", how="semi", maintain_order="left")
                created = int(written["created"].sum())
                counts = [str(created), str(written.height - created)]
                header = [batch.batch_id, batch.run_id, batch.job_id]
                session.run("record", *header, *counts, embed["entity_type"], embed["id"])
            if self._left_out(session, rows, given["position"], written).len():
                raise _rekeyed()
            return _with_conflicts(written, rows, conflicts)

    def _check_known(self, session: Session, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> None:
        """See to it that no entity was written over by a row that may lack something of it.

        Asked when the entities are written, and locked by that: who records a field later can only write it later.

        Raises:
            _MayLackError: one may have been; the transaction must not be committed.
        """
        if not batch.guarded or written["created"].fill_null(True).all():
            return
        if batch.may_lack(session.ask("fields", rows["entity_type"].unique())):
            raise _MayLackError("a field was recorded just now")

    def _merge_expected(
        self, session: Session, rows: pl.DataFrame, batch: Batch, columns: list[pl.Series]
    ) -> pl.DataFrame:
        """A small batch in one statement, compared with what was expected of each row."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        expected = [rows["expected"], rows["expected_metadata"]]
        told = session.ask("merge_expected", *header, *columns, *expected, *_known(batch), committing=True)
        written = told.filter(pl.col("created").is_not_null()).drop("conflict", "again")
        conflicts = told.filter("conflict")["position"]
        again = told.filter("again").select(pl.col("position"), "again")
        told = told.filter(~pl.col("again"))
        missed = told.filter(pl.col("created").is_null() & ~pl.col("conflict"))["position"]
        new = missed.filter(rows["expected"].gather(missed).is_null())
        with committed():
            if len(new):
                # Somebody else made the entity while this statement was about to.
                made = self._probe(session, rows[new]).filter(~pl.col("created"))["position"]
                conflicts = pl.concat([conflicts, new[made]])
            given = told.filter(~pl.col("position").is_in(conflicts.implode()))["position"]
            written = self._with_left_out(session, rows, given, written, batch)
        written = _with_conflicts(written, rows, conflicts)
        return pl.concat([written, again], how="diagonal") if again.height else written

    def _with_left_out(
        self, session: Session, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame, batch: Batch
    ) -> pl.DataFrame:
        """What a small batch wrote, and what became of the rows that differ still though nobody refused them.

        Args:
            session: the one that wrote.
            rows: of the batch.
            given: positions of those that were to be written.
            written: position and more of those that were.
            batch: the batch, which is committed.
        """
        left = self._left_out(session, rows, given, written)
        if left.is_empty():
            return written
        if batch.guarded and "expected" not in rows.columns:
            # They may lack something of what is there.
            again = pl.DataFrame({"position": left}).with_columns(again=pl.lit(True))
            return pl.concat([written, again], how="diagonal")
        rows = rows[left]
        told = self._each(session, rows, self._probe(session, rows), replace(batch, batch_id=str(uuid.uuid4())))
        position = left.gather(told["position"])
        return pl.concat([written, told.with_columns(position=position)], how="diagonal")

    def _left_out(self, session: Session, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame) -> pl.Series:
        """Positions of rows that differ still from what is stored: a trigger or a policy left them out.

        Args:
            session: the one that wrote, in the same transaction if there is one.
            rows: of the batch.
            given: positions of those that were to be written.
            written: position and more of those that were, or were refused.
        """
        if written.height == len(given):
            return given.clear()
        left = given.filter(~given.is_in(written["position"].implode()))
        return left[self._probe(session, rows[left])["position"]]

    @contextmanager
    def _refusals(self, session: Session, *, deleting: bool = False) -> Iterator[None]:
        """Tell what a policy or a trigger says of a row, in whatever words, from what is wrong with all of them.

        Raises:
            RowError: the entities can be written by this user, so that what was refused is a row.
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
                asked = ("may_keep", self.namespace) if deleting else ("may_write",)
                may = session.ask(*asked).item()
            except PermanentError:
                may = False
            if not may:
                raise
            raise RowError(str(error), error.sqlstate, error.rule) from None

    def _hold(
        self, session: Session, rows: pl.DataFrame, changed: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.Series | None]:
        """Lock the entities to be changed, and split off the positions of those that are not as expected."""
        if "expected" not in rows.columns:
            return changed, None
        asked = rows[changed["position"]]
        given = [asked[name] for name in ("entity_type", "id", "expected", "expected_metadata")]
        wrong = session.ask("hold", *given)["position"]
        conflicting = pl.int_range(changed.height).is_in(wrong.cast(pl.Int64).implode())
        return changed.filter(~conflicting), changed.filter(conflicting)["position"]

    def _stage(self, session: Session, rows: pl.DataFrame) -> None:
        """Ingest rows into the staging table of this transaction."""
        session.run("create_staging")
        session.stage("entityframes_staging", rows.select(_STAGED).cast({"position": pl.Int32}))

    def _migrate(self, session: Session) -> None:
        """Create the store or bring it to this version's format, once, whoever else connects at the same time."""
        version = self._format(session)
        check_format(self, version)
        if version == FORMAT:
            return
        with session.transaction(Interrupt()):
            session.ask("migration_lock", self.namespace.lower())
            version = self._format(session)
            check_format(self, version)
            if version == 0 and not session.ask("schema_exists", self.namespace).item():
                session.run("create_schema")
            for step in range(version + 1, FORMAT + 1):
                if version and step == migrations.REPAIRED_AT + 1:
                    self._repair(session)
                session.run(f"migrate_{step}")

    def _repair(self, session: Session) -> None:
        """Bring a store whose tables are of an earlier shape to what the code knows."""

        def parts() -> list[str]:
            return session.ask("parts", self.namespace)["part"].to_list()

        migrations.repair(self.name, self.address, parts, session.run)

    def _format(self, session: Session) -> int:
        """The format of the store, 0 if there is none, in the namespace of this name in whatever case it has there."""
        if not session.ask("format_table", self.namespace).item():
            there = session.ask("namespaces", self.namespace)["namespace"].to_list()
            if there and self.namespace not in there:
                if len(there) > 1:
                    raise ConnectError(
                        f"{self.namespace!r} can be any of the namespaces {', '.join(map(repr, there))}, which differ "
                        "in case only: write one of them as it is there"
                    )
                self.statements.use(there[0])
                return self._format(session)
            return 0
        return migrations.known_version(self.address, session.ask("format_version").item())


class _MayLackError(RowError):
    """Rows may lack something of the entities that they were written over; the transaction is rolled back."""


def _known(batch: Batch) -> tuple[str | None, pl.Series]:
    """What merge_arrays is given: how many fields are known, null if that does not matter, and the types."""
    known = batch.known or {}
    count = "none" if batch.only_new else None if batch.known is None else str(sum(map(len, known.values())))
    return count, pl.Series(list(known), dtype=pl.String)


def _all_again(rows: pl.DataFrame) -> pl.DataFrame:
    """The answer of a batch of which nothing is written, because its rows may lack something of what is stored."""
    return rows.select(pl.int_range(pl.len(), dtype=pl.UInt32).alias("position"), again=pl.lit(True))


_KEPT = "the database did not delete it and gave no reason: a trigger or a row-level policy keeps it"
_LEFT_OUT = "the database did not store it and gave no reason: a trigger or a row-level policy leaves it out"


def _rekeyed() -> RowError:
    error = RowError("a trigger stores rows under other keys than they were sent with, or leaves them out", REKEYED)
    error.rekeyed = True
    return error


def _under_their_keys(written: pl.DataFrame) -> pl.DataFrame:
    """What was written.

    Raises:
        RowError: some of it under other keys.
    """
    if written["position"].null_count():
        raise _rekeyed()
    return written


def _all_new(rows: pl.DataFrame) -> pl.DataFrame:
    """What a probe would answer if none of the rows was stored."""
    return rows.select(
        pl.int_range(pl.len(), dtype=pl.UInt32).alias("position"), created=pl.lit(True), differs=pl.lit(True)
    )


def _pick(rows: pl.DataFrame, changed: pl.DataFrame) -> pl.DataFrame:
    """The rows at the positions of `changed`, with its columns."""
    return rows[changed["position"]].with_columns(changed.get_columns())


def _with_conflicts(written: pl.DataFrame, rows: pl.DataFrame, conflicts: pl.Series | None) -> pl.DataFrame:
    """What was written, and the positions that were left alone.

    Raises:
        TransientError: an entity that was expected to be absent, and was, has been created by another writer before
            this one came to it. The transaction must not be committed; the next try finds the conflict.
    """
    if conflicts is None:
        return written
    # Under another key there is none that was expected to be absent.
    own_key = pl.col("other_id").is_null() if "other_id" in written.columns else pl.lit(True)
    updated = written.filter(pl.col("created").not_() & own_key)["position"]
    if rows[updated]["expected"].null_count():
        raise TransientError("an entity was created by another writer just now", "40001")
    left_alone = pl.DataFrame({"position": conflicts}).with_columns(conflict=True)
    return pl.concat([written, left_alone], how="diagonal")
