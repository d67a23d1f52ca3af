"""The life of a batch: validate, drop duplicates, write what is new or differs, and say what became of each row.

A run cuts its source into batches. Each batch is worked on by one thread and is one transaction; several are worked
on at once, never two that share a key. Whatever happens, each input row ends in exactly one outcome.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any, Literal

import polars as pl

from entityframes import frames, types
from entityframes.chunks import chunks
from entityframes.engines import Batch, Engine, Interrupt
from entityframes.errors import (
    ConnectionLostError,
    DatabaseError,
    DuplicateError,
    EntityFramesError,
    PermanentError,
    ResourceError,
    RowError,
    StatementCancelledError,
    StatementTimeoutError,
    TransientError,
    ValidationError,
)
from entityframes.fields import Fields
from entityframes.frames import KEY
from entityframes.progress import Reporter
from entityframes.results import OutcomeLog, UpsertResult, outcomes

OnDuplicate = Literal["last", "first", "error"]
OnError = Literal["isolate", "rollback", "raise"]

#: Batches that threads are working on, with their rows.
Working = dict[Future[pl.DataFrame], pl.DataFrame]

#: How often a batch is tried when the database asks for it (deadlock, lock timeout, lost connection).
MAX_TRIES = 5
#: Seconds before the second try; doubled for each further one, times a random factor.
BACKOFF = 0.1


@dataclass(frozen=True)
class Options:
    """What the caller of an upsert decides."""

    batch_size: int | None = None
    embed: bool = True
    on_duplicate: OnDuplicate = "last"
    on_error: OnError = "isolate"

    def __post_init__(self) -> None:
        if self.batch_size is not None and (isinstance(self.batch_size, bool) or self.batch_size < 1):
            raise ValueError(f"batch_size is {self.batch_size!r}: it is a number of rows, at least 1, or None")
        if self.on_duplicate not in ("last", "first", "error"):
            raise ValueError(f"on_duplicate is {self.on_duplicate!r}: it is 'last', 'first' or 'error'")
        if self.on_error not in ("isolate", "rollback", "raise"):
            raise ValueError(f"on_error is {self.on_error!r}: it is 'isolate', 'rollback' or 'raise'")


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
        #: Rows that lose to another row of the same frame; None while each batch has to look for its own.
        self._losers: pl.Series | None = None
        #: Types that had no entity when this run first met them.
        self._was_empty: dict[str, bool] = {}
        #: Why the run cannot go on.
        self._fatal: BaseException | None = None

    def result(self) -> UpsertResult:
        """What has happened so far."""
        return UpsertResult(dict(self.log.counts), self.batches, time.perf_counter() - self._started, self.log)

    def execute(self, source: pl.DataFrame | Iterator[pl.DataFrame], reporter: Reporter) -> UpsertResult:
        """Work off the source; `result` stays right whatever is raised.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            SchemaError: a frame cannot be stored; for a whole frame before anything was written.
            ValidationError, DatabaseError: rows failed and ``on_error="raise"``, or no batch could succeed.
        """
        whole = source if isinstance(source, pl.DataFrame) else None
        if whole is not None:
            frames.check_entity_schema(whole.schema)
            frames.check_not_all_null(whole)
        given = self._checked([whole] if whole is not None else source)
        # A stream may be larger than memory, a whole frame is in it already.
        limits = {} if whole is None else {"max_bytes": self.engine.batch_bytes, "max_rows": self.engine.batch_rows}
        working: Working = {}
        taken = 0
        with ThreadPoolExecutor(self.engine.workers, thread_name_prefix="entityframes") as pool:
            try:
                if whole is not None:
                    self._settle_duplicates(whole)
                for chunk in chunks(given, self.options.batch_size, **limits):
                    self._make_room(working, chunk, reporter, disjoint=whole is not None)
                    if self._stopping:
                        if whole is None:
                            self._log_cancelled(chunk)
                        break
                    self.batches += 1
                    taken += chunk.height
                    working[pool.submit(self._work, chunk)] = chunk
                while working:
                    self._collect(working, reporter)
            except BaseException:
                self._stop(working)
                raise
            finally:
                if whole is not None and taken < whole.height:
                    self._log_cancelled(frames.numbered(whole)[taken:])
        if self._fatal is not None:
            raise self._fatal
        return self.result()

    # The life of one batch, in its thread.

    def _work(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """Outcome rows for each row of a batch."""
        if self._stopping:
            return outcomes(_shown(chunk), status="cancelled")
        rows, refused = self._prepare(chunk)
        rows, duplicates = self._drop_duplicates(rows)
        aside = pl.concat([refused, outcomes(duplicates, status="duplicate")])
        if refused.height and self.options.on_error != "isolate":
            return pl.concat([aside, self._fail_all(rows, ValidationError(_first_error(refused)), None)])
        if rows.is_empty():
            return aside
        rows = rows.sort(KEY)
        batch = Batch(self.run_id, self.interrupt, self.options.embed, was_empty=self._was_empty)
        try:
            written = self._write(rows, batch)
        except StatementCancelledError:
            return pl.concat([aside, outcomes(rows, status="cancelled")])
        except (PermanentError, ResourceError) as error:
            self._fatal = error
            return pl.concat([aside, self._fail_all(rows, error, batch)])
        except DatabaseError as error:
            return pl.concat([aside, self._fail_all(rows, error, batch)])
        return pl.concat([aside, self._tell(rows, written, batch)])

    def _prepare(self, chunk: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Canonical rows, and the outcomes of those that break a rule."""
        canonical = frames.canonicalise(chunk)
        rows, invalid = canonical.valid, canonical.invalid
        if canonical.inferred:
            rows, misfits = self._conforming(rows)
            invalid = pl.concat([invalid, misfits])
            self._fields.infer(rows["entity_type"].unique(maintain_order=True), canonical.inferred)
        return rows, outcomes(invalid, status="failed", error_kind="validation")

    def _conforming(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Split rows whose JSON metadata fits the declared dtypes of their type from those where it does not."""
        misfits = []
        for entity_type in rows["entity_type"].unique():
            declared = self._fields.declared(entity_type)
            if declared:
                own = rows.filter(pl.col("entity_type") == entity_type)
                wrong = types.nonconforming(own["metadata"], declared).unique("row", keep="first")
                dtypes = wrong["field"].replace_strict(
                    {name: str(dtype) for name, dtype in declared.items()}, return_dtype=pl.String
                )
                error = pl.format("metadata field {} holds {}, which is no {}", "field", "value", pl.lit(dtypes))
                misfits.append(
                    own[wrong["row"]].select("row", *KEY).with_columns(wrong.select(error=error).to_series())
                )
        bad = pl.concat(misfits) if misfits else rows.clear().select("row", *KEY, error=pl.lit("", pl.String))
        return rows.join(bad, on="row", how="anti", maintain_order="left") if bad.height else rows, bad

    def _drop_duplicates(self, rows: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
        """Keep one row of each key; of a whole frame it was settled beforehand which."""
        losers = _losers(rows, self.options.on_duplicate) if self._losers is None else self._losers
        if losers.is_empty():
            return rows, rows.clear()
        lost = pl.col("row").is_in(losers.implode())
        return rows.filter(~lost), rows.filter(lost)

    def _write(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write a batch in one transaction; after a failure try again, find the bad rows, or give up, by its kind."""
        again = MAX_TRIES
        while True:
            try:
                return self.engine.write(rows, batch)
            except RowError:
                if self.options.on_error != "isolate":
                    raise
                return self._isolate(rows, batch)
            except (TransientError, StatementTimeoutError, StatementCancelledError) as error:
                # A timeout, or a cancellation by somebody else, is tried once more; what asks to be retried, often.
                again = again - 1 if isinstance(error, TransientError) else min(again - 1, 1)
                if isinstance(error, ConnectionLostError):
                    written = self._recorded(rows, batch, error)
                    if written is not None:
                        return written
                if again <= 0 or self.interrupt.requested:
                    raise
                self.interrupt.wait(BACKOFF * 2 ** (MAX_TRIES - again - 1) * random.uniform(0.5, 1.5))
                self.interrupt.check()

    def _isolate(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Write all rows but those that the database refuses."""
        return self.engine.write_each(rows, batch)

    def _recorded(self, rows: pl.DataFrame, batch: Batch, lost: ConnectionLostError) -> pl.DataFrame | None:
        """After a lost connection: what the ledger says that the batch wrote."""
        for pause in (0.0, 0.5, 2.0):
            self.interrupt.wait(pause)
            try:
                return self.engine.recorded(rows, batch)
            except DatabaseError:
                continue
        if lost.committing:
            raise _UnknownError(str(lost), lost.sqlstate) from lost
        return None

    # What became of the rows.

    def _tell(self, rows: pl.DataFrame, written: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Outcomes from the database's own answer; rows that it does not name are unchanged."""
        refused = pl.col("error").is_not_null() if "error" in written.columns else pl.lit(False)
        told = rows.select("row", *KEY).with_row_index("position").with_columns(pl.col("position").cast(pl.Int64))
        told = told.join(
            written.with_columns(pl.col("position").cast(pl.Int64)), on="position", how="left", maintain_order="left"
        )
        wrote_content = pl.col("due").fill_null(False) & ~refused
        return outcomes(
            told,
            status=pl.when(refused)
            .then(pl.lit("failed"))
            .when(pl.col("created").is_null())
            .then(pl.lit("unchanged"))
            .when(pl.col("created"))
            .then(pl.lit("created"))
            .otherwise(pl.lit("updated")),
            batch_id=batch.batch_id,
            job_id=pl.when(wrote_content).then(pl.lit(batch.job_id)),
            error_kind=pl.when(refused).then(pl.lit("database")),
        )

    def _fail_all(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None) -> pl.DataFrame:
        """Outcomes of a batch that was rolled back; the run ends too if the caller wants it or no batch can succeed."""
        if self.options.on_error == "raise" and self._fatal is None:
            self._fatal = error
        if isinstance(error, ConnectionLostError):
            # Batches that follow would each wait for the same server.
            self.interrupt.fire()
        status = "unknown" if isinstance(error, _UnknownError) else "failed"
        said = f"the batch was rolled back: {error}" if status == "failed" else f"lost during COMMIT: {error}"
        return outcomes(
            rows,
            status=status,
            batch_id=batch.batch_id if batch else None,
            error_kind=error.kind if isinstance(error, DatabaseError) else "validation",
            error=said,
            sqlstate=error.sqlstate if isinstance(error, DatabaseError) else None,
        )

    # The run, in the caller's thread.

    @property
    def _stopping(self) -> bool:
        return self.interrupt.requested or self._fatal is not None

    def _settle_duplicates(self, frame: pl.DataFrame) -> None:
        """Decide which row of each key of a whole frame counts, before any of it is written."""
        numbered = frames.numbered(frame)
        twice = numbered.filter(pl.struct(pl.col(KEY).cast(pl.Binary)).is_duplicated())
        # Only valid rows compete: a bad row does not push out a good one.
        self._losers = _losers(self._prepare(twice)[0] if twice.height else twice, self.options.on_duplicate)

    def _checked(self, given: Any) -> Iterator[pl.DataFrame]:
        """The frames with their columns checked and their typed metadata declared, before their rows are written."""
        for frame in given:
            frames.check_entity_schema(frame.schema)
            metadata = frame.schema.get("metadata")
            if isinstance(metadata, pl.Struct) and frame.height:
                readable = frames.check_ids(frame.select(KEY))["entity_type"].drop_nulls()
                self._fields.declare(
                    readable.unique(maintain_order=True),
                    {item.name: types.instance(item.dtype) for item in metadata.fields},
                )
            yield frame

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

    def _collect(self, working: Working, reporter: Reporter) -> None:
        """Log the batches that are done; wakes often enough for Ctrl-C and the caller's cancel event."""
        done, _ = wait(working, timeout=0.05, return_when=FIRST_COMPLETED)
        if self.interrupt.requested:
            self.interrupt.fire()
        for future in done:
            chunk = working.pop(future)
            self.log.append(future.result())
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
                failed = future.exception()
                self.log.append(outcomes(_shown(chunk), status="cancelled") if failed else future.result())

    def _log_cancelled(self, chunk: pl.DataFrame) -> None:
        self.log.append(outcomes(_shown(chunk), status="cancelled"))


class _UnknownError(ConnectionLostError):
    """A COMMIT was not answered and the ledger cannot be asked."""


def _losers(rows: pl.DataFrame, policy: OnDuplicate) -> pl.Series:
    """The ``row`` of each row that gives way to another one with its key.

    Raises:
        DuplicateError: there are any, and the policy is "error".
    """
    key = pl.struct(pl.col(KEY).cast(pl.Binary))
    kept = key.is_first_distinct() if policy == "first" else key.is_last_distinct()
    lost = rows.filter(~kept)
    if policy == "error" and lost.height:
        shown = ", ".join(
            f"{kind}/{id}" for kind, id in lost.select(KEY).unique(maintain_order=True).head(5).iter_rows()
        )
        raise DuplicateError(
            f"{lost.height:,} rows repeat the key of another row ({shown}{', ...' if lost.height > 5 else ''}): "
            "make the ids unique, or choose on_duplicate='last' or 'first'; nothing of them was written"
        )
    return lost["row"]


def _share_a_key(keys: pl.DataFrame, chunk: pl.DataFrame) -> bool:
    return not keys.join(chunk.select(pl.col(KEY).cast(pl.Binary)), on=KEY, how="semi").is_empty()


def _shown(chunk: pl.DataFrame) -> pl.DataFrame:
    """row, entity_type and id of rows that were not looked at."""
    return frames.readable_keys(chunk)


def _first_error(refused: pl.DataFrame) -> str:
    first = refused.row(0, named=True)
    more = f" (and {refused.height - 1:,} more rows)" if refused.height > 1 else ""
    return f"row {first['row']} ({first['entity_type']}/{first['id']}): {first['error']}{more}"
