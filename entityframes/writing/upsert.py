"""An upsert: prepare -> split -> validate -> write -> recover -> outcomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress

import polars as pl

from entityframes.engines.batch import random_id
from entityframes.engines.database import Recorder
from entityframes.errors import DuplicateError, EntityFramesError, SchemaError
from entityframes.frames.records import Records, Whole
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.rejected import Inputs
from entityframes.results import UpsertResult
from entityframes.threads import Submit
from entityframes.writing.batch import BatchWriter
from entityframes.writing.duplicates import Superseded
from entityframes.writing.options import RunOptions
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.prepare import FrameBatches, OneBatch, StreamBatches
from entityframes.writing.run import Run
from entityframes.writing.target import Target, Validated

#: The rows of a call: a frame, a stream of frames, Python objects, or rows that need no preparation and validation.
Source = pl.DataFrame | Iterator[pl.DataFrame] | Records | Whole | Validated


class Upsert:
    """One call of `upsert`.

    Args:
        engine: the engine of the store, or of tables.
        options: how rows are written.
        interrupt: stops the run.
        outcomes: builds the outcomes of the rows.
        target: makes the target of the run.
        run_id, new_id: as for `Run`.
    """

    def __init__(
        self,
        engine: Recorder,
        options: RunOptions,
        interrupt: Interrupt,
        outcomes: Outcomes,
        target: Callable[[Run], Target],
        run_id: str | None = None,
        new_id: Callable[[], str] = random_id,
    ) -> None:
        self._engine, self._options, self._interrupt = engine, options, interrupt
        self._run = Run(engine, interrupt, outcomes, run_id=run_id, new_id=new_id)
        self._target = target(self._run)
        self._superseded = Superseded(self._target.key, options.on_duplicate, self._target.comparable)

    def result(self) -> UpsertResult:
        """The outcomes so far."""
        run = self._run
        counts = dict(run.log.counts)
        rows = sum(counts.values())
        notes = (f"Reading stopped after {rows:,} rows: later rows, if any, were not read and have no outcome.",)
        return UpsertResult(counts, run.batches, run.elapsed, run.log, notes=notes if run.unread else ())

    @property
    def counts(self) -> dict[str, int]:
        """The number of rows by status, which goes on changing."""
        return self._run.log.counts

    def add_outcomes(self, outcomes: pl.DataFrame) -> None:
        """Add outcomes that are not those of rows of the source, such as deletions."""
        self._run.log.append(outcomes)

    @property
    def outcome_schema(self) -> pl.Schema:
        """The columns and dtypes of the outcomes."""
        return self._run.log.schema

    def written(self) -> list[str]:
        """The ids of the batches that have written rows so far."""
        return self._run.log.written()

    def amend(self, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        """Correct outcomes with what is known once all rows are written; see `OutcomeLog.amend`."""
        self._run.log.amend(change)

    def execute(self, source: Source, reporter: Reporter, submit: Submit) -> None:
        """Write the rows of a source. `result` is complete even if an exception is raised.

        Raises:
            KeyboardInterrupt: on Ctrl-C, after the batches in flight were rolled back.
            SchemaError: a frame cannot be stored. A frame in memory is refused before anything is written.
            DuplicateError: a key is repeated and ``on_duplicate="error"``. Both messages end with what was written.
            ValidationError, DatabaseError: rows failed and ``on_error="raise"``, or no batch can succeed.
        """
        writer = BatchWriter(self._target, self._options, self._run, self._superseded)
        try:
            batches = self._batches(source)
            self._run.execute(
                batches,
                writer.process if not isinstance(source, Validated) else lambda _: writer.process_valid(source),
                reporter,
                submit,
                disjoint=self._target.disjoint if isinstance(batches, StreamBatches) else None,
                raise_if_lost=self._options.on_error == "raise",
            )
        except (SchemaError, DuplicateError) as error:
            error.restate(f"{error.happened}; {self.result()._stored_before}", error.advice)
            raise
        finally:
            self._run.log.inputs.finish()
            if self._run.lost_connection and not self._interrupt.requested:
                # If this fails, the next run does it.
                with suppress(EntityFramesError):
                    self._target.restore_records()

    def whole(self, source: pl.DataFrame | Records) -> Whole:
        """All rows of a source, to be written by `execute`.

        Raises:
            SchemaError: Python objects cannot be converted to columns at all.
        """
        return source.whole(self._target.expected) if isinstance(source, Records) else Whole(source)

    def _batches(self, source: Source) -> FrameBatches | StreamBatches | OneBatch:
        """The rows of a source, as batches."""
        if isinstance(source, Validated):
            return OneBatch(source.rows)
        size, log = self._options.batch_size, self._run.log
        if isinstance(source, Records):
            objects, log.inputs = source, source.inputs
            source = objects.read(self._target.expected)
            size = size or objects.batch_rows
        if isinstance(source, Whole):
            # Objects that are in memory anyway need no file.
            log.inputs = Inputs(keep=source.height)
            log.inputs.add(source.objects or ())
            source = source.frame
        if isinstance(source, pl.DataFrame):
            return FrameBatches(source, self._target, self._superseded, self._engine, size)
        return StreamBatches(source, self._target, size)
