"""Deleting: split -> delete -> recover -> outcomes; each batch is one transaction with its ledger row."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import polars as pl

from entityframes.engines.base import Engine
from entityframes.engines.batch import Batch
from entityframes.errors import ConnectionLostError, DatabaseError, RowError
from entityframes.frames.schema import KEY, check_id_schema, numbered, readable_keys, usable_ids
from entityframes.frames.sources import as_frame
from entityframes.interrupt import Interrupt
from entityframes.progress import Reporter
from entityframes.results import DELETE_STATUSES, DeleteResult, together
from entityframes.retry import CommitUnknownError, Transaction
from entityframes.threads import Submit
from entityframes.writing.outcomes import Outcomes
from entityframes.writing.run import Run

#: Ids in a batch.
DELETE_ROWS = 50_000


class Delete:
    """One call of `delete`.

    Args:
        engine: the store's.
        interrupt: stops it.
        unchanged: whether only entities are deleted that still have the hashes given in content_hash and metadata_hash
            (Binary); others are taken as missing.
    """

    def __init__(self, engine: Engine, interrupt: Interrupt, *, unchanged: bool = False) -> None:
        self._engine = engine
        self._asked = [*KEY, "content_hash", "metadata_hash"] if unchanged else list(KEY)
        self._outcomes = Outcomes(KEY, readable_keys, DELETE_STATUSES)
        self._run = Run(engine, interrupt, self._outcomes, at_once=1)

    def result(self) -> DeleteResult:
        """What has happened so far."""
        run = self._run
        return DeleteResult(dict(run.log.counts), run.batches, run.elapsed, run.log)

    def execute(self, ids: Any, reporter: Reporter, submit: Submit) -> DeleteResult:
        """Delete what an id frame names.

        Raises:
            SchemaError: it is no id frame.
            DatabaseError: the database refused a batch; `result` says which ids it could not delete.
            KeyboardInterrupt: on Ctrl-C, after the batch in flight was rolled back; `result` says what was done.
        """
        given = as_frame(ids)
        check_id_schema(given.schema)
        keys = self._possible(numbered(given), reporter)
        self._run.execute(_Slices(keys), self._work, reporter, submit)
        return self.result()

    def _possible(self, given: pl.DataFrame, reporter: Reporter) -> pl.DataFrame:
        """The ids to look for, each once; the others get their outcome."""
        keys = given.select("row", *self._asked).with_columns(usable_ids(given).get_columns())
        unusable = keys.filter(~pl.col("usable"))
        possible = keys.filter("usable").drop("usable")
        again = ~possible.select(pl.struct(KEY).is_first_distinct()).to_series()
        self._run.log.append(self._outcomes.of(unusable, status="missing"))
        self._run.log.append(self._outcomes.of(possible.filter(again), status="duplicate"))
        possible = possible.filter(~again)
        if given.height > possible.height:
            reporter.advance(given.height - possible.height, self._run.log.counts)
        return possible

    def _work(self, rows: pl.DataFrame) -> pl.DataFrame:
        if self._run.stopping:
            return self._outcomes.unseen(rows)
        return together(self._isolated(rows))

    def _isolated(self, rows: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Delete in one transaction; where the database refuses a row, in smaller ones, down to that row."""
        parts = [rows]
        while parts:
            rows = parts.pop()
            batch = Batch(self._run.run_id, self._run.interrupt)
            try:
                yield self._deleted(rows, batch)
            except RowError as error:
                if rows.height == 1:
                    yield self._not_deleted(rows, batch, error)
                else:
                    half = rows.height // 2
                    parts += [rows[half:], rows[:half]]
                    self._run.batches += 2
            except DatabaseError as error:
                yield self._not_deleted(rows, batch, error)
                yield from (self._outcomes.of(part, status="cancelled") for part in parts)
                if not self._run.interrupt.requested:
                    self._run.end(error)
                return

    def _deleted(self, rows: pl.DataFrame, batch: Batch) -> pl.DataFrame:
        """Delete in one transaction, tried again where that helps, and the outcomes of the rows."""

        def recovered(lost: ConnectionLostError, answer: pl.DataFrame | None) -> pl.DataFrame | None:
            if answer is not None and answer.height:
                # This try found them, so that the one before came to nothing.
                return None
            found: pl.DataFrame | None = lost.answer
            return None if self._engine.deleted_by(batch) is None else found

        transaction: Transaction[pl.DataFrame] = Transaction(
            f"run {batch.run_id}, batch {batch.batch_id}", recovered, batch.interrupt
        )
        gone = transaction.run(lambda: self._engine.delete(rows.select(self._asked), batch))
        rows = rows.with_row_index("position").join(_with_error(gone), on="position", how="left", maintain_order="left")
        kept = pl.col("error").is_not_null()
        status = pl.when(kept).then(pl.lit("failed")).when("gone").then(pl.lit("deleted")).otherwise(pl.lit("missing"))
        kind = pl.when(kept).then(pl.lit("database"))
        return self._outcomes.of(rows, status=status, batch_id=batch.batch_id, error_kind=kind)

    def _not_deleted(self, rows: pl.DataFrame, batch: Batch, error: DatabaseError) -> pl.DataFrame:
        """Outcomes of a batch that ended in an error."""
        status = "unknown" if isinstance(error, CommitUnknownError) else "failed"
        if self._run.interrupt.requested and status == "failed":
            return self._outcomes.of(rows, status="cancelled", batch_id=batch.batch_id)
        return self._outcomes.of(
            rows,
            status=status,
            batch_id=batch.batch_id,
            error_kind=error.kind,
            rule=error.rule,
            error=str(error),
            sqlstate=error.sqlstate,
        )


class _Slices:
    """Ids in batches."""

    error: Exception | None = None

    def __init__(self, keys: pl.DataFrame) -> None:
        self.left = list(keys.iter_slices(DELETE_ROWS)) if keys.height else []

    def __iter__(self) -> Iterator[pl.DataFrame]:
        while self.left:
            yield self.left[0]

    def begun(self) -> None:
        del self.left[0]


def _with_error(gone: pl.DataFrame) -> pl.DataFrame:
    """What an engine answers, with the columns that it may leave out, and gone for every row of it."""
    texts = [
        pl.col(name) if name in gone.columns else pl.lit(None, pl.String).alias(name) for name in ("error", "rule")
    ]
    return gone.select("position", *texts, gone=pl.lit(True))
