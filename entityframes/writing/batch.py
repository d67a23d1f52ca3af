"""Processing a batch: validate -> write -> recover -> outcomes. Each row ends with exactly one outcome."""

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
from entityframes.results import concat_outcomes
from entityframes.retry import Transaction
from entityframes.writing.duplicates import Superseded
from entityframes.writing.options import RunOptions
from entityframes.writing.outcomes import NOTHING_WRITTEN, subset
from entityframes.writing.run import Run
from entityframes.writing.target import Attempt, Pending, Target, Validated

#: Errors that end the run, because no other batch could succeed either.
_FATAL = (PermanentError, ResourceError, ClosedError)


class BatchWriter:
    """Writes the batches of one call, each in the calling thread."""

    def __init__(self, target: Target, options: RunOptions, run: Run, superseded: Superseded) -> None:
        self._target, self._options, self._run, self._superseded = target, options, run, superseded
        self._outcomes = run.outcomes

    def process(self, chunk: pl.DataFrame) -> pl.DataFrame:
        """Write a batch, whose ``row`` column has the input positions, and return the outcomes of its rows."""
        return concat_outcomes(self._steps(chunk))

    def _steps(self, chunk: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Validate a batch, remove superseded rows and write the others; yields the outcomes of each step."""
        if self._run.stopping:
            yield self._outcomes.unprocessed(chunk)
            return
        try:
            validated = self._target.validate(chunk)
        except (DatabaseError, ClosedError) as error:
            # The metadata fields of the rows could not be loaded or recorded, so nothing of the batch was written.
            yield self._failed(self._outcomes.displayable(chunk), error)
            return
        try:
            rows, duplicates = self._superseded.split(validated.rows)
        except (DatabaseError, ClosedError) as error:
            # The database could not compare the keys.
            yield self._outcomes.of(validated.invalid, status="failed", error_kind="validation")
            yield self._failed(validated.rows, error)
            return
        yield self._outcomes.of(duplicates, status="duplicate")
        yield self._outcomes.of(validated.invalid, status="failed", error_kind="validation")
        if validated.invalid.height and self._options.on_error != "isolate":
            yield self._failed(rows, ValidationError(first_error(validated.invalid, self._target.key)))
            return
        yield from self._write_valid(self._target.in_key_order(rows), validated)

    def process_valid(self, validated: Validated) -> pl.DataFrame:
        """`process` for rows in key order that are valid and of which none is superseded."""
        return concat_outcomes(self._write_valid(validated.rows, validated))

    def _write_valid(self, rows: pl.DataFrame, validated: Validated) -> Iterator[pl.DataFrame]:
        """Write the rows of a validated batch that are left to be written."""
        try:
            pending = self._target.pending(rows, validated)
        except (DatabaseError, ClosedError) as error:
            yield self._failed(rows, error)
            return
        yield from self._write(pending)

    def _write(self, pending: Pending) -> Iterator[pl.DataFrame]:
        """Write rows until each has an outcome; rows whose entity changes while they are merged with it are retried."""
        while pending.rows.height:
            try:
                attempt = pending.attempt()
                yield from self._skipped(attempt, pending.batch)
                written, recovered = NOTHING_WRITTEN, False
                if attempt.rows.height:
                    written, recovered = self._commit(attempt.rows, pending.batch)
            except StatementCancelledError:
                yield self._outcomes.of(pending.rows, status="cancelled")
                return
            except (DatabaseError, ClosedError) as error:
                yield self._failed(pending.rows, error, pending.batch)
                return
            outdated = outdated_rows(written, merged=attempt.merged)
            if recovered:
                # The recovered result has only the rows that were written; the others are written again.
                done, result = subset(attempt.rows, written, _mask(written["position"], attempt.rows.height))
            elif len(outdated):
                done, result = subset(attempt.rows, written, ~_mask(outdated, attempt.rows.height))
            else:
                done, result = attempt.rows, written
            yield self._outcomes.committed(done, result, pending.batch)
            if done.height == pending.rows.height:
                return
            remaining = pending.rows.join(done, on="row", how="anti", maintain_order="left")
            pending.keep(remaining, merge=not recovered and len(outdated) > 0)

    def _skipped(self, attempt: Attempt, batch: Batch) -> Iterator[pl.DataFrame]:
        """Outcomes of the rows that an attempt does not write."""
        if attempt.skipped is not None and attempt.skipped.height:
            conflicts = attempt.skipped.with_row_index("position").filter("conflict").select("position", "conflict")
            yield self._outcomes.committed(attempt.skipped, conflicts, batch)
        if attempt.invalid is not None and attempt.invalid.height:
            yield self._outcomes.of(attempt.invalid, status="failed", error_kind="validation")
            if self._options.on_error == "raise":
                self._run.abort(ValidationError(first_error(attempt.invalid, self._target.key)))

    def _commit(self, rows: pl.DataFrame, batch: Batch) -> tuple[pl.DataFrame, bool]:
        """Write rows in one transaction.

        Returns:
            The result of the engine, and whether it was recovered after a COMMIT without a response.
        """
        target = self._target
        transaction: Transaction[pl.DataFrame] = Transaction(
            f"run {batch.run_id}, batch {batch.batch_id}",
            lambda lost, later: target.recovered(rows, batch, lost, later),
            self._run.interrupt,
        )
        try:
            written = transaction.run(lambda: target.write(rows, batch))
        except RowError as error:
            if self._options.on_error != "isolate" and not error.rekeyed:
                raise
            # Write row by row, skipping those that the database rejects.
            written = transaction.run(lambda: target.write_each(rows, batch))
        return written, transaction.was_recovered

    def _failed(self, rows: pl.DataFrame, error: EntityFramesError, batch: Batch | None = None) -> pl.DataFrame:
        """Outcomes of rows that were rolled back; ends the run if the error is fatal or ``on_error="raise"``."""
        self._run.batch_failed(error, fatal=self._options.on_error == "raise" or isinstance(error, _FATAL))
        return self._outcomes.rolled_back(rows, error, batch)


def outdated_rows(written: pl.DataFrame, *, merged: bool) -> pl.Series:
    """The positions of rows that were not written because another writer has changed their entity or added fields."""
    names = [name for name in ("again", "conflict") if name in written.columns and (merged or name == "again")]
    found = written.filter(pl.any_horizontal(names).fill_null(False)) if names else written.clear()
    return found["position"]


def first_error(invalid: pl.DataFrame, key: tuple[str, ...]) -> str:
    """The error of the first invalid row, with the number of further ones."""
    first = invalid.sort("row").row(0, named=True)
    more = f" (and {invalid.height - 1:,} more rows)" if invalid.height > 1 else ""
    return f"row {first['row']} ({'/'.join(str(first[name]) for name in key)}): {first['error']}{more}"


def _mask(positions: pl.Series, height: int) -> pl.Series:
    """A Boolean for each of `height` rows: whether its position is among `positions`."""
    return pl.int_range(height, dtype=pl.UInt32, eager=True).is_in(positions.implode())
