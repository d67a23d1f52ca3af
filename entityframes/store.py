"""EntityStore, the public interface: each method checks its options and calls the module that does the work."""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes import forks, views
from entityframes.engines import open_engine
from entityframes.engines.base import Engine
from entityframes.engines.database import ENGINES, check_writable, where
from entityframes.engines.tables import TableEngine
from entityframes.engines.url import Address, parse_url
from entityframes.errors import ConnectError, EmbedderError, EntityFramesError
from entityframes.frames import single, sources
from entityframes.frames.like import FrameLike
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.reading import contents, lookup
from entityframes.reading import verify as verification
from entityframes.results import MIRROR_STATUSES, DeleteResult, EmbedResult, RunResult, UpsertResult, kept
from entityframes.tables import Table
from entityframes.threads import Threads
from entityframes.visible import visible
from entityframes.writing import plan
from entityframes.writing.delete import Delete
from entityframes.writing.entities.deletion import EntityDeletion
from entityframes.writing.entities.mirror import absent_entities
from entityframes.writing.entities.single import validated
from entityframes.writing.entities.upsert import entity_upsert
from entityframes.writing.mirror import Mirror, check_deletions, check_max_delete, check_not_empty
from entityframes.writing.options import Absent, Nulls, OnDuplicate, OnError, Options
from entityframes.writing.plan import Plan
from entityframes.writing.upsert import Source

if TYPE_CHECKING:
    import numpy as np

    from entityframes.embedding import Embedder
    from entityframes.embedding.passages import Passages
    from entityframes.embedding.search import Mode


def connect(
    url: Address | None = None,
    *,
    namespace: str = "entityframes",
    workers: int | None = None,
    read_only: bool = False,
) -> EntityStore:
    """Open a store; create it if it does not exist.

    Args:
        url: a path, ``duckdb:///path`` or ``:memory:`` for DuckDB; ``postgresql://user@host/database`` or
            ``host=... dbname=...`` for PostgreSQL; a URL of SQLAlchemy with any driver, as text or as an object, or an
            Engine of SQLAlchemy; an open DuckDB connection, of which only cursors are used. None uses
            $ENTITYFRAMES_URL, else $DATABASE_URL, else ``./entities.duckdb``; the repr of the store says so if it
            uses $DATABASE_URL.
        namespace: the database schema with the tables of the store, so that several stores can share a database: 1 to
            63 ASCII letters, digits and underscores, not starting with a digit. Case does not matter: an existing
            schema whose name differs only in case is used.
        workers: how many batches of a run are processed concurrently, at least 1; None means 2. On PostgreSQL each of
            them has its own connection.
        read_only: open an existing store without creating, migrating or writing anything. This works for a role that
            only has SELECT, on a standby, and for a file without write permission; several processes can read a
            DuckDB file at the same time. Methods that write raise PermanentError.

    Returns:
        EntityStore, a context manager that closes the store on exit.

    Raises:
        ConnectError: the store cannot be opened (address, credentials, locks); `read_only` is set and there is no
            store at this address; or this process was forked from one that had opened a store or used Polars.
        FormatError: the store was written by a newer version of this package, or `read_only` is set and it was
            written by an older one.
        TypeError: `url` is none of these.
        ValueError: `workers` is less than 1.

    Examples:
        >>> with ef.connect(":memory:") as memory:
        ...     memory.upsert(ef.ids("note", ["a", "b"])).counts["created"]
        2

        A store next to the tables of an open DuckDB connection:

        >>> import duckdb
        >>> connection = duckdb.connect()
        >>> with ef.connect(connection) as beside:
        ...     beside.upsert(ef.ids("note", ["a"])).counts["created"]
        1
        >>> connection.execute("SELECT id FROM entityframes.entities").fetchall()
        [('a',)]
    """
    forks.check(ConnectError)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be a positive integer or None, got {workers}")
    return EntityStore(open_engine(parse_url(url), namespace, workers, read_only=read_only))


