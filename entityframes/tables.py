"""Tables of the user: each method checks its options and calls the module that does the work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import polars as pl

from entityframes import forks, views
from entityframes.engines import open_tables
from entityframes.engines.database import ENGINES, check_writable, where
from entityframes.engines.tables import Column, Relation, TableEngine, named
from entityframes.engines.url import parse_url
from entityframes.errors import ConnectError, EntityFramesError, SchemaError
from entityframes.frames import sources
from entityframes.frames.like import FrameLike, KeysLike
from entityframes.frames.records import Records, Whole, visible_schema
from entityframes.frames.schema import did_you_mean
from entityframes.interrupt import Interrupt
from entityframes.progress import Progress, Reporter
from entityframes.reading import tables as reading
from entityframes.reading.scan import ScanQuery, lazy_frame
from entityframes.results import MIRROR_STATUSES, DeleteResult, RunResult, UpsertResult, kept
from entityframes.threads import Threads
from entityframes.visible import visible
from entityframes.writing.delete import Delete
from entityframes.writing.mirror import Mirror, check_deletions, check_max_delete, check_not_empty
from entityframes.writing.options import Nulls, OnDuplicate, OnError, OnMatch, TableOptions
from entityframes.writing.tables import plan as planning
from entityframes.writing.tables.deletion import TableDeletion
from entityframes.writing.tables.mirror import Deletions, Scope, absent_rows, check_soft_delete
from entityframes.writing.tables.plan import TablePlan
from entityframes.writing.tables.target import check_columns, usable_keys
from entityframes.writing.tables.upsert import table_upsert

#: The estimated number of rows from which a view does not count them.
_COUNTED = 1_000_000


def table(url: Any, name: str, key: str | Sequence[str] | None = None, *, workers: int | None = None) -> Table:
    """Open a table that exists. Nothing is created in the database.

    Args:
        url: as for `connect`.
        name: ``table`` or ``schema.table``. Parts with other characters than letters, digits and underscores are
            quoted, as in ``sales."my.table"``.
        key: the column, or the columns, by which rows are found. None for the primary key. On PostgreSQL they need a
            unique constraint or index.
        workers: how many batches are processed concurrently, at least 1; None means 2.

    Returns:
        Table, a context manager that closes its connections on exit.

    Raises:
        ConnectError: the database cannot be opened.
        SchemaError: there is no such table, or the key cannot be used.

    Examples:
        >>> people = ef.create_table("people.duckdb", "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
        >>> people.close()
        >>> with ef.table("people.duckdb", "people") as people:
        ...     people.upsert(pl.DataFrame({"id": [1, 2], "name": ["Ada", "Bob"]})).counts["created"]
        2
    """
    forks.check(ConnectError)
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be a positive integer or None, got {workers}")
    engine = open_tables(parse_url(url), workers)
    try:
        return Table(engine, name, key, owner=True)
    except BaseException:
        engine.database.close()
        raise


def create_table(
    url: Any, name: str, frame_or_schema: Any, key: str | Sequence[str], *, workers: int | None = None
) -> Table:
    """Create a table with a primary key, with the columns of a frame. No rows are written.

    Args:
        url: as for `table`, or an `EntityStore`, whose connections are then shared.
        name: as for `table`.
        frame_or_schema: a frame, or a mapping of column names to Polars dtypes.
        key: the column, or the columns, of the primary key.
        workers: as for `table`.

    Returns:
        Table.

    Raises:
        ConnectError: the database cannot be opened.
        SchemaError: a column of the key is missing, or there is no SQL type for a dtype.
        PermanentError: there is a table of this name, or the user may not create one.

    Examples:
        >>> people = ef.create_table(store, "people", {"id": pl.Int64, "born": pl.Date}, key="id")
        >>> people.columns["dtype"].to_list()
        ['Int64', 'Date']
    """
    names = [key] if isinstance(key, str) else list(key)
    schema = _schema_of(frame_or_schema)
    if missing := [column for column in names if column not in schema]:
        index = getattr(getattr(frame_or_schema, "index", None), "names", ())
        raise SchemaError(
            f"the key has {', '.join(map(repr, missing))}, which is no column of the frame; it has "
            f"{', '.join(map(repr, schema)) or 'no columns'}",
            advice="pass frame.reset_index()" if set(missing) & set(index) else did_you_mean(missing, schema),
        )
    # A store, which is defined above this module.
    shared = hasattr(url, "_tables")
    if not shared:
        forks.check(ConnectError)
    engine = url._tables if shared else open_tables(parse_url(url), workers, create=True)
    try:
        check_writable(engine.database)
        engine.create(name, schema, names)
        return Table(engine, name, names, owner=not shared)
    except BaseException:
        if not shared:
            engine.database.close()
        raise


@forks.guarded
class Table:
    """A table of the user, read and written in bulk.

    Made by `table`, `create_table` or `EntityStore.table`. It may be used from several threads. Every method may raise
    DatabaseError if the database cannot be reached.

    Attributes:
        last_result: the result of the last upsert, mirror or delete, also if it ended with an exception; None before
            the first one.

    Examples:
        >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
        >>> people.upsert(pl.DataFrame({"id": [1, 2], "name": ["Ada", "Bob"]})).counts["created"]
        2
        >>> people.get([2, 3])["name"].to_list()
        ['Bob', None]
    """

    def __init__(
        self, engine: TableEngine, name: str, key: str | Sequence[str] | None = None, *, owner: bool = False
    ) -> None:
        forks.opened()
        self._engine, self._owner = engine, owner
        self._threads = Threads()
        self._key = [key] if isinstance(key, str) else None if key is None else list(key)
        self._name = name
        self._relation = self._described()
        self.last_result: RunResult | None = None

    def _described(self) -> Relation:
        return keyed(self._engine, self._engine.describe(self._name), self._key)

    @property
    def name(self) -> str:
        """The name with its schema.

        Examples:
            >>> ef.create_table(store, "people", {"id": pl.Int64}, key="id").name.partition(".")[2]
            'people'
        """
        return self._relation.name

    @property
    def key(self) -> list[str]:
        """The columns of the key, in the order of the index.

        Examples:
            >>> ef.create_table(store, "people", {"id": pl.Int64}, key="id").key
            ['id']
        """
        return list(self._relation.key)

    @property
    def columns(self) -> pl.DataFrame:
        """The columns of the table: ``column``, ``dtype`` (of Polars), ``sql_type`` String, ``key``, ``nullable``
        Boolean, ``default`` String (an SQL expression), ``generated`` Boolean; one row per column, in their order.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64, "born": pl.Date}, key="id")
            >>> people.columns.select("column", "dtype", "key").rows()
            [('id', 'Int64', True), ('born', 'Date', False)]
        """
        relation = self._relation
        rows = [
            (one.name, str(one.dtype), one.sql_type, one.name in relation.key, one.nullable, one.default, one.generated)
            for one in relation.columns
        ]
        text, flag = pl.String, pl.Boolean
        schema = {
            "column": text, "dtype": text, "sql_type": text, "key": flag, "nullable": flag, "default": text,
            "generated": flag,
        }  # fmt: skip
        return pl.DataFrame(rows, schema=schema, orient="row")

    def upsert(
        self,
        frame: FrameLike,
        /,
        *,
        on_match: OnMatch = "update",
        nulls: Nulls = "write",
        ignore: str | Iterable[str] = (),
        batch_size: int | None = None,
        on_duplicate: OnDuplicate = "last",
        on_error: OnError = "isolate",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Store rows: insert new ones, update those that differ, leave identical ones untouched.

        Each batch is one transaction. Each input row ends with exactly one outcome.

        Args:
            frame: the rows, with columns of the table. Columns that it lacks keep their values, and have their default
                in new rows. A DataFrame, a LazyFrame, an iterator of frames, or any object with an Arrow stream; a list
                or an iterator of dicts, dataclasses and other objects as for `EntityStore.upsert`; or a dict of
                columns. A LazyFrame, iterator or RecordBatchReader is streamed. An object lacks the columns whose keys
                it lacks; a column of JSON takes any values that JSON can represent. Objects that lack some columns and
                have None in others are written in a transaction for each set of missing keys.
            on_match: what happens to a row whose key is stored: "update" it, "skip" it (it is unchanged), or "fail".
            nulls: "write" stores a null as null. "keep" leaves the stored value as it is where the frame has a null,
                and uses the default in new rows.
            ignore: columns that are written but do not count as a difference, such as a load time.
            batch_size: rows per batch; None makes batches of about 8 MiB (DuckDB: 128 MiB), or of 4,000 objects from
                an iterator.
            on_duplicate: which row of a repeated key is written: the "last", the "first", or "error" to refuse the
                frame. In a stream this applies within a batch; a later batch updates what an earlier one wrote.
            on_error: "isolate" fails only the rows that cannot be stored, "rollback" fails the whole batch that has
                such a row, "raise" also ends the run with the error.
            progress, cancel: as for `EntityStore.upsert`.

        Returns:
            UpsertResult, whose ``outcomes`` have one row per input row, in input order, with the columns of the key. A
            column of the key that is called like another one of the outcomes is called ``key.<name>``.

        Raises:
            SchemaError: the columns or dtypes of the frame cannot be stored. A frame in memory is refused before
                anything is written; in a stream, the batches before it stay stored, and the message counts them.
            DuplicateError: a key is repeated and ``on_duplicate="error"``.
            ValidationError, DatabaseError: a row failed and ``on_error="raise"``.
            PermanentError, ResourceError: no batch can succeed (missing permission, full disk).
            ValueError: an option has an unknown value, or `batch_size` is less than 1.
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back. `last_result` has the outcomes.

        Examples:
            >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> result = people.upsert(pl.DataFrame({"id": [1, 2, None], "name": ["Ada", "Bob", "?"]}))
            >>> result.outcomes.select("id", "status", "rule").rows()
            [(1, 'created', None), (2, 'created', None), (None, 'failed', 'null_key')]
        """
        options = TableOptions(
            batch_size=batch_size, on_duplicate=on_duplicate, on_error=on_error, nulls=nulls, on_match=on_match,
            ignore=_names(ignore),
        )  # fmt: skip
        given = sources.opened(frame, batch_size)
        return self._upsert(given, options, progress, cancel, lambda: sources.count(frame))

    def _upsert(
        self,
        source: pl.DataFrame | Iterator[pl.DataFrame] | Records | Whole,
        options: TableOptions,
        progress: Progress,
        cancel: threading.Event | None,
        count: Callable[[], int | None] = lambda: None,
    ) -> UpsertResult:
        check_writable(self._engine.database)
        run = table_upsert(self._engine, self._relation, options, Interrupt(cancel))
        height = getattr(source, "height", None)
        with Reporter(progress, count if height is None else height, what="upsert") as reporter:
            submit = self._threads.submit
            return kept(self, "table", lambda: run.execute(source, reporter, submit), run.result)

    def plan(
        self,
        frame: FrameLike,
        /,
        *,
        on_match: OnMatch = "update",
        nulls: Nulls = "write",
        ignore: str | Iterable[str] = (),
        on_duplicate: OnDuplicate = "last",
        mirror: bool = False,
        scope: Scope = None,
        soft_delete: str | None = None,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> TablePlan:
        """Compare a frame with the table and report what `upsert` would do, row by row, without writing anything.

        Args:
            frame: as for `upsert`. The whole frame is held in memory, also if it is a stream.
            on_match, nulls, ignore, on_duplicate: as for `upsert`.
            mirror: plan a `mirror` rather than an upsert, with its `scope` and `soft_delete`.
            progress, cancel: as for `EntityStore.plan`.

        Returns:
            TablePlan: ``frame`` has one row per input row, in input order, and after them one with a null ``row`` for
            each stored row that a mirror would delete; ``summary()`` describes it in a few lines;
            ``apply()`` carries it out, except for rows that have been changed in the meantime.

        Raises:
            SchemaError: the columns or dtypes of the frame cannot be stored.
            DuplicateError: a key is repeated and ``on_duplicate="error"``.
            StatementCancelledError: `cancel` was set.

        Examples:
            >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> result = people.upsert(pl.DataFrame({"id": [1], "name": ["Ada"]}))
            >>> plan = people.plan(pl.DataFrame({"id": [1, 2], "name": ["Ada Lovelace", "Bob"]}))
            >>> print(plan.summary())
            2 rows: 1 to create, 1 to update
            updates change name of 1
            >>> plan.apply().counts["updated"]
            1
        """
        options = TableOptions(
            on_duplicate=on_duplicate, nulls=nulls, on_match=on_match, undelete=soft_delete if mirror else None,
            ignore=_names(ignore),
        )  # fmt: skip
        interrupt = Interrupt(cancel)
        given = self._whole(frame, options, interrupt)
        deletions = self._deletions(given, options, scope, interrupt).with_values(self._engine) if mirror else None

        def upsert(
            source: Whole, options: TableOptions, progress: Progress, cancel: threading.Event | None
        ) -> UpsertResult:
            if deletions is None:
                return self._upsert(source, options, progress, cancel)
            with Reporter(progress, source.height + deletions.rows.height, what="mirror") as reporter:
                return self._mirror(source, options, deletions, reporter, Interrupt(cancel))

        return planning.make(self._engine, self._relation, given, options, upsert, deletions, progress, interrupt)

    def mirror(
        self,
        frame: FrameLike,
        /,
        *,
        scope: Scope = None,
        max_delete: float = 0.2,
        soft_delete: str | None = None,
        nulls: Nulls = "write",
        ignore: str | Iterable[str] = (),
        batch_size: int | None = None,
        on_duplicate: OnDuplicate = "last",
        on_error: OnError = "isolate",
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> UpsertResult:
        """Make the table what a frame says: upsert its rows, then delete the stored rows that it lacks.

        Args:
            frame: as for `upsert`. The whole frame is held in memory, also if it is a stream.
            scope: the stored rows that may be deleted: a Polars expression over the columns of the table, or an SQL
                condition, in which ``t`` is the table. None for all rows.
            max_delete: the largest number of rows that may be deleted: below 1 a share of the stored rows in the scope,
                otherwise a number of rows. If more rows are lacking, nothing is written.
            soft_delete: a nullable column with the time of deletion (or Boolean), which is set instead of deleting the
                row. A row that is in the frame gets a null there.
            nulls, ignore, batch_size, on_duplicate, on_error, progress, cancel: as for `upsert`.

        Returns:
            UpsertResult with an outcome for each row of the frame, and after them one with a null ``row`` for each
            stored row that it lacks: deleted; failed if the database refused it; cancelled if the run was stopped, or
            if the frame has a row with an invalid key, so that it is unknown which rows it lacks.

        Raises:
            ValidationError: more rows than `max_delete` would be deleted.
            SchemaError: the frame has no rows, or as for `upsert`.
            ValueError: `max_delete` is negative, or an option has an unknown value.
            StatementCancelledError: `cancel` was set before anything was written.
            DuplicateError, DatabaseError, KeyboardInterrupt: as for `upsert`.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64, "name": pl.String}, key="id")
            >>> result = people.upsert(pl.DataFrame({"id": [1, 2], "name": ["Ada", "Bob"]}))
            >>> people.mirror(pl.DataFrame({"id": [2, 3], "name": ["Bob", "Cid"]}), max_delete=1).counts["deleted"]
            1
            >>> people.read()["id"].to_list()
            [2, 3]
        """
        check_max_delete(max_delete)
        options = TableOptions(
            batch_size=batch_size, on_duplicate=on_duplicate, on_error=on_error, nulls=nulls, undelete=soft_delete,
            ignore=_names(ignore),
        )  # fmt: skip
        check_writable(self._engine.database)
        interrupt = Interrupt(cancel)
        given = self._whole(frame, options, interrupt)
        with Reporter(progress, what="mirror") as reporter:
            deletions = self._deletions(given, options, scope, interrupt)
            check_deletions(deletions.rows.height, deletions.stored, max_delete)
            reporter.expect(given.height + deletions.rows.height)
            return self._mirror(given, options, deletions, reporter, interrupt)

    def _whole(self, frame: FrameLike, options: TableOptions, interrupt: Interrupt) -> Whole:
        """All rows of a frame, a stream or Python objects."""
        run = table_upsert(self._engine, self._relation, options, interrupt)
        return run.whole(sources.objects(frame) or sources.as_frame(frame))

    def _deletions(self, given: Whole, options: TableOptions, scope: Scope, interrupt: Interrupt) -> Deletions:
        """The stored rows that a frame lacks."""
        frame = given.frame
        check_not_empty(frame)
        check_columns(self._relation, visible_schema(frame.schema), options)
        check_soft_delete(self._relation, options.undelete, frame.columns)
        return absent_rows(self._engine, self._relation, frame, scope, options.undelete, interrupt)

    def _mirror(
        self,
        given: Whole,
        options: TableOptions,
        deletions: Deletions,
        reporter: Reporter,
        interrupt: Interrupt,
    ) -> UpsertResult:
        """Upsert a frame, and then delete rows."""
        run = table_upsert(self._engine, self._relation, options, interrupt, MIRROR_STATUSES)
        deletion = TableDeletion(self._engine, self._relation, options.undelete, deletions.expected)
        mirror = Mirror(
            run,
            deletion,
            deletions.rows,
            interrupt,
            complete=deletions.complete,
            compared=deletions.compared,
        )
        submit = self._threads.submit
        return kept(self, "table", lambda: mirror.execute(given, reporter, submit), mirror.result)

    def count(self) -> int:
        """Count the rows, all of which are read.

        Returns:
            Number of rows.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.count()
            0
        """
        return self._engine.count(self._relation)

    def exists(
        self, keys: KeysLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Check which keys are stored.

        Args:
            keys: a frame with the columns of the key, or a list or an iterator of dicts and other objects as for
                `upsert`; other columns are ignored. For a key of one column also a Series or list of its values.
            progress, cancel: as for `EntityStore.exists`.

        Returns:
            The columns of the key as given, and ``exists`` Boolean; one row per key, in input order.

        Raises:
            SchemaError: a column of the key is missing, or has a dtype that cannot be compared.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.exists([1])["exists"].to_list()
            [False]
        """
        given = reading.given_keys(self._relation, keys)
        found = reading.exists(
            self._engine, self._relation, given, self._usable, self._threads.submit, progress, Interrupt(cancel)
        )  # fmt: skip
        return given.hstack([found])

    def missing(
        self, keys: KeysLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Select the rows of a frame whose key is not stored (an anti-join).

        Args:
            keys: a frame with the columns of the key and any others, or as for `exists`.
            progress, cancel: as for `EntityStore.exists`.

        Returns:
            Those rows with all their columns, in input order.

        Raises:
            SchemaError: a column of the key is missing, or has a dtype that cannot be compared.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.missing([1, 2])["id"].to_list()
            [1, 2]
        """
        whole = keys if reading.are_values(keys) else sources.as_frame(keys)
        given = reading.given_keys(self._relation, whole)
        found = self.exists(given, progress=progress, cancel=cancel)["exists"]
        return (whole if isinstance(whole, pl.DataFrame) else given).filter(~found)

    def get(
        self, keys: KeysLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> pl.DataFrame:
        """Fetch rows by key.

        Args:
            keys: as for `exists`.
            progress, cancel: as for `EntityStore.get`.

        Returns:
            The columns of the key as given, ``found`` Boolean (``found:`` if the table has a column of this name), and
            the other columns, which are null if the key is not stored; one row per key, in input order.

        Raises:
            SchemaError: a column of the key is missing, or has a dtype that cannot be compared.

        Examples:
            >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> people.get([1]).row(0)
            (1, False, None)
        """
        given = reading.given_keys(self._relation, keys)
        return reading.get(
            self._engine, self._relation, given, self._usable, self._threads.submit, progress, Interrupt(cancel)
        )  # fmt: skip

    def read(
        self,
        columns: str | Sequence[str] | None = None,
        *,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> pl.DataFrame:
        """Read the table, ordered by key.

        Args:
            columns: the columns to read; None for all.
            progress, cancel: as for `EntityStore.read`.

        Returns:
            The columns with the dtypes that `columns` shows.

        Raises:
            SchemaError: the table has no column of this name.

        Examples:
            >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> result = people.upsert(pl.DataFrame({"id": [2, 1], "name": ["Bob", "Ada"]}))
            >>> people.read()["name"].to_list()
            ['Ada', 'Bob']
        """
        wanted = reading.selected(self._relation, columns)
        key = [self._relation[name] for name in self._relation.key]
        extra = [column for column in key if column not in wanted]
        parts = [named(_empty([*wanted, *extra]), [*wanted, *extra])]
        interrupt = Interrupt(cancel)
        with Reporter(progress, self.count, what="read") as reporter:
            for chunk in reading.scan(self._engine, self._relation, [*wanted, *extra], None, interrupt):
                interrupt.check()
                parts.append(chunk)
                reporter.advance(chunk.height)
        rows = pl.concat(parts)
        sortable = [column.name for column in key if not rows.schema[column.name].is_nested()]
        return rows.sort(sortable, maintain_order=True).select(column.name for column in wanted)

    def scan(
        self,
        columns: str | Sequence[str] | None = None,
        *,
        progress: Progress = None,
        cancel: threading.Event | None = None,
    ) -> pl.LazyFrame:
        """Read the table lazily, in chunks and in no particular order.

        A filter is applied to each chunk as it is read, not in the database: to look up rows by key, use `get`.

        Args:
            columns: the columns to read; None for all. Of these, only those that a query uses are read.
            progress, cancel: as for `EntityStore.scan`.

        Returns:
            A LazyFrame with the dtypes that `columns` shows.

        Raises:
            SchemaError: the table has no column of this name.

        Examples:
            >>> people = ef.create_table(store, "people", pl.DataFrame({"id": [1], "name": ["Ada"]}), key="id")
            >>> result = people.upsert(pl.DataFrame({"id": [1, 2], "name": ["Ada", "Bob"]}))
            >>> people.scan().filter(pl.col("id") > 1).collect().row(0)
            (2, 'Bob')
        """
        wanted = reading.selected(self._relation, columns)

        def read(query: ScanQuery) -> Iterator[pl.DataFrame]:
            used = [column for column in wanted if column.name in query.columns]
            return reading.scan(self._engine, self._relation, used, None, query.interrupt)

        schema = {column.name: column.dtype for column in wanted}
        return lazy_frame(
            schema, {}, read, name=self.name, progress=progress, cancel=cancel, count=lambda: self.count()
        )

    def delete(
        self, keys: KeysLike, /, *, progress: Progress = None, cancel: threading.Event | None = None
    ) -> DeleteResult:
        """Delete rows by key. Each batch of up to 50,000 keys is one transaction.

        Args:
            keys: as for `exists`.
            progress, cancel: as for `EntityStore.delete`.

        Returns:
            DeleteResult, whose ``outcomes`` have one row per key, in input order.

        Raises:
            SchemaError: a column of the key is missing, or has a dtype that cannot be compared.
            DatabaseError: a transaction failed. A row that a constraint or trigger refuses to delete fails alone.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back. `last_result` has the outcomes.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.delete([1]).outcomes["status"].to_list()
            ['missing']
        """
        check_writable(self._engine.database)
        given = reading.given_keys(self._relation, keys)
        run = Delete(TableDeletion(self._engine, self._relation), Interrupt(cancel))
        with Reporter(progress, given.height, what="delete", unit="keys") as reporter:
            submit = self._threads.submit
            return kept(self, "table", lambda: run.execute(given, reporter, submit), run.result)

    def add_columns(self, frame_or_schema: FrameLike | Mapping[str, Any], /) -> list[str]:
        """Add the columns to the table that a frame has and the table lacks, as nullable columns.

        Args:
            frame_or_schema: a frame, or a mapping of column names to Polars dtypes.

        Returns:
            The names of the added columns.

        Raises:
            SchemaError: there is no SQL type for a dtype.
            PermanentError: the user may not change the table.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.add_columns({"id": pl.Int64, "born": pl.Date})
            ['born']
        """
        check_writable(self._engine.database)
        known = self._relation.by_name
        added = {name: dtype for name, dtype in _schema_of(frame_or_schema).items() if name not in known}
        if added:
            self._engine.add_columns(self._relation, added)
            self._relation = self._described()
        return list(added)

    def close(self) -> None:
        """Close the connections; those of a store stay open.

        Examples:
            >>> people = ef.create_table(store, "people", {"id": pl.Int64}, key="id")
            >>> people.close()
        """
        if self._owner:
            self._engine.database.close()

    def __enter__(self) -> Table:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, key: object) -> bool:
        """Whether a key is stored: ``7 in table``, or a tuple for a key of several columns.

        Each test is a query; `exists` checks many at once.
        """
        names = self._relation.key
        values = key if len(names) > 1 else (key,)
        if not isinstance(values, tuple) or len(values) != len(names):
            raise TypeError(f"a key of {self.name} is a tuple ({', '.join(names)}), not {key!r}")
        return bool(
            self.exists(pl.DataFrame({name: [value] for name, value in zip(names, values, strict=True)}))["exists"][0]
        )

    def __repr__(self) -> str:
        # Without a query: debuggers, logs and tracebacks show it, too.
        relation = self._relation
        columns = [f"{visible(column.name)} {column.dtype}" for column in relation.columns]
        more = [f"and {len(columns) - 10:,} more"] if len(columns) > 10 else []
        first = f"Table({where(self._engine.database)}, {relation.name!r}, key={list(relation.key)!r})"
        return f"{first}\n{len(columns):,} columns: {', '.join([*columns[:10], *more])}"

    def _repr_html_(self) -> str:
        relation, database = self._relation, self._engine.database
        facts = [ENGINES[database.name], f"key ({', '.join(relation.key)})"]
        columns = None
        try:
            columns = self.columns
            facts.append(f"{self._about()} rows")
        except EntityFramesError as error:
            facts.append(str(error))
        return views.user_table(relation.name, where(database), facts, columns)

    def _about(self) -> str:
        """The number of rows, of a large table as estimated by the database."""
        known = self._engine.tables().filter(pl.col("table") == ".".join(self._relation.parts))["rows"]
        estimate = known[0] if len(known) else None
        if estimate is not None and estimate > _COUNTED:
            return f"about {estimate:,}"
        return f"{self.count():,}"

    def _usable(self, keys: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series]:
        """Keys as they are compared, and which of them can be stored at all."""
        return usable_keys(self._relation, keys)


def keyed(engine: TableEngine, relation: Relation, key: list[str] | None) -> Relation:
    """A table with its key.

    Raises:
        SchemaError: there is no key, or it has no unique index.
    """
    unique = ", ".join(f"({', '.join(names)})" for names in relation.unique) or "none"
    unusable = "".join(f"; not usable: {definition}" for definition in relation.unusable)
    if key is None:
        if not relation.unique:
            raise SchemaError(
                f"the table {relation.name} has no primary key",
                advice=f"name the columns of a key with key=[...]; unique keys: {unique}{unusable}",
            )
        key = list(relation.unique[0])
    keyed = relation.keyed(key)
    if not keyed.is_unique and engine.database.name == "postgresql":
        raise SchemaError(
            f"the table {relation.name} has no unique constraint or index on ({', '.join(key)}), which an upsert "
            f"needs; unique keys: {unique}{unusable}",
            advice="use one of these with key=[...], or create a unique index",
        )
    return keyed


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _schema_of(frame_or_schema: Any) -> dict[str, pl.DataType]:
    """The dtypes of new columns by name.

    Raises:
        SchemaError: a name contains a NUL character, which ends an SQL statement.
    """
    if isinstance(frame_or_schema, pl.LazyFrame):
        schema = dict(frame_or_schema.collect_schema())
    elif isinstance(frame_or_schema, dict | pl.Schema):
        schema = dict(pl.Schema(frame_or_schema))
    else:
        schema = dict(sources.as_frame(frame_or_schema).schema)
    if wrong := [name for name in schema if "\0" in name or not name]:
        raise SchemaError(f"{', '.join(map(repr, wrong))} cannot be the name of a column", advice="rename it")
    return schema


def _empty(columns: Sequence[Column]) -> pl.DataFrame:
    return pl.DataFrame(schema={f"v{number}": column.dtype for number, column in enumerate(columns)})
