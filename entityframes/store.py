"""EntityStore: the public calls, thin."""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

import polars as pl

from entityframes import forks
from entityframes.engines import open_engine
from entityframes.engines.base import Engine, check_writable
from entityframes.engines.url import parse_url
from entityframes.errors import ConnectError, DuplicateError, EmbedderError, SchemaError
from entityframes.frames import single, sources
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.reading import lookup
from entityframes.reading import verify as verification
from entityframes.results import DeleteResult, EmbedResult, UpsertResult
from entityframes.threads import Threads
from entityframes.writing import plan
from entityframes.writing.delete import Delete
from entityframes.writing.options import Absent, Nulls, OnDuplicate, OnError, Options
from entityframes.writing.plan import Plan
from entityframes.writing.upsert import Upsert

if TYPE_CHECKING:
    from entityframes.embedding import Embedder
    from entityframes.embedding.search import Mode


def connect(
    url: str | os.PathLike[str] | None = None,
    *,
    namespace: str = "entityframes",
    workers: int | None = None,
    read_only: bool = False,
) -> EntityStore:
    """Open a store, and create it if there is none yet.

    Args:
        url: a path, ``duckdb:///path`` or ``:memory:`` for DuckDB; ``postgresql://user@host/database``
            or ``host=... dbname=...`` for PostgreSQL; None for $ENTITYFRAMES_URL or else ``./entities.duckdb``.
        namespace: the database schema that holds the store's tables, so that several stores can share a database:
            1 to 63 ASCII letters, digits and underscores. Names that differ in case only mean the same: the schema
            that is there is used.
        workers: how many batches of a run are worked on at once; on PostgreSQL each has its own connection.
        read_only: whether nothing is created, migrated or written: a role that may only SELECT, a standby, and a file
            without write permission will do, and several processes may read a DuckDB file at once. Calls that write
            raise PermanentError.

    Returns:
        The store, which is a context manager that closes it.

    Raises:
        ConnectError: it cannot be opened, or is to be read only and is not there, or this process was forked from one
            that was at work; FormatError where it is newer than this version of the package, or older and to be read
            only.
    """
    forks.check(ConnectError)
    if workers is not None and workers < 1:
        raise ValueError(f"workers is {workers}: it is a number of batches at once, at least 1, or None")
    return EntityStore(open_engine(parse_url(url), namespace, workers, read_only=read_only))


