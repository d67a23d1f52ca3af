"""PostgreSQL through ADBC.

A small batch is one statement with array parameters: two round trips, transaction included. A larger one asks first
(keys and hashes only), then copies what is new straight into the table and merges what differs from a staging table.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import polars as pl

from entityframes.engines import migrations, predicates, queries
from entityframes.engines.arrow import one_row
from entityframes.engines.base import FORMAT, Batch, check_format
from entityframes.engines.postgres.errors import READ_ONLY, REKEYED, UNIQUE_VIOLATION, committed
from entityframes.engines.postgres.pool import Pool, execute, for_writing
from entityframes.engines.postgres.probe import FEW_TYPES, by_type, probe
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
        self.address, self._namespace, self.read_only = location.address, namespace, read_only
        self.workers = self.writers = workers or 2
        self.batch_bytes, self.batch_rows, self.lookup_rows, self.by_key = 8 << 20, 50_000, 50_000, True
        self._sql = _statements(namespace)
        # Each worker that embeds has a thread that writes beside it.
        self._pool = Pool(location.target if read_only else for_writing(location.target), 2 * self.workers, self._sql)
        #: By the interrupt of each run.
        self._seen: WeakKeyDictionary[Interrupt, _Seen] = WeakKeyDictionary()
        #: Whether the store was opened on a server that can be written to.
        self._opened_on_primary = False
        try:
            with self._connection() as connection:
                self._migrate(connection)
                self._opened_on_primary = connection.primary or not self._in_recovery(connection)
        except ConnectError:
            self.close()
            raise
        except DatabaseError as error:
            self.close()
            raise ConnectError(f"cannot open the store at {self.address}: {error}") from error

    @property
    def namespace(self) -> str:
        return self._namespace

    def write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            return self._write_once(rows, batch)
        except _MayLackError:
            return _all_again(rows)

    def _write_once(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with self._connection(batch.interrupt) as connection, self._refusals(connection):
            expecting = "expected" in rows.columns
            if rows.height <= ARRAY_ROWS and rows.estimated_size() <= ARRAY_BYTES:
                columns = [rows[name] for name in _COPIED]
                if expecting:
                    return self._merge_expected(connection, rows, batch, columns)
                told = self._ask(connection, "merge_arrays", *header, *columns, *_known(batch), committing=True)
                with committed():
                    written = told.drop_nulls("created")
                    return self._with_left_out(connection, rows, told["position"], written, batch)
            if not expecting and self._likely_new(connection, rows, batch):
                copied = self._copied(connection, rows, _all_new(rows), batch)
                if copied is not None:
                    return copied
            changed = self._probe(connection, rows, self._seen_by(batch).scattered)
            if changed.is_empty():
                # The only answer to a write that a standby could give.
                self._check_primary(connection)
                return changed.select("position", created=pl.lit(False), due=pl.lit(False))
            copied = self._copied(connection, rows, changed, batch) if changed["created"].any() else None
            return self._write(connection, rows, changed, batch) if copied is None else copied

    def write_each(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        try:
            with self._connection(batch.interrupt) as connection:
                return self._each(connection, rows, self._probe(connection, rows), batch)
        except _MayLackError:
            return _all_again(rows)

    def _each(self, connection: Any, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write what is new or differs in one transaction, each row unless it is refused."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        with connection.transaction(batch.interrupt):
            changed, conflicts = self._hold(connection, rows, changed)
            self._stage(connection, _pick(rows, changed))
            self._run(connection, "index_staging")
            self._run(connection, "create_tried")
            self._run(connection, "immediate_constraints")
            self._ask(connection, "set_batch", batch.batch_id, str(conflicts is not None))
            self._run(connection, "merge_each")
            told = self._ask(connection, "finish_each", *header)
            self._check_known(connection, rows, told, batch)
            if left := self._left_out(connection, rows, changed["position"], told).to_list():
                refused = pl.DataFrame({"position": left}, {"position": told.schema["position"]})
                told = pl.concat([told, refused.with_columns(error=pl.lit(_LEFT_OUT))], how="diagonal")
            if batch.whole and (refused := told.drop_nulls("error")).height:
                raise RowError(refused["error"][0], refused["sqlstate"][0])
            return _with_conflicts(told, rows, conflicts)

    def recorded(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        with self._connection() as connection:
            self._check_primary(connection)
            if not self._ask(connection, "recorded", batch.batch_id).item():
                return None
            return self._ask(connection, "written_by", batch.batch_id, rows["entity_type"], rows["id"])

    def deleted_by(self, batch: Batch) -> int | None:
        with self._connection() as connection:
            self._check_primary(connection)
            return self._ask(connection, "deleted_by", batch.batch_id).item()  # type: ignore[no-any-return]

    @property
    def losses(self) -> int:
        return self._pool.losses

    def not_recorded(self, batch_ids: list[str]) -> list[str]:
        with self._connection() as connection:
            self._check_primary(connection)
            asked = pl.Series(batch_ids, dtype=pl.String)
            return self._ask(connection, "not_recorded", asked)["batch_id"].to_list()

    def replicated(self, seconds: float) -> bool:
        # Whoever cancels a COMMIT that waits for its standby makes it succeed. The server warns of it in a notice, and
        # the driver drops notices. One more COMMIT that waits tells, unless it is this side that ends the wait.
        if not self._pool.synchronous:
            return True
        late = threading.Event()
        try:
            with self._connection() as connection:

                def end() -> None:
                    late.set()
                    connection.cancel()

                timer = threading.Timer(seconds, end)
                timer.start()
                try:
                    self._ask(connection, "wait_for_standby")
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
        return self._read("hashes", keys["entity_type"], keys["id"])

    def stored(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._read("stored", keys["entity_type"], keys["id"])

    def existing(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("existing", "existing_of_types", keys)

    def lookup(self, keys: pl.DataFrame) -> pl.DataFrame:
        return self._by_type("lookup", "lookup_of_types", keys)

    def _by_type(self, name: str, of_types: str, keys: pl.DataFrame) -> pl.DataFrame:
        """What is stored of keys, by a statement for each type, which takes two thirds of the time of one for all."""
        own = by_type(keys)
        if not own:
            return self._read(of_types, keys["entity_type"], keys["id"])
        found = [(one, self._read(name, one["entity_type"][0], one["id"])) for one in own]
        return pl.concat(one.select("position", "id").join(there, on="id").drop("id") for one, there in found)

    def delete(self, keys: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        name = "delete_unchanged" if "content_hash" in keys.columns else "delete"
        gone: pl.DataFrame | None = None
        try:
            with (
                self._connection(batch.interrupt) as connection,
                self._refusals(connection, deleting=True),
                connection.transaction(batch.interrupt),
            ):
                gone = self._ask(connection, name, batch.batch_id, batch.run_id, *keys)
                deleted = keys[gone["position"]]
                self._run(connection, "delete_vectors", deleted["entity_type"], deleted["id"])
                numbered = keys.with_columns(position=pl.int_range(keys.height).cast(gone.schema["position"]))
                kept = self._kept(connection, numbered.join(gone, on="position", how="anti", maintain_order="left"))
        except ConnectionLostError as error:
            error.answer = gone
            raise
        return pl.concat([gone, kept.with_columns(error=pl.lit(_KEPT))], how="diagonal") if kept.height else gone

    def _kept(self, connection: Any, left: pl.DataFrame) -> pl.DataFrame:
        """Positions of those of some keys that are stored as given and may not be deleted."""
        if left.is_empty() or not self._ask(connection, "may_keep", self._namespace).item():
            return left.select("position").clear()
        stored = self._ask(connection, "hashes", left["entity_type"], left["id"])
        if "content_hash" in left.columns:
            given = left[stored["position"]].select("content_hash", "metadata_hash")
            same = (given["content_hash"] == stored["content_hash"]) & (
                given["metadata_hash"] == stored["metadata_hash"]
            )
            stored = stored.filter(same)
        return left[stored["position"]].select("position")

    def fields(self, entity_types: list[str]) -> pl.DataFrame:
        return self._read("fields", pl.Series(entity_types, dtype=pl.String))

    def record_fields(self, fields: pl.DataFrame) -> None:
        def record() -> None:
            with self._connection() as connection:
                self._run(connection, "record_fields", *fields)

        retry(record)

    def is_empty(self, entity_type: str) -> bool:
        return bool(self._read("is_empty", entity_type).item())

    def stats(self, space: str | None) -> pl.DataFrame:
        return self._read("stats", space)

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
        return int(self._read("count", entity_type).item())

    def inconsistencies(self) -> pl.DataFrame:
        snapshot = self._sql["snapshot"]
        with self._connection() as connection, connection.transaction(Interrupt(), snapshot):
            return pl.concat(
                self._ask(connection, name).select(pl.lit(name.removeprefix("find_")).alias("check"), pl.all())
                for name in self._sql
                if name.startswith("find_")
            )

    def mend(self, checks: list[str]) -> None:
        with self._connection() as connection, connection.transaction(Interrupt()):
            self._run(connection, "keep_writers_out")
            for name in queries.mending(self._sql, checks):
                self._run(connection, name)

    def kinds(self) -> pl.DataFrame:
        return self._read("kinds")

    def all_fields(self) -> pl.DataFrame:
        return self._read("all_fields")

    def forget_fields(self, fields: pl.DataFrame) -> None:
        with self._connection() as connection:
            self._run(connection, "forget_fields", fields["entity_type"], fields["field"])

    def select(
        self,
        columns: list[str],
        entity_type: str | None,
        where: Predicate | None,
        limit: int | None,
        interrupt: Interrupt | None = None,
    ) -> Iterator[pl.DataFrame]:
        sql = predicates.select(self._sql["select"], predicates.POSTGRESQL, columns, entity_type, where, limit)

        def rows() -> Generator[pl.DataFrame]:
            with self._connection(interrupt) as connection, connection.statement() as cursor:
                yield from cursor.pieces(sql)

        return retry_stream(rows)

    def drop(self) -> None:
        with self._connection() as connection:
            self._run(connection, "drop")

    def close(self) -> None:
        self._pool.close()

    @contextmanager
    def _connection(self, interrupt: Interrupt | None = None) -> Iterator[Any]:
        """A connection of one's own; a standby that refuses to be written to is as bad as a lost one.

        Raises:
            ConnectionLostError: the store was opened on a primary, and this is a standby of it.
        """
        with self._pool.borrow(interrupt) as connection:
            try:
                yield connection
            except PermanentError as error:
                if error.sqlstate == READ_ONLY and self._opened_on_primary:
                    connection.rollback()
                    self._check_primary(connection)
                raise

    def _in_recovery(self, connection: Any) -> bool:
        return bool(self._ask(connection, "in_recovery").item())

    def _check_primary(self, connection: Any) -> None:
        """Make sure that this is no standby, which may not have what was committed.

        Raises:
            ConnectionLostError: it is one; the connection is not used again.
        """
        if not connection.primary and self._in_recovery(connection):
            raise ConnectionLostError(
                f"the server that answers at {self.address} is a standby, which may be behind and takes no writes: "
                "connect to the primary, or promote the standby",
                READ_ONLY,
            )

    def _probe(self, connection: Any, rows: pl.DataFrame, scattered: set[str] | None = None) -> pl.DataFrame:
        return probe(partial(self._ask, connection), rows, scattered)

    def _likely_new(self, connection: Any, rows: pl.DataFrame, batch: Batch) -> bool:
        """Whether the types of these rows had no entity when the run began, so that a probe would find nothing."""
        entity_types = rows["entity_type"].unique().to_list()
        if len(entity_types) > FEW_TYPES:
            return False
        was_empty = self._seen_by(batch).was_empty
        for name in entity_types:
            if name not in was_empty:
                was_empty[name] = bool(self._ask(connection, "is_empty", name).item())
        return all(was_empty[name] for name in entity_types)

    def _seen_by(self, batch: Batch) -> _Seen:
        """What the batches of its run have found out for those that follow."""
        return self._seen.setdefault(batch.interrupt, _Seen())

    def _copied(self, connection: Any, rows: pl.DataFrame, changed: pl.DataFrame, batch: Batch) -> pl.DataFrame | None:
        """Write with new rows copied straight into the table; None if one of them was there after all."""
        try:
            return self._write(connection, rows, changed, batch, copied=pl.col("created"))
        except RowError as error:
            if error.sqlstate != UNIQUE_VIOLATION:
                raise
            connection.rollback()
            return None

    def _write(
        self,
        connection: Any,
        rows: pl.DataFrame,
        changed: pl.DataFrame,
        batch: Batch,
        *,
        copied: pl.Expr = pl.lit(False),  # noqa: B008
    ) -> pl.DataFrame:
        """Copy some of the changed rows straight into the table, merge the others, and record the batch."""
        due = pl.col("differs") & (pl.col("content") != "") & pl.lit(batch.embed)
        with connection.transaction(batch.interrupt):
            changed, conflicts = self._hold(connection, rows, changed)
            given = _pick(rows, changed).with_columns(due=due)
            if given.select(copied.any()).item() and self._ask(connection, "may_leave_out", self._namespace).item():
                # A copy does not say which rows a trigger left out; a merge does.
                copied = pl.lit(False)
            fresh, others = given.filter(copied), given.filter(~copied)
            written = fresh.select("position", "created", "due")
            if fresh.height:
                table = fresh.select(_COPIED).with_columns(batch_id=pl.lit(uuid.UUID(batch.batch_id).bytes))
                self._ingest(connection, "entities", table, db_schema_name=self._namespace)
            if others.height:
                self._stage(connection, others)
                if not others["created"].any():
                    self._run(connection, "nested_loops")
                    updated = _under_their_keys(self._ask(connection, "update_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, updated], how="vertical_relaxed")
                # Also rows that were deleted since they were looked at; those just updated are equal by now.
                if written.height < given.height:
                    merged = _under_their_keys(self._ask(connection, "merge_staged", batch.batch_id, batch.embed))
                    written = pl.concat([written, merged], how="vertical_relaxed")
            self._check_known(connection, rows, written, batch)
            if written.height:
                embed = given.join(written.filter("due"), on="position", how="semi", maintain_order="left")
                created = int(written["created"].sum())
                counts = [str(created), str(written.height - created)]
                header = [batch.batch_id, batch.run_id, batch.job_id]
                self._run(connection, "record", *header, *counts, embed["entity_type"], embed["id"])
            if self._left_out(connection, rows, given["position"], written).len():
                raise _rekeyed()
            return _with_conflicts(written, rows, conflicts)

    def _check_known(self, connection: Any, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> None:
        """See to it that no entity was written over by a row that may lack something of it.

        Asked when the entities are written, and locked by that: who records a field later can only write it later.

        Raises:
            _MayLackError: one may have been; the transaction must not be committed.
        """
        if not batch.guarded or written["created"].fill_null(True).all():
            return
        if batch.may_lack(self._ask(connection, "fields", rows["entity_type"].unique())):
            raise _MayLackError("a field was recorded just now")

    def _merge_expected(
        self, connection: Any, rows: pl.DataFrame, batch: Batch, columns: list[pl.Series]
    ) -> pl.DataFrame:
        """A small batch in one statement, compared with what was expected of each row."""
        header = [batch.batch_id, batch.run_id, batch.job_id, batch.embed]
        expected = [rows["expected"], rows["expected_metadata"]]
        told = self._ask(connection, "merge_expected", *header, *columns, *expected, *_known(batch), committing=True)
        written = told.filter(pl.col("created").is_not_null()).drop("conflict", "again")
        conflicts = told.filter("conflict")["position"]
        again = told.filter("again").select(pl.col("position"), "again")
        told = told.filter(~pl.col("again"))
        missed = told.filter(pl.col("created").is_null() & ~pl.col("conflict"))["position"]
        new = missed.filter(rows["expected"].gather(missed).is_null())
        with committed():
            if len(new):
                # Somebody else made the entity while this statement was about to.
                made = self._probe(connection, rows[new]).filter(~pl.col("created"))["position"]
                conflicts = pl.concat([conflicts, new[made]])
            given = told.filter(~pl.col("position").is_in(conflicts.implode()))["position"]
            written = self._with_left_out(connection, rows, given, written, batch)
        written = _with_conflicts(written, rows, conflicts)
        return pl.concat([written, again], how="diagonal_relaxed") if again.height else written

    def _with_left_out(
        self, connection: Any, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame, batch: Batch
    ) -> pl.DataFrame:
        """What a small batch wrote, and what became of the rows that differ still though nobody refused them.

        Args:
            connection: the one that wrote.
            rows: of the batch.
            given: positions of those that were to be written.
            written: position and more of those that were.
            batch: the batch, which is committed.
        """
        left = self._left_out(connection, rows, given, written)
        if left.is_empty():
            return written
        if batch.guarded and "expected" not in rows.columns:
            # They may lack something of what is there.
            again = pl.DataFrame({"position": left.cast(written.schema["position"])}).with_columns(again=pl.lit(True))
            return pl.concat([written, again], how="diagonal")
        rows = rows[left]
        told = self._each(connection, rows, self._probe(connection, rows), replace(batch, batch_id=str(uuid.uuid4())))
        position = left.gather(told["position"]).cast(written.schema["position"])
        return pl.concat([written, told.with_columns(position=position)], how="diagonal")

    def _left_out(self, connection: Any, rows: pl.DataFrame, given: pl.Series, written: pl.DataFrame) -> pl.Series:
        """Positions of rows that differ still from what is stored: a trigger or a policy left them out.

        Args:
            connection: the one that wrote, in the same transaction if there is one.
            rows: of the batch.
            given: positions of those that were to be written.
            written: position and more of those that were, or were refused.
        """
        if written.height == len(given):
            return given.clear()
        left = given.filter(~given.is_in(written["position"].cast(given.dtype).implode()))
        return left[self._probe(connection, rows[left])["position"]]

    @contextmanager
    def _refusals(self, connection: Any, *, deleting: bool = False) -> Iterator[None]:
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
            connection.rollback()
            try:
                asked = ("may_keep", self._namespace) if deleting else ("may_write",)
                may = self._ask(connection, *asked).item()
            except PermanentError:
                may = False
            if not may:
                raise
            raise RowError(str(error), error.sqlstate) from None

    def _hold(
        self, connection: Any, rows: pl.DataFrame, changed: pl.DataFrame
    ) -> tuple[pl.DataFrame, pl.Series | None]:
        """Lock the entities to be changed, and split off the positions of those that are not as expected."""
        if "expected" not in rows.columns:
            return changed, None
        asked = rows[changed["position"]]
        given = [asked[name] for name in ("entity_type", "id", "expected", "expected_metadata")]
        wrong = self._ask(connection, "hold", *given)["position"]
        conflicting = pl.int_range(changed.height).is_in(wrong.cast(pl.Int64).implode())
        return changed.filter(~conflicting), changed.filter(conflicting)["position"]

    def _stage(self, connection: Any, rows: pl.DataFrame) -> None:
        """Ingest rows into the staging table of this transaction."""
        self._run(connection, "create_staging")
        self._ingest(connection, "entityframes_staging", rows.select(_STAGED), temporary=True)

    def _ingest(self, connection: Any, table: str, rows: pl.DataFrame, **where: Any) -> None:
        with connection.statement() as cursor:
            cursor.ingest(table, rows.to_arrow(), **where)

    def _read(self, name: str, *parameters: Any) -> pl.DataFrame:
        """Ask on a connection of its own; again where that helps, as it does no harm."""

        def ask() -> pl.DataFrame:
            with self._connection() as connection:
                return self._ask(connection, name, *parameters)

        return retry(ask)

    def _run(self, connection: Any, name: str, *parameters: Any) -> None:
        execute(connection, self._sql[name], *parameters)

    def _ask(self, connection: Any, name: str, *parameters: Any, committing: bool = False) -> pl.DataFrame:
        with connection.statement(committing=committing) as cursor:
            found: pl.DataFrame = cursor.answer(self._sql[name], one_row(parameters))
            return found

    def _migrate(self, connection: Any) -> None:
        """Create the store or bring it to this version's format, once, whoever else connects at the same time."""
        version = self._format(connection)
        check_format(self, version)
        if version == FORMAT:
            return
        with connection.transaction(Interrupt()):
            self._ask(connection, "migration_lock", self._namespace.lower())
            version = self._format(connection)
            check_format(self, version)
            if version == 0 and not self._ask(connection, "schema_exists", self._namespace).item():
                self._run(connection, "create_schema")
            for step in range(version + 1, FORMAT + 1):
                if version and step == migrations.REPAIRED_AT + 1:
                    self._repair(connection)
                _run_all(connection, self._sql[f"migrate_{step}"])

    def _repair(self, connection: Any) -> None:
        """Bring a store whose tables are of an earlier shape to what the code knows."""

        def parts() -> list[str]:
            return self._ask(connection, "parts", self._namespace)["part"].to_list()

        migrations.repair(self.name, self.address, parts, lambda name: _run_all(connection, self._sql[name]))

    def _format(self, connection: Any) -> int:
        """The format of the store, 0 if there is none, in the namespace of this name in whatever case it has there."""
        if not self._ask(connection, "format_table", self._namespace).item():
            there = self._ask(connection, "namespaces", self._namespace)["namespace"].to_list()
            if there and self._namespace not in there:
                if len(there) > 1:
                    raise ConnectError(
                        f"{self._namespace!r} can be any of the namespaces {', '.join(map(repr, there))}, which differ "
                        "in case only: write one of them as it is there"
                    )
                self._namespace = there[0]
                self._sql = _statements(self._namespace)
                return self._format(connection)
            return 0
        return migrations.known_version(self.address, self._ask(connection, "format_version").item())


def _run_all(connection: Any, statements: str) -> None:
    """Execute statements in turn: the driver takes one at a time."""
    for statement in statements.split(";\n"):
        execute(connection, statement)


def _statements(namespace: str) -> dict[str, str]:
    """Every statement by name, for one namespace."""
    found: dict[str, str] = {}
    for part in ("engine", "checks", "embedding", "text", "directory", "earlier"):
        found |= queries.load(f"postgres/{part}.sql", namespace)
    return found


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
        pl.int_range(pl.len(), dtype=pl.Int32).alias("position"), created=pl.lit(True), differs=pl.lit(True)
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
    left_alone = pl.DataFrame({"position": conflicts.cast(written.schema["position"])}).with_columns(conflict=True)
    return pl.concat([written, left_alone], how="diagonal")
