"""The life of a batch: validate, drop duplicates, write what is new or differs, and say what became of each row.

A run cuts its source into batches. Each batch is worked on by one thread and is one transaction; several are worked
on at once, never two that share a key. Whatever happens, each input row ends in exactly one outcome.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from dataclasses import dataclass, field

import polars as pl

from entityframes import frames, narrow, types
from entityframes.answers import not_written, part, told
from entityframes.attempts import RETRIED, Attempts, check_replicated, confirm, from_ledger
from entityframes.chunks import chunks, shares
from entityframes.engines import Batch, CtrlC, Engine, Interrupt
from entityframes.errors import (
    ClosedError,
    ConnectionLostError,
    DatabaseError,
    EntityFramesError,
    PermanentError,
    ResourceError,
    RowError,
    StatementCancelledError,
    TransientError,
    ValidationError,
)
from entityframes.fields import Fields
from entityframes.frames import KEY
from entityframes.judge import judge, losers
from entityframes.options import Options
from entityframes.progress import Reporter
from entityframes.results import OutcomeLog, UpsertResult, outcomes, together
from entityframes.threads import Submit

#: Whether types had no entity is asked of so many at most.
_FEW_TYPES = 8

#: How often rows are read and merged again because their entities change all the time.
_MAX_ROUNDS = 1_000

#: Batches that threads are working on, with their rows.
Working = dict[Future[pl.DataFrame], pl.DataFrame]


@dataclass
class UpsertRun:
    """One call of `upsert`."""

    engine: Engine
    options: Options
    interrupt: Interrupt
    run_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    log: OutcomeLog = field(default_factory=OutcomeLog)
    batches: int = 0

    def __post_init__(self) -> None:
        self._fields = Fields(self.engine, recent=True)
        self._started = time.perf_counter()
        self._losses = self.engine.losses
        self._ctrl_c = CtrlC()
        #: Rows that lose to another row of the same frame; None while each batch has to look for its own.
        self._losers: pl.Series | None = None
        #: Types that had no entity when this run first met them.
        self._was_empty: dict[str, bool] = {}
        #: Types whose entities lie far apart in a batch of this run.
        self._scattered: set[str] = set()
        #: Why the run cannot go on.
        self._fatal: BaseException | None = None
        #: Whether a batch failed because the server cannot be reached, so that no other one is begun.
        self._server_away = False
        #: Why there is no more of the source.
        self._source_error: Exception | None = None

    def result(self) -> UpsertResult:
        """What has happened so far."""
        return UpsertResult(dict(self.log.counts), self.batches, time.perf_counter() - self._started, self.log)

    def execute(
        self, source: pl.DataFrame | Iterator[pl.DataFrame], reporter: Reporter, submit: Submit
    ) -> UpsertResult:
        """Work off the source in threads, of which it has as many at work as the engine likes.

        `result` stays right whatever is raised.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            SchemaError: a frame cannot be stored; for a whole frame before anything was written.
            ValidationError, DatabaseError: rows failed and ``on_error="raise"``, or no batch could succeed.
        """
        if whole := isinstance(source, pl.DataFrame):
            frames.check_entity_schema(source.schema, self.options.expected)
            frames.check_not_all_null(source, self.options.nulls)
        working: Working = {}
        left: list[pl.DataFrame] = []
        with self._ctrl_c:
            try:
                for chunk in self._ctrl_c.let_through(self._cut(source, left)):
                    self._make_room(working, chunk, reporter, disjoint=whole)
                    if self._stopping:
                        break
                    del left[0]
                    self._start(working, chunk, submit)
                while working:
                    self._collect(working, reporter)
            except BaseException:
                if self.interrupt.forked:
                    left.clear()
                else:
                    self._stop(working)
                raise
            finally:
                for chunk in left:
                    self._log_cancelled(chunk)
                self._confirm()
        if error := self._fatal or self._source_error:
            raise error
        return self.result()

    # The life of one batch, in its thread.

    def _work(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """Outcome rows for each row of a batch."""
        if self._stopping:
            return outcomes(_shown(chunk), status="cancelled")
        try:
            rows, refused, known = self._prepare(chunk)
        except (DatabaseError, ClosedError) as error:
            # The recorded fields could not be read or written; nothing of the batch has been.
            if isinstance(error, PermanentError | ResourceError | ClosedError):
                self._end(error)
            return self._fail_all(_shown(chunk), error, None)
        rows, duplicates = self._drop_duplicates(rows)
        ended = [refused, outcomes(duplicates, status="duplicate")]
        if refused.height and self.options.on_error != "isolate":
            ended.append(self._fail_all(rows, ValidationError(_first_error(refused)), None))
        else:
            ended.extend(self._store(frames.in_key_order(rows), known))
        return together(ended)

    def _batch(self, known: narrow.Known | None = None, *, only_new: bool = False) -> Batch:
        return Batch(
            self.run_id,
            self.interrupt,
            self.options.embed,
            self.options.on_error != "isolate",
            was_empty=self._was_empty,
            scattered=self._scattered,
            known=known,
            only_new=only_new,
        )

    def _store(self, rows: pl.DataFrame, known: narrow.Known) -> Iterator[pl.DataFrame]:
        """Write a batch, and the outcomes of its rows; those that may lack something of what is stored are merged."""
        try:
            only_new = "narrow" in rows.columns and self._in_new_types(rows)
        except (DatabaseError, ClosedError) as error:
            yield self._fail_all(rows, error, None)
            return
        merging = not only_new and self.options.merging and "narrow" in rows.columns
        # What was merged is written over just the state that was read: nothing can be lacking there.
        batch = self._batch(known if self.options.absent == "keep" and not merging else None, only_new=only_new)
        rounds = 0
        while rows.height:
            ready, later, rounds = rows, rows[:0], rounds + 1
            try:
                if rounds > _MAX_ROUNDS:
                    raise TransientError("other writers changed the same entities again and again meanwhile", "40001")
                if merging:
                    self.interrupt.check()
                    seen = narrow.look(self.engine, rows, known, self._fields, self.options)
                    yield from self._told_of(seen, batch)
                    ready, later = seen.ready, seen.later
                    rows = rows.filter(pl.col("row").is_in(pl.concat([ready["row"], later["row"]]).implode()))
                written = self._write(ready, batch) if ready.height else _NOTHING
                again = _again(written, merging)
            except _AnswerLostError as committed:
                # What the batch wrote is in the ledger; the others get an answer of their own.
                written, again = committed.written, None
            except StatementCancelledError:
                yield outcomes(rows, status="cancelled")
                return
            except (DatabaseError, ClosedError) as error:
                if isinstance(error, PermanentError | ResourceError | ClosedError):
                    self._end(error)
                yield self._fail_all(rows, error, batch)
                return
            if again is not None and again.is_empty():
                yield told(ready, written, batch)
                rows = later
            else:
                positions = pl.int_range(ready.height, dtype=pl.Int64, eager=True)
                done = positions.is_in((written["position"].cast(pl.Int64) if again is None else again).implode())
                mine, answer = part(ready, written, done if again is None else ~done)
                yield told(mine, answer, batch)
                rows = rows.join(mine, on="row", how="anti", maintain_order="left")
                # What may lack something is merged with what it would have been written over.
                merging = merging or again is not None
            if rows.height and merging:
                rows = narrow.all_of(rows)
            batch = self._batch(None if merging else batch.known, only_new=only_new and not merging)

    def _in_new_types(self, rows: pl.DataFrame) -> bool:
        """Whether the types of a large batch had no entity when the run first met them: there is nothing to keep."""
        if rows.height <= narrow.FEW_ROWS or "expected" in rows.columns:
            return False
        entity_types = rows["entity_type"].unique().to_list()
        if len(entity_types) > _FEW_TYPES:
            return False
        for name in entity_types:
            if name not in self._was_empty:
                self._was_empty[name] = self.engine.is_empty(name)
        return all(self._was_empty[name] for name in entity_types)

    def _told_of(self, seen: narrow.Look, batch: Batch) -> Iterator[pl.DataFrame]:
        """Outcomes of rows of which nothing is written once they are merged."""
        if seen.ended.height:
            answer = seen.ended.with_row_index("position").filter("conflict").select("position", "conflict")
            yield told(seen.ended, answer, batch)
        if seen.too_long.height:
            error = "metadata is over 64 MiB once it is merged with what is stored"
            yield outcomes(seen.too_long, status="failed", error_kind="validation", error=error)
            if self.options.on_error == "raise":
                self._end(ValidationError(_first_error(seen.too_long.with_columns(error=pl.lit(error)))))

    def _prepare(self, chunk: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, narrow.Known]:
        """Canonical rows, the outcomes of those that break a rule, and the fields of their types.

        What their JSON holds is recorded.

        Raises:
            SchemaError: another writer has declared the fields of a type otherwise since this run did.
        """
        if self._fields.unconfirmed:
            self._typed(chunk, self._fields.confirm)
        rows, invalid, inferred, shapes = judge(chunk, self._fields, self.options)
        if inferred:
            self._fields.infer(inferred)
        known: narrow.Known = {}
        if self.options.absent == "keep":
            known = self._fields.names(inferred or rows["entity_type"].unique())
        if self.options.merging:
            carried = chunk.schema.get("metadata")
            rows = narrow.marked(rows, carried, "content" in chunk.columns, shapes, known, self.options)
        refused = outcomes(invalid, status="failed", error_kind="validation")
        return narrow.without_shape(rows), refused, known

    def preview(self, whole: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
        """What `execute` would come to before it asks the database for the rows; nothing is written.

        Returns:
            The canonical rows that would be written, row, entity_type, id and error of those that break a rule, and
            the rows that give way to another one with their key.

        Raises:
            SchemaError: the frame cannot be stored.
            DuplicateError: a key stands twice and ``on_duplicate="error"``.
        """
        frames.check_entity_schema(whole.schema)
        frames.check_not_all_null(whole, self.options.nulls)
        self._typed(whole, self._fields.check)
        rows, invalid, _, shapes = judge(frames.numbered(whole), self._fields, self.options)
        if self.options.merging:
            carried = whole.schema.get("metadata")
            rows = narrow.marked(rows, carried, "content" in whole.columns, shapes, {}, self.options)
        rows, duplicates = self._drop_duplicates(rows)
        return rows, invalid, duplicates

    def _drop_duplicates(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Keep one row of each key; of a whole frame it was settled beforehand which."""
        lose = losers(rows, self.options.on_duplicate) if self._losers is None else self._losers
        if lose.is_empty():
            return rows, rows.clear()
        lost = pl.col("row").is_in(lose.implode())
        return rows.filter(~lost), rows.filter(lost)

    def _write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write a batch in one transaction; after a failure try again, find the bad rows, or give up, by its kind."""
        attempts = Attempts(self.interrupt)
        write = self.engine.write
        lost: DatabaseError | None = None
        while True:
            try:
                written = write(rows, batch)
            except RowError as error:
                if lost is not None:
                    self._look_up(rows, batch, error)
                if write == self.engine.write_each or (self.options.on_error != "isolate" and not error.rekeyed):
                    raise
                # Now row by row, leaving out those that the database refuses.
                write = self.engine.write_each
            except RETRIED as error:
                if isinstance(error, ConnectionLostError) and error.committing:
                    lost = error
                    self._look_up(rows, batch, error)
                attempts.again(error)
            else:
                if lost is not None:
                    # The first COMMIT may have been on its way still when the ledger was asked.
                    self._look_up(rows, batch, lost)
                return written

    def _look_up(self, rows: pl.DataFrame, batch: Batch, error: DatabaseError) -> None:
        """After a COMMIT that was not answered, ask the ledger.

        Raises:
            _AnswerLostError: the batch is in it.
            FateUnknownError: it cannot be asked.
        """
        written = from_ledger(lambda: self.engine.recorded(rows, batch), error, self.interrupt)
        if written is not None:
            raise _AnswerLostError(written)

    def _fail_all(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None) -> pl.DataFrame:
        """Outcomes of a batch that was rolled back; the run ends too if the caller wants it or no batch can succeed."""
        if self.options.on_error == "raise":
            self._end(error)
        if isinstance(error, ConnectionLostError):
            # Batches that follow would each wait for the same server; those in flight go on for themselves.
            self._server_away = True
        return not_written(rows, error, batch)

    # The run, in the caller's thread.

    def _end(self, error: BaseException) -> None:
        """Let no further batch begin, because of this; what came first is what the run raises."""
        self._fatal = self._fatal or error

    def _confirm(self) -> None:
        """After a lost connection, make sure that the server still has what this run wrote."""

        def look() -> None:
            if self._ctrl_c.pressed:
                self.interrupt.fire()

        corrected = confirm(self.engine, self.log, self._losses, self.interrupt, look)
        check_replicated(self.engine, self.log, time.perf_counter() - self._started, self.interrupt)
        if self.engine.losses != self._losses and not self.interrupt.requested:
            # The next run does it if it cannot be done.
            with suppress(EntityFramesError):
                self._fields.record_again()
        if corrected and self.options.on_error == "raise":
            self._end(
                ConnectionLostError(f"{corrected:,} rows were committed, and are not known to be stored any more")
            )

    @property
    def _stopping(self) -> bool:
        return self.interrupt.requested or self._server_away or self._fatal is not None

    def _cut(self, source: pl.DataFrame | Iterator[pl.DataFrame], left: list[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The batches of a source, in `left` from when they are cut; of a frame in memory all at the beginning."""
        if not isinstance(source, pl.DataFrame):
            for chunk in chunks(self._checked(source), self.options.batch_size):
                left.append(chunk)
                yield chunk
            return
        left.append(frames.numbered(source))
        self._settle_duplicates(source)
        self._typed(source, self._fields.declare)
        frame = self.options.expecting(source)
        if self.options.batch_size is not None:
            left[:] = chunks([frame], self.options.batch_size)
        else:
            # A stream may be larger than memory, a whole frame is in it already.
            sizes = {"max_bytes": self.engine.batch_bytes, "max_rows": self.engine.batch_rows}
            left[:] = shares(frame, **sizes, writers=self.engine.writers, by_key=self.engine.by_key)
        yield from list(left)

    def _settle_duplicates(self, frame: pl.DataFrame) -> None:
        """Decide which row of each key of a whole frame counts, before any of it is written."""
        self._losers = pl.Series("row", dtype=pl.UInt32)
        # Ids that are all different take a quarter of the time to tell than keys that are.
        if frame["id"].n_unique() == frame.height:
            return
        rows = frames.numbered(self.options.expecting(frame))
        twice = rows.filter(pl.struct(pl.col(KEY).cast(pl.Binary)).is_duplicated())
        if twice.height:
            # Only valid rows compete: a bad row does not push out a good one.
            valid, _, _, _ = judge(twice, self._fields, self.options)
            self._losers = losers(valid, self.options.on_duplicate)

    def _checked(self, given: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
        """The frames with their columns checked and their typed metadata declared, before their rows are written.

        An error ends them, and is raised when what came before it is written.
        """
        try:
            for frame in given:
                frames.check_entity_schema(frame.schema, self.options.expected)
                self._typed(frame, self._fields.declare)
                yield self.options.expecting(frame)
        except Exception as error:
            self._source_error = error

    def _typed(self, frame: pl.DataFrame, tell: Callable[[Iterable[str], Mapping[str, pl.DataType]], None]) -> None:
        """Tell the fields of typed metadata, and the types of entities that have them."""
        metadata = frame.schema.get("metadata")
        if isinstance(metadata, pl.Struct) and frame.height:
            fields = {item.name: types.instance(item.dtype) for item in metadata.fields}
            tell(frames.types_of(frame), fields)

    def _make_room(
        self,
        working: Working,
        chunk: pl.DataFrame,
        reporter: Reporter,
        *,
        disjoint: bool,
    ) -> None:
        """Wait until a thread is free and no batch in flight holds a key of `chunk`, so that later rows win."""
        keys = None if disjoint else chunk.select(pl.col(KEY).cast(pl.Binary))
        while len(working) >= self.engine.workers or (
            keys is not None and any(_share_a_key(keys, other) for other in working.values())
        ):
            self._collect(working, reporter)

    def _start(self, working: Working, chunk: pl.DataFrame, submit: Submit) -> None:
        try:
            working[submit(self._work, chunk)] = chunk
        except ClosedError:
            self._log_cancelled(chunk)
            raise
        self.batches += 1

    def _collect(self, working: Working, reporter: Reporter) -> None:
        """Log the batches that are done; wakes often enough for Ctrl-C and the caller's cancel event."""
        self._ctrl_c.check()
        done, _ = wait(working, timeout=0.05, return_when=FIRST_COMPLETED)
        if self.interrupt.requested:
            self.interrupt.fire()
        for future in done:
            chunk = working.pop(future)
            self.log.append(_account(chunk, future))
            future.result()
            reporter.advance(chunk.height, self.log.counts)

    def _stop(self, working: Working) -> None:
        """Cancel what is in flight and keep account of it."""
        self.interrupt.fire()
        while working:
            done, _ = wait(working, timeout=0.05, return_when=FIRST_COMPLETED)
            if not done:
                self.interrupt.fire()
            for future in done:
                chunk = working.pop(future)
                self.log.append(_account(chunk, future))

    def _log_cancelled(self, chunk: pl.DataFrame) -> None:
        self.log.append(outcomes(_shown(chunk), status="cancelled"))


#: The answer of an engine that wrote nothing.
_NOTHING = pl.DataFrame(schema={"position": pl.UInt32})


def _again(written: pl.DataFrame, merging: bool) -> pl.Series:
    """The positions of rows that are to be merged with what is stored now: it was another entity than they were for."""
    left = [pl.col(name) for name in ("again", "conflict") if name in written.columns and (merging or name == "again")]
    found = written.filter(pl.any_horizontal(left).fill_null(False)) if left else written.clear()
    return found["position"].cast(pl.Int64)


class _AnswerLostError(Exception):
    """A COMMIT was not answered, and the ledger has the batch."""

    def __init__(self, written: pl.DataFrame) -> None:
        super().__init__("committed")
        self.written = written


def _share_a_key(keys: pl.DataFrame, chunk: pl.DataFrame) -> bool:
    return not keys.join(chunk.select(pl.col(KEY).cast(pl.Binary)), on=KEY, how="semi").is_empty()


def _shown(chunk: pl.DataFrame) -> pl.DataFrame:
    """row, entity_type and id of rows that were not looked at."""
    return frames.readable_keys(chunk)


def _account(chunk: pl.DataFrame, future: Future[pl.DataFrame]) -> pl.DataFrame:
    """The outcomes of a batch that is done, also where it ended in an error that nobody expected."""
    error = future.exception()
    if error is None:
        return future.result()
    # Our own errors come from before the transaction; of others nobody knows.
    return outcomes(_shown(chunk), status="cancelled" if isinstance(error, EntityFramesError) else "unknown")


def _first_error(refused: pl.DataFrame) -> str:
    first = refused.sort("row").row(0, named=True)
    more = f" (and {refused.height - 1:,} more rows)" if refused.height > 1 else ""
    return f"row {first['row']} ({first['entity_type']}/{first['id']}): {first['error']}{more}"