@forks.guarded
class EntityStore:
    """Entities in a database, read and written in bulk.

    Made by `connect`. It may be used from several threads, and as a context manager. After `close`, and in a process
    that was forked from one that had opened a store, its methods raise ClosedError. Every method may raise
    DatabaseError if the database cannot be reached.

    Attributes:
        last_result: the result of the last upsert, delete, embed or sync, also if it ended with an exception; None
            before the first one.

    Examples:
        >>> store.upsert(ef.ids("note", ["c", "d"])).counts["created"]
        1
        >>> store.read("note")["id"].to_list()
        ['a', 'b', 'c', 'd']
    """

    def __init__(self, engine: Engine) -> None:
        forks.opened()
        self._engine = engine
        self._threads = Threads()
        #: The embedders that this store has used, by model name, for searches without an embedder.
        self._embedders: dict[str, Embedder] = {}
        self.last_result: RunResult | None = None

    @property
    def address(self) -> str:
        """Where the store is: a path or URL, without a password.

        Examples:
            >>> with ef.connect(":memory:") as memory:
            ...     memory.address
            ':memory:'
        """
        return self._engine.database.address

    def upsert(
        self,
        frame: FrameLike,
        /,
        *,
        absent: Absent = "keep",
        nulls: Nulls = "write",
        batch_size: int | None = None,
        embed: bool = True,
        on_duplicate: OnDuplicate = "last",
        on_error: OnError = "isolate",
        expected_hash: str | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Store entities: insert new ones, update those that differ, leave identical ones untouched.

        Each batch is one transaction, which writes the rows, a ledger entry and an embedding job. Each input row ends
        with exactly one outcome.

        Args:
            frame: an entity frame: ``entity_type`` and ``id`` (String), and optionally ``content`` (String) and
                ``metadata`` (Struct, or String with a JSON object). A DataFrame, a LazyFrame, an iterator of frames,
                or any object with an Arrow stream; a list of dicts, dataclasses, models (``model_dump``), named tuples
                or database rows, or an iterator of them or of lists of them; or a dict of columns. A LazyFrame,
                iterator or RecordBatchReader is streamed. In lists and iterators of objects, ``metadata`` is a dict, or
                JSON text. Metadata fields have the dtypes that they have in the store, and new fields the dtype of most
                of their values in the list, or in a page of 5,000 objects of the iterator. A value that does not fit
                fails its row, which `UpsertResult.rejected` returns with the object.
            absent: what happens to stored content and metadata fields that the frame does not have. "keep" leaves
                them unchanged; "clear" removes them, so that each entity becomes what the frame holds. A field is
                replaced as a whole, also if it is nested. JSON text has the top-level fields that it names, a null
                ``metadata`` has none. An object has the keys that it has: in each row, a missing key is absent, and a
                key that is None is null. A new entity without content is stored with ``""``.
            nulls: "write" stores a null metadata field as null, and fails a row whose content is null. "keep" keeps
                the stored value wherever a top-level metadata field is null (typed or in JSON text), and wherever
                content is null or ``""``. If a key is repeated, nulls in the row that is written are not filled from
                the other rows.
            batch_size: rows per batch. None makes batches of about 8 MiB and at most 50,000 rows; for a frame in
                memory on DuckDB, of about 128 MiB and at most 122,880 rows; for objects from an iterator, of 4,000.
            embed: whether new and changed content is queued for embedding, as one job per batch.
            on_duplicate: which row of a repeated key is written: the "last", the "first", or "error" to refuse the
                frame. In a stream this applies within a batch; a later batch updates what an earlier one wrote.
            on_error: "isolate" fails only the rows that cannot be stored, "rollback" fails the whole batch that has
                such a row, "raise" also ends the run with the error.
            expected_hash: name of a column with the content hash that the stored entity is expected to have (String,
                SHA-256 in hex, as `get` returns it; null if the entity is not expected to exist). The hashes are
                compared in the transaction that writes. If they differ, the entity is left unchanged and the row has
                the status conflict.
            progress: None shows a progress bar in a notebook or terminal; elsewhere it logs a line every few seconds if
                the logger ``entityframes`` is enabled for INFO. True always shows a bar, "log" always lines, False
                nothing. Calls of less than half a second show none. A callable is called with the number of rows done
                and the total, which is None for a stream.
            cancel: an event that stops the run when set. The batches in flight are rolled back; rows that were not
                written have the status cancelled.

        Returns:
            UpsertResult, whose ``outcomes`` have one row per input row, in input order.

        Raises:
            SchemaError: the columns or dtypes of the frame cannot be stored, or it is none. A frame in memory is
                refused before anything is written; in a stream, the batches before it stay stored, and the message
                counts them.
            DuplicateError: a key is repeated and ``on_duplicate="error"``.
            ValidationError, DatabaseError: a row failed and ``on_error="raise"``.
            PermanentError, ResourceError: no batch can succeed (missing permission, full disk), or the store was
                opened with ``read_only=True``.
            ValueError: an option has an unknown value, or `batch_size` is less than 1.
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back. `last_result` has the outcomes.

        Examples:
            >>> frame = pl.DataFrame({"entity_type": "note", "id": ["a", "d", None], "content": ["new text", "", ""]})
            >>> store.upsert(frame).outcomes["status"].to_list()
            ['updated', 'created', 'failed']
            >>> store.upsert(frame[:2]).counts["unchanged"]
            2
            >>> notes = ({"entity_type": "note", "id": id, "metadata": {"year": 1950}} for id in ["a", "e"])
            >>> store.upsert(notes).outcomes["status"].to_list()
            ['updated', 'created']
        """
        check_writable(self._engine.database)
        options = Options(
            batch_size=batch_size,
            embed=embed,
            on_duplicate=on_duplicate,
            on_error=on_error,
            expected_hash=expected_hash,
            absent=absent,
            nulls=nulls,
        )
        given = sources.opened(frame, batch_size)
        return self._upsert(given, options, progress, cancel, lambda: sources.count(frame))

    def _upsert(
        self,
        source: Source,
        options: Options,
        progress: Progress,
        cancel: threading.Event | None,
        count: Callable[[], int | None] = lambda: None,
    ) -> UpsertResult:
        check_writable(self._engine.database)
        run = entity_upsert(self._engine, options, Interrupt(cancel))
        height = getattr(source, "height", None)
        with Reporter(progress, count if height is None else height, what="upsert") as reporter:
            submit = self._threads.submit
            return kept(self, "store", lambda: run.execute(source, reporter, submit), run.result)

    def mirror(
        self,
        frame: FrameLike,
        /,
        *,
        scope: pl.Expr | None = None,
        max_delete: float = 0.2,
        absent: Absent = "keep",
        nulls: Nulls = "write",
        batch_size: int | None = None,
        embed: bool = True,
        on_duplicate: OnDuplicate = "last",
        on_error: OnError = "isolate",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Make the store what a frame says: upsert its entities, then delete the stored entities that it lacks.

        Args:
            frame: an entity frame as for `upsert`. The whole frame is held in memory, also if it is a stream.
            scope: the stored entities that may be deleted, of the types in the frame: an expression over the columns of
                `read`. None for all entities of these types.
            max_delete: the largest number of entities that may be deleted: below 1 a share of the stored entities in
                the scope, otherwise a number of entities. If more are lacking, nothing is written.
            absent, nulls, batch_size, embed, on_duplicate, on_error, progress, cancel: as for `upsert`.

        Returns:
            UpsertResult with an outcome for each row of the frame, and after them one with a null ``row`` for each
            stored entity that it lacks: deleted; failed if the database refused it; cancelled if the run was stopped,
            or if the frame has a row with an invalid key, so that it is unknown which entities it lacks.

        Raises:
            ValidationError: more entities than `max_delete` would be deleted.
            SchemaError: the frame has no rows, or as for `upsert`.
            ValueError: `max_delete` is negative, or an option has an unknown value.
            StatementCancelledError: `cancel` was set before anything was written.
            DuplicateError, DatabaseError, KeyboardInterrupt: as for `upsert`.

        Examples:
            >>> result = store.mirror(ef.ids("note", ["a", "b"]), max_delete=1)
            >>> result.outcomes.select("row", "id", "status").rows()
            [(0, 'a', 'unchanged'), (1, 'b', 'unchanged'), (None, 'c', 'deleted')]
        """
        check_max_delete(max_delete)
        check_writable(self._engine.database)
        options = Options(
            batch_size=batch_size, embed=embed, on_duplicate=on_duplicate, on_error=on_error, absent=absent, nulls=nulls
        )
        interrupt = Interrupt(cancel)
        run = entity_upsert(self._engine, options, interrupt, MIRROR_STATUSES)
        given = run.whole(sources.objects(frame) or sources.as_frame(frame))
        check_not_empty(given.frame)
        with Reporter(progress, what="mirror") as reporter:
            scan = partial(lookup.scan, self._engine, progress=False, cancel=cancel)
            missing, stored, complete = absent_entities(given.frame, scope, scan)
            check_deletions(missing.height, stored, max_delete)
            reporter.expect(given.height + missing.height)
            mirror = Mirror(run, EntityDeletion(self._engine), missing, interrupt, complete=complete)
            submit = self._threads.submit
            return kept(self, "store", lambda: mirror.execute(given, reporter, submit), mirror.result)

    def plan(
        self,
        frame: FrameLike,
        /,
        *,
        absent: Absent = "keep",
        nulls: Nulls = "write",
        on_duplicate: OnDuplicate = "last",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> Plan:
        """Compare a frame with the store and report what `upsert` would do, row by row, without writing anything.

        Args:
            frame: an entity frame, or objects, as for `upsert`. All of it is held in memory, also if it is a stream.
            absent, nulls, on_duplicate: as for `upsert`.
            progress, cancel: as for `upsert`; `cancel` takes effect before the next 50,000 rows are compared.

        Returns:
            Plan: ``frame`` has one row per input row, in input order; ``summary()`` describes it in a few lines;
            ``apply()`` carries it out, except for entities that have been changed in the meantime.

        Raises:
            SchemaError: the columns or dtypes of the frame cannot be stored.
            DuplicateError: a key is repeated and ``on_duplicate="error"``.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> frame = pl.DataFrame({"entity_type": "note", "id": ["a", "d"], "content": ["new text", ""]})
            >>> plan = store.plan(frame)
            >>> plan.frame["action"].to_list()
            ['update', 'create']
            >>> plan.apply().counts["updated"]
            1
        """
        options = Options(on_duplicate=on_duplicate, absent=absent, nulls=nulls)
        given = sources.objects(frame) or sources.as_frame(frame)
        return plan.make(self._engine, given, options, self._upsert, progress, Interrupt(cancel))

    def exists(
        self, ids: FrameLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Check which ids are stored. Up to 10,000 ids take one query.

        Args:
            ids: an id frame (``entity_type``, ``id``), or a list or an iterator of dicts and other objects as for
                `upsert`; other columns are ignored.
            progress, cancel: as for `upsert`; `cancel` takes effect before the next query.

        Returns:
            ``entity_type``, ``id`` String, ``exists`` Boolean; one row per id, in input order.

        Raises:
            SchemaError: ``entity_type`` or ``id`` is missing or not String, or an object has a value of another type.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> store.exists(ef.ids("note", ["a", "x"]))["exists"].to_list()
            [True, False]
        """
        return lookup.exists(self._engine, ids, self._threads.submit, progress, Interrupt(cancel))

    def missing(
        self, ids: FrameLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Select the rows of an id frame whose entity is not stored (an anti-join).

        Args:
            ids: an id frame (``entity_type``, ``id``), with any other columns; or objects, as for `exists`.
            progress, cancel: as for `upsert`; `cancel` takes effect before the next query.

        Returns:
            Those rows with all their columns, in input order.

        Raises:
            SchemaError: ``entity_type`` or ``id`` is missing or not String, or an object has a value of another type.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> store.missing(ef.ids("note", ["x", "a", "y"]))["id"].to_list()
            ['x', 'y']
        """
        given = sources.as_frame(ids)
        found = lookup.exists(self._engine, given, self._threads.submit, progress, Interrupt(cancel))
        return given.filter(~found["exists"])

    def get(
        self, ids: FrameLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Fetch entities by id. Up to 10,000 ids take one query.

        Args:
            ids: an id frame (``entity_type``, ``id``), or objects, as for `exists`; other columns are ignored.
            progress, cancel: as for `upsert`; `cancel` takes effect before the next query.

        Returns:
            ``entity_type``, ``id`` String, ``found`` Boolean, ``content`` String, ``metadata`` String (JSON),
            ``content_hash`` String (SHA-256 in hex), ``created_at``, ``updated_at`` Datetime("us", "UTC"); one row per
            id, in input order. From ``content`` on the columns are null if the entity is not stored.

        Raises:
            SchemaError: ``entity_type`` or ``id`` is missing or not String, or an object has a value of another type.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> found = store.get(ef.ids("note", ["a", "x"]))
            >>> found["metadata"].to_list()
            ['{"year":1843}', None]
        """
        return lookup.get(self._engine, ids, self._threads.submit, progress, Interrupt(cancel))

    def read(
        self, entity_type: str, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Read all entities of a type, with their metadata as typed columns.

        If the store has no entities of the type, the frame is empty and a UserWarning lists the types that it has.

        Args:
            entity_type: the type to read.
            progress, cancel: as for `upsert`; `cancel` takes effect when the next piece of the result arrives.

        Returns:
            ``id``, ``content`` String, one column per metadata field, ``content_hash`` String, ``created_at``,
            ``updated_at`` Datetime("us", "UTC"); ordered by ``id``. Metadata columns have the dtype with which they
            were stored; one that is named like an entity column is called ``metadata.<name>``. Fields that were stored
            as JSON text have the common dtype of their values, or are JSON text themselves if there is none.

        Raises:
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> notes = store.read("note")
            >>> notes["year"].to_list()
            [1843, 1941, 1947]
        """
        found = lookup.read(self._engine, entity_type, progress, Interrupt(cancel))
        if found.is_empty():
            self._warn_if_unknown(entity_type)
        return found

    def scan(
        self, entity_type: str | None = None, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.LazyFrame:
        """A LazyFrame over the store, which queries the database when it is collected.

        Projections, limits and these predicates are pushed down to the database: comparisons, ``is_in``,
        ``is_between`` and null checks on keys, timestamps and typed metadata, combined with ``&`` and ``|``. Polars
        applies all others to the rows that the database returns.

        If the store has no entities of the type, a UserWarning lists the types that it has.

        Args:
            entity_type: the type to read; None for all types.
            progress, cancel: as for `read`, whenever the LazyFrame is collected; the rows are those that the database
                returns.

        Returns:
            With a type, the columns of `read`. Otherwise ``entity_type``, ``id``, ``content``, ``metadata`` (JSON),
            ``content_hash`` String, ``created_at``, ``updated_at`` Datetime("us", "UTC"). The rows have no particular
            order.

        Examples:
            >>> notes = store.scan("note").filter(pl.col("year") > 1900).select("id")
            >>> sorted(notes.collect()["id"])
            ['b', 'c']
        """
        found = lookup.scan(self._engine, entity_type, progress, cancel)
        if entity_type is not None and len(found.collect_schema()) == lookup.COLUMNS_OF_A_TYPE:
            self._warn_if_unknown(entity_type)
        return found

    def _warn_if_unknown(self, entity_type: str) -> None:
        """Warn the caller of a public method about a type that the store does not have, which is often a typo."""
        message = lookup.unknown_type_message(self._engine, entity_type)
        if message is not None:
            # The stack level of the caller: above this method, the public method and its guard against forks.
            warnings.warn(message, UserWarning, stacklevel=4)

    def delete(
        self, ids: FrameLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> DeleteResult:
        """Delete entities and their vectors. Each batch of up to 50,000 ids is one transaction.

        Args:
            ids: an id frame (``entity_type``, ``id``), or objects, as for `exists`; other columns are ignored.
            progress, cancel: as for `upsert`. No exception is raised for `cancel`: ids that were not deleted have the
                status cancelled.

        Returns:
            DeleteResult, whose ``outcomes`` have one row per id, in input order.

        Raises:
            SchemaError: ``entity_type`` or ``id`` is missing or not String, or an object has a value of another type.
            DatabaseError: a transaction failed; PermanentError if the store was opened with ``read_only=True``. An id
                that a constraint or trigger refuses to delete fails alone and raises nothing. `last_result` has the
                outcomes.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back. `last_result` has the outcomes.

        Examples:
            >>> store.delete(ef.ids("note", ["a", "x", "a"])).outcomes["status"].to_list()
            ['deleted', 'missing', 'duplicate']
        """
        check_writable(self._engine.database)
        given = sources.as_frame(ids)
        run = Delete(EntityDeletion(self._engine), Interrupt(cancel))
        with Reporter(progress, given.height, what="delete", unit="ids") as reporter:
            submit = self._threads.submit
            return kept(self, "store", lambda: run.execute(given, reporter, submit), run.result)

    def stats(self, *, space: str | None = None) -> pl.DataFrame:
        """Count the entities of each type, and how many of them are embedded.

        Args:
            space: the space in which embeddings are counted; None for the active one.

        Returns:
            ``entity_type`` String, ``entities``, ``embedded``, ``due`` (content without a current vector), ``failed``
            (content that the embedder refused) Int64; one row per type, ordered by it.

        Raises:
            SpaceError: there is no such space.

        Examples:
            >>> store.stats().select("entity_type", "entities", "due").rows()
            [('note', 3, 3)]
        """
        from entityframes.embedding import jobs

        return jobs.stats(self._engine, space)

    def types(self) -> pl.DataFrame:
        """List the types of the entities in the store.

        Returns:
            ``entity_type`` String, ``entities`` Int64, ``fields`` List(String) (the names of the metadata fields), and
            ``updated_at`` Datetime("us", "UTC") (when an entity of the type was last changed); one row per type,
            ordered by it.

        Examples:
            >>> store.types().select("entity_type", "entities", "fields").rows()
            [('note', 3, ['year'])]
        """
        return contents.types(self._engine)

    def count(self, entity_type: str | None = None, where: pl.Expr | None = None) -> int:
        """Count entities.

        Args:
            entity_type: the type; None for all types. A UserWarning is issued for a type that the store does not have.
            where: count only entities that pass this filter, an expression over the columns of `read` if a type is
                given, otherwise of `scan`.

        Returns:
            Number of entities.

        Examples:
            >>> store.count(), store.count("note", pl.col("year") > 1900)
            (3, 2)
        """
        found = contents.count(self._engine, entity_type, where)
        if not found and entity_type is not None:
            self._warn_if_unknown(entity_type)
        return found

    def runs(self, limit: int | None = None) -> pl.DataFrame:
        """List the runs that wrote entities, from the ledger. Calls that changed nothing are not in it.

        Args:
            limit: the number of the latest runs to list, at least 1; None for all.

        Returns:
            ``run_id`` String (as `UpsertResult.run_id` and in log messages), ``batches``, ``created``, ``updated``,
            ``deleted`` Int64, ``first_written_at`` and ``last_written_at`` Datetime("us", "UTC") (the times of its
            first and last transaction); one row per run, the latest first.

        Raises:
            ValueError: `limit` is less than 1.

        Examples:
            >>> result = store.delete(ef.ids("note", ["a"]))
            >>> store.runs().select("batches", "created", "deleted").rows()
            [(1, 0, 1), (1, 3, 0)]
        """
        return contents.runs(self._engine, limit)

    def verify(
        self, *, repair: bool = False, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Check the consistency of the store.

        Recomputes content and metadata hashes, and checks the counts in the ledger, the embedding jobs against what
        is due, and the recorded dtypes of metadata fields against their values. Hashes, ledger and jobs are read in
        one snapshot. Nothing is written unless `repair` is set.

        Args:
            repair: correct what can be derived: recompute hashes, add or drop ledger entries and jobs, record fields
                again, queue entities that lack passages or vectors, and delete unused vectors (see `vacuum`). Other
                writers wait meanwhile.
            progress, cancel: as for `upsert`, counted in checks; `cancel` takes effect before the next check. A repair
                that has started is completed.

        Returns:
            One row per inconsistency, ordered by check and key; no rows if the store is consistent. ``check`` Enum,
            ``entity_type``, ``id``, ``batch_id``, ``field``, ``expected``, ``found`` String (null if they do not
            apply), ``repairable``, ``repaired`` Boolean.

        Raises:
            DatabaseError: a query failed; PermanentError if `repair` is set and the store was opened with
                ``read_only=True``.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> store.verify().height
            0
        """
        if repair:
            check_writable(self._engine.database)
        found = verification.verify(self._engine, repair=repair, progress=progress, interrupt=Interrupt(cancel))
        return views.shown(found, lambda frame: views.verification(frame, len(verification.CHECKS)))

    def embed(
        self,
        embedder: Embedder,
        *,
        space: str | None = None,
        passages: Passages | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        max_attempts: int = 3,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> EmbedResult:
        """Embed the entities that are due, job by job, until no job is left.

        A text is embedded once in a space: texts that have a vector already are not sent to the embedder again, whether
        they are equal, were deleted and stored again, renamed, or changed back. On PostgreSQL several processes may
        embed at the same time. A vector is used only if the content has not changed since it was embedded. If a call of
        the embedder fails, the texts that cause it are found and recorded as failed; the others are embedded.
        `retry_failed` queues them again.

        Args:
            embedder: an `entityframes.embedding.Embedder`.
            space: the space to fill. None for the active space, or, if there is none, a new one named after the
                model. A second or later space starts with all entities due.
            passages: how long contents are cut into passages, each of which gets a vector; recorded with the space.
                None for those recorded with the space, and in a new space for one vector of each whole content. The
                model usually reads only the beginning of a long text.
            batch_size: texts per call of the embedder; None for its ``max_batch``.
            workers: how many jobs are processed concurrently, each in its own thread.
            max_attempts: how often a call is tried if the embedder is busy, after pauses of 1, 2, 4, ... 60 seconds or
                of the length that it asks for. Then the job fails, and its entities stay due.
            progress, cancel: as for `upsert`, but the batch in flight is still written.

        Returns:
            EmbedResult, whose ``outcomes`` have one row per entity that was due in a job, in the order in which they
            were processed. It is not `ok` if entities are left in jobs that failed or that a stopped run left open.
            Entities that are due but in no job, because they were stored with ``embed=False``, are not embedded; its
            ``unqueued`` counts them, and `enqueue` queues them.

        Raises:
            SpaceError: the space belongs to another model or dimension, or has other passages, or its name is invalid.
            EmbedderError: the embedder cannot work at all, whatever the text. A space that this call created is
                dropped again, unless it has vectors.
            DatabaseError: a transaction failed; PermanentError if the store was opened with ``read_only=True``.
            ValueError: `batch_size`, `workers` or `max_attempts` is less than 1.
            TypeError: `embedder` is no embedder.
            KeyboardInterrupt: on Ctrl-C. `last_result` has the outcomes.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).counts["embedded"]
            3
            >>> store.embed(ef.HashingEmbedder(64)).rows
            0
        """
        from entityframes.embedding.worker import EmbedOptions

        options = EmbedOptions(batch_size, workers, max_attempts)
        return self._embed(embedder, space, options, progress, cancel, passages)

    def _embed(
        self,
        embedder: Embedder,
        space: str | None,
        options: Any,
        progress: Progress,
        cancel: threading.Event | None,
        passages: Passages | None = None,
    ) -> EmbedResult:
        from entityframes.embedding import spaces
        from entityframes.embedding.embedders.base import check_embedder
        from entityframes.embedding.worker import EmbedRun

        check_writable(self._engine.database)
        check_embedder(embedder)
        name, cut, made = spaces.resolve(self._engine, embedder, space, passages)
        self._embedders[embedder.name] = embedder
        if cut is not None and cut.title_fields:
            spaces.enqueue_retitled(self._engine, name)
        run = EmbedRun(self._engine, embedder, name, options, cut)
        if not self._engine.embedding.open_jobs(name):
            # Entities that are due but not in a job do not advance the bar.
            progress = False

        def due() -> int:
            return int(self._engine.stats(name)["due"].sum())

        with Reporter(progress, due, what="embed", unit="texts") as reporter:
            try:
                return kept(self, "store", lambda: run.execute(reporter, cancel), run.result)
            except EmbedderError:
                if made and not run.result().batches:
                    spaces.undo(self._engine, name)
                raise

    def enqueue(self, what: str | FrameLike | None = None, /, *, space: str | None = None) -> int:
        """Queue entities for embedding that are due or failed, such as those stored with ``embed=False``.

        Args:
            what: an entity type, an id frame, or None for all entities. A UserWarning is issued for a type that the
                store does not have.
            space: the space in which they are due; None for the active space, or the first one to be created.

        Returns:
            Number of entities in the new jobs.

        Raises:
            SpaceError: there is no such space.
            SchemaError: `what` is not an id frame.
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> entity = store.upsert_entity("note", "d", "text", embed=False)
            >>> store.enqueue(ef.ids("note", ["d"]))
            1
        """
        from entityframes.embedding import jobs

        check_writable(self._engine.database)
        if isinstance(what, str):
            self._warn_if_unknown(what)
        return jobs.enqueue(self._engine, what, space)

    def retry_failed(self, *, space: str | None = None) -> int:
        """Queue again the entities that the embedder refused, and the jobs that failed.

        Args:
            space: the space; None for the active one.

        Returns:
            Number of entities in these jobs.

        Raises:
            SpaceError: there is no such space, or none at all.
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> store.embed(ef.HashingEmbedder(64)).counts["failed"]
            0
            >>> store.retry_failed()
            0
        """
        from entityframes.embedding import jobs

        check_writable(self._engine.database)
        return jobs.retry_failed(self._engine, space)

    def jobs(self, state: str | None = None) -> pl.DataFrame:
        """List the embedding jobs.

        Args:
            state: "pending", "running", "done" or "failed"; None for all.

        Returns:
            ``job_id``, ``batch_id``, ``space`` String (null until a worker has claimed the job), ``state`` Enum,
            ``entities`` (how many the job lists), ``attempts`` Int64, ``worker`` String, ``lease_until``
            Datetime("us", "UTC"), ``error`` String, ``created_at``, ``updated_at`` Datetime("us", "UTC"); one row per
            job, oldest first.

        Raises:
            ValueError: `state` is unknown.

        Examples:
            >>> store.jobs("pending").select("state", "entities").rows()
            [('pending', 3)]
        """
        from entityframes.embedding import jobs

        return views.shown(jobs.jobs(self._engine, state), views.jobs)

    def spaces(self) -> pl.DataFrame:
        """List the embedding spaces.

        Returns:
            ``space``, ``model`` String, ``dim`` Int64, ``passages`` String (how contents are cut, as JSON; null if each
            content has one vector), ``active`` Boolean, ``embedded``, ``due``, ``failed`` Int64 (numbers of entities),
            ``created_at`` Datetime("us", "UTC"); one row per space, oldest first.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.spaces().select("space", "dim", "active", "embedded").rows()
            [('hashing-64', 64, True, 3)]
        """
        from entityframes.embedding import jobs

        return jobs.spaces(self._engine)

    def activate(self, space: str) -> None:
        """Make a space the one that searches use.

        Args:
            space: its name.

        Raises:
            SpaceError: there is no such space.
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> first = store.embed(ef.HashingEmbedder(64))
            >>> second = store.embed(ef.HashingEmbedder(128), space="larger")
            >>> store.activate("larger")
            >>> store.spaces().filter("active")["space"].to_list()
            ['larger']
        """
        from entityframes.embedding import spaces

        check_writable(self._engine.database)
        self._engine.embedding.activate_space(spaces.find(self._engine, space)["space"])

    def drop_space(self, space: str) -> None:
        """Delete a space and its vectors.

        Args:
            space: its name.

        Raises:
            SpaceError: there is no such space, or it is the active one of several.
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.drop_space("hashing-64")
            >>> store.spaces().height
            0
        """
        from entityframes.embedding import jobs

        check_writable(self._engine.database)
        jobs.drop_space(self._engine, space)

    def put_vectors(
        self,
        frame: FrameLike,
        /,
        *,
        space: str,
        model: str | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> EmbedResult:
        """Store vectors that were computed elsewhere, such as by a pipeline on GPUs.

        They replace the vectors that these texts have in the space, also where other entities have the same text.

        Args:
            frame: any frame with ``entity_type``, ``id`` and ``vector`` (a list or array of numbers), which is scaled
                to length 1. With ``content_hash`` String, a vector is stored only if the content still has this hash;
                without it, for the content that is stored. In a space of passages ``start`` and ``end`` are needed,
                as `vectors` returns them and `Passages.cut` makes them; an entity is embedded once all of its passages
                have vectors, in this frame or before.
            space: the space. One that does not exist is created, for whole contents, with the dimension of the first
                vector.
            model: the name of the model, for a new space by default the name of the space. A search for a text needs
                an embedder of this name.
            progress, cancel: as for `upsert`; `cancel` takes effect between two transactions.

        Returns:
            EmbedResult with one outcome per row: embedded; skipped, if the entity is not stored or its content has
            another hash; or failed, if the vector is null or has another dimension than the space, contains NaN,
            infinity or null, or is all zeros, or if the content has no passage at this place.

        Raises:
            SchemaError: a column is missing or has another dtype.
            SpaceError: the space belongs to another model, or has passages and the frame has no places of them; or the
                name of a new space is invalid.
            DatabaseError: a transaction failed; PermanentError if the store was opened with ``read_only=True``.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> frame = ef.ids("note", ["a", "b"]).with_columns(vector=pl.Series([[1.0, 0.0], [0.6, 0.8]]))
            >>> store.put_vectors(frame, space="ours").counts["embedded"]
            2
            >>> store.search([1, 0], k=1)["id"].to_list()
            ['a']
        """
        from entityframes.embedding.given import GivenVectors

        check_writable(self._engine.database)
        given = GivenVectors(self._engine, frame, space, model, Interrupt(cancel))
        with Reporter(progress, given.rows, what="store", unit="vectors") as reporter:
            return kept(self, "store", lambda: given.execute(reporter), given.result)

    def vectors(self, space: str | None = None) -> pl.DataFrame:
        """The vectors of a space, as `put_vectors` takes them.

        Args:
            space: the space; None for the active one.

        Returns:
            ``entity_type``, ``id``, ``content_hash`` String, ``start``, ``end`` Int64 (in characters of the content),
            ``heading`` String, ``vector`` Array(Float32) of length 1; one row per passage of every entity whose current
            content is embedded, ordered by key and place. A text that the embedder rejected has no row.

        Raises:
            SpaceError: there is no such space, or none at all.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.vectors().select("id", "start", "end", pl.col("vector").arr.len()).row(0)
            ('a', 0, 27, 64)
        """
        from entityframes.embedding.given import vectors

        return vectors(self._engine, space)

    def similar(
        self,
        entity_type: str,
        threshold: float = 0.95,
        *,
        limit: int = 10_000,
        space: str | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> pl.DataFrame:
        """Find pairs of entities of a type that are nearly alike, to be looked at: nothing is changed.

        Entities are compared by the mean of the vectors of their passages. All pairs are computed, in memory: for
        20,000 entities of 256 dimensions seconds, for ten times as many a hundred times as long.

        Args:
            entity_type: the type. A UserWarning is issued for a type that the store does not have.
            threshold: the minimum cosine similarity of a pair, more than 0 and at most 1.
            limit: the maximum number of pairs.
            space: the space; None for the active one.
            progress, cancel: as for `upsert`, counted in entities; `cancel` takes effect before the next 2,048.

        Returns:
            ``id``, ``other_id`` String (in the order of their bytes), ``score`` Float64 (cosine similarity); each pair
            once, the most similar first.

        Raises:
            SpaceError: there is no such space, or none at all.
            StatementCancelledError: `cancel` was set.
            ValueError: `threshold` is not more than 0 and at most 1, or `limit` is less than 1.

        Examples:
            >>> entity = store.upsert_entity("note", "copy of a", store.get_entity("note", "a")["content"])
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.similar("note").select("id", "other_id", pl.col("score").round(3)).rows()
            [('a', 'copy of a', 1.0)]
        """
        from entityframes.embedding.given import similar

        self._warn_if_unknown(entity_type)
        return similar(self._engine, entity_type, threshold, limit, space, progress, Interrupt(cancel))

    def vacuum(self) -> int:
        """Delete vectors that no entity uses, in every space.

        The vector of a text stays when its entity is changed or deleted, so that a text that is stored again, under any
        key, is not embedded again. ``verify(repair=True)`` deletes unused vectors too.

        Returns:
            Number of vectors deleted.

        Raises:
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> entity = store.upsert_entity("note", "a", "another text")
            >>> store.vacuum()
            0
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.vacuum()
            1
        """
        check_writable(self._engine.database)
        return self._engine.embedding.vacuum()

    def index_space(
        self, space: str | None = None, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> bool:
        """Create the index for approximate vector search (HNSW of pgvector). Writing vectors takes longer afterwards.

        Without it, on DuckDB and on PostgreSQL without pgvector 0.8 or later, vector search is exact.

        Args:
            space: the space; None for the active one.
            progress, cancel: as for `upsert`, counted in vectors. Nothing remains of an index that is cancelled.

        Returns:
            Whether the space has an index now.

        Raises:
            SpaceError: there is no such space, or none at all.
            StatementCancelledError: `cancel` was set.
            PermanentError: the store was opened with ``read_only=True``.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> indexed = store.index_space()  # False on DuckDB
            >>> store.search("the first program", k=1)["id"].to_list()
            ['a']
        """
        from entityframes.embedding import jobs, spaces

        check_writable(self._engine.database)
        row = spaces.find(self._engine, space)
        interrupt = Interrupt(cancel)

        def count() -> int:
            return int(
                jobs.spaces(self._engine).row(by_predicate=pl.col("space") == row["space"], named=True)["embedded"]
            )

        with Reporter(progress, count, what="index", unit="vectors") as reporter, interrupt.watched():
            interrupt.check()
            indexed = self._engine.embedding.index_space(row["space"], row["dim"], interrupt, reporter.advance)
            if indexed:
                reporter.complete()
        return indexed

    def search(
        self,
        query: str | Sequence[float] | np.ndarray[Any, Any] | pl.Series,
        *,
        entity_type: str | None = None,
        k: int = 10,
        per_entity: int = 1,
        mode: Mode = "vector",
        where: pl.Expr | None = None,
        embedder: Embedder | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> pl.DataFrame:
        """Find entities by meaning, by words, or by both.

        Args:
            query: text, or for ``mode="vector"`` also a vector (any sequence of numbers). Blank text finds nothing.
            entity_type: the type to search; None for all. A UserWarning is issued for a type that the store does not
                have.
            k: the maximum number of entities to return.
            per_entity: the maximum number of passages of each entity to return, each in a row of its own.
            mode: "vector" ranks by the cosine similarity of the nearest passage in the active space, "text" by words
                (BM25), "hybrid" fuses both rankings. Vectors of content that has changed since are not compared.
            where: a filter on the columns of `read` if a type is given, otherwise of `scan`. It is applied before the
                limit, in the database if it can be pushed down (see `scan`). A filter that depends on other rows (a
                maximum, ``over``, ``shift``) is evaluated on all of them, in the order of `read`, which takes as long
                as reading them.
            embedder: embeds the query. None for the one that this store has used for the active space, or else the
                installed embedder of that model. If another space belongs to the model of `embedder`, that space is
                searched.
            progress, cancel: as for `upsert`, while entities are indexed that are new since the last search by words;
                `cancel` takes effect before the next 4 MiB of text.

        Returns:
            ``rank`` UInt32 of the entity, from 1, ``score`` Float64 (cosine similarity of the passage; or of the
            entity: BM25, or the sum of 1 / (10 + rank)), ``entity_type``, ``id``, ``passage`` String, its ``start`` and
            ``end`` Int64 in characters of the content, ``heading`` String (the headings above it, joined with " > "),
            ``content``, ``metadata`` (JSON), ``content_hash`` String, ``created_at``, ``updated_at``
            Datetime("us", "UTC"); best first, equal scores ordered by key, the passages of an entity together.

            By vector the passage is the nearest one, the whole content in a space without passages. By words it is the
            one that contains most of them, cut like those of the active space, by default into 800 characters.

        Raises:
            SpaceError: nothing is embedded yet, or the embedder or vector does not fit the space.
            EmbedderError: the query cannot be embedded.
            StatementCancelledError: `cancel` was set.
            ValueError: `mode` is unknown, `k` or `per_entity` is less than 1, or `query` is neither valid text nor
                finite numbers.
            TypeError: `where` is no expression, or `embedder` no embedder.

        Examples:
            >>> result = store.embed(ef.HashingEmbedder(64))
            >>> store.search("the first program", k=1)["id"].to_list()
            ['a']
            >>> recent = pl.col("year") > 1900
            >>> store.search("code", mode="text", entity_type="note", where=recent)["id"].to_list()
            ['b']
        """
        from entityframes.embedding.search import search
        from entityframes.embedding.snippets import snippets

        if entity_type is not None:
            self._warn_if_unknown(entity_type)
        found = search(
            self._engine, query, entity_type=entity_type, k=k, per_entity=per_entity, mode=mode, where=where,
            embedder=embedder, remembered=self._embedders, progress=progress, interrupt=Interrupt(cancel),
        )  # fmt: skip
        words = query if isinstance(query, str) else None
        return views.shown(found, lambda frame: views.hits(frame, snippets(frame["passage"].head(views.MOST), words)))

    def get_entity(self, entity_type: str, id: str) -> dict[str, Any] | None:
        """Fetch one entity. To fetch many, use `get`.

        Returns:
            A dict with ``entity_type``, ``id``, ``content``, ``metadata`` (dict), ``content_hash`` (str),
            ``created_at``, ``updated_at`` (datetime in UTC); None if the entity is not stored.

        Raises:
            TypeError: `entity_type` or `id` is not a str.

        Examples:
            >>> store.get_entity("note", "a")["metadata"]
            {'year': 1843}
            >>> store.get_entity("note", "x") is None
            True
        """
        found = self._engine.find(entity_type, id) if single.is_valid_key(entity_type, id) else None
        if found is None:
            return None
        return {"entity_type": entity_type, "id": id, **found, "metadata": json.loads(found["metadata"])}

    def upsert_entity(
        self,
        entity_type: str,
        id: str,
        content: str | None = None,
        metadata: Mapping[str, Any] | str | None = None,
        *,
        embed: bool = True,
    ) -> dict[str, Any]:
        """Store one entity. To store many, use `upsert`.

        Args:
            entity_type, id: the key.
            content: the text; None leaves stored content unchanged, and gives a new entity ``""``.
            metadata: the fields to write, as a mapping that JSON can represent or as JSON text; other stored fields
                are left unchanged.
            embed: whether new or changed content is queued for embedding.

        Returns:
            The outcome as a dict with the columns of ``UpsertResult.outcomes``; ``status`` is created, updated or
            unchanged.

        Raises:
            ValidationError: the entity breaks a rule of the data, or JSON cannot represent its metadata.
            DatabaseError: the database refused it; PermanentError if the store was opened with ``read_only=True``.
            TypeError: `entity_type`, `id` or `content` is not a str.

        Examples:
            >>> store.upsert_entity("note", "a", metadata={"year": 1842})["status"]
            'updated'
        """
        source: Source | None = validated(self._engine, entity_type, id, content, metadata)
        if source is None:
            source = single.one_entity(entity_type, id, content, metadata)
        result = self._upsert(source, Options(embed=embed, on_error="raise"), False, None)
        return result.outcomes.row(0, named=True)

    def entity_exists(self, entity_type: str, id: str) -> bool:
        """Whether an entity is stored. To check many, use `exists`.

        Raises:
            TypeError: `entity_type` or `id` is not a str.

        Examples:
            >>> store.entity_exists("note", "a"), store.entity_exists("note", "x")
            (True, False)
        """
        return single.is_valid_key(entity_type, id) and self._engine.contains(entity_type, id)

    def delete_entity(self, entity_type: str, id: str) -> bool:
        """Delete one entity. To delete many, use `delete`.

        Returns:
            Whether it was stored.

        Raises:
            EntityFramesError: the database refused to delete it, or the store was opened with ``read_only=True``.
            TypeError: `entity_type` or `id` is not a str.

        Examples:
            >>> store.delete_entity("note", "a"), store.delete_entity("note", "a")
            (True, False)
        """
        result = self.delete(single.one_id(entity_type, id))
        result.raise_for_failures()
        return result.counts["deleted"] == 1

    def table(self, name: str, key: str | Sequence[str] | None = None) -> Table:
        """A table of the user in the database of this store, whose connections it shares.

        Args:
            name: ``table`` or ``schema.table``, as for `entityframes.table`.
            key: the column, or the columns, by which rows are found; None for the primary key.

        Returns:
            Table.

        Raises:
            SchemaError: there is no such table, or the key cannot be used.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64, "name": pl.String}, key="id")
            >>> store.table("people").upsert(pl.DataFrame({"id": [1], "name": ["Ada"]})).counts["created"]
            1
        """
        return Table(self._tables, name, key)

    @cached_property
    def _tables(self) -> TableEngine:
        return self._engine.tables

    def close(self) -> None:
        """Close the store and its connections. It may be called more than once.

        Examples:
            >>> store.close()
            >>> store.exists(ef.ids("note", ["a"]))
            Traceback (most recent call last):
                ...
            entityframes.errors.ClosedError: ...
        """
        self._engine.database.close()

    def __enter__(self) -> EntityStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        """Whether an entity is stored: ``("note", "a") in store``. Each test is a query; `exists` checks many at once.

        Raises:
            TypeError: `key` is not a pair of an entity type and an id.
        """
        if not isinstance(key, tuple) or len(key) != 2:
            raise TypeError(f"a key is a pair (entity_type, id), not {key!r}; store.types() lists the types")
        return self.entity_exists(*key)

    def __repr__(self) -> str:
        # Without a query: debuggers, logs and tracebacks show it, too.
        database = self._engine.database
        return f"EntityStore({where(database)}, namespace={database.namespace!r})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """The text in IPython and notebooks."""
        facts, types = self._summary()
        counted = (
            [] if types is None else [f"{count:,} {visible(kind)}" for kind, count, *_ in types.rows()[: views.MOST]]
        )
        printer.text(f"{self!r}\n{'; '.join([*facts, ', '.join(counted) or 'no entities'])}")

    def _repr_html_(self) -> str:
        facts, types = self._summary()
        return views.store(where(self._engine.database), facts, types)

    def _summary(self) -> tuple[list[str], pl.DataFrame | None]:
        """What the store is, and its `stats`; None if it cannot be queried."""
        database = self._engine.database
        facts = [ENGINES[database.name], f"namespace {database.namespace}"]
        facts += ["read-only"] if database.read_only else []
        try:
            types, size = self.stats(), self._engine.size()
        except EntityFramesError as error:
            return [*facts, str(error)], None
        return [*facts, *([] if size is None else [views.size(size)]), f"{types['entities'].sum():,} entities"], types