@forks.guarded
class EntityStore:
    """Entities in a database, read and written in bulk. Made by `connect`; may be used from several threads."""

    def __init__(self, engine: Engine) -> None:
        forks.opened()
        self._engine = engine
        self._threads = Threads()
        #: The embedders that this store has used, by model, so that a search need not name one.
        self._embedders: dict[str, Embedder] = {}
        #: The result of the last upsert, delete or embed, also where it ended in an exception.
        self.last_result: UpsertResult | None = None

    @property
    def address(self) -> str:
        """Where the store is: a path or a URL, without a password."""
        return self._engine.address

    def upsert(
        self,
        frame: Any,
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
        """Store entities: insert new ones, update those that differ, leave equal ones alone.

        Each batch is one transaction: probed, merged, entered in the ledger. A row ends in exactly one outcome.

        Args:
            frame: an entity frame (``entity_type``, ``id`` String; ``content`` String or absent; ``metadata`` Struct,
                String that holds a JSON object, or absent): DataFrame, LazyFrame, an iterator of frames, or anything
                with an Arrow stream. A LazyFrame, iterator or RecordBatchReader is streamed.
            absent: what becomes of content and metadata fields that are stored and that the frame does not carry:
                "keep" leaves them as they are, "clear" drops them, so that each entity is what the frame says. A field
                is carried as a whole, a nested one too; JSON text carries the top-level fields that it names, a null
                ``metadata`` none. A new entity has content ``""`` where none is carried.
            nulls: "write" stores a null of the frame as the value that it is, "keep" leaves what is stored alone: for
                top-level fields that are null (typed, or in JSON text), and for content that is null or ``""``. With
                equal keys only the row that counts is looked at; the others are not searched for other values.
            batch_size: rows in a batch; None takes as many as fit about 8 MiB, at most 50,000 (on DuckDB, for a frame
                in memory, 128 MiB and 122,880).
            embed: whether new or changed content makes an embedding job, one for each batch.
            on_duplicate: which row of a key counts: the "last", the "first", or "error" to refuse the frame. In a
                stream that holds within a batch, and a later batch updates what an earlier one wrote.
            on_error: "isolate" fails only the rows that cannot be stored, "rollback" their whole batch, "raise"
                ends the run with the error.
            expected_hash: the column with the content hash (String, sha256 in hex, as `get` gives it out) that the
                stored entity is expected to have, null where there should be none. A row whose entity is another one
                has the status conflict and is left alone; compared in the transaction that writes.
            progress: None shows a bar in a notebook or terminal, True, False, or a callable(done, total or None).
            cancel: an event that stops the run when set; the batch in flight is rolled back.

        Returns:
            UpsertResult, whose ``outcomes`` have one row for each input row, in input order.

        Raises:
            SchemaError: the frame cannot be stored; a whole frame is refused before anything is written.
            DuplicateError: a key stands twice and ``on_duplicate="error"``.
            ValidationError, DatabaseError: rows failed and ``on_error="raise"``.
            PermanentError, ResourceError: no batch can succeed (permissions, full disk).
            KeyboardInterrupt: on Ctrl-C. `last_result` then holds what was done.
        """
        check_writable(self._engine)
        options = Options(batch_size, embed, on_duplicate, on_error, expected_hash, absent=absent, nulls=nulls)
        return self._upsert(
            sources.iterate(frame) if sources.is_stream(frame) else sources.as_frame(frame), options, progress, cancel
        )

    def _upsert(
        self,
        source: pl.DataFrame | Iterator[pl.DataFrame],
        options: Options,
        progress: Progress,
        cancel: threading.Event | None,
    ) -> UpsertResult:
        check_writable(self._engine)
        run = Upsert(self._engine, options, Interrupt(cancel))
        with Reporter(progress, source.height if isinstance(source, pl.DataFrame) else None) as reporter:
            try:
                return run.execute(source, reporter, self._threads.submit)
            except (SchemaError, DuplicateError) as error:
                error.args = (f"{error}; {run.result()._stored_before}",)
                raise
            finally:
                self.last_result = run.result()

    def plan(
        self, frame: Any, /, *, absent: Absent = "keep", nulls: Nulls = "write", on_duplicate: OnDuplicate = "last"
    ) -> Plan:
        """Tell what `upsert` would do with a frame, row by row, without writing anything.

        Args:
            frame: an entity frame as for `upsert`. It is held in memory as a whole, a stream too.
            absent, nulls, on_duplicate: as for `upsert`.

        Returns:
            Plan: ``frame`` with one row for each input row, ``summary()``, and ``apply()``, which does just that and
            leaves alone what somebody else has changed since.

        Raises:
            SchemaError: the frame cannot be stored.
            DuplicateError: a key stands twice and ``on_duplicate="error"``.
        """
        options = Options(on_duplicate=on_duplicate, absent=absent, nulls=nulls)
        return plan.make(self._engine, sources.collect(frame), options, self._upsert)

    def exists(self, ids: Any, /) -> pl.DataFrame:
        """Tell which ids are stored, by one question for up to 10,000 of them.

        Args:
            ids: an id frame (``entity_type``, ``id``); other columns are ignored.

        Returns:
            ``entity_type``, ``id``, ``exists`` Boolean; one row for each id, in input order.

        Raises:
            SchemaError: a column is missing or is not text.
        """
        return lookup.exists(self._engine, ids, self._threads.submit)

    def missing(self, ids: Any, /) -> pl.DataFrame:
        """The rows of an id frame whose entity is not stored (an anti-join), with all their columns, in order.

        Raises:
            SchemaError: a column is missing or is not text.
        """
        given = sources.as_frame(ids)
        return given.filter(~lookup.exists(self._engine, given, self._threads.submit)["exists"])

    def get(self, ids: Any, /) -> pl.DataFrame:
        """Fetch entities by id.

        Args:
            ids: an id frame (``entity_type``, ``id``); other columns are ignored.

        Returns:
            ``entity_type``, ``id``, ``found`` Boolean, ``content``, ``metadata`` (String, JSON), ``content_hash``
            (String, sha256 in hex), ``created_at``, ``updated_at`` (Datetime("us", "UTC")), null where missing; one
            row for each id, in input order.

        Raises:
            SchemaError: a column is missing or is not text.
        """
        return lookup.get(self._engine, ids, self._threads.submit)

    def read(self, entity_type: str) -> pl.DataFrame:
        """All entities of a type with their metadata as typed columns.

        A type that the store does not have gives no rows and a UserWarning that lists those that it has.

        Returns:
            ``id``, ``content``, then the metadata columns with the dtypes they went in with (one that bears the name
            of an entity column as ``metadata.<name>``), then ``content_hash``, ``created_at``, ``updated_at``;
            ordered by id. Fields that came as JSON text have the dtype that their values share; where they share
            none, their JSON text.
        """
        found = lookup.read(self._engine, entity_type)
        if found.is_empty():
            self._warn_of(entity_type)
        return found

    def scan(self, entity_type: str | None = None) -> pl.LazyFrame:
        """A LazyFrame over the store: projection, limits and simple predicates reach the database.

        Comparisons, ``is_in``, ``is_between`` and null checks on keys, timestamps and typed metadata, and their
        combinations with ``&`` and ``|``, do; others are applied by Polars to what comes back.

        Args:
            entity_type: the type, with the columns of `read`; None for all, with metadata as JSON text.
        """
        found = lookup.scan(self._engine, entity_type)
        if entity_type is not None and len(found.collect_schema()) == lookup.COLUMNS_OF_A_TYPE:
            self._warn_of(entity_type)
        return found

    def _warn_of(self, entity_type: str) -> None:
        """Say so where the caller of a call names a type that the store does not have."""
        if message := lookup.unknown_type_message(self._engine, entity_type):
            warnings.warn(message, UserWarning, stacklevel=4)

    def delete(self, ids: Any, /) -> DeleteResult:
        """Delete entities and what was embedded of them; each batch is one transaction.

        Args:
            ids: an id frame (``entity_type``, ``id``); other columns are ignored.

        Returns:
            DeleteResult with one outcome for each id: deleted, missing, or duplicate.

        Raises:
            SchemaError: a column is missing or is not text.
            DatabaseError: the database refused; `last_result` holds what was deleted before.
        """
        check_writable(self._engine)
        run = Delete(self._engine, Interrupt())
        try:
            return run.execute(ids, Reporter(False, None), self._threads.submit)
        finally:
            self.last_result = run.result()

    def stats(self, *, space: str | None = None) -> pl.DataFrame:
        """Count the entities of each type, and how far a space has them.

        Args:
            space: the space that is meant; None for the active one.

        Returns:
            ``entity_type``, ``entities``, ``embedded``, ``due`` (content that has no vector of it), ``failed``
            (content that the embedder refused), Int64; one row a type, ordered by it.

        Raises:
            SpaceError: there is no such space.
        """
        from entityframes.embedding import jobs

        return jobs.stats(self._engine, space)

    def verify(self, *, repair: bool = False) -> pl.DataFrame:
        """Recompute what can be recomputed, and tell what does not agree.

        Content and metadata hashes, the ledger's counts, embedding jobs against what is due, and the recorded dtypes
        of metadata fields against the values. The hashes, ledger and jobs are compared in one snapshot of the
        database; nothing is written.

        Args:
            repair: mend what can be derived: hashes follow what they are of, ledger rows and jobs are made or
                dropped, fields are recorded anew. Writers wait while it lasts.

        Returns:
            One row for each inconsistency, none where the store is sound: ``check`` Enum, ``entity_type``, ``id``,
            ``batch_id``, ``field``, ``expected``, ``found`` String, null where they do not apply, ``repairable`` and
            ``repaired`` Boolean; ordered by check and key.

        Raises:
            DatabaseError: the database refused.
        """
        if repair:
            check_writable(self._engine)
        return verification.verify(self._engine, repair=repair)

    def embed(
        self,
        embedder: Embedder,
        *,
        space: str | None = None,
        batch_size: int | None = None,
        workers: int = 1,
        max_attempts: int = 3,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> EmbedResult:
        """Embed what is due, job by job, until no job is left; several processes may do so at once on PostgreSQL.

        A vector is written only while the content is still what was embedded. Of a batch that fails, the texts at
        fault are found and recorded; `retry_failed` queues them again.

        Args:
            embedder: see `entityframes.embedding.Embedder`.
            space: where its vectors go; None for the active space, or a new one of the model's name. A space that is
                not the first begins with everything that is due in it.
            batch_size: texts in a call of the embedder; None for as many as it takes.
            workers: how many jobs are worked off at once, each in a thread.
            max_attempts: how often a call is tried while the embedder is busy, after 1, 2, 4, ... 60 seconds or as
                long as it says; then the job is failed and its entities stay due.
            progress, cancel: as in `upsert`, but the batch in flight is still written.

        Returns:
            EmbedResult, whose ``outcomes`` have one row for each entity that was due in a job, in the order of the
            work. It is not `ok` while entities are due in jobs that failed, or that a stopped run left open;
            what is due and in no job, since it was stored with ``embed=False``, its text tells, and `enqueue` queues.

        Raises:
            SpaceError: the space is of another model or dimension.
            EmbedderError: the embedder cannot work at all: every text fails. A space that was new is not kept.
            DatabaseError: the database cannot.
            KeyboardInterrupt: on Ctrl-C; `last_result` holds what was done.
        """
        from entityframes.embedding.worker import EmbedOptions

        return self._embed(embedder, space, EmbedOptions(batch_size, workers, max_attempts), progress, cancel)

    def _embed(
        self, embedder: Embedder, space: str | None, options: Any, progress: Progress, cancel: threading.Event | None
    ) -> EmbedResult:
        from entityframes.embedding import spaces
        from entityframes.embedding.worker import EmbedRun

        check_writable(self._engine)
        name, made = spaces.resolve(self._engine, embedder, space)
        self._embedders[embedder.name] = embedder
        run = EmbedRun(self._engine, embedder, name, options)
        if not self._engine.embedding.open_jobs(name):
            # A bar would be full of what is in no job.
            progress = False

        def due() -> int:
            return int(self._engine.stats(name)["due"].sum())

        with Reporter(progress, due, unit="texts") as reporter:
            try:
                return run.execute(reporter, cancel)
            except EmbedderError:
                if made:
                    spaces.undo(self._engine, name)
                raise
            finally:
                self.last_result = run.result()

    def enqueue(self, what: Any = None, /, *, space: str | None = None) -> int:
        """Make embedding jobs for what is due or failed: what was stored with ``embed=False``, for one.

        Args:
            what: an entity type, an id frame, or None for everything.
            space: where it is due; None for the active space, or the first one to come.

        Returns:
            How many entities the jobs list.

        Raises:
            SpaceError: there is no such space.
            SchemaError: `what` is no id frame.
        """
        from entityframes.embedding import jobs

        check_writable(self._engine)
        if isinstance(what, str):
            self._warn_of_unknown(what)
        return jobs.enqueue(self._engine, what, space)

    def _warn_of_unknown(self, entity_type: str) -> None:
        """Warn of a type that the store has nothing of, which is often a slip of the pen."""
        said = lookup.unknown_type_message(self._engine, entity_type)
        if said is not None:
            warnings.warn(said, UserWarning, stacklevel=4)

    def retry_failed(self, *, space: str | None = None) -> int:
        """Queue again what the embedder refused, and the jobs that failed; how many entities these jobs list."""
        from entityframes.embedding import spaces

        check_writable(self._engine)
        return self._engine.embedding.retry_failed(spaces.find(self._engine, space)["space"])

    def jobs(self, state: str | None = None) -> pl.DataFrame:
        """The embedding jobs, oldest first.

        Args:
            state: "pending", "running", "done" or "failed"; None for all.

        Returns:
            ``job_id``, ``batch_id``, ``space`` (null until a worker takes it), ``state`` Enum, ``entities`` Int64 (how
            many it lists), ``attempts`` Int64, ``worker``, ``lease_until``, ``error``, ``created_at``, ``updated_at``.
        """
        from entityframes.embedding import jobs

        return jobs.jobs(self._engine, state)

    def spaces(self) -> pl.DataFrame:
        """The spaces, oldest first.

        Returns:
            ``space``, ``model``, ``dim`` Int64, ``active`` Boolean, ``embedded``, ``due``, ``failed`` Int64 (how many
            entities), ``created_at``.
        """
        from entityframes.embedding import jobs

        return jobs.spaces(self._engine)

    def activate(self, space: str) -> None:
        """Let searches use a space from now on. Raises SpaceError if there is no such space."""
        from entityframes.embedding import spaces

        check_writable(self._engine)
        self._engine.embedding.activate_space(spaces.find(self._engine, space)["space"])

    def drop_space(self, space: str) -> None:
        """Delete a space with its vectors. Raises SpaceError if there is none, or if others wait and it is active."""
        from entityframes.embedding import jobs

        check_writable(self._engine)
        jobs.drop_space(self._engine, space)

    def index_space(self, space: str | None = None) -> bool:
        """Make the index for approximate search (pgvector's HNSW), after which vectors cost more to write.

        Returns:
            Whether there is one now. Without it (DuckDB, PostgreSQL without pgvector 0.8) search is exact.
        """
        from entityframes.embedding import spaces

        check_writable(self._engine)
        row = spaces.find(self._engine, space)
        return self._engine.embedding.index_space(row["space"], row["dim"])

    def search(
        self,
        query: Any,
        *,
        entity_type: str | None = None,
        k: int = 10,
        mode: Mode = "vector",
        where: pl.Expr | None = None,
        embedder: Embedder | None = None,
    ) -> pl.DataFrame:
        """Find entities by meaning, by words, or by both.

        Args:
            query: a text, or for ``mode="vector"`` also a vector (any sequence of numbers). An empty text, or one of
                spaces, finds nothing.
            entity_type: the type to search; None for all. One that the store has nothing of is a UserWarning.
            k: how many entities at most.
            mode: "vector" compares with the active space by cosine, "text" ranks by words (BM25), "hybrid" fuses both
                rankings. A vector of content that has changed since is not compared.
            where: a filter over the columns of `read` where a type is given, else over those of `scan`; applied before
                the limit, by the database as far as it judges like Polars. One that looks at more than a row (a
                maximum, ``over``, ``shift``) keeps what it would keep of `read`, and takes as long.
            embedder: what embeds the query; None for the one that this store has used for the space, or a shipped one
                of that name.

        Returns:
            ``rank`` UInt32 from 1, ``score`` Float64 (cosine, BM25, or the sum of 1 / (10 + rank)), and the entity's
            columns; best first, equal scores by key.

        Raises:
            SpaceError: nothing is embedded yet, or embedder or vector do not fit.
            EmbedderError: the query cannot be embedded.
        """
        from entityframes.embedding.search import search

        if entity_type is not None:
            self._warn_of_unknown(entity_type)
        return search(
            self._engine, query, entity_type=entity_type, k=k, mode=mode, where=where, embedder=embedder,
            remembered=self._embedders,
        )  # fmt: skip

    def get_entity(self, entity_type: str, id: str) -> dict[str, Any] | None:
        """One entity as a dict with its metadata as a dict, or None; `get` for many."""
        row = self.get(single.one_id(entity_type, id)).row(0, named=True)
        if not row.pop("found"):
            return None
        return row | {"metadata": json.loads(row["metadata"])}

    def upsert_entity(
        self,
        entity_type: str,
        id: str,
        content: str | None = None,
        metadata: Mapping[str, Any] | str | None = None,
        *,
        embed: bool = True,
    ) -> dict[str, Any]:
        """Store one entity through the same path as `upsert`: what is not given stays as it is.

        Args:
            content: its text; None leaves the stored one, and gives a new entity ``""``.
            metadata: fields to write, as a mapping that JSON can represent or a JSON object as text; others stay.

        Returns:
            Its outcome as a dict: ``status`` is created, updated or unchanged.

        Raises:
            ValidationError: it breaks a rule of the data.
            DatabaseError: the database refused it.
        """
        frame = single.one_entity(entity_type, id, content, metadata)
        result = self.upsert(frame, embed=embed, on_error="raise", progress=False)
        return result.outcomes.row(0, named=True)

    def entity_exists(self, entity_type: str, id: str) -> bool:
        """Whether an entity is stored; `exists` for many."""
        return bool(self.exists(single.one_id(entity_type, id))["exists"][0])

    def delete_entity(self, entity_type: str, id: str) -> bool:
        """Delete one entity and tell whether there was one; `delete` for many.

        Raises:
            EntityFramesError: the database refused.
        """
        result = self.delete(single.one_id(entity_type, id))
        result.raise_for_failures()
        return result.counts["deleted"] == 1

    def close(self) -> None:
        """Close the store. May be called again."""
        self._engine.close()

    def __enter__(self) -> EntityStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EntityStore({self._engine.address!r}, namespace={self._engine.namespace!r})"
