"""The life of a batch: validate -> write -> recover -> outcomes. Each of its rows ends in exactly one."""

from __future__ import annotations

from collections.abc import Iterator

import polars as pl

from entityframes.engines.batch import Batch
from entityframes.errors import (
    ClosedError,
    DatabaseError,
    EntityFramesError,
    PermanentError,
    ResourceError,
    RowError,
    StatementCancelledError,
    ValidationError,
)
from entityframes.results import together
from entityframes.retry import Transaction
from entityframes.writing.duplicates import Superseded
from entityframes.writing.options import Options
from entityframes.writing.outcomes import NOTHING, part
from entityframes.writing.run import Run
from entityframes.writing.target import Attempt, Pending, Target

#: Errors because of which no batch can succeed.
_HOPELESS = (PermanentError, ResourceError, ClosedError)


class BatchWriter:
    """Writes the batches of one call, each in the thread that calls."""

    def __init__(self, target: Target, options: Options, run: Run, superseded: Superseded) -> None:
        self._target, self._options, self._run, self._superseded = target, options, run, superseded
        self._outcomes = run.outcomes

    def work(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """Outcomes of the rows of a batch, which have their place in the input in ``row``."""
        return together(self._steps(chunk))

    def _steps(self, chunk: pl.DataFrame) -> Iterator[pl.DataFrame]:
        if self._run.stopping:
            yield self._outcomes.unseen(chunk)
            return
        try:
            validated = self._target.validate(chunk)
        except (DatabaseError, ClosedError) as error:
            # What has to be known of the rows could not be read or recorded; nothing of the batch is written.
            yield self._failed(self._outcomes.shown(chunk), error)
            return
        rows, duplicates = self._superseded.split(validated.rows)
        yield self._outcomes.of(duplicates, status="duplicate")
        yield self._outcomes.of(validated.invalid, status="failed", error_kind="validation")
        if validated.invalid.height and self._options.on_error != "isolate":
            yield self._failed(rows, ValidationError(first_error(validated.invalid, self._target.key)))
            return
        try:
            pending = self._target.pending(self._target.in_key_order(rows), validated)
        except (DatabaseError, ClosedError) as error:
            yield self._failed(rows, error)
            return
        yield from self._write(pending)

    def _write(self, pending: Pending) -> Iterator[pl.DataFrame]:
        """Write rows until each has an outcome: some are merged with what is stored, and come again if that changes."""
        while pending.rows.height:
            try:
                attempt = pending.attempt()
                yield from self._not_written(attempt, pending.batch)
                written, recovered = NOTHING, False
                if attempt.rows.height:
                    written, recovered = self._committed(attempt.rows, pending.batch)
            except StatementCancelledError:
                yield self._outcomes.of(pending.rows, status="cancelled")
                return
            except (DatabaseError, ClosedError) as error:
                yield self._failed(pending.rows, error, pending.batch)
                return
            changed = changed_meanwhile(written, merged=attempt.merged)
            if recovered:
                # What was looked up says only what was written: the other rows are written again.
                done, answer = part(attempt.rows, written, _at(written["position"], attempt.rows.height))
            elif len(changed):
                done, answer = part(attempt.rows, written, ~_at(changed, attempt.rows.height))
            else:
                done, answer = attempt.rows, written
            yield self._outcomes.committed(done, answer, pending.batch)
            left = pending.rows.join(done, on="row", how="anti", maintain_order="left")
            pending.keep(left, merge=not recovered and len(changed) > 0)

    def _not_written(self, attempt: Attempt, batch: Batch) -> Iterator[pl.DataFrame]:
        """Outcomes of rows of which nothing is written."""
        if attempt.same is not None and attempt.same.height:
            answer = attempt.same.with_row_index("position").filter("conflict").select("position", "conflict")
            yield self._outcomes.committed(attempt.same, answer, batch)
        if attempt.invalid is not None and attempt.invalid.height:
            yield self._outcomes.of(attempt.invalid, status="failed", error_kind="validation")
            if self._options.on_error == "raise":
                self._run.end(ValidationError(first_error(attempt.invalid, self._target.key)))

    def _committed(self, rows: pl.DataFrame, batch: Batch) -> tuple[pl.DataFrame, bool]:
        """What the database answered to the transaction, and whether that was looked up after its COMMIT was lost."""
        target = self._target
        transaction: Transaction[pl.DataFrame] = Transaction(
            f"run {batch.run_id}, batch {batch.batch_id}",
            lambda lost, answer: target.recovered(rows, batch),
            self._run.interrupt,
        )
        try:
            written = transaction.run(lambda: target.write(rows, batch))
        except RowError as error:
            if self._options.on_error != "isolate" and not error.rekeyed:
                raise
            # Now row by row, leaving out those that the database refuses.
            written = transaction.run(lambda: target.write_each(rows, batch))
        return written, transaction.was_recovered

    def _failed(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None = None) -> pl.DataFrame:
        """Outcomes of rows that were rolled back; the run ends too if the caller wants it or no batch can succeed."""
        self._run.failed(error, ends=self._options.on_error == "raise" or isinstance(error, _HOPELESS))
        return self._outcomes.rolled_back(rows, error, batch)


def changed_meanwhile(written: pl.DataFrame, *, merged: bool) -> pl.Series:
    """The positions of rows that were not written because what is stored has changed, or may hold more, by now."""
    names = [name for name in ("again", "conflict") if name in written.columns and (merged or name == "again")]
    found = written.filter(pl.any_horizontal(names).fill_null(False)) if names else written.clear()
    return found["position"]


def first_error(invalid: pl.DataFrame, key: tuple[str, ...]) -> str:
    """The first of some rows with an error, and how many more there are."""
    first = invalid.sort("row").row(0, named=True)
    more = f" (and {invalid.height - 1:,} more rows)" if invalid.height > 1 else ""
    return f"row {first['row']} ({'/'.join(str(first[name]) for name in key)}): {first['error']}{more}"


def _at(positions: pl.Series, height: int) -> pl.Series:
    """Whether each of so many rows is at one of these positions."""
    return pl.int_range(height, dtype=pl.UInt32, eager=True).is_in(positions.implode())
